"""From graph to engine on the double of each release: every call that is made exists there, and says what was meant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import pytest

from edgeseg import quantize
from edgeseg.backends.tensorrt.build import BuildCancelled, BuildFailed, _configure, build, merged, refusal
from edgeseg.backends.tensorrt.graph import for_tensorrt
from edgeseg.backends.tensorrt.library import network_flags, strongly_typed, version_of
from edgeseg.backends.tensorrt.options import Options, shapes_from
from edgeseg.errors import BadInput
from edgeseg.quantize.half import half
from edgeseg.types import OnnxModel, Precision
from tests.quantize import making
from tests.tensorrt.double import make

CLASSIC = ["8.5.3.1", "8.6.1", "10.0.1", "10.3.0", "10.13.3.9", "11.4.0.106"]
RTX = "rtx-1.7.1.116"


def graph_for(trt: Any, precision: Precision, make_model: Callable[[], OnnxModel] = making.unet) -> bytes:
    """The graph that a build would give this release."""
    model = make_model()
    if precision == "int8":
        model = quantize.quantize(model, making.table_of(model), quantize.DIALECTS["tensorrt"])
    if precision == "fp16" or (precision == "int8" and strongly_typed(trt)):
        model = half(model).model
    return for_tensorrt(model.graph)


def capability_for(release: str) -> tuple[int, int] | None:
    return (8, 6) if release == RTX else None


@pytest.mark.parametrize("release", [*CLASSIC, RTX])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_release_builds_every_precision(release: str, precision: Precision) -> None:
    trt = make(release)
    arithmetic = Options(arithmetic="f32" if precision == "fp32" else "f16")
    product = build(trt, graph_for(trt, precision), precision, arithmetic, capability=capability_for(release))
    assert len(product.engine) > 1000
    assert bool(product.timings) == (release != RTX)


@pytest.mark.parametrize("release", [*CLASSIC, RTX])
def test_progress_is_told_where_the_release_can(release: str) -> None:
    trt = make(release)
    steps: list[tuple[str, int, int]] = []

    def progress(phase: str, done: int, total: int) -> bool:
        steps.append((phase, done, total))
        return True

    build(trt, graph_for(trt, "fp32"), "fp32", Options(), on_progress=progress, capability=capability_for(release))
    assert bool(steps) == (version_of(trt)[0] >= 10 or release == RTX)
    assert all(0 <= done <= total for _, done, total in steps)


@pytest.mark.parametrize("release", ["10.3.0", "11.4.0.106", RTX])
def test_a_build_is_cancelled_between_two_steps(release: str) -> None:
    trt = make(release)
    with pytest.raises(BuildCancelled):
        build(
            trt,
            graph_for(trt, "fp32"),
            "fp32",
            Options(),
            on_progress=lambda phase, done, total: done < 1,
            capability=capability_for(release),
        )


@pytest.mark.parametrize(
    ("release", "options", "says"),
    [
        ("8.5.3.1", Options(level=5), "8.6 and later"),
        ("8.5.3.1", Options(version_compatible=True), "8.6 and later"),
        ("8.5.3.1", Options(hardware="ampere+"), "8.6 and later"),
        ("8.6.1", Options(hardware="same-capability"), "10.9 and later"),
        ("10.3.0", Options(hardware="same-capability"), "10.9 and later"),
        ("10.3.0", Options(dla=0), "Build without dla"),
        ("8.6.1", Options(shapes=shapes_from("1x8x8:1x8x8:1x8x8")), "--dynamic"),
    ],
)
def test_what_a_release_lacks_is_refused_in_words(release: str, options: Options, says: str) -> None:
    trt = make(release)
    with pytest.raises(BadInput) as refused:
        build(trt, graph_for(trt, "fp32"), "fp32", options)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("release", "options"),
    [
        ("8.6.1", Options(version_compatible=True, hardware="ampere+", level=0, workspace_mb=64, tf32=False)),
        ("10.13.3.9", Options(version_compatible=True, hardware="same-capability", level=5, sparse=True)),
        ("11.4.0.106", Options(version_compatible=True, hardware="ampere+", level=4, workspace_mb=1)),
    ],
)
def test_what_a_release_has_is_taken(release: str, options: Options) -> None:
    trt = make(release)
    assert refusal(trt, options) is None
    assert build(trt, graph_for(trt, "fp32"), "fp32", options).engine


@pytest.mark.parametrize("release", [*CLASSIC, RTX])
def test_tactics_of_other_libraries_can_be_left_out(release: str) -> None:
    """Where there are any; those of TensorRT itself stay."""
    trt = make(release)
    network = trt.Builder(trt.Logger()).create_network(network_flags(trt))
    config = trt.Builder(trt.Logger()).create_builder_config()
    before = config.get_tactic_sources()
    _configure(trt, trt.Builder(trt.Logger()), network, config, "fp32", Options(no_external_tactics=True))
    gone = before & ~config.get_tactic_sources()
    assert gone == (0b111 if hasattr(trt.TacticSource, "CUDNN") else 0)
    assert config.get_tactic_sources() & 1 << int(trt.TacticSource.JIT_CONVOLUTIONS)
    options = Options(no_external_tactics=True)
    assert build(trt, graph_for(trt, "fp32"), "fp32", options, capability=capability_for(release)).engine


def test_dla_takes_the_core_and_falls_back_to_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGESEG_TRT_DOUBLE_DLA", "2")
    trt = make("10.3.0")
    assert build(trt, graph_for(trt, "fp16"), "fp16", Options(dla=1)).engine
    with pytest.raises(BadInput, match="finds 2 DLA cores"):
        build(trt, graph_for(trt, "fp16"), "fp16", Options(dla=2))


@pytest.mark.parametrize("release", ["8.5.3.1", "8.6.1"])
def test_without_strong_typing_flags_allow_what_the_graph_asks(release: str) -> None:
    """The double refuses Q/DQ without the INT8 flag and FP16 tensors without the FP16 flag, as 8.x does."""
    trt = make(release)
    assert not strongly_typed(trt)
    with pytest.raises(BuildFailed):
        build(trt, graph_for(trt, "int8"), "fp32", Options())
    with pytest.raises(BuildFailed):
        build(trt, graph_for(trt, "fp16"), "fp32", Options())


def test_flags_of_the_network_follow_the_release() -> None:
    flags = {release: network_flags(make(release)) for release in [*CLASSIC, RTX]}
    explicit_batch = flags["8.5.3.1"]
    assert explicit_batch == flags["8.6.1"]
    assert all(flags[release] != explicit_batch for release in ("10.0.1", "10.3.0", "10.13.3.9"))


@pytest.mark.parametrize("release", [*CLASSIC, RTX])
def test_an_operator_that_nobody_knows_is_named(release: str) -> None:
    trt = make(release)
    proto = onnx.load_from_string(making.unet().graph)
    node = next(node for node in proto.graph.node if node.op_type == "Relu")
    node.op_type, node.domain = "NobodyKnowsThis", "example.org"
    proto.opset_import.append(onnx.helper.make_opsetid("example.org", 1))
    with pytest.raises(BuildFailed) as refused:
        build(trt, proto.SerializeToString(), "fp32", Options(), capability=capability_for(release))
    assert "NobodyKnowsThis" in str(refused.value) or node.name in str(refused.value)
    assert "--backend onnxruntime" in str(refused.value)


def test_a_builder_that_has_no_kernel_names_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    trt = make("10.3.0")
    monkeypatch.setenv("EDGESEG_TRT_DOUBLE_UNBUILDABLE", "node_conv2")
    with pytest.raises(BuildFailed) as refused:
        build(trt, graph_for(trt, "int8"), "int8", Options())
    assert "node_conv2" in refused.value.nodes


def test_running_out_of_memory_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    trt = make("10.3.0")
    monkeypatch.setenv("EDGESEG_TRT_DOUBLE_ERROR", "Cuda Runtime (out of memory)")
    with pytest.raises(BuildFailed, match="--trt workspace=512"):
        build(trt, graph_for(trt, "fp32"), "fp32", Options())


def test_timing_caches_of_two_builds_become_one() -> None:
    trt = make("10.3.0")
    first = build(trt, graph_for(trt, "fp32"), "fp32", Options()).timings
    second = build(trt, graph_for(trt, "int8"), "int8", Options(), timings=first).timings
    assert len(merged(trt, first, second)) >= len(first)
    assert merged(trt, first, b"no timing cache at all") == first
    assert build(trt, graph_for(trt, "fp32"), "fp32", Options(), timings=b"damaged").engine


def test_rtx_is_told_what_it_builds_for() -> None:
    trt = make(RTX)
    with pytest.raises(BadInput, match="it builds for SM120"):
        build(trt, graph_for(trt, "fp32"), "fp32", Options(), capability=(9, 0))
