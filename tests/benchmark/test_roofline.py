from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeseg import backends
from edgeseg.backends import Engine
from edgeseg.benchmark.layer_times import from_counters, from_trace, layer_times, names
from edgeseg.benchmark.probe import best_ns, copy_peak, last_level_cache
from edgeseg.benchmark.probe_graph import probe_graph
from edgeseg.benchmark.roofline import roofline, rooflines
from edgeseg.measure.profile import profile
from edgeseg.measure.roofline import LayerTime, Peaks, least_ms, row
from edgeseg.report.bench import bench_section, bench_table
from tests.benchmark.fakes import Clock, FakeEngine, opened

PEAKS = Peaks({"fp32": 100.0, "int8": 400.0}, 20.0, 2)


def test_the_roof() -> None:
    # 2e8 MACs at 1e11 a second are 2 ms, 2e7 bytes at 2e10 a second are 1 ms.
    found = row(LayerTime("a", "Conv", "fp32", 4.0, 200_000_000, 20_000_000), PEAKS)
    assert (found["least_ms"], found["share"], found["bound"]) == (2.0, 0.5, "compute")
    assert (found["gmac_s"], found["gb_s"], found["intensity"]) == (50.0, 5.0, 10.0)
    found = row(LayerTime("a", "Conv", "int8", 4.0, 200_000_000, 20_000_000), PEAKS)
    assert (found["least_ms"], found["share"], found["bound"]) == (1.0, 0.25, "memory")
    # Where the two roofs meet, intensity is peak over bandwidth.
    compute, memory = least_ms(1_000_000, 200_000, "fp32", PEAKS) or (0.0, 1.0)
    assert compute == pytest.approx(memory)


def test_what_is_not_known_is_not_told() -> None:
    found = row(LayerTime("a", "Conv", "bf16", 4.0, 200_000_000, 20_000_000), PEAKS)
    assert (found["least_ms"], found["share"], found["bound"]) == (None, None, None)
    assert found["gmac_s"] == 50.0
    # A copy needs no arithmetic, so its precision does not matter.
    assert row(LayerTime("a", "Concat", "bf16", 4.0, 0, 20_000_000), PEAKS)["bound"] == "memory"
    assert row(LayerTime("a", "Reshape", "fp32", 0.0, 0, 0), PEAKS)["share"] is None
    assert row(LayerTime("a", "Conv", "fp32", 4.0, 1, 1), None)["share"] is None


def test_a_bundle_is_the_sum_of_its_layers() -> None:
    counted = profile(probe_graph(int8=False, channels=4, size=8, depth=1))
    layers = [
        LayerTime("a", "Conv", "fp32", 4.0, 200_000_000, 20_000_000),
        LayerTime("b", "Concat", "fp32", 2.0, 0, 30_000_000),
    ]
    found = roofline(counted, layers, PEAKS, "fp32", 7.0)
    assert found["bundle"]["least_ms"] == pytest.approx(2.0 + 1.5)
    assert found["bundle"]["share"] == pytest.approx(0.5)
    assert found["bundle"]["bound"] == "compute"
    assert found["bundle"]["bytes"] == 50_000_000
    assert found["bundle"]["macs"] == counted.macs
    unknown = roofline(counted, None, None, "int8", 7.0, ["no peaks"])
    assert unknown["bundle"]["bytes"] == 2 * counted.activations + counted.parameters
    assert (unknown["bundle"]["share"], unknown["layers"], unknown["peaks"]) == (None, None, None)
    assert unknown["notes"][0] == "no peaks"
    for part in (found, unknown):
        text = bench_section(DOCUMENT | {"roofline": part})
        assert "<h3>Roofline</h3>" in text
        assert "GMAC" in bench_table([DOCUMENT | {"roofline": part}])
    assert "a (Conv, fp32)" in bench_table([DOCUMENT | {"roofline": found}])


LATENCY = {"count": 64, "mean": 2.0, "min": 1.0, "max": 9.0, "stdev": 1.0, "p50": 1.9, "p90": 3.0, "p99": None}
DOCUMENT: dict[str, Any] = {
    "schema": "edgeseg.bench/2",
    "bundle": "net",
    "variant": "v",
    "latency_ms": LATENCY | {"reasons": {"p99": "p99 needs 662 samples, there are 64"}},
    "end_to_end_ms": LATENCY | {"reasons": {"p99": "p99 needs 662 samples, there are 64"}},
    "cold_ms": {"open": 12.3, "first_frame": 4.56},
    "fps": 500.0,
}


def event(name: str, index: int, dur: int, op: str, inputs: Any, outputs: Any, sizes: tuple[int, int, int]) -> Any:
    activation, parameter, output = sizes
    return {
        "cat": "Node",
        "name": f"{name}_kernel_time",
        "dur": dur,
        "args": {
            "node_index": str(index),
            "op_name": op,
            "input_type_shape": inputs,
            "output_type_shape": outputs,
            "activation_size": str(activation),
            "parameter_size": str(parameter),
            "output_size": str(output),
        },
    }


def test_a_trace_of_onnx_runtime() -> None:
    floats = [{"float": [1, 3, 8, 8]}, {"float": [16, 3, 3, 3]}, {"float": [16]}]
    packed = [{"uint8": [1, 8, 8, 16]}, {"float": []}, {"uint8": []}, {"float": [16]}, {"int8": [16]}]
    events = [{"cat": "Session", "name": "model_run", "dur": 9}, {"cat": "Node", "name": "conv_fence_before", "dur": 1}]
    for dur in (500, 100, 200):
        events.append(event("conv_nchwc", 0, dur, "Conv", floats, [{"float": [1, 16, 8, 8]}], (768, 1792, 4096)))
        events.append(
            event("q_token_7", 1, 2 * dur, "QLinearConv", packed, [{"uint8": [1, 8, 8, 16]}], (1024, 154, 1024))
        )
    first, second = from_trace(events, {"q": (147_456, 2304)}, 3)
    (known,) = from_trace(events[2:3], {"conv": (40_000, 400)}, 1)
    assert known.macs == 40_000  # of the network: channels that were padded are no use
    assert first == LayerTime("conv_nchwc", "Conv", "fp32", 0.2, 16 * 8 * 8 * 27, 768 + 1792 + 4096)
    assert second == LayerTime("q_token_7", "QLinearConv", "int8", 0.4, 147_456, 1024 + 154 + 1024 + 2304)


def test_fused_layers_are_found_by_what_follows_them() -> None:
    graph = probe_graph(int8=False, channels=4, size=8, depth=1)
    known = names(graph)
    stem, middle, head = (layer.macs for layer in profile(graph).layers if layer.macs)
    assert (known["node_c0"][0], known["c0"][0], known["r0"][0], known["node_r0"][0]) == (stem,) * 4
    assert (known["node_c1"], known["r1"]) == ((middle, 4 * 4 * 9),) * 2
    assert known["score"][0] == head
    assert "flat" not in known


def test_counters_of_openvino() -> None:
    def node(name: str, op: str, kind: str, inputs: Any, outputs: Any) -> dict[str, Any]:
        return {"name": name, "op": op, "kind": kind, "inputs": inputs, "outputs": outputs}

    plane = ("u8", (1, 16, 8, 8))
    nodes = [
        node("dense", "Convolution", "brgconv_avx512_I8", [plane, ("i8", (32, 16, 3, 3))], [("u8", (1, 32, 8, 8))]),
        node("deep", "Convolution", "jit_avx2_dw_f32", [plane, ("f32", (16, 1, 1, 3, 3))], [("f32", (1, 16, 8, 8))]),
        node("up", "Deconvolution", "jit_bf16", [plane, ("bf16", (16, 4, 2, 2))], [("bf16", (1, 4, 16, 16))]),
        node("join", "Concatenation", "ref_I8", [plane, plane], [("u8", (1, 32, 8, 8))]),
        node("weights", "Const", "unknown_i8", [], [("i8", (32, 16, 3, 3))]),
    ]
    times = {"dense": [3.0, 1.0, 2.0], "deep": [1.0], "up": [1.0], "join": [0.5]}
    dense, deep, up, join = from_counters(nodes, times)
    assert dense == LayerTime("dense", "Convolution", "int8", 2.0, 32 * 64 * 16 * 9, 1024 + 4608 + 2048)
    assert (deep.precision, deep.macs, deep.bytes) == ("fp32", 16 * 64 * 9, 1024 + 4 * 144 + 4 * 1024)
    assert (up.precision, up.macs) == ("bf16", 16 * 64 * 4 * 4)
    assert (join.macs, join.bytes) == (0, 4096)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("int8", [False, True])
def test_engines_tell_their_layers(backend: str, int8: bool) -> None:
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    graph = probe_graph(int8=int8, channels=16, size=16, depth=2)
    counted = profile(graph)
    # A 1x1 to 16 channels, two 3x3 of 16 channels, a 1x1 to one channel, on 16 x 16 pixels.
    assert counted.macs == 256 * (3 * 16 + 2 * 16 * 16 * 9 + 16)
    settings = {"arithmetic": "f32"} if backend == "openvino" else {"optimization": "extended"}
    files = backends.get(backend).convert(graph)
    engine = Engine("probe", backend, "int8" if int8 else "fp32", next(iter(files)), files, settings)
    frame = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8)
    with backends.open_engine(engine) as session:
        assert session.run(frame).shape == (1, 16, 16)
    layers = layer_times(engine, 1, [frame], runs=3)
    assert layers is not None
    assert sum(layer.macs for layer in layers) == counted.macs
    assert all(layer.ms >= 0 and layer.bytes >= 0 for layer in layers)
    large = [layer for layer in layers if layer.macs >= 256 * 16 * 16 * 9]
    assert {layer.precision for layer in large} == {"int8" if int8 else "fp32"}
    for layer in large:
        assert layer.bytes >= (16 * 16 * 9 + 2 * 16 * 256) * (1 if int8 else 4)


def test_an_engine_without_a_profiler() -> None:
    engine = Engine("t", "tensorrt", "fp16", "plan", {"plan": b""})
    assert layer_times(engine, 1, []) is None


def test_the_best_of_some_runs() -> None:
    clock = Clock()
    took = iter([9.0, 5.0, 3.0, 4.0, 6.0, 7.0, 8.0])
    assert best_ns(lambda: clock.pass_ms(next(took)), clock, seconds=0.01) == 3_000_000
    assert next(took) == 6.0  # 5 + 3 + 4 ms were enough, and so were three runs


def test_a_copy_counts_what_is_read_and_written() -> None:
    clock = Clock(look=500_000)  # each look at the clock costs 0.5 ms, and nothing else does
    assert copy_peak(1, clock, size=1_000_000) == pytest.approx(2 * 1_000_000 / 500_000)
    assert copy_peak(2, clock, size=1_000_000) == pytest.approx(2 * 1_000_000 / 500_000)


def test_the_largest_cache_is_found(tmp_path: Path) -> None:
    assert last_level_cache(tmp_path) is None
    for index, size in enumerate(("32K", "1024K", "32M", "what")):
        folder = tmp_path / f"sys/devices/system/cpu/cpu0/cache/index{index}"
        folder.mkdir(parents=True)
        (folder / "size").write_text(f"{size}\n", encoding="utf-8")
    assert last_level_cache(tmp_path) == 32 << 20


def test_what_cannot_be_counted_has_no_roofline() -> None:
    clock = Clock()
    said: list[str] = []
    assert rooflines([opened(FakeEngine(clock, 1.0))], clock=clock, say=said.append) == [None]
    assert said == ["roofline   none of fake.edgeseg: it is not an engine of a bundle"]
