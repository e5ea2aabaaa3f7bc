"""Before INT8: normalisations folded and channels evened out, which changes the graph and not what it computes.

Kept only if INT8 errs less by it on frames that nothing was fitted to.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration import CalibrationError, Recipe, ScaleTable, calibrate
from edgeseg import __version__, cache, quantize
from edgeseg.backends.onnxruntime import AS_WRITTEN, inference_session, probe
from edgeseg.console import Console
from edgeseg.data import Reading
from edgeseg.pipeline.frames import Effort, fitting_frames
from edgeseg.quantize.equalize import ChannelRanges, equalized, followed, scalable
from edgeseg.quantize.fold import folded
from edgeseg.types import FRAME, LOGITS, MASK, Frames, OnnxModel

JUDGES = 8  # frames that decide whether channels stay evened out
LEAST_GAIN = 1.0  # dB of the scores, the mean over dialects: other frames judge the same factors up to 1 dB differently
STRENGTH = 0.5  # of the factors: at 1 other frames than those ranged went beyond, and the gain was less or none
SAME = 0.9995  # share of pixels that the graph must label as before: ONNX Runtime's kernels differ by as much
_RANGED = 24  # frames whose ranges the factors follow: those of 8 fit others so badly that nothing seemed to gain

Scores = Sequence[NDArray[np.float32]]


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
    row: dict[str, Any] = {"folded": 0, "equalized": 0, "gain_db": {}}
    if not effort.even:
        return fp32, row
    names = [dialect.name for dialect in dialects]
    data = reading.split.digest(reading.indices)
    rules = (JUDGES, LEAST_GAIN, STRENGTH, _RANGED)
    key = cache.key("evened", __version__, rules, fp32.digest, repr(fp32.spec.input), data, recipe.digest, names)
    with console.step("equalize") as step:
        if use_cache and (kept := cache.load("evened", key)) is not None:
            length = int.from_bytes(kept[:8], "little")
            row = json.loads(kept[8 : 8 + length])
            step.note = f"reused: {_said(row)}"
            return replace(fp32, graph=kept[8 + length :]), row
        frames = fitting_frames(reading, fp32.spec, _RANGED + JUDGES)
        judges, ranged = frames[-JUDGES:], frames[:-JUDGES] or frames
        masks, scores = _answers(fp32, judges)
        fold = folded(fp32)
        found = fp32
        if fold.model is not fp32 and _same(fold.model, judges, masks):
            found, row["folded"] = fold.model, len(fold.done)
        if scores and (tried := _evened_out(found, ranged, recipe, dialects)) is not None:
            (before, even, after), pairs = tried
            if _same(even, judges, masks):
                was, now = (_errors(*made, judges, scores, dialects) for made in ((found, before), (even, after)))
                row["gain_db"] = {name: round(now[name] - was[name], 2) for name in was}
            if row["gain_db"] and float(np.mean(list(row["gain_db"].values()))) >= LEAST_GAIN:
                found, row["equalized"] = even, pairs
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


def _evened_out(
    model: OnnxModel, ranged: Sequence[Frames], recipe: Recipe, dialects: Sequence[quantize.Dialect]
) -> tuple[tuple[ScaleTable, OnnxModel, ScaleTable], int] | None:
    """The model's ranges, the model evened out, its ranges, and how many pairs changed; None where nothing can."""
    observed = _observed(model, dialects)
    tensors, groups = scalable(model, quantize.TENSORRT)
    if not tensors:
        return None
    largest: dict[str, NDArray[np.float32]] = {}
    seen = followed(probe(model.graph, sorted({*observed, *tensors}), ranged), tensors, largest)
    before = _table(model, ({name: values[name] for name in observed} for values in seen), recipe)
    if before is None:
        return None
    even = equalized(model, seen=ChannelRanges(largest, groups), strength=STRENGTH)
    after = _table(even.model, probe(even.model.graph, observed, ranged), recipe) if even.pairs else None
    return None if after is None else ((before, even.model, after), len(even.pairs))


def _observed(model: OnnxModel, dialects: Sequence[quantize.Dialect]) -> list[str]:
    graph = quantize.Graph(model.graph)
    return sorted(set().union(*(quantize.place(graph, dialect).observed for dialect in dialects)))


def _table(model: OnnxModel, batches: Iterable[Mapping[str, NDArray[Any]]], recipe: Recipe) -> ScaleTable | None:
    try:
        return calibrate(batches, recipe, model=model.digest, data="")
    except CalibrationError:  # the calibration that follows says it with the names of frames
        return None


def _answers(model: OnnxModel, frames: Sequence[Frames]) -> tuple[list[NDArray[Any]], Scores]:
    """Masks and scores of frames; no scores where the network decides without any."""
    scored = quantize.Graph(model.graph).producer(LOGITS) is not None
    seen = list(probe(model.graph, [MASK, LOGITS] if scored else [MASK], frames))
    return [values[MASK] for values in seen], [values[LOGITS] for values in seen] if scored else []


def _same(model: OnnxModel, frames: Sequence[Frames], masks: Sequence[NDArray[Any]]) -> bool:
    """Whether a graph that should give these masks does."""
    session = inference_session(model.graph)
    got = [session.run([MASK], {FRAME: frame})[0] for frame in frames]
    return float(np.mean(np.stack(masks) == np.stack(got))) >= SAME


def _errors(
    model: OnnxModel, table: ScaleTable, judges: Sequence[Frames], exact: Scores, dialects: Sequence[quantize.Dialect]
) -> dict[str, float]:
    """By dialect, the signal-to-noise ratio of the INT8 network's scores, in dB, the mean over frames.

    `exact`: the FP32 network's scores of `judges`. Dialects that quantize nothing here are left out.
    """
    graph = quantize.Graph(model.graph)
    found = {}
    for dialect in dialects:
        placement = quantize.place(graph, dialect)
        if not placement.convolutions:
            continue
        plain = replace(dialect, fake=False, integer_bias=False)
        written = quantize.quantize(model, table, plain, placement=placement)
        session = inference_session(quantize.Graph(written.graph).upto(LOGITS), AS_WRITTEN)
        ratios = []
        for frame, wanted in zip(judges, exact, strict=True):
            got: NDArray[np.float32] = session.run([LOGITS], {FRAME: frame})[0]
            centred = wanted - wanted.mean(axis=(0, *range(2, wanted.ndim)), keepdims=True)
            signal = float((centred.astype(np.float64) ** 2).sum())
            noise = float(((got - wanted).astype(np.float64) ** 2).sum())
            ratios.append(10 * float(np.log10(signal / noise)) if signal > 0 and noise > 0 else 0.0)
        found[dialect.name] = float(np.mean(ratios))
    return found
