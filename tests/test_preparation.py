"""What makes a network ready for INT8 in a build: what it gains, what switches it off, and that a bundle keeps it."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from calibration import load_recipe
from edgeseg.bundle import Bundle, read_bundle, write_bundle
from edgeseg.console import Console
from edgeseg.data import Reading, load_dataset, read
from edgeseg.errors import BadInput, BundleError
from edgeseg.graph import Graph
from edgeseg.pipeline import build
from edgeseg.pipeline.evening import LEAST_GAIN, SAME, evened
from edgeseg.pipeline.frames import QUICK, Effort, effort_for
from edgeseg.pipeline.network import Network, files_of, network_in
from edgeseg.pipeline.prepare import fitted_to, ready
from edgeseg.quantize import DIALECTS, ONNXRUNTIME_X86, ONNXRUNTIME_X86_NO_VNNI, OPENVINO, TENSORRT
from edgeseg.quantize import fitted as stored
from edgeseg.quantize.fitted import Fitted
from edgeseg.quantize.write import weight_name
from edgeseg.types import LOGITS, OnnxModel
from tests.quantize import making
from tests.quantize.hard import separable

QUIET = Console()
DIALECTS_HERE = (ONNXRUNTIME_X86, OPENVINO, TENSORRT)


def folder_of(frames: making.Array, folder: Path) -> Reading:
    (folder / "frames").mkdir(parents=True)
    for index, frame in enumerate(frames):
        cv2.imwrite(str(folder / f"frames/{index:03d}.png"), np.ascontiguousarray(frame))
    (folder / "dataset.toml").write_text('name = "files"\n[splits.train]\nimages = "frames"\n', encoding="utf-8")
    split = load_dataset(folder / "dataset.toml").split("train")
    return read(split, range(len(frames)), labels=False)


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Reading:
    return folder_of(making.frames(32, seed=4), tmp_path_factory.mktemp("waves"))


def unequal(model: OnnxModel, factor: float = 60.0) -> OnnxModel:
    """The same function with half the channels between two convolutions scaled up: as training leaves them at times."""
    graph = Graph(model.graph)
    nodes = [node for node in graph.nodes if node.op_type == "Conv"]
    first, second = nodes[1], nodes[2]
    weights, bias, reader = (graph.constant(name) for name in (*first.input[1:3], second.input[1]))
    assert weights is not None
    assert bias is not None
    assert reader is not None
    assert reader.shape[1] == len(weights)
    by = np.where(np.arange(len(weights)) % 2, factor, 1.0).astype(np.float32)
    graph.replace_constant(first.input[1], weights * by[:, None, None, None])
    graph.replace_constant(first.input[2], bias * by)
    graph.replace_constant(second.input[1], reader / by[None, :, None, None])
    return replace(model, graph=graph.finish([]))


def error(network: Network, dialect: Any, exact: OnnxModel) -> float:
    """dB of the scores on frames that nothing was fitted to."""
    plain = replace(dialect, fake=False, integer_bias=False)
    return making.snr_db(*(everything(graph, LOGITS) for graph in (exact.graph, network.int8(plain).graph)))


def everything(graph: bytes, tensor: str) -> making.Array:
    return np.concatenate(
        [making.tensors_of(graph, [tensor], frame[None])[tensor] for frame in making.frames(4, seed=9)]
    )


def chain() -> OnnxModel:
    net = making.Net(3)
    x = net.relu(net.conv(net.image(), "first", 8), "relu1")
    x = net.relu(net.conv(x, "second", 8), "relu2")
    x = net.relu(net.conv(x, "third", 8), "relu3")
    return net.model(net.conv(x, "head", 4, 1))


@pytest.mark.parametrize("dialect", DIALECTS_HERE, ids=lambda dialect: dialect.name)
def test_it_makes_int8_err_less_and_the_network_stays_the_same(reading: Reading, dialect: Any) -> None:
    model = unequal(chain())
    plain, _ = made(model, reading, without=("equalization", "rounding", "bias"))
    network, row = made(model, reading)
    assert row["equalized"] > 0
    assert min(row["gain_db"].values()) > 3
    masks = [everything(graph.graph, "mask") for graph in (model, network.fp32)]
    assert np.mean(masks[0] == masks[1]) >= SAME
    assert error(network, dialect, model) > error(plain, dialect, model) + 3


def made(model: OnnxModel, reading: Reading, without: Any = (), **how: Any) -> tuple[Network, dict[str, Any]]:
    effort = effort_for(False, None, without)
    options: dict[str, Any] = {"use_cache": False, "console": QUIET} | how
    found = ready(model, reading, load_recipe("mse"), DIALECTS_HERE, effort, **options)
    return found.network, found.row


def test_what_does_not_help_is_not_done(reading: Reading) -> None:
    model = making.unet()
    even, row = evened(model, reading, load_recipe("mse"), [TENSORRT], Effort(), use_cache=False, console=QUIET)
    kept = row["equalized"] > 0
    assert kept == (row["gain_db"]["tensorrt"] >= LEAST_GAIN)
    assert (even.graph != model.graph) == kept
    same, nothing = evened(model, reading, load_recipe("mse"), [TENSORRT], QUICK, use_cache=False, console=QUIET)
    assert same is model
    assert nothing == {"folded": 0, "equalized": 0, "gain_db": {}}


def test_each_part_can_be_left_out(reading: Reading) -> None:
    model = unequal(chain())
    network, row = made(model, reading, without=("equalization", "rounding"))
    assert network.fp32 is model
    assert set(row["fitted"]) == {dialect.name for dialect in DIALECTS_HERE}
    assert network.fits(TENSORRT) is not None
    assert network.fitted["tensorrt"].biases
    assert not network.fitted["tensorrt"].integers
    network, row = made(model, reading, without=("rounding", "bias"))
    assert row["equalized"]
    assert not network.fitted
    with pytest.raises(BadInput, match="magic"):
        effort_for(False, None, ("magic",))  # type: ignore[arg-type]


def test_one_fit_serves_all_dialects_with_weights_of_so_many_bits(reading: Reading) -> None:
    model = chain()
    network, row = made(model, reading)
    assert list(row["fitted"]) == ["weights-8"]
    assert row["fitted"]["weights-8"]["rounded"] == len(network.fitted["weights-8"].integers) > 1
    for dialect in (*DIALECTS_HERE, DIALECTS["onnxruntime-arm"]):
        graph = Graph(network.int8(dialect).graph)
        written = {node: graph.constant(weight_name(node)) for node in network.fitted["weights-8"].integers}
        same = [
            np.array_equal(found, network.fitted["weights-8"].integers[node])
            for node, found in written.items()
            if found is not None
        ]
        assert same
        assert all(same)
    assert network.fits(ONNXRUNTIME_X86_NO_VNNI) is None  # seven bits
    frames = [frame[None] for frame in making.frames(8)]
    more, _ = fitted_to(network, frames, [ONNXRUNTIME_X86_NO_VNNI], Effort(), use_cache=False, console=QUIET)
    assert set(more.fitted) == {"weights-7", "weights-8"}
    assert max(int(np.abs(value).max()) for value in more.fitted["weights-7"].integers.values()) <= 63


def test_it_is_used_again(reading: Reading, capsys: pytest.CaptureFixture[str]) -> None:
    model = unequal(chain())
    first, row = made(model, reading, use_cache=True)
    capsys.readouterr()
    again, same = made(model, reading, use_cache=True, console=Console(quiet=False))
    said = capsys.readouterr().err
    assert said.count("reused") == 3  # equalize, calibrate, fit
    assert row == same
    assert first.fp32.graph == again.fp32.graph
    assert all(first.int8(d).graph == again.int8(d).graph for d in DIALECTS_HERE)


def bundle_of(network: Network, built: Path) -> Bundle:
    bundle = read_bundle(built)
    return replace(bundle, files={**bundle.files, **files_of(network)})


def test_a_bundle_keeps_it(reading: Reading, built: Path) -> None:
    network, _ = made(unequal(chain()), reading)
    learned = replace(network, fitted={**network.fitted, "openvino": Fitted(learned=chain().graph)})
    kept = network_in(bundle_of(learned, built))
    assert kept is not None
    assert set(kept.fitted) == {"weights-8", "openvino"}
    for dialect in DIALECTS_HERE:
        assert kept.int8(dialect).graph == learned.int8(dialect).graph
    assert kept.int8(OPENVINO).graph != network.int8(OPENVINO).graph
    assert network_in(read_bundle(built), "rewritten/") is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d | {"schema": "edgeseg.fitted/9"}, "edgeseg.fitted/1 was expected"),
        (lambda d: {"schema": d["schema"], "integers": d["integers"]}, "'biases' was expected"),
        (lambda d: d | {"integers": {"nobody": next(iter(d["integers"].values()))}}, "no convolution 'nobody'"),
        (lambda d: d | {"integers": {n: r | {"shape": [1, 2]} for n, r in d["integers"].items()}}, "are damaged"),
        (lambda d: d | {"integers": {n: r | {"data": "%%"} for n, r in d["integers"].items()}}, "are damaged"),
        (lambda d: d | {"integers": {n: r | {"shape": [-1]} for n, r in d["integers"].items()}}, "is no shape"),
        (lambda d: d | {"integers": {n: {"shape": [1], "data": "AA=="} for n in d["integers"]}}, "was expected"),
        (lambda d: d | {"biases": {n: nan_row(d["integers"][n]["shape"][0]) for n in d["integers"]}}, "no row of fin"),
    ],
)
def test_damaged_fits_are_named(reading: Reading, built: Path, change: Any, words: str) -> None:
    network, _ = made(chain(), reading)
    bundle = bundle_of(network, built)
    file = "int8/weights-8.json"
    broken = json.dumps(change(json.loads(bundle.files[file]))).encode()
    with pytest.raises(BundleError, match=words) as caught:
        network_in(replace(bundle, files={**bundle.files, file: broken}))
    assert file in str(caught.value)


def nan_row(count: int) -> dict[str, Any]:
    return {"shape": [count], "data": base64.b64encode(np.full(count, np.nan, "<f4").tobytes()).decode()}


def test_numbers_survive_as_text() -> None:
    integers = np.arange(-12, 12, dtype=np.int8).reshape(2, 3, 2, 2)
    biases = np.array([1e-30, -3.5, 7e30], np.float32)
    found = stored.from_json(stored.to_json(Fitted({"a/b": integers}, {"c": biases})))
    np.testing.assert_array_equal(found.integers["a/b"], integers)
    np.testing.assert_array_equal(found.biases["c"], biases)
    assert found.integers["a/b"].dtype == np.int8


def test_engines_made_from_a_bundle_have_the_same_int8(street: Path, tmp_path: Path) -> None:
    """No data, no calibration frames: what was fitted is in the bundle."""
    first, second = tmp_path / "a.edgeseg", tmp_path / "b.edgeseg"
    made = build(
        street / "net.onnx",
        data=street / "dataset.toml",
        precision="int8",
        backend="onnxruntime",
        max_miou_drop=100.0,
        out=first,
    )
    assert made.report["preparation"]["fitted"]["weights-8"]["rounded"] > 0
    build(first, precision="int8", backend="onnxruntime", max_miou_drop=100.0, out=second)
    graphs = [network_in(read_bundle(path)) for path in (first, second)]
    assert graphs[0] is not None
    assert graphs[1] is not None
    for dialect in DIALECTS_HERE:
        assert graphs[0].int8(dialect).graph == graphs[1].int8(dialect).graph
    whole = [Graph(read_bundle(path).graph("onnxruntime-int8")) for path in (first, second)]
    for node in graphs[0].fitted["weights-8"].integers:
        found = [graph.constant(weight_name(node)) for graph in whole]
        if found[0] is not None:
            np.testing.assert_array_equal(found[0], found[1])


def test_a_network_of_one_size_only_is_fitted_on_few_frames(tmp_path: Path) -> None:
    few = folder_of(making.frames(2), tmp_path / "few")
    network, row = made(separable(), few)
    assert row["fitted"]["weights-8"]["rounded"] + len(row["fitted"]["weights-8"]["left"]) > 0
    assert network.table is not None
    assert network.table.frames == 2


def test_a_bundle_that_is_written_and_read_holds_the_fits(reading: Reading, built: Path, tmp_path: Path) -> None:
    network, _ = made(chain(), reading)
    path = write_bundle(bundle_of(network, built), tmp_path / "o.edgeseg")
    kept = network_in(read_bundle(path))
    assert kept is not None
    assert kept.int8(TENSORRT).graph == network.int8(TENSORRT).graph
