"""Milliseconds of a layer and of each choice that may stand in its place, on the runtime and precision to be deployed.

Operations are not time, so time is measured: each choice as a small graph of its own (layer_graph), in turns with the
layer as it is and with the graph that holds neither, whose time is subtracted. What is measured is kept, layer after
layer: for the same processor, runtime, threads and precision it is measured once, and a run that was stopped goes on
where it was.

Measured so, the 19 convolutions of a U-Net that takes 43 ms in FP32 add up to 39 on ONNX Runtime and to 42 of 44 on
OpenVINO, in INT8 to 13 of 17 and to 10.5 of 12.5; the rest is pooling, up-sampling, concatenation and the frame. What
separable layers save in it is predicted to within 1 ms of what the whole network then saves, in each of the four.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import inf, prod

from calibration import calibrate, load_recipe
from edgeseg import backends, cache, quantize
from edgeseg.backends import Engine, Session, Settings
from edgeseg.backends.base import threads_allowed
from edgeseg.backends.onnxruntime import probe
from edgeseg.console import Console
from edgeseg.errors import ModelError
from edgeseg.measure.latency import InTurn, interleave
from edgeseg.measure.machine import machine, versions
from edgeseg.pipeline.network import dialect_for
from edgeseg.pipeline.rewriting.layer_graph import after, frames_for, layer_graph
from edgeseg.quantize.half import half
from edgeseg.rewrite.values import Conv, Pair, Piece
from edgeseg.trials.candidates import cut_decision
from edgeseg.trials.isolate import try_engines
from edgeseg.types import OnnxModel, Precision

Pieces = tuple[Piece, ...]
Key = tuple[Conv, Pair, Pieces]
Engines = dict[tuple[int, Pieces], Engine | ModelError]  # by the layer's inputs and what stands in its place

METHOD = 1  # of measuring; another number when times of before and after may not be compared
ROUNDS = 20
_FEW = 4  # rounds for all
_HOPELESS = 1.15  # times the layer's own time after a few rounds: no more rounds for such a choice
_SECONDS = 4.0  # for the rounds of one group of choices
_MEMORY = 1 << 30  # bytes, about, that the graphs opened together may take
_TOGETHER = 32  # graphs at most


@dataclass(frozen=True, slots=True)
class _Where:
    """On what is measured."""

    backend: str
    precision: Precision
    settings: Settings
    decision: str  # where it is made, of whole networks

    def said(self) -> str:
        """What a time depends on besides the layer: the processor, the runtime, how it is told to run."""
        here = machine()
        facts = {key: here[key] for key in ("cpu", "architecture", "isa", "cores_usable", "virtual")}
        packages = {name: version for name, version in versions().items() if name.startswith(self.backend)}
        runtime = (packages, backends.get(self.backend).version(), self.precision, sorted(self.settings.items()))
        return repr((facts, runtime))


def layer_times(
    wanted: Sequence[tuple[Conv, Pair, Sequence[Pieces]]],
    backend: str,
    precision: Precision,
    *,
    threads: int = 0,
    settings: Settings | None = None,
    rounds: int = ROUNDS,
    console: Console,
    use_cache: bool = True,
) -> dict[Key, float]:
    """Milliseconds by (layer, size of its input, pieces); the layer itself is `(conv,)` and always among them.

    `threads`: 0 for all that the process may use. `settings`: of the engine to be deployed; by default the backend's
    first. `rounds` of each choice, fewer of those that are clearly slower than the layer. A choice that the runtime
    refuses is `inf`. Choices of one layer were measured in turns and compare well; layers among one another as well as
    the machine is quiet. A whole network's time compares with their sum if it is the same statistic: `undisturbed`.
    Raises MissingOnMachine where the runtime is not installed, ModelError if it refuses the layer itself.
    """
    distinct: dict[tuple[Conv, Pair], dict[Pieces, None]] = {}
    for conv, size, choices in wanted:
        distinct.setdefault((conv, size), {(conv,): None}).update(dict.fromkeys(choices))
    where = _where(backend, precision, threads, settings)
    place = where.said()
    keys = {layer: cache.key("layer-times", METHOD, place, *layer) for layer in distinct}
    known = {layer: _load(key) if use_cache else {} for layer, key in keys.items()}
    missing = {
        (conv, size): [p for p in distinct[conv, size] if repr(p) not in known[conv, size]] for conv, size in keys
    }
    fresh = sum(map(len, missing.values()))
    with console.step("layer times") as step, console.bar(fresh, "layers") as done:
        for size in dict.fromkeys(size for (_, size), choices in missing.items() if choices):
            engines = _engines({conv: choices for (conv, at), choices in missing.items() if at == size}, size, where)
            for layer in (layer for layer in missing if layer[1] == size):
                for group in _groups(*layer, missing[layer]):
                    known[layer] = _joined(known[layer], _measure(*layer, group, engines, where, rounds), layer[0])
                    cache.store("layer-times", keys[layer], json.dumps(known[layer]).encode())
                    for _ in group:
                        done()
        total = sum(map(len, distinct.values()))
        step.note = f"{total} choices of {len(distinct)} layers on {backend} {precision}"
        step.note += f", {total - fresh} of them reused" if fresh < total else ""
    return {(*layer, pieces): known[layer][repr(pieces)] for layer, asked in distinct.items() for pieces in asked}


def network_times(
    models: Sequence[OnnxModel],
    backend: str,
    precision: Precision,
    *,
    threads: int = 0,
    settings: Settings | None = None,
    rounds: int = ROUNDS,
) -> list[float]:
    """Milliseconds of whole networks, in turns, by the same clock and statistic: what sums of layers compare with.

    `models`: in the precision and dialect to be run. Raises MissingOnMachine, ModelError.
    """
    where = _where(backend, precision, threads, settings)
    engines = [_told(str(index), model, where) for index, model in enumerate(models)]
    if backends.get(backend).isolate:
        for engine, model in zip(engines, models, strict=True):
            (answer,) = try_engines([engine], frames_for(model.spec.input.size)[0])
            if isinstance(answer, str):
                raise ModelError(f"{backend} cannot run the network: {answer}")
    with ExitStack() as stack:
        runs = {
            engine.name: InTurn(
                stack.enter_context(backends.open_engine(engine)).run, frames_for(model.spec.input.size)
            )
            for engine, model in zip(engines, models, strict=True)
        }
        found = interleave(runs, rounds=rounds, warmup=2, limit_s=4 * _SECONDS, clock=_clock(where))
    return [undisturbed(found[engine.name]) for engine in engines]


def undisturbed(samples_ns: Sequence[int]) -> float:
    """The time in ms that a fifth of the samples do not reach.

    Not the median: on a machine that others use too, a run that is longer than the scheduler's slice is interrupted
    more often than not, and a layer would seem slower than it is, the longer it takes. On a quiet one the two hardly
    differ.
    """
    return sorted(samples_ns)[len(samples_ns) // 5] / 1e6


def _where(backend: str, precision: Precision, threads: int, settings: Settings | None) -> _Where:
    runtime = backends.get(backend)
    told = dict(runtime.settings(precision)[0] if settings is None else settings)
    told["threads"] = threads or int(told.get("threads", 0)) or threads_allowed()
    told.pop("threshold", None)  # of another network's scores
    decision = str(told.pop("decision", runtime.decisions[0]))
    return _Where(backend, precision, told, decision)


def _clock(where: _Where) -> Callable[[], int]:
    """With one thread the processor's time, in which others on the machine do not show; else the time of day."""
    fine = time.get_clock_info("process_time").resolution <= 1e-6  # on Windows it is 16 ms
    return time.process_time_ns if where.settings["threads"] == 1 and fine else time.perf_counter_ns


def _load(key: str) -> dict[str, float]:
    stored = cache.load("layer-times", key)
    return {} if stored is None else {str(pieces): float(ms) for pieces, ms in json.loads(stored).items()}


def _groups(conv: Conv, size: Pair, missing: Sequence[Pieces]) -> Iterator[Sequence[Pieces]]:
    """Choices to be opened at once: all, if their tensors are small."""
    most = max((_largest(conv, size, pieces) for pieces in missing), default=0)
    count = max(1, min(_TOGETHER, _MEMORY // max(1, 3 * 4 * most)) - 2)  # float32; in, out and a copy in between
    for first in range(0, len(missing), count):
        yield missing[first : first + count]


def _largest(conv: Conv, size: Pair, pieces: Pieces) -> int:
    """Elements of the largest tensor."""
    channels, most = conv.inputs, conv.inputs * prod(size)
    for piece in pieces:
        channels, size = after(piece, channels, size)
        most = max(most, channels * prod(size))
    return most


def _joined(known: Mapping[str, float], new: Mapping[Pieces, float], conv: Conv) -> dict[str, float]:
    """Times of one layer from two races. It was in both itself: by that the second is brought to the first's pace."""
    own = repr((conv,))
    pace = known[own] / new[conv,] if known.get(own) and new[conv,] else 1.0
    return {repr(pieces): ms * pace for pieces, ms in new.items()} | dict(known)


def _engines(wanted: Mapping[Conv, Sequence[Pieces]], size: Pair, where: _Where) -> Engines:
    """An engine for each graph that layers on inputs of one size need, or why there is none.

    Where opening a graph can end the process, a child opens all of them first.
    """
    made: Engines = {}
    for conv, choices in wanted.items():
        for pieces in dict.fromkeys([(), (conv,), *choices] if choices else []):
            if (conv.inputs, pieces) not in made:
                try:
                    made[conv.inputs, pieces] = _engine(str(len(made)), conv.inputs, size, pieces, where)
                except ModelError as error:
                    made[conv.inputs, pieces] = error
    if backends.get(where.backend).isolate:
        good = {key: engine for key, engine in made.items() if isinstance(engine, Engine)}
        answers = try_engines(list(good.values()), frames_for(size)[0])
        made |= {key: ModelError(a) for key, a in zip(good, answers, strict=True) if isinstance(a, str)}
    return made


def _measure(
    conv: Conv, size: Pair, choices: Sequence[Pieces], engines: Engines, where: _Where, rounds: int
) -> dict[Pieces, float]:
    """Milliseconds of the layer and of its choices, in turns."""
    bare: Pieces = ()
    own: Pieces = (conv,)
    frames, clock = frames_for(size), _clock(where)
    runs: dict[Pieces, Callable[[], object]] = {}
    with ExitStack() as stack:
        for pieces in dict.fromkeys([bare, own, *choices]):
            try:
                opened = stack.enter_context(_open(engines[conv.inputs, pieces]))
            except ModelError:
                if pieces in (bare, own):
                    raise
                continue
            runs[pieces] = InTurn(opened.run, frames)
        named = {repr(pieces): run for pieces, run in runs.items()}
        first = interleave(named, rounds=min(rounds, _FEW), warmup=1, limit_s=_SECONDS, clock=clock)
        few = {pieces: undisturbed(first[repr(pieces)]) - undisturbed(first[repr(bare)]) for pieces in runs}
        good = [pieces for pieces in runs if few[pieces] <= _HOPELESS * few[own] or pieces in (bare, own)]
        named = {repr(pieces): runs[pieces] for pieces in good}
        more = rounds - _FEW
        rest = interleave(named, rounds=more, warmup=0, limit_s=_SECONDS, seed=1, clock=clock) if more > 0 else {}
    times = {pieces: undisturbed(first[repr(pieces)] + rest.get(repr(pieces), [])) for pieces in good}
    net = {pieces: max(0.0, ms - times[bare]) for pieces, ms in times.items()}
    pace = net[own] / few[own] if few[own] > 0 else 1.0
    hopeless = {pieces: max(0.0, few[pieces] * pace) for pieces in runs if pieces not in net}
    found = net | hopeless
    return {pieces: found.get(pieces, inf) for pieces in dict.fromkeys([own, *choices])}


def _open(engine: Engine | ModelError) -> Session:
    if isinstance(engine, ModelError):
        raise engine
    return backends.open_engine(engine)


def _engine(name: str, inputs: int, size: Pair, pieces: Pieces, where: _Where) -> Engine:
    model = layer_graph(inputs, size, pieces)
    if where.precision == "int8":
        model = _quantized(model, where.backend)
        if where.settings.get("arithmetic") == "f16" and backends.get(where.backend).half_graphs("int8"):
            model = half(model).model
    return _told(name, model, where)


def _told(name: str, model: OnnxModel, where: _Where) -> Engine:
    cut = cut_decision(model.graph) if where.decision == "host" else None
    files = backends.get(where.backend).convert(cut or model.graph)
    settings = {**where.settings, "decision": "host" if cut else "graph"}
    return Engine(name, where.backend, where.precision, next(iter(files)), files, settings)


def _quantized(model: OnnxModel, backend: str) -> OnnxModel:
    """In INT8 as a build would write it, by the ranges that a random frame gives: no time depends on them."""
    dialect = dialect_for(backend)
    graph = quantize.Graph(model.graph)
    # The convolution that makes the layer's input is in all graphs alike; in INT8, so that the layer reads integers.
    stem = next(node.name for node in graph.nodes if node.op_type == "Conv")
    placement = quantize.place(graph, dialect, also=[stem])
    observed = sorted(placement.observed)
    frames = frames_for(model.spec.input.size, 1)
    table = calibrate(
        probe(model.graph, observed, frames), load_recipe("minmax"), model=model.digest, data="a random frame"
    )
    return quantize.quantize(model, table, dialect, placement=placement)
