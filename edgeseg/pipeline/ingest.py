"""The first step: the model file as one graph, proven on real frames to answer as the network does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg import __version__, cache, export, intake
from edgeseg.bundle import FP32, read_bundle
from edgeseg.console import Console
from edgeseg.errors import BadInput
from edgeseg.export.reference import onnx_reference
from edgeseg.measure.agreement import agreement
from edgeseg.measure.machine import versions
from edgeseg.measure.profile import Profile, profile
from edgeseg.spec import find_spec, spec_for
from edgeseg.types import ModelSpec, OnnxModel, Pixels, Torch


def ingest(
    path: Path,
    spec: ModelSpec,
    frames: Sequence[Pixels],
    *,
    trust_pickle: bool,
    dynamic: bool,
    opset: int | None,
    quick: bool,
    use_cache: bool,
    console: Console,
) -> tuple[OnnxModel, dict[str, Any]]:
    """The network as one graph, proven on `frames` to answer as torch does, and what there is to say about it."""
    if not path.is_file():
        raise BadInput(f"there is no model file {path}")
    made_by = {
        name: version for name, version in versions().items() if name in ("torch", "onnx", "onnxslim", "onnxscript")
    }
    key = cache.key(
        "export",
        __version__,
        intake.fingerprint(path, spec),
        dynamic,
        opset,
        quick,
        made_by,
        *map(np.ndarray.tobytes, frames),
    )
    with console.step("export") as step:
        graph, stored = cache.load("graph", key), cache.load("parity", key)
        if use_cache and graph is not None and stored is not None:
            report = json.loads(stored)
            step.note = f"reused: {_summary(report)}"
            return OnnxModel(graph, spec), report
        source = intake.load(path, spec, trust_pickle=trust_pickle)
        if isinstance(source, intake.Onnx):
            exported = export.from_onnx(source, spec, dynamic=dynamic)
            if opset not in (None, exported.opset):
                raise BadInput(f"opset {opset} was asked for, but {path} is an ONNX graph of opset {exported.opset}")
        else:
            exported = export.to_onnx(source, spec, opset=opset, dynamic=dynamic, quick=quick)
        fused, report = _proven(source, exported, spec, frames, dynamic=dynamic)
        if report["form"] != "pickle":  # a pickle may run other code tomorrow
            cache.store("graph", key, fused.graph)
            cache.store("parity", key, json.dumps(report).encode())
        step.note = _summary(report)
    for note in report["notes"]:
        console.say(f"           note: {note}")
    return fused, report


def exported_student(
    network: Torch, spec: ModelSpec, frames: Sequence[Pixels], *, opset: int | None = None, quick: bool = True
) -> OnnxModel:
    """A rewritten network as one graph, proven on `frames` like a network from a file."""
    return _proven(network, export.to_onnx(network, spec, opset=opset, quick=quick), spec, frames, dynamic=False)[0]


def _proven(
    source: Torch | intake.Onnx,
    exported: export.Exported,
    spec: ModelSpec,
    frames: Sequence[Pixels],
    *,
    dynamic: bool,
) -> tuple[OnnxModel, dict[str, Any]]:
    reference = (
        onnx_reference(source, spec) if isinstance(source, intake.Onnx) else export.torch_reference(source, spec)
    )
    fused = export.fuse(exported.graph, spec, dynamic=dynamic)
    parity = export.compare(reference, fused, frames, agreement)
    export.require(parity, lambda: _diverging(source, fused, parity))
    return fused, {
        "form": "onnx" if isinstance(source, intake.Onnx) else source.form,
        "opset": exported.opset,
        "notes": list(exported.notes),
        "parity": {"frames": parity.frames, "overall": parity.overall, "boundary": parity.boundary},
    }


def _diverging(source: intake.Torch | intake.Onnx, fused: OnnxModel, parity: export.Parity) -> export.Divergence | None:
    return None if parity.worst is None else export.first_divergence(source, fused, parity.worst)


def _summary(report: Mapping[str, Any]) -> str:
    parity = report["parity"]
    return (
        f"{report['form']}, opset {report['opset']}; {100 * parity['overall']:.3f} % of labels as the network gives "
        f"them, {100 * parity['boundary']:.2f} % along boundaries ({parity['frames']} frames)"
    )


def profiled(
    model: str | Path, *, spec: str | Path | None = None, variant: str | None = None, trust_pickle: bool = False
) -> Profile:
    """Multiplications, parameters and activations of a model file, or of a bundle's FP32 graph or named variant.

    Of an ONNX file as it is; it needs a spec only where its input size is free. Also known as `edgeseg.profile`.
    """
    path = Path(model)
    if path.is_dir() or path.suffix == ".edgeseg":
        return profile(_graph_in(path, variant))
    if path.suffix == ".onnx" and spec is None and find_spec(path) is None:
        return profile(path.read_bytes())
    read_spec = spec_for(path, spec)
    source = intake.load(path, read_spec, trust_pickle=trust_pickle)
    if isinstance(source, intake.Onnx):
        return profile(export.from_onnx(source, read_spec).graph)
    return profile(export.to_onnx(source, read_spec, quick=True).graph)


def _graph_in(path: Path, variant: str | None) -> bytes:
    bundle = read_bundle(path)
    if variant is None and FP32 in bundle.files:
        return bundle.files[FP32]
    chosen = bundle.variant(variant)
    if not chosen.files[0].endswith(".onnx"):
        ours = ", ".join(other.name for other in bundle.variants if other.files[0].endswith(".onnx"))
        raise BadInput(f"'{chosen.name}' of {path} is no ONNX graph; of this bundle can be profiled: {ours or 'none'}")
    return bundle.graph(chosen)
