"""Training by labels alone: Adam, a rate that falls when nothing gets better, an early end, and the best is kept.

A run goes on where it was stopped, step for step, and under torchrun on several GPUs or machines.
"""

from __future__ import annotations

import hashlib
import io
import math
import pickle
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeseg.distill.distributed import Ranks, agree, average, from_first, joined
from edgeseg.distill.frames import Prepare
from edgeseg.distill.interrupt import interruptible
from edgeseg.distill.objective import supervised_loss
from edgeseg.distill.optimizer import moments, rate, remember, set_rate
from edgeseg.distill.patience import Patience, Watch, over, watch
from edgeseg.distill.values import LabelLoss
from edgeseg.errors import BadInput
from edgeseg.files import write_whole

VERSION = 1
SAVE_EVERY = 60.0  # seconds
WARMUP = 40  # steps in which the cosine's learning rate rises
FLOOR = 0.01  # of the cosine: it does not fall to 0
FREE = ("epochs", "minutes")  # may be others when a run is continued
now = time.perf_counter

# (frames' numbers int64 (B), random) to frames uint8 (B, H, W, 3) and labels uint8 (B, H, W), changed at will
Batches = Callable[[NDArray[np.int64], np.random.Generator], tuple[NDArray[np.uint8], NDArray[np.uint8]]]
Ended = Literal["finished", "no better", "interrupted", "diverged"]


@dataclass(frozen=True, slots=True)
class Training:
    """How a network learns from labels."""

    epochs: int = 100
    minutes: float = math.inf  # of all runs that a checkpoint joins; the end of whichever comes first
    batch: int = 32  # frames a step, of all processes together
    at_once: int | None = None  # of a process's frames, how many the network gets together; None: all
    learning_rate: float = 1e-3  # of Adam, its highest
    schedule: Literal["plateau", "cosine"] = "plateau"
    patience: Patience = field(default_factory=Patience)  # of the plateau; the cosine knows no early end
    labels: LabelLoss = field(default_factory=LabelLoss)
    auxiliary_weight: float = 0.3
    output: int | str = 0
    bfloat16: bool = False  # of convolutions
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch, self.at_once or 1) < 1 or self.seed < 0:
            raise BadInput(f"epochs, batch and at_once must be at least 1, and the seed not negative: {self}")
        if not (self.minutes > 0 and 0 < self.learning_rate < math.inf and 0 <= self.auxiliary_weight < math.inf):
            raise BadInput(f"minutes and learning_rate must be positive, auxiliary_weight 0 or more: {self}")


@dataclass(frozen=True, slots=True)
class Epoch:
    """What an epoch came to, or the part of it for which there was time."""

    number: int  # from 1
    loss: float  # mean of its steps
    score: float  # by the judge
    learning_rate: float
    seconds: float  # since the beginning of the run


@dataclass(frozen=True, slots=True)
class Trained:
    """How a run ended. The network that was trained holds the best weights."""

    best: float  # score; -inf if no epoch ended
    best_epoch: int  # 0: none
    ended: Ended
    steps: int
    seconds: float
    history: tuple[Epoch, ...]


def train(
    network: nn.Module,
    batches: Batches,
    count: int,
    options: Training,
    *,
    prepare: Prepare,
    judge: Callable[[nn.Module], float],
    on_epoch: Callable[[Epoch, nn.Module], None] | None = None,
    on_best: Callable[[nn.Module], None] | None = None,
    checkpoint: Path | None = None,
    device: torch.device | None = None,
) -> Trained:
    """Train `network` in place by labels; it ends with the weights that the judge liked best, in eval mode.

    `batches` makes what is learned from of numbers of `count` frames, `prepare` the network's input of it. The loss is
    `supervised_loss` by `options`. `judge` scores the network in eval mode after each epoch and at the end, higher is
    better (give a loss its minus). All that is random follows from the seed, the step and the process, so that a run
    continued from its `checkpoint`, which is written once a minute and after each epoch, gives the weights of one that
    was never stopped. Under torchrun every process calls this with the same arguments, takes its part of each batch,
    and ends with the same weights; gradients and the statistics of batch norm are averaged after each step, and the
    first one judges and calls `on_epoch` and `on_best`. Ctrl-C ends it after the step at hand. Raises BadInput for a
    batch larger than `count` or that processes cannot share, and for a checkpoint of another run.
    """
    with joined(device) as ranks, interruptible() as interrupted, torch.random.fork_rng(_gpus(ranks)):
        run = _Run(network, batches, count, options, prepare, judge, ranks, checkpoint)
        return run.go(interrupted, on_epoch, on_best)


class _Run:
    def __init__(
        self, network: nn.Module, batches: Batches, count: int, options: Training, prepare: Prepare,
        judge: Callable[[nn.Module], float], ranks: Ranks, checkpoint: Path | None,
    ) -> None:  # fmt: skip
        if options.batch > count or options.batch % ranks.world:
            raise BadInput(
                f"a batch of {options.batch} was asked for, of {count} frames and for {ranks.world} processes: it must "
                "not be larger than the frames are many, and a multiple of the number of processes"
            )
        self.network, self.batches, self.count, self.options = network.to(ranks.device), batches, count, options
        self.prepare, self.judge, self.ranks, self.checkpoint = prepare, judge, ranks, checkpoint
        self.weights = {name: value for name, value in network.named_parameters() if value.requires_grad}
        self.optimizer = torch.optim.Adam(self.weights.values(), lr=options.learning_rate)
        self.steps = count // options.batch  # an epoch; what is left over is other frames each time
        self.step, self.losses, self.before, self.started = 0, 0.0, 0.0, now()
        self.watch, self.history, self.judged = Watch(), list[Epoch](), 0
        self.best_score, self.best_epoch = -math.inf, 0
        self.print = _fingerprint(network, options, count)
        state = _load(checkpoint, self.print) if checkpoint is not None and ranks.first else None
        state = from_first(state, ranks)
        if state is not None:
            self._continue(state)
        else:
            self._put(from_first(self._values(), ranks))
            self.best = self._values()

    def go(
        self, interrupted: Callable[[], bool], on_epoch: Callable[[Epoch, nn.Module], None] | None,
        on_best: Callable[[nn.Module], None] | None,
    ) -> Trained:  # fmt: skip
        ended = self._train(interrupted, on_epoch, on_best)
        if ended != "diverged":
            self._save()
        self._put(self.best)
        self.network.eval()
        return Trained(self.best_score, self.best_epoch, ended, self.step, self._elapsed(), tuple(self.history))

    def _train(
        self, interrupted: Callable[[], bool], on_epoch: Callable[[Epoch, nn.Module], None] | None,
        on_best: Callable[[nn.Module], None] | None,
    ) -> Ended:  # fmt: skip
        options, saved, speed = self.options, now(), self.options.learning_rate
        while True:
            if options.schedule == "plateau" and over(self.watch, options.patience):
                return "no better"
            done, stop = agree(self._done(), interrupted(), self.ranks)
            if stop:
                return "interrupted"
            if done >= 1:
                if self.step % self.steps and self.judged != self.step:  # the time was up amid an epoch
                    self._judge(speed, on_epoch, on_best)
                return "finished"
            speed = self._speed(done)
            loss = self._learn(speed)
            if loss is None:
                return "diverged"
            self.step += 1
            self.losses += loss
            if self.step % self.steps == 0:
                score = self._judge(speed, on_epoch, on_best)
                self.watch, self.losses = watch(self.watch, score, options.patience), 0.0
                self._save()
                saved = now()
            elif now() - saved >= SAVE_EVERY:
                self._save()
                saved = now()

    def _learn(self, speed: float) -> float | None:
        """One step; its loss, or None where that or the gradient is no number: then no weight was changed."""
        options, ranks = self.options, self.ranks
        epoch, place = divmod(self.step, self.steps)
        order = np.random.default_rng((options.seed, 0, epoch)).permutation(self.count)
        chosen = order[place * options.batch : (place + 1) * options.batch][ranks.rank :: ranks.world]
        frames, labels = self.batches(chosen, np.random.default_rng((options.seed, 1, self.step, ranks.rank)))
        # what the network itself draws, as dropout does
        torch.manual_seed(int(np.random.SeedSequence((options.seed, 2, self.step, ranks.rank)).generate_state(1)[0]))
        pixels, target = torch.from_numpy(frames).to(ranks.device), torch.from_numpy(labels).to(ranks.device).long()
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros(1, device=ranks.device)
        size = options.at_once or len(pixels)
        for first in range(0, len(pixels), size):
            part = slice(first, first + size)
            with torch.autocast(ranks.device.type, torch.bfloat16) if options.bfloat16 else nullcontext():
                returned = self.network(self.prepare(pixels[part]))
            loss = supervised_loss(
                returned,
                target[part],
                options.labels,
                output=options.output,
                auxiliary_weight=options.auxiliary_weight,
            ) * (len(pixels[part]) / len(pixels))
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        gradients = [weight.grad for weight in self.weights.values() if weight.grad is not None]
        statistics = [value for value in self.network.buffers() if value.is_floating_point()]
        with torch.no_grad():
            average([*gradients, *statistics, total], ranks)
        finite = torch.stack([gradient.isfinite().all() for gradient in gradients]).all() & total.isfinite().all()
        if not bool(finite):
            return None
        set_rate(self.optimizer, speed)
        self.optimizer.step()
        return float(total)

    def _judge(
        self, speed: float, on_epoch: Callable[[Epoch, nn.Module], None] | None,
        on_best: Callable[[nn.Module], None] | None,
    ) -> float:  # fmt: skip
        self.network.eval()
        score = math.nan
        if self.ranks.first:
            with torch.no_grad():
                score = float(self.judge(self.network))
        score = float(from_first(score, self.ranks))
        number = math.ceil(self.step / self.steps)
        steps = self.step - (number - 1) * self.steps
        self.history.append(Epoch(number, self.losses / steps, score, speed, self._elapsed()))
        self.judged = self.step
        if score > self.best_score:  # patience may want more of a gain; any is kept
            self.best, self.best_score, self.best_epoch = self._values(), score, number
            if on_best is not None and self.ranks.first:
                on_best(self.network)
        if on_epoch is not None and self.ranks.first:
            on_epoch(self.history[-1], self.network)
        return score

    def _done(self) -> float:
        """How much of the run is over, by epochs or by time: 1 or more at its end."""
        return max(self.step / (self.steps * self.options.epochs), self._elapsed() / (60 * self.options.minutes))

    def _speed(self, done: float) -> float:
        highest = self.options.learning_rate
        if self.options.schedule == "plateau":
            return highest * self.watch.speed
        return highest * min(1.0, (self.step + 1) / WARMUP) * (FLOOR + (1 - FLOOR) * rate(done, 0.0))

    def _elapsed(self) -> float:
        return now() - self.started + self.before

    # -- state -----------------------------------------------------------------------------------------------------

    def _values(self) -> dict[str, Tensor]:
        return {name: value.detach().cpu().clone() for name, value in self.network.state_dict().items()}

    def _put(self, values: dict[str, Tensor]) -> None:
        self.network.load_state_dict(values)

    def _save(self) -> None:
        if self.checkpoint is None or not self.ranks.first:
            return
        data = io.BytesIO()
        content = {
            "edgeseg_training": VERSION,
            "fingerprint": self.print,
            "step": self.step,
            "losses": self.losses,
            "seconds": self._elapsed(),
            "weights": self._values(),
            "moments": moments(self.optimizer, self.weights),
            "best": self.best,
            "best_epoch": self.best_epoch,
            "best_score": self.best_score,
            "judged": self.judged,
            "watch": asdict(self.watch),
            "history": [asdict(epoch) for epoch in self.history],
        }
        torch.save(content, data)
        write_whole(self.checkpoint, data.getvalue())

    def _continue(self, state: dict[str, Any]) -> None:
        self.step, self.losses, self.before = state["step"], state["losses"], state["seconds"]
        self._put(state["weights"])
        remember(self.optimizer, self.weights, state["moments"])
        self.best, self.best_epoch, self.best_score = state["best"], state["best_epoch"], state["best_score"]
        self.judged = state["judged"]
        self.watch = Watch(**state["watch"])
        self.history = [Epoch(**epoch) for epoch in state["history"]]


def _fingerprint(network: nn.Module, options: Training, count: int) -> str:
    """What a run must share with another to be its continuation: the network's shape, how many frames, the options."""
    parts = [(name, getattr(options, name)) for name in Training.__dataclass_fields__ if name not in FREE]
    shapes = [(name, tuple(value.shape)) for name, value in network.state_dict().items()]
    return hashlib.sha256(repr((VERSION, parts, shapes, count)).encode()).hexdigest()


def _load(path: Path, print_: str) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        version, theirs = content["edgeseg_training"], content["fingerprint"]
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise BadInput(f"{path} is no checkpoint of a training, or a damaged one. Delete it to begin anew") from error
    if version != VERSION or theirs != print_:
        raise BadInput(
            f"{path} is of another run: the network, the options (but for epochs and minutes) or the number of frames "
            "were others. Delete it to begin anew, or give another file"
        )
    return content


def _gpus(ranks: Ranks) -> list[int]:
    return [ranks.device.index or 0] if ranks.device.type == "cuda" else []
