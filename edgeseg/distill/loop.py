"""The run: a student learns from its teacher within a budget, is judged on the way, and the best of it is kept.

What comes back is never worse, on the held-out frames, than what was given.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, fx, nn

from edgeseg.distill import checkpoint as files
from edgeseg.distill import norm as norms
from edgeseg.distill.distributed import Ranks, agree, average, from_first, joined
from edgeseg.distill.frames import Prepare, augment, check, order, stack
from edgeseg.distill.interrupt import interruptible
from edgeseg.distill.objective import Objective, at_once
from edgeseg.distill.optimizer import adamw, follow, moments, rate, remember, set_rate, trained
from edgeseg.distill.score import Judge
from edgeseg.distill.values import Distillation, Distilled, Progress, Score, Stopped
from edgeseg.types import Mask, Pixels

SAVE_EVERY = 30.0  # seconds
JUDGED = 12  # times in a run, unless that would take more than JUDGING of it
JUDGING = 0.05
STATISTICS = 16  # frames that give the statistics of norms and features
now = time.perf_counter


def distill(
    teacher: nn.Module,
    student: nn.Module,
    frames: Sequence[Pixels],
    options: Distillation,
    *,
    prepare: Prepare,
    held_out: Sequence[Pixels],
    labels: Sequence[Mask] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    checkpoint: Path | None = None,
    device: torch.device | None = None,
) -> Distilled:
    """Train a copy of `student` to give `teacher`'s scores; the better one of before and after, by held-out agreement.

    frames: uint8 (H, W, 3) at the networks' size, read one batch at a time; held_out: others, of the train split too.
    `prepare` makes the networks' input of them. labels: uint8 (h, w), one a frame, of one size. Both networks are in
    eval mode and stay as they are. `checkpoint` is written every half a minute and continued from if it is there.
    Under torchrun every process calls this with the same arguments, and all get the same weights. Ctrl-C ends the run
    after the step at hand, with what was learned. Raises BadInput for frames, labels or a checkpoint that do not fit,
    ModelError for an output or a feature that is not there.
    """
    check(frames, held_out, labels)
    started = now()
    with joined(device) as ranks, interruptible() as interrupted:
        run = _Run(teacher, student, frames, labels, held_out, options, prepare, ranks, checkpoint, started)
        return run.go(interrupted, on_progress if ranks.first else None)


class _Run:
    """One run of one process: the networks that it changes, and where it stands."""

    def __init__(
        self, teacher: nn.Module, student: nn.Module, frames: Sequence[Pixels], labels: Sequence[Mask] | None,
        held_out: Sequence[Pixels], options: Distillation, prepare: Prepare, ranks: Ranks, checkpoint: Path | None,
        started: float,
    ) -> None:  # fmt: skip
        self.frames, self.labels, self.options, self.prepare, self.ranks = frames, labels, options, prepare, ranks
        self.notes: list[str] = []
        on_gpu = ranks.device.type == "cuda"
        self.teacher = copy.deepcopy(teacher).to(ranks.device) if on_gpu else teacher
        self.original = _still(copy.deepcopy(student)).to(ranks.device)
        example = prepare(stack([held_out[0]]).to(ranks.device))
        self.at_once = min(options.batch, options.at_once or at_once((self.teacher, self.original), example, options))
        self.judge = Judge(self.teacher, held_out, prepare, options, self.at_once, ranks.device)
        self.checkpoint = checkpoint
        self.print = ""
        if checkpoint is not None:
            self.print = files.fingerprint(teacher, student, options, len(frames), held_out)
        state = files.load(checkpoint, self.print) if checkpoint is not None and ranks.first else None
        state = from_first(state, ranks)

        self.network, self.folds = self._with_norms()
        self.weights = trained(self.network)
        self.objective = Objective(self.teacher, self.network, options, lambda: self.judge.images(STATISTICS))
        self.averaged = copy.deepcopy(self.network)
        self.optimizer = adamw(self.weights, options)
        first = from_first(self._snapshot(self.network), ranks)
        self._put(first, self.network)
        self._put(first, self.averaged)

        self.started, self.seconds_before = started, 0.0
        self.step, self.halvings = 0, 0
        self.begun: float | None = None  # the fraction of the run that was over when the first step began
        self.best, self.best_score = first, files.nothing_judged()
        self.history: list[Progress] = []
        if state is not None:
            self._continue(state)
        self.judging = self.glancing = 0.0  # seconds that judging takes: by both networks, by the student alone

    # -- the run ---------------------------------------------------------------------------------------------------

    def go(self, interrupted: Callable[[], bool], on_progress: Callable[[Progress], None] | None) -> Distilled:
        before = self._judge_first()
        stopped, progress = self._train(interrupted, on_progress)
        if self.ranks.first and stopped not in ("no time", "diverged") and progress is not None:
            self._judge(progress, None)
        if self.ranks.first and self.checkpoint is not None:
            files.save(self.checkpoint, self._state(), self.print)
        best, best_score = from_first((self.best, self.best_score), self.ranks)
        after = before
        self._put(best, self.averaged)
        learned = self.averaged
        if self.folds:
            assert isinstance(learned, fx.GraphModule)
            learned = norms.fold(learned, self.folds)
        if best_score.agreement >= 0 and self.ranks.first:
            after = self.judge.score(_still(learned))
        before, after = from_first((before, after), self.ranks)
        better = after.agreement > before.agreement
        return Distilled(
            student=_still(learned if better else self.original).cpu(),
            before=before,
            after=after,
            kept="after" if better else "before",
            stopped=stopped,
            steps=self.step,
            seconds=self._elapsed(),
            history=tuple(self.history),
            notes=tuple(self.notes),
        )

    def _judge_first(self) -> Score:
        began = now()
        before = self.judge.score(self.original) if self.ranks.first else Score(math.nan, math.nan, math.nan)
        self.judging = now() - began
        self.glancing = self.judging / 2
        return before

    def _train(
        self, interrupted: Callable[[], bool], on_progress: Callable[[Progress], None] | None
    ) -> tuple[Stopped, Progress | None]:
        """How the run ended, and its last step if that was not judged."""
        judged, saved, last = self._fraction(0.0), now(), 0.0  # last: seconds of the step before
        progress: Progress | None = None
        while True:
            fraction, stop = agree(self._fraction(last), interrupted(), self.ranks)
            if stop:
                return "interrupted", progress
            if fraction >= 1:
                return ("finished" if self.step else "no time"), progress
            began = now()
            if self.begun is None:
                self.begun = fraction
            place = (fraction - self.begun) / (1 - self.begun)
            speed = self.options.learning_rate * 0.5**self.halvings * rate(place, self.options.warmup)
            loss = self._learn(speed)
            if loss is None:
                if self.halvings:
                    self.notes.append(f"the loss was no number again after step {self.step}; stopped, the best is kept")
                    return "diverged", None
                self._begin_again()
                continue
            self.step += 1
            follow(self._tracked(self.averaged), self._tracked(self.network), self.step, self.options.average)
            last = now() - began
            if not self.ranks.first:
                continue
            fraction = min(1.0, self._fraction(0.0))
            progress = Progress(self.step, fraction, self._elapsed(), speed, loss)
            if fraction < 1 and self._due(fraction - judged):
                self._judge(progress, on_progress)
                judged, progress = self._fraction(0.0), None
            elif on_progress is not None:
                on_progress(progress)
            if self.checkpoint is not None and now() - saved >= SAVE_EVERY:
                files.save(self.checkpoint, self._state(), self.print)
                saved = now()

    def _learn(self, speed: float) -> float | None:
        """One step. Returns the loss, or None where it or the gradient is no number: then nothing was changed."""
        options, ranks = self.options, self.ranks
        chosen = order(len(self.frames), self.step, options.batch, options.seed, ranks.rank, ranks.world)
        random = np.random.default_rng((options.seed, 1, self.step, ranks.rank))
        batch = stack([self.frames[i] for i in chosen]).to(ranks.device)
        labels = stack([self.labels[i] for i in chosen]).to(ranks.device) if self.labels is not None else None
        batch, labels = augment(batch, labels, options.augmentation, random)
        self._to_train()
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros(1, device=ranks.device)
        for first in range(0, len(batch), self.at_once):
            part = slice(first, first + self.at_once)
            loss = self.objective(self.prepare(batch[part]), labels[part].long() if labels is not None else None)
            loss = loss * (len(batch[part]) / len(batch))
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        gradients = [weight.grad for weight in self.weights.values() if weight.grad is not None]
        average([*gradients, total], ranks)
        length = torch.nn.utils.clip_grad_norm_(self.weights.values(), options.clip)
        if not bool(torch.isfinite(length) & torch.isfinite(total)):
            return None
        set_rate(self.optimizer, speed)
        self.optimizer.step()
        return float(total)

    # -- judging and keeping ---------------------------------------------------------------------------------------

    def _judge(self, progress: Progress, on_progress: Callable[[Progress], None] | None) -> None:
        began = now()
        score = self.judge.glance(self.averaged)
        self.glancing = now() - began
        if score.agreement > self.best_score.agreement:
            self.best, self.best_score = self._snapshot(self.averaged), score
        done = Progress(progress.step, progress.fraction, self._elapsed(), progress.learning_rate, progress.loss, score)
        self.history.append(done)
        if on_progress is not None:
            on_progress(done)

    def _begin_again(self) -> None:
        self.notes.append(f"the loss was no number after step {self.step}; back to the best, at half the learning rate")
        best = from_first(self.best, self.ranks)
        self._put(best, self.network)
        self._put(best, self.averaged)
        self.optimizer.state.clear()
        self.halvings += 1

    def _fraction(self, ahead: float) -> float:
        """How much of the run is over: of the steps, or of the time that is left for steps after the next one."""
        if self.options.steps is not None:
            return self.step / self.options.steps
        usable = 60 * self.options.minutes - self.judging - self.glancing
        return (self._elapsed() + ahead / 2) / usable if usable > 0 else 1.0

    def _due(self, since: float) -> bool:
        """Whether to judge now, so much of the run after the last time."""
        if self.options.steps is not None:
            return self.step % max(1, round(self.options.steps / JUDGED)) == 0
        return since >= max(1 / JUDGED, self.glancing / JUDGING / (60 * self.options.minutes))

    def _elapsed(self) -> float:
        return now() - self.started + self.seconds_before

    # -- state -----------------------------------------------------------------------------------------------------

    def _with_norms(self) -> tuple[nn.Module, dict[str, str]]:
        if self.options.norm == "none":
            return copy.deepcopy(self.original), {}
        if not isinstance(self.original, fx.GraphModule):
            self.notes.append("batch norm is put into torch.fx graphs only; trained without")
            return copy.deepcopy(self.original), {}
        return norms.insert(self.original, self.judge.images(STATISTICS))

    def _tracked(self, network: nn.Module) -> dict[str, Tensor]:
        """All that training changes: the trained weights, and the statistics of norms that follow their inputs."""
        parameters = dict(network.named_parameters())
        found: dict[str, Tensor] = {name: parameters[name].detach() for name in self.weights}
        for name in self.folds:
            norm = network.get_submodule(name)
            for part in ("running_mean", "running_var"):
                found[f"{name}.{part}"] = norm.get_buffer(part)
        return found

    def _snapshot(self, network: nn.Module) -> dict[str, Tensor]:
        return {name: value.cpu().clone() for name, value in self._tracked(network).items()}

    @torch.no_grad()
    def _put(self, values: dict[str, Tensor], network: nn.Module) -> None:
        for name, value in self._tracked(network).items():
            value.copy_(values[name])

    def _to_train(self) -> None:
        for name in self.folds:
            self.network.get_submodule(name).train(self.options.norm == "updating")

    def _state(self) -> files.State:
        return files.State(
            self.step,
            self._elapsed(),
            self.halvings,
            self.begun or 0.0,
            self._snapshot(self.network),
            self._snapshot(self.averaged),
            moments(self.optimizer, self.weights),
            self.best,
            self.best_score,
            tuple(self.history),
        )

    def _continue(self, state: files.State) -> None:
        self.step, self.seconds_before, self.halvings = state.step, state.seconds, state.halvings
        self.begun = state.begun
        self._put(state.weights, self.network)
        self._put(state.averaged, self.averaged)
        remember(self.optimizer, self.weights, state.moments)
        self.best, self.best_score, self.history = state.best, state.best_score, list(state.history)
        self.notes.append(f"continued after step {state.step} and {state.seconds:.0f} s")


def _still(network: nn.Module) -> nn.Module:
    """In eval mode and without gradients."""
    return network.eval().requires_grad_(False)
