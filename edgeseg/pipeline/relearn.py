"""`--recover MINUTES`: INT8 weights learn from the FP32 network, dialect after dialect, and are kept where better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgeseg import quantize
from edgeseg.backends.onnxruntime import AS_WRITTEN, inference_session
from edgeseg.console import Console
from edgeseg.data import Reading, pick, read
from edgeseg.distill.values import Progress
from edgeseg.errors import BadInput, ModelError
from edgeseg.pipeline.frames import prepared
from edgeseg.pipeline.network import Network
from edgeseg.pipeline.recover import recover
from edgeseg.quantize.fitted import Fitted
from edgeseg.types import FRAME, MASK, Pixels

HELD_OUT = 16  # frames by which it is decided what is kept; nothing is learned from them
_MOST = 1 << 30  # bytes of frames to learn from, held in memory


def relearned(
    network: Network,
    reading: Reading,
    dialects: Sequence[quantize.Dialect],
    minutes: float,
    *,
    verdict: Reading | None,
    console: Console,
) -> tuple[Network, list[dict[str, Any]]]:
    """The network with learned weights for the dialects that give more of the FP32 network's masks by them.

    `reading`: of the split to learn from; what the verdict judges by is left out. `minutes`: for all dialects together.
    Labels are not needed. Raises ModelError for a network that torch cannot run, BadInput where frames are lacking.
    """
    assert network.table is not None
    frames, held_out = _frames(reading, verdict, network)
    rows = []
    fitted = dict(network.fitted)
    for dialect in dialects:

        def told(progress: Progress) -> None:
            if progress.score is not None:
                console.status(f"recover    {100 * progress.fraction:.0f} %, step {progress.step}")

        with console.step("recover") as step:
            own = fitted.get(dialect.name, Fitted())
            found = recover(
                network.fp32,
                network.table,
                dialect,
                frames=frames,
                held_out=held_out,
                minutes=minutes / len(dialects),
                biases=own.biases,
                on_progress=told,
            )
            console.status("")
            before = _same_masks(network, dialect, held_out)
            row: dict[str, Any] = {
                "dialect": dialect.name,
                "steps": found.steps,
                "seconds": round(found.seconds, 1),
                "stopped": found.stopped,
                "frames": len(frames),
                "held_out": len(held_out),
                "before": before,
                "after": before,
                "kept": False,
            }
            if found.kept:
                other = replace(network, fitted={**fitted, dialect.name: Fitted(learned=found.model.graph)})
                row["after"] = _same_masks(other, dialect, held_out)
                if row["after"] > before:
                    row["kept"], fitted = True, dict(other.fitted)
            step.note = (
                f"{dialect.name}: {found.steps} steps on {len(frames)} frames; masks as in FP32 "
                f"{100 * before:.2f} → {100 * row['after']:.2f} % of held-out pixels, "
                f"{'kept' if row['kept'] else 'not kept'}"
            )
        for note in found.notes:
            console.say(f"           note: {note}")
        rows.append(row)
        if found.stopped == "interrupted":
            break
    return replace(network, fitted=fitted), rows


def _frames(reading: Reading, verdict: Reading | None, network: Network) -> tuple[list[Pixels], list[Pixels]]:
    """Frames to learn from, and others spread over the split to judge by."""
    judged = verdict is not None and verdict.split.name == reading.split.name
    used = set(verdict.indices) if verdict is not None and judged else set()
    left = [index for index in range(len(reading.split)) if index not in used]
    if len(left) < 2:
        raise BadInput("--recover needs frames to learn from and others to judge by; the split has too few")
    held = [left[k] for k in pick(len(left), min(HELD_OUT, max(1, len(left) // 4)))]
    rest = sorted(set(left) - set(held))
    height, width = network.fp32.spec.input.size
    some = [rest[k] for k in pick(len(rest), max(1, _MOST // (3 * height * width)))]

    def frames(indices: list[int]) -> list[Pixels]:
        chosen = read(reading.split, indices, color=reading.color, labels=False)
        return list(prepared(chosen, network.fp32.spec))

    return frames(some), frames(held)


def _same_masks(network: Network, dialect: quantize.Dialect, frames: Sequence[Pixels]) -> float:
    """The share of pixels, 0 to 1, with the FP32 network's class; the INT8 graph node by node in ONNX Runtime."""
    plain = replace(dialect, fake=False)
    sessions = (
        inference_session(network.fp32.graph),
        inference_session(network.int8(plain).graph, AS_WRITTEN),
    )
    try:
        exact, got = ([s.run([MASK], {FRAME: frame[None]})[0] for frame in frames] for s in sessions)
    except RuntimeError as error:
        raise ModelError(f"the INT8 graph cannot be emulated: {error}") from error
    return float(np.mean(np.stack(exact) == np.stack(got)))
