"""A network made ready for INT8: normalisations folded, channels evened out, ranges taken, weights rounded to serve.

What changes the graph is exact, and kept only if INT8 errs less by it on frames that nothing was fitted to. What is
fitted to frames is kept layer by layer where held-out frames confirm it (edgeseg.quantize.rounding).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration import CalibrationError, Recipe, calibrate
from calibration import to_json as scales_json
from edgeseg import __version__, cache, quantize
from edgeseg.backends.onnxruntime import AS_WRITTEN, inference_session, probe
from edgeseg.console import Console
from edgeseg.data import Reading, read
from edgeseg.errors import DatasetError
from edgeseg.measure.convergence import Convergence
from edgeseg.pipeline.calibrate import calibrated
from edgeseg.pipeline.frames import Effort, prepared
from edgeseg.pipeline.network import Network, dialect_for, shared
from edgeseg.quantize import fitted as stored
from edgeseg.quantize.equalize import channel_ranges, equalized
from edgeseg.quantize.fitted import Fitted
from edgeseg.quantize.fold import folded
from edgeseg.quantize.rounding import adapted
from edgeseg.types import FRAME, LOGITS, MASK, Frames, OnnxModel

JUDGES = 4  # frames that decide whether channels stay evened out
LEAST_GAIN = (
    2.0  # dB of the scores, the mean over dialects: other frames judged the same factors up to 2 dB differently
)
SAME = 0.9995  # share of pixels that the graph must label as before: ONNX Runtime's kernels differ by as much
_MEMORY = 256 << 20  # bytes of frames that weights are fitted to
_FITTED = 16  # frames, at most: 32 did not change what rounding gains
_RANGED = 8  # frames whose ranges decide how channels are evened out, and by which that is judged


@dataclass(frozen=True, slots=True)
class Ready:
    """`convergence`: whether the frames were enough for the ranges; None where they come from the cache.

    `row`: what was done, for the document.
    """

    network: Network
    convergence: Convergence | None
    row: dict[str, Any]


def dialects_of(backends: Sequence[str], *, travels: bool = False) -> tuple[quantize.Dialect, ...]:
    """The dialects of backends on this machine; of a bundle that `travels`, TensorRT's too."""
    found = [dialect_for(name) for name in backends] + ([quantize.TENSORRT] if travels else [])
    return tuple(dict.fromkeys(found))


def ready(
    fp32: OnnxModel,
    reading: Reading,
    recipe: Recipe,
    dialects: Sequence[quantize.Dialect],
    effort: Effort,
    *,
    use_cache: bool,
    console: Console,
) -> Ready:
    """The network with its ranges on the frames of `reading`, and with weights fitted for each of the dialects."""
    even, row = evened(fp32, reading, recipe, dialects, effort, use_cache=use_cache, console=console)
    table, convergence = calibrated(even, reading, recipe, use_cache, console)
    frames = fitting_frames(reading, even) if effort.fit or effort.correct else []
    network, fits = fitted_to(Network(even, table), frames, dialects, effort, use_cache=use_cache, console=console)
    return Ready(network, convergence, {**row, "fitted": fits})


def evened(
    fp32: OnnxModel,
    reading: Reading,
    recipe: Recipe,
    dialects: Sequence[quantize.Dialect],
    effort: Effort,
    *,
    use_cache: bool,
    console: Console,
) -> tuple[OnnxModel, dict[str, Any]]:
    """The same function with normalisations folded, and channels evened out where INT8 gains by it; and what was done.

    The ranges that the factors follow are those at the convolutions, as TensorRT's dialect has them: on four networks
    the factors of one dialect served the others within 0.5 dB.
    """
    nothing = {"folded": 0, "equalized": 0, "gain_db": {}}
    if not effort.even:
        return fp32, nothing
    names = [dialect.name for dialect in dialects]
    data = reading.split.digest(reading.indices)
    key = cache.key("evened", __version__, fp32.digest, repr(fp32.spec.input), data, recipe.digest, names)
    with console.step("equalize") as step:
        if use_cache and (kept := cache.load("evened", key)) is not None:
            length = int.from_bytes(kept[:8], "little")
            row = json.loads(kept[8 : 8 + length])
            step.note = f"reused: {_said(row)}"
            return replace(fp32, graph=kept[8 + length :]), row
        frames = fitting_frames(reading, fp32, _RANGED + JUDGES)
        judges, ranged = frames[-JUDGES:], frames[:-JUDGES] or frames
        fold = folded(fp32)
        masks, scores = _answers(fp32, judges)
        whole = fold.model if _same(fp32, fold.model, judges, masks) else fp32
        even = equalized(whole, seen=channel_ranges(whole, probe, ranged, quantize.TENSORRT))
        row = {**nothing, "folded": len(fold.done) if whole is not fp32 else 0}
        found = whole
        if scores and even.pairs and _same(fp32, even.model, judges, masks):
            errs = [_errors(model, ranged, judges, scores, recipe, dialects) for model in (whole, even.model)]
            row["gain_db"] = {name: round(errs[1][name] - errs[0][name], 2) for name in errs[0]}
            if row["gain_db"] and float(np.mean(list(row["gain_db"].values()))) >= LEAST_GAIN:
                found, row["equalized"] = even.model, len(even.pairs)
        header = json.dumps(row).encode()
        cache.store("evened", key, len(header).to_bytes(8, "little") + header + found.graph)
        step.note = _said(row)
    return found, row


def _said(row: Mapping[str, Any]) -> str:
    gains = ", ".join(f"{name} {gain:+.1f} dB" for name, gain in row["gain_db"].items())
    folds = f"{row['folded']} normalisations folded, " if row["folded"] else ""
    if not gains:
        return f"{folds}no channels to even out"
    kept = f"{row['equalized']} pairs of convolutions evened out" if row["equalized"] else "channels left as they are"
    return f"{folds}{kept} ({gains})"


def fitted_to(
    network: Network,
    frames: Sequence[Frames],
    dialects: Sequence[quantize.Dialect],
    effort: Effort,
    *,
    use_cache: bool,
    console: Console,
) -> tuple[Network, dict[str, Any]]:
    """Integers for the weights, or corrected biases, for the dialects that have none yet; and a row for each fit.

    Integers are fitted to what TensorRT's convolutions read, and serve all dialects: on four networks the scores erred
    within 0.9 dB of what integers of their own gave, mostly within 0.2, where those gained up to 5.
    Both would be too much: after adaptive rounding, corrected biases changed the scores' error by -0.7 to +0.4 dB.
    """
    table = network.table
    missing = [dialect for dialect in dialects if network.fits(dialect) is None]
    if not missing or table is None or not (effort.fit or effort.correct) or not frames:
        return network, {}
    rounds = bool(effort.fit) and len(frames) > 1
    if rounds:
        wanted = {shared(d.weight_bits): replace(quantize.TENSORRT, weight_bits=d.weight_bits) for d in missing}
    else:
        wanted = {dialect.name: dialect for dialect in missing}
    some = frames[: effort.fit] if rounds else frames[: effort.correct]
    found, rows = dict(network.fitted), dict[str, Any]()
    reused = 0
    with console.step("weights") as step:
        for name, dialect in wanted.items():
            placement = quantize.place(quantize.Graph(network.fp32.graph), dialect)
            rules = (repr(dialect), placement.convolutions, sorted(placement.quantizers.items()), rounds)
            given = (network.fp32.digest, scales_json(table), *(frame.tobytes() for frame in some))
            key = cache.key("fitted", __version__, *rules, *given)
            if use_cache and (kept := cache.load("fitted", key)) is not None:
                document = json.loads(kept)
                found[name], rows[name] = stored.from_json(document["fitted"]), document["row"]
                reused += 1
                continue
            if rounds:
                rounding = adapted(network.fp32, table, dialect, probe, some)
                gains = list(rounding.gained.values())
                median = round(float(np.median(gains)), 2) if gains else None
                found[name] = Fitted(rounding.integers)
                rows[name] = {"rounded": len(gains), "median_gain_db": median, "left": rounding.left}
            else:
                found[name] = Fitted({}, quantize.corrected_biases(network.fp32, table, dialect, probe, some))
                rows[name] = {"biases": len(found[name].biases)}
            document = {"fitted": stored.to_json(found[name]), "row": rows[name]}
            cache.store("fitted", key, json.dumps(document).encode())
        said = "; ".join(_fit_said(name, row) for name, row in rows.items())
        step.note = f"{'reused: ' if reused == len(rows) else ''}{said}; on {len(some)} frames"
    return replace(network, fitted=found), rows


def _fit_said(name: str, row: Mapping[str, Any]) -> str:
    if "biases" in row:
        return f"biases of {row['biases']} convolutions corrected for {name}"
    gain = "" if row["median_gain_db"] is None else f", their outputs err {row['median_gain_db']:.1f} dB less (median)"
    return f"weights of {row['rounded']} convolutions rounded to serve{gain}"


def fitting_frames(reading: Reading, model: OnnxModel, most: int = _FITTED) -> list[Frames]:
    """The first of the frames, each a batch uint8 (1, H, W, 3) of the network's size; fewer where they are large."""
    height, width = model.spec.input.size
    count = max(2, min(most, _MEMORY // (3 * height * width)))
    found: list[Frames] = []
    for index in reading.indices:
        if len(found) == count:
            break
        with suppress(DatasetError):  # one that cannot be read is named and counted where all of them are read
            one = read(reading.split, [index], color=reading.color, labels=False)
            found += [frame[None] for frame in prepared(one, model.spec)]
    return found


def _answers(model: OnnxModel, frames: Sequence[Frames]) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
    """Masks and scores of frames; no scores where the network decides without any."""
    scored = quantize.Graph(model.graph).producer(LOGITS) is not None
    seen = list(probe(model.graph, [MASK, LOGITS] if scored else [MASK], frames))
    return [values[MASK] for values in seen], [values[LOGITS] for values in seen] if scored else []


def _same(before: OnnxModel, after: OnnxModel, frames: Sequence[Frames], masks: Sequence[NDArray[Any]]) -> bool:
    """Whether a graph that should compute the same does: `masks` are those of `before`."""
    if before is after:
        return True
    session = inference_session(after.graph)
    got = [session.run([MASK], {FRAME: frame})[0] for frame in frames]
    return float(np.mean(np.stack(masks) == np.stack(got))) >= SAME


def _errors(
    model: OnnxModel,
    ranged: Sequence[Frames],
    judges: Sequence[Frames],
    exact: Sequence[NDArray[np.float32]],
    recipe: Recipe,
    dialects: Sequence[quantize.Dialect],
) -> dict[str, float]:
    """By dialect, the signal-to-noise ratio in dB of the INT8 network's scores; empty where it cannot be told.

    `exact`: the FP32 network's scores of `judges`.
    """
    graph = quantize.Graph(model.graph)
    tensors = sorted(set().union(*(quantize.place(graph, dialect).observed for dialect in dialects)))
    found = {}
    try:
        table = calibrate(probe(model.graph, tensors, ranged), recipe, model=model.digest, data="")
    except CalibrationError:  # the calibration that follows says it with the names of frames
        return {}
    for dialect in dialects:
        placement = quantize.place(graph, dialect)
        if not placement.convolutions:
            continue
        plain = replace(dialect, fake=False, integer_bias=False)
        written = quantize.quantize(model, table, plain, placement=placement)
        session = inference_session(quantize.Graph(written.graph).upto(LOGITS), AS_WRITTEN)
        signal = noise = 0.0
        for frame, wanted in zip(judges, exact, strict=True):
            got: NDArray[np.float32] = session.run([LOGITS], {FRAME: frame})[0]
            centred = wanted - wanted.mean(axis=(0, *range(2, wanted.ndim)), keepdims=True)
            signal += float((centred.astype(np.float64) ** 2).sum())
            noise += float(((got - wanted).astype(np.float64) ** 2).sum())
        found[dialect.name] = 10 * float(np.log10(signal / noise)) if signal > 0 and noise > 0 else 0.0
    return found
