"""Times of layers: graphs that hold what they should, subtraction, what is kept and what is measured again.

No test rests on the clock: where a number matters, the race is replaced by one with a known outcome.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest

from edgeseg import backends, quantize
from edgeseg.backends import Settings
from edgeseg.backends.onnxruntime import probe
from edgeseg.console import Console
from edgeseg.errors import ModelError
from edgeseg.measure.profile import profile
from edgeseg.pipeline.rewriting import layer_times as module
from edgeseg.pipeline.rewriting.layer_graph import after, frames_for, layer_graph
from edgeseg.pipeline.rewriting.layer_times import Pieces, layer_times, network_times, undisturbed
from edgeseg.quantize.edges import kind_of
from edgeseg.rewrite.values import Conv, Fork, Shuffle, Take, macs
from edgeseg.types import LOGITS, MASK
from tests.backends.test_sessions import BACKENDS

DENSE = Conv(8, 16, (3, 3), padding=(1, 1))
DEPTHWISE = Conv(8, 8, (3, 3), padding=(1, 1), groups=8)
SEPARABLE: Pieces = (DEPTHWISE, Conv(8, 16))
CHOICES: dict[str, tuple[Conv, Pieces]] = {
    "dense": (DENSE, (DENSE,)),
    "separable": (DENSE, SEPARABLE),
    "forked": (DENSE, (Fork((DEPTHWISE, DEPTHWISE)), Conv(16, 16))),
    "spatial": (DENSE, (Conv(8, 4, (3, 1), padding=(1, 0)), Conv(4, 16, (1, 3), padding=(0, 1)))),
    "shuffled": (DENSE, (Conv(8, 12, groups=4), Shuffle(4), Conv(12, 16, (3, 3), padding=(1, 1), groups=2))),
    "pruned": (DENSE, (Take(5), Conv(5, 16, (3, 3), padding=(1, 1)))),
    "strided": (Conv(8, 6, (3, 3), (2, 1), (1, 1)), (Conv(8, 6, (3, 3), (2, 1), (1, 1)),)),
    "dilated": (Conv(8, 6, (3, 5), dilation=(2, 1)), (Conv(8, 6, (3, 5), dilation=(2, 1)),)),
}
SIZE = (18, 23)


@pytest.mark.parametrize("name", CHOICES)
def test_a_graph_holds_the_layer_and_what_is_subtracted(name: str) -> None:
    conv, pieces = CHOICES[name]
    model, bare = layer_graph(conv.inputs, SIZE, pieces), layer_graph(conv.inputs, SIZE, ())
    proto = onnx.load_from_string(model.graph)
    onnx.checker.check_model(proto, full_check=True)
    assert [(v.name, len(v.type.tensor_type.shape.dim)) for v in proto.graph.output] == [(MASK, 3)]

    def counted(graph: bytes) -> int:
        """Without the two scores behind the pooling."""
        scores = [layer.macs for layer in profile(graph).layers if layer.op == "Conv"][-1]
        return sum(layer.macs for layer in profile(graph).layers) - scores

    assert counted(model.graph) - counted(bare.graph) == macs(pieces, SIZE)
    # what stands before the pooling has the layer's shape
    pool = next(node for node in proto.graph.node if node.op_type == "MaxPool")
    (seen,) = probe(model.graph, [pool.input[0], LOGITS], frames_for(SIZE, 1))
    channels, size = conv.inputs, SIZE
    for piece in pieces:
        channels, size = after(piece, channels, size)
    assert (channels, size) == (conv.outputs, conv.after(SIZE))
    assert seen[pool.input[0]].shape == (1, conv.outputs, *size)
    assert np.isfinite(seen[LOGITS]).all()
    assert 0.05 < float(seen[pool.input[0]].std()) < 50  # neither vanishing nor denormal


def test_a_shuffle_and_a_take_move_channels() -> None:
    (taken, shuffled) = (Take(5), Shuffle(4))
    for piece in (taken, shuffled):
        model = layer_graph(8, SIZE, (piece, DENSE if piece is shuffled else Conv(5, 16)))
        proto = onnx.load_from_string(model.graph)
        relu = next(node.output[0] for node in proto.graph.node if node.op_type == "Relu")
        reader = [node for node in proto.graph.node if node.op_type == "Conv"][1].input[0]
        (seen,) = probe(model.graph, [relu, reader], frames_for(SIZE, 1))
        if piece is shuffled:
            order = [group * 2 + member for member in range(2) for group in range(4)]
            np.testing.assert_array_equal(seen[reader], seen[relu][:, order])
        else:
            kept = [any(np.array_equal(x, y) for y in seen[relu][0]) for x in seen[reader][0]]
            assert seen[reader].shape[1] == 5
            assert all(kept)


@pytest.mark.parametrize("dialect", ["onnxruntime-x86", "openvino"])
@pytest.mark.parametrize("name", CHOICES)
def test_all_of_the_layer_is_quantized(dialect: str, name: str) -> None:
    conv, pieces = CHOICES[name]
    graph = quantize.Graph(layer_graph(conv.inputs, SIZE, pieces).graph)
    convolutions = [node for node in graph.nodes if node.op_type == "Conv"]
    chosen = quantize.place(graph, quantize.DIALECTS[dialect], also=[convolutions[0].name]).convolutions
    # The last makes the scores, and ONNX Runtime is slower in INT8 with few inputs a group.
    slow = ("grouped narrow",) if dialect == "onnxruntime-x86" else ()
    assert {node.name for node in convolutions[:-1] if kind_of(graph, node) not in slow} <= set(chosen)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_every_choice_gets_a_time(backend: str, precision: Any) -> None:
    wanted = [(conv, SIZE, [pieces]) for conv, pieces in CHOICES.values()]
    found = layer_times(wanted, backend, precision, threads=1, rounds=2, console=Console())
    keys = {(conv, SIZE, pieces) for conv, pieces in CHOICES.values()}
    assert set(found) == keys | {(conv, SIZE, (conv,)) for conv, _ in CHOICES.values()}
    assert all(math.isfinite(ms) and ms >= 0 for ms in found.values())
    again = layer_times(wanted, backend, precision, threads=1, rounds=2, console=Console())
    assert again == found  # from the cache: no two measurements are equal


def test_whole_networks() -> None:
    models = [layer_graph(8, SIZE, ()), layer_graph(8, SIZE, (DENSE,))]
    times = network_times(models, "onnxruntime", "fp32", threads=1, rounds=2)
    assert len(times) == 2
    assert min(times) > 0


def test_a_lower_fifth() -> None:
    assert undisturbed([5_000_000]) == 5.0
    assert undisturbed([9_000_000, 1_000_000, 5_000_000]) == 1.0
    assert undisturbed([int(1e6) * x for x in (7, 1, 9, 3, 5, 8, 2, 6, 4, 10)]) == 3.0


Times = Mapping[Pieces, float]


class Race:
    """In place of interleave: a known time for each graph, in ms, and a record of what was asked for."""

    def __init__(self, times: Times, pace: float = 1.0) -> None:
        self.times = {repr(pieces): ms for pieces, ms in times.items()}
        self.pace = pace
        self.asked: list[tuple[set[str], int]] = []
        self.ends_after = 10**9

    def __call__(self, runs: Mapping[str, Callable[[], object]], *, rounds: int, **_: object) -> dict[str, list[int]]:
        if len(self.asked) >= self.ends_after:
            raise KeyboardInterrupt
        self.asked.append((set(runs), rounds))
        return {name: [int(1e6 * self.times[name] * self.pace)] * rounds for name in runs}


def measure(choices: Sequence[Pieces], conv: Conv = DENSE, **options: Any) -> dict[Pieces, float]:
    found = layer_times([(conv, SIZE, choices)], "onnxruntime", "fp32", console=Console(), **options)
    return {pieces: ms for (_, _, pieces), ms in found.items()}


SLOW: Pieces = CHOICES["forked"][1]
SPATIAL: Pieces = CHOICES["spatial"][1]


@pytest.fixture
def race(monkeypatch: pytest.MonkeyPatch) -> Race:
    made = Race({(): 2.0, (DENSE,): 6.0, SEPARABLE: 3.0, SLOW: 12.0, SPATIAL: 1.5})
    monkeypatch.setattr(module, "interleave", made)
    return made


def test_the_scaffold_is_subtracted_and_nothing_is_negative(race: Race) -> None:
    assert measure([SEPARABLE, SLOW, SPATIAL]) == pytest.approx({(DENSE,): 4, SEPARABLE: 1, SLOW: 10, SPATIAL: 0})


def test_hopeless_choices_leave_after_a_few_rounds(race: Race) -> None:
    measure([SEPARABLE, SLOW], rounds=20)
    (first, few), (rest, many) = race.asked
    assert first == {repr(p) for p in ((), (DENSE,), SEPARABLE, SLOW)}
    assert rest == first - {repr(SLOW)}
    assert few + many == 20


def test_what_is_known_is_not_measured_again(race: Race) -> None:
    first = measure([SEPARABLE])
    count = len(race.asked)
    assert measure([SEPARABLE]) == first
    assert len(race.asked) == count
    for options in ({"threads": 3}, {"settings": {"optimization": "basic"}}, {"use_cache": False}):
        measure([SEPARABLE], **options)
        assert len(race.asked) > count
        count = len(race.asked)


def test_what_comes_later_is_brought_to_the_first_pace(race: Race) -> None:
    measure([SEPARABLE])
    race.pace = 3.0  # the machine is busy now
    assert measure([SEPARABLE, SPATIAL, SLOW]) == pytest.approx({(DENSE,): 4, SEPARABLE: 1, SLOW: 10, SPATIAL: 0})
    assert {repr(SEPARABLE)} & race.asked[-1][0] == set()


def test_one_layer_in_several_places_is_measured_once(race: Race) -> None:
    wanted = [(DENSE, SIZE, [SEPARABLE]), (DENSE, SIZE, [SEPARABLE, SLOW]), (DENSE, SIZE, [])]
    found = layer_times(wanted, "onnxruntime", "fp32", console=Console())
    assert {pieces for _, _, pieces in found} == {(DENSE,), SEPARABLE, SLOW}
    assert len(race.asked) == 2


def test_a_stopped_run_goes_on(race: Race) -> None:
    other = (24, 20)
    wanted = [(DENSE, SIZE, [SEPARABLE]), (DENSE, other, [SEPARABLE])]
    race.ends_after = 2
    with pytest.raises(KeyboardInterrupt):
        layer_times(wanted, "onnxruntime", "fp32", console=Console())
    race.ends_after = 10**9
    found = layer_times(wanted, "onnxruntime", "fp32", console=Console())
    assert len(found) == 4
    assert len(race.asked) == 4  # two for each layer, none twice


def test_large_tensors_are_not_all_open_at_once(race: Race, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MEMORY", 3 * 4 * 16 * SIZE[0] * SIZE[1] * 4)  # four graphs with 16 channels
    found = measure([SEPARABLE, SLOW, SPATIAL])
    assert found == pytest.approx({(DENSE,): 4, SEPARABLE: 1, SLOW: 10, SPATIAL: 0})
    assert max(len(names) for names, _ in race.asked) <= 4
    assert len(race.asked) == 4


def test_a_choice_that_the_runtime_refuses_is_never_fast(race: Race, monkeypatch: pytest.MonkeyPatch) -> None:
    opening = module._open

    def picky(engine: Any) -> Any:
        if not isinstance(engine, ModelError) and b"Concat" in engine.files[engine.graph]:
            raise ModelError("no concatenations here")
        return opening(engine)

    monkeypatch.setattr(module, "_open", picky)
    assert measure([SEPARABLE, SLOW])[SLOW] == math.inf
    assert measure([SEPARABLE, SLOW])[SLOW] == math.inf  # and from the cache
    monkeypatch.setattr(module, "_open", lambda engine: opening(ModelError("refused")))
    with pytest.raises(ModelError, match="refused"):
        measure([SEPARABLE], use_cache=False)


def test_an_engine_that_ends_its_process_is_found_by_a_child(race: Race, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends.get("onnxruntime"), "isolate", True)

    def tried(engines: Sequence[Any], frames: Any) -> list[Any]:
        return ["it ended the process" if b"Concat" in e.files[e.graph] else np.zeros(1) for e in engines]

    monkeypatch.setattr(module, "try_engines", tried)
    found = measure([SEPARABLE, SLOW])
    assert found[SLOW] == math.inf
    assert found[SEPARABLE] == pytest.approx(1.0)


def test_settings_of_the_deployed_engine_are_kept(race: Race) -> None:
    deployed: Settings = {"optimization": "extended", "decision": "graph", "threads": 1, "threshold": 0.25}
    where = module._where("onnxruntime", "fp32", 0, deployed)
    engine = module._told("x", layer_graph(8, SIZE, (DENSE,)), where)
    assert engine.settings == {"optimization": "extended", "decision": "graph", "threads": 1}
    assert [v.name for v in onnx.load_from_string(engine.files[engine.graph]).graph.output] == [MASK]
    assert module._where("onnxruntime", "fp32", 2, deployed).settings["threads"] == 2
    # where the decision is made has no part in a layer
    measure([SEPARABLE], settings=deployed)
    count = len(race.asked)
    measure([SEPARABLE], settings={**deployed, "decision": "host"})
    assert len(race.asked) == count
