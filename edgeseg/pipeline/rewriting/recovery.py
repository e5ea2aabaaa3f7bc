"""A rewritten network learns from its original for some minutes: the step after rewriting, if minutes were given."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from edgeseg import distill
from edgeseg.console import Console
from edgeseg.data import Dataset, fit, pick, read, to_size
from edgeseg.distill.values import Distillation, Distilled, LabelLoss, Progress
from edgeseg.errors import DatasetError
from edgeseg.pipeline.rewriting.journal import place
from edgeseg.pipeline.rewriting.students import Work
from edgeseg.pipeline.rewriting.wish import Wish
from edgeseg.rewrite.network import Network
from edgeseg.types import Mask, Pixels

MOST = 2 << 30  # bytes of frames held at a time; of a larger split, frames spread over it


def recovered(
    work: Work, network: Network, dataset: Dataset, split: str, wish: Wish, console: Console
) -> tuple[Network, dict[str, Any]]:
    """The better of before and after by the frames held out, and what there is to say about it."""
    frames, labels = _learning(dataset, split, work, labels=wish.labels)
    output = work.spec.output
    options = Distillation(
        minutes=wish.minutes,
        seed=wish.seed,
        output=output.index,
        probabilities=output.activation == "probabilities",
        threshold=output.threshold,
        align_corners=output.align_corners,
        labels=LabelLoss(ignore_index=dataset.ignore_index),
    )

    def told(progress: Progress) -> None:
        if progress.score is not None:
            console.status(
                f"recover    {100 * progress.fraction:.0f} %, step {progress.step}: "
                f"{100 * progress.score.agreement:.2f} % mean IoU with the original's decisions"
            )

    with console.step("recover") as step:
        found = distill.distill(
            work.teacher,
            copy.deepcopy(network),
            frames,
            options,
            prepare=distill.preparation(work.spec.input),
            held_out=work.held.frames,
            labels=labels,
            on_progress=told,
            checkpoint=wish.checkpoint,
        )
        console.status("")
        step.note = _summary(found, len(frames))
    for note in found.notes:
        console.say(f"           note: {note}")
    if found.stopped == "interrupted" and wish.checkpoint is not None:
        console.say(f"           interrupted: the same command goes on from {wish.checkpoint}")
    assert isinstance(found.student, Network)
    return found.student, _row(found, wish, len(frames), labels is not None)


def forget(wish: Wish, recovery: Mapping[str, Any] | None) -> None:
    """When what was learned has been written: remove the file of a run that came to its end. From one that was
    interrupted the same command goes on."""
    if wish.checkpoint is not None and recovery is not None and recovery["stopped"] != "interrupted":
        wish.checkpoint.unlink(missing_ok=True)
        place(wish.checkpoint).unlink(missing_ok=True)


def _learning(dataset: Dataset, split: str, work: Work, *, labels: bool) -> tuple[list[Pixels], list[Mask] | None]:
    """All frames of the split but those held out."""
    chosen = dataset.split(split)
    if labels and not chosen.has_labels:
        raise DatasetError(f"labels were asked for, and split '{split}' has none")
    left = [index for index in range(len(chosen)) if index not in work.held_indices]
    height, width = work.spec.input.size
    indices = [left[k] for k in pick(len(left), min(len(left), max(1, MOST // (height * width * 3))))]
    frames: list[Pixels] = []
    masks: list[Mask] = []
    for sample in read(chosen, indices, color=work.spec.input.frame, labels=labels):
        frames.append(fit(sample.pixels, work.spec.input.size, work.spec.input.resize))
        if sample.label is not None:
            masks.append(to_size(sample.label, work.spec.input.size))
    return frames, masks if labels and len(masks) == len(frames) else None


def _summary(found: Distilled, frames: int) -> str:
    return (
        f"{found.steps} steps on {frames} frames; {100 * found.before.agreement:.2f} → "
        f"{100 * found.after.agreement:.2f} % mean IoU with the original's decisions, kept: {found.kept}"
    )


def _row(found: Distilled, wish: Wish, frames: int, labelled: bool) -> dict[str, Any]:
    return {
        "minutes": wish.minutes,
        "seconds": round(found.seconds, 1),
        "steps": found.steps,
        "frames": frames,
        "labels": labelled,
        "kept": found.kept,
        "stopped": found.stopped,
        "before": found.before.agreement,
        "after": found.after.agreement,
    }
