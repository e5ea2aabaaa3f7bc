"""Networks as torch exports them, and a published one: translated back, they compute what ONNX Runtime computes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from calibration import calibrate, load_recipe
from edgeseg.backends.onnxruntime import probe
from edgeseg.data import load_dataset, read
from edgeseg.data.prepare import fit
from edgeseg.export import from_onnx, fuse, to_onnx
from edgeseg.pipeline.recover import SAME, enough, same_labels
from edgeseg.quantize import DIALECTS, Graph, place, quantize
from edgeseg.recover import every_bias, network, student
from edgeseg.spec import spec_for
from edgeseg.types import Frames, InputSpec, ModelSpec, Onnx, OnnxModel, Torch
from tests import models
from tests.quantize import making

SHARED = Path(os.environ.get("EDGESEG_SHARED", Path(__file__).resolve().parents[3] / "shared"))
SPEC = ModelSpec("net", InputSpec(models.SIZE, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)))
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "unet": models.UNet,
    "low resolution": models.LowResolution,
    "one channel": models.OneChannel,
    "joined": models.Concatenated,
    "transposed": models.Transposed,
}


def every_dialect(model: OnnxModel, frames: Frames, names: Iterable[str] = DIALECTS) -> None:
    """FP32 and INT8 of these dialects: 99.9 % of the labels, or what ONNX Runtime has in common with itself."""
    teacher = network(model.graph)
    assert same_labels(teacher, model, list(frames)) >= 0.9999
    graph = Graph(model.graph)
    tensors = sorted(set().union(*(place(graph, dialect).observed for dialect in DIALECTS.values())))
    seen = probe(model.graph, tensors, (frame[None] for frame in frames))
    table = calibrate(seen, load_recipe("mse"), model=model.digest, data="these frames")
    biases = every_bias(model)
    for dialect in map(DIALECTS.__getitem__, names):
        written = quantize(model, table, replace(dialect, fake=False), bias=biases)
        learner = student(model, written.graph, dialect.weight_bits, bias=biases)
        share = same_labels(learner, written, list(frames))
        assert share >= enough(share, written, list(frames)), dialect.name
        assert share >= SAME - 0.0005, dialect.name


@pytest.mark.parametrize("name", NETWORKS)
def test_exports_of_torch(name: str) -> None:
    source = Torch(models.seeded(NETWORKS[name]), "pickle")
    exported: Any = to_onnx(source, SPEC, quick=True)
    every_dialect(fuse(exported.graph, SPEC), models.frames(8, seed=4))


def test_a_foreign_graph_with_a_rendered_data_set(street: Path) -> None:
    spec = spec_for(street / "net.onnx", None)
    exported = from_onnx(Onnx(making.plain_network()), spec)
    dataset = load_dataset(street / "dataset.toml")
    frames = [fit(sample.pixels, spec.input.size) for sample in read(dataset.split("train"), labels=False)]
    every_dialect(fuse(exported.graph, spec), np.stack(frames))


@pytest.mark.skipif(not (SHARED / "models/unet_camvid.pt2").is_file(), reason="needs shared/models/unet_camvid.pt2")
@pytest.mark.skipif(not (SHARED / "camvid/dataset.toml").is_file(), reason="needs shared/camvid")
def test_a_published_network_on_real_frames() -> None:
    from edgeseg import intake

    path = SHARED / "models/unet_camvid.pt2"
    spec = spec_for(path, None)
    source = intake.load(path, spec)
    assert isinstance(source, Torch)
    split = load_dataset(SHARED / "camvid/dataset.toml").split("train")
    chosen = read(split, [20], color=spec.input.frame, labels=False)
    frames = [fit(sample.pixels, spec.input.size, spec.input.resize) for sample in chosen]
    torch.set_num_threads(1)
    every_dialect(
        fuse(to_onnx(source, spec, quick=True).graph, spec), np.stack(frames), ["onnxruntime-x86", "tensorrt"]
    )
