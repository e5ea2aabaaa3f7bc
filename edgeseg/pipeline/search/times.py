"""What keeping a convolution in float costs on the runtime: differences of whole-network times, in turns.

Small graphs of single layers would miss what decides here: the conversions at the border between float and INT8, which
fusions are lost there. One difference is small against the noise of a whole network's time, so it is weighed against
what the layer's share of the operations suggests, each by its uncertainty.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np

from edgeseg import backends, cache
from edgeseg.backends import Engine, Settings
from edgeseg.backends.base import threads_allowed
from edgeseg.errors import ModelError
from edgeseg.graph import Graph
from edgeseg.measure.latency import InTurn, interleave
from edgeseg.measure.machine import machine, versions
from edgeseg.quantize.edges import is_convolution
from edgeseg.trials.candidates import cut_decision
from edgeseg.trials.isolate import try_engines
from edgeseg.types import Frames, OnnxModel, Precision

METHOD = 1  # of measuring; another number when times of before and after may not be compared
ROUNDS = 15
_TOGETHER = 6  # engines opened at once, besides the two that they are compared with
_LIMIT_S = 20.0  # for the rounds of one group


@dataclass(frozen=True, slots=True)
class Cost:
    """Milliseconds that a network takes longer with one convolution in float; below 0: it is faster so."""

    ms: float
    measured: bool  # else predicted from its share of the operations


@dataclass(frozen=True, slots=True)
class Costs:
    """`int8_ms`, `fp32_ms`: of the network all in INT8 and in FP32, None where nothing could be timed.

    `of`: by node. `together`: of groups of nodes, all of them in float, as far as they were measured.
    """

    int8_ms: float | None
    fp32_ms: float | None
    of: Mapping[str, Cost]
    together: Mapping[frozenset[str], Cost] = field(default_factory=dict)


def engine(name: str, model: OnnxModel, backend: str, precision: Precision, settings: Settings | None) -> Engine:
    """An engine as a build makes it. `settings`: those to be deployed, by default the backend's first."""
    runtime = backends.get(backend)
    told = dict(runtime.settings(precision)[0] if settings is None else settings)
    if len(model.spec.output.classes) <= 2:
        told.setdefault("threshold", model.spec.output.score_threshold)
    decision = told.get("decision", runtime.decisions[0])
    cut = cut_decision(model.graph) if decision == "host" else None
    files = runtime.convert(cut or model.graph)
    told["decision"] = "host" if cut else "graph"
    return Engine(name, backend, precision, next(iter(files)), files, told, model.digest)


def costs(
    fp32: OnnxModel,
    nodes: Sequence[str],
    int8_of: Callable[[frozenset[str]], OnnxModel],
    backend: str,
    frames: Sequence[Frames],
    *,
    groups: Sequence[frozenset[str]] = (),
    settings: Settings | None = None,
    timed: bool = True,
    rounds: int = ROUNDS,
    ended: Callable[[], bool] = lambda: False,
    use_cache: bool = True,
    done: Callable[[], object] = lambda: None,
) -> Costs:
    """Milliseconds by node, and of whole `groups`. Without `timed` all are predicted, as shares of 1 ms between INT8
    and FP32, and groups cost what their nodes do.

    Kept by processor, runtime, settings and networks. When `ended`, the rest is predicted. A network that the runtime
    refuses costs `inf`.
    """
    shares = _shares(fp32, nodes)
    if not timed:
        return Costs(None, None, {node: Cost(shares[node], False) for node in nodes})
    base = int8_of(frozenset())
    yardsticks = {
        "int8": engine("int8", base, backend, "int8", settings),
        "fp32": engine("fp32", fp32, backend, "fp32", settings_of_fp32(backend, settings)),
    }
    here = machine()
    facts = {key: here[key] for key in ("cpu", "architecture", "isa", "cores_usable", "virtual")}
    packages = {name: version for name, version in versions().items() if name.startswith(backend)}
    told = sorted((key, value) for key, value in yardsticks["int8"].settings.items() if key != "threshold")
    place = (METHOD, facts, packages, backends.get(backend).version(), told, fp32.digest, base.digest, rounds)
    sets = {node: frozenset({node}) for node in nodes} | {"+".join(sorted(group)): group for group in groups}
    keys = {name: cache.key("search-ms", *place, name) for name in ("", *sets)}
    known: dict[str, list[float]] = {}
    for node, key in keys.items():
        stored = cache.load("search", key) if use_cache else None
        if stored is not None:
            known[node] = json.loads(stored)
    missing = [name for name in sets if name not in known]
    batches = [missing[at : at + _TOGETHER] for at in range(0, len(missing), _TOGETHER)]
    for batch in batches or ([[]] if "" not in known else []):
        if ended() and "" in known:
            break
        made = {f"-{name}": engine(f"-{name}", int8_of(sets[name]), backend, "int8", settings) for name in batch}
        samples = in_turns({**yardsticks, **made}, frames, rounds, limit_s=_LIMIT_S)
        found = {name: _difference(samples.get(f"-{name}"), samples["int8"]) for name in batch}
        if "" not in known:
            known[""] = [_low(samples["int8"]), _low(samples["fp32"])]
            _keep(keys[""], known[""], use_cache)
        pace = known[""][0] / _low(samples["int8"])  # the machine may be slower now than it was with the first batch
        for name, (ms, error) in found.items():
            known[name] = [ms * pace, error * pace]
            _keep(keys[name], known[name], use_cache)
            done()
    int8_ms, fp32_ms = known[""]
    weighed = {
        name: _weighed(known.get(name), sum(shares[node] for node in kept) * (fp32_ms - int8_ms), int8_ms)
        for name, kept in sets.items()
    }
    together = {group: weighed[name] for name, group in sets.items() if group in groups and weighed[name].measured}
    return Costs(int8_ms, fp32_ms, {node: weighed[node] for node in nodes}, together)


def in_turns(
    engines: Mapping[str, Engine], frames: Sequence[Frames], rounds: int, *, limit_s: float | None = None
) -> dict[str, list[int]]:
    """Nanoseconds of engines taking turns; those that the runtime refuses are left out."""
    good = dict(engines)
    isolated = [name for name, one in engines.items() if backends.get(one.backend).isolate]
    answers = try_engines([engines[name] for name in isolated], np.concatenate(list(frames[:1])))
    for name, answer in zip(isolated, answers, strict=True):
        if isinstance(answer, str):
            del good[name]
    with ExitStack() as stack:
        runs = {}
        for name, one in good.items():
            try:
                runs[name] = InTurn(stack.enter_context(backends.open_engine(one)).run, frames)
            except ModelError:
                continue
        if missing := [name for name in ("int8", "fp32") if name in engines and name not in runs]:
            raise ModelError(f"{engines[missing[0]].backend} cannot run the network in {missing[0].upper()}")
        elsewhere = any(backends.get(one.backend).built_here for one in good.values())  # on a GPU
        threads = {int(one.settings.get("threads", 0)) or threads_allowed() for one in good.values()}
        fine = time.get_clock_info("process_time").resolution <= 1e-6
        # With one thread the processor's time, in which others on the machine do not show.
        clock = time.process_time_ns if threads == {1} and fine and not elsewhere else time.perf_counter_ns
        return interleave(runs, rounds=rounds, warmup=2, limit_s=limit_s, clock=clock)


def settings_of_fp32(backend: str, settings: Settings | None) -> Settings | None:
    """The settings of INT8 for FP32: what only INT8 knows left out."""
    if settings is None:
        return None
    own = set().union(*(set(known) for known in backends.get(backend).settings("fp32")))
    return {key: value for key, value in settings.items() if key in own | {"threads", "decision", "threshold"}}


def _shares(fp32: OnnxModel, nodes: Sequence[str]) -> dict[str, float]:
    """The share of each node in the multiplications of all convolutions, 0 to 1."""
    from onnx import load_from_string, shape_inference

    sizes: dict[str, int] = {}
    for value in shape_inference.infer_shapes(load_from_string(fp32.graph)).graph.value_info:
        axes = [axis.dim_value if axis.HasField("dim_value") else 1 for axis in value.type.tensor_type.shape.dim]
        sizes[value.name] = math.prod(axes[2:])
    graph = Graph(fp32.graph)
    macs = {}
    for node in graph.nodes:
        weights = graph.constant(node.input[1]) if is_convolution(node) else None
        if weights is not None:
            at = node.input[0] if node.op_type == "ConvTranspose" else node.output[0]
            macs[node.name] = sizes.get(at, 1) * weights.size
    total = sum(macs.values()) or 1
    return {node: macs.get(node, 0) / total for node in nodes}


def _low(samples: Sequence[int]) -> float:
    """The milliseconds that a fifth of the samples do not reach: see pipeline/rewriting/layer_times.py."""
    return sorted(samples)[len(samples) // 5] / 1e6


def _difference(mine: Sequence[int] | None, base: Sequence[int]) -> tuple[float, float]:
    """The median of the differences of one round each, in ms, and its standard error from their spread."""
    if mine is None:
        return math.inf, 0.0
    apart = (np.asarray(mine, np.float64) - np.asarray(base, np.float64)) / 1e6
    middle = float(np.median(apart))
    spread = 1.4826 * float(np.median(np.abs(apart - middle)))  # the standard deviation, were it normal
    return middle, 1.2533 * spread / math.sqrt(len(apart))


def _weighed(found: Sequence[float] | None, expected: float, whole: float) -> Cost:
    """A difference and what was expected, each by the inverse of its variance; the expectation may be off by itself."""
    if found is None:
        return Cost(expected, False)
    ms, error = found
    if not math.isfinite(ms):
        return Cost(math.inf, True)
    trust, doubt = max(error, 1e-6 * whole) ** 2, (abs(expected) + 0.002 * whole) ** 2
    found_ms = (ms * doubt + expected * trust) / (doubt + trust)
    # A gain that chance may have made is none: what is free is kept in float before anything else.
    return Cost(found_ms if found_ms + 2 * error < 0 else max(found_ms, 1e-3 * whole), True)


def _keep(key: str, row: Sequence[float], use_cache: bool) -> None:
    if use_cache and all(map(math.isfinite, row)):
        cache.store("search", key, json.dumps(list(row)).encode())
