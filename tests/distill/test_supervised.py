"""Training by labels: Adam by its formula, what is kept, when it ends, and runs that go on as if never stopped."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeseg.distill import supervised
from edgeseg.distill.patience import Patience
from edgeseg.distill.supervised import Batches, Epoch, Training, train
from edgeseg.distill.values import LabelLoss
from edgeseg.errors import BadInput
from tests.distill.making import prepare
from tests.distill.running import same, weights

ROOT = Path(__file__).resolve().parents[2]
Integers = NDArray[np.int64]
SHORT = Training(epochs=4, batch=4, learning_rate=0.02)


def colours(count: int = 12) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Frames of two colours, class 1 where it is bright."""
    random = np.random.default_rng(0)
    labels = (random.random((count, 6, 8)) < 0.4).astype(np.uint8)
    frames = random.integers(0, 110, (count, 6, 8, 3)) + 140 * labels[..., None]
    return frames.astype(np.uint8), labels


def fixed(numbers: Integers, random: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    frames, labels = colours()
    return frames[numbers], labels[numbers]


def changed(numbers: Integers, random: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    frames, labels = fixed(numbers, random)
    darker = frames * random.uniform(0.7, 1.0, (len(frames), 1, 1, 1))
    return darker.astype(np.uint8), labels


class Two(nn.Module):
    """Batch norm, dropout, and a second output: what a continued run has to remember."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.drop, self.head, self.side = nn.Dropout(0.3), nn.Conv2d(6, 2, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Any:
        inner = torch.relu(self.norm(self.first(x)))
        scores = self.head(self.drop(inner))
        return {"out": scores, "aux": self.side(inner)} if self.training else scores


def made(kind: Callable[[], nn.Module] = Two) -> nn.Module:
    torch.manual_seed(3)
    return kind()


def accuracy(network: nn.Module) -> float:
    frames, labels = colours()
    guess = network(prepare(torch.from_numpy(frames))).argmax(1)
    return float((guess == torch.from_numpy(labels)).float().mean())


def run(network: nn.Module, options: Training = SHORT, batches: Batches = changed, **more: Any) -> Any:
    arguments: dict[str, Any] = {"prepare": prepare, "judge": accuracy, "device": torch.device("cpu")}
    return train(network, batches, 12, options, **arguments | more)


def test_it_learns() -> None:
    network = made()
    before = accuracy(network.eval())
    found = run(network, replace(SHORT, epochs=12))
    assert (found.ended, found.steps, len(found.history)) == ("finished", 36, 12)
    assert found.best == pytest.approx(accuracy(network)) == max(epoch.score for epoch in found.history)
    assert found.best > max(before, 0.9)
    assert not network.training


def test_steps_are_adams() -> None:
    """Kingma and Ba 2015 in NumPy, with the gradient of the mean cross entropy by hand, for a 1 x 1 convolution."""
    network = made(lambda: nn.Conv2d(3, 2, 1))
    w = network.weight.detach().double().numpy()[:, :, 0, 0].copy()  # type: ignore[operator]
    b = network.bias.detach().double().numpy().copy()  # type: ignore[operator]
    options = Training(epochs=1, batch=4, learning_rate=0.02, seed=5)
    run(network, options, fixed)
    frames, labels = colours()
    order = np.random.default_rng((5, 0, 0)).permutation(12)
    moments = [(np.zeros_like(value), np.zeros_like(value)) for value in (w, b)]
    for step in range(1, 4):
        chosen = order[4 * step - 4 : 4 * step]
        x = frames[chosen].reshape(-1, 3) / 127.5 - 1
        y = np.eye(2)[labels[chosen].ravel()]
        z = x @ w.T + b
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        for value, gradient, (m, v) in zip((w, b), ((p - y).T @ x / len(x), (p - y).mean(0)), moments, strict=True):
            m[:] = 0.9 * m + 0.1 * gradient
            v[:] = 0.999 * v + 0.001 * gradient**2
            value -= 0.02 * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    state = network.state_dict()
    assert state["weight"].numpy()[:, :, 0, 0] == pytest.approx(w, abs=1e-5)
    assert state["bias"].numpy() == pytest.approx(b, abs=1e-5)


def test_the_best_is_kept_and_told() -> None:
    given = iter([0.3, 0.9, 0.2, 0.9])
    after: list[dict[str, Tensor]] = []
    told: list[int] = []
    network = made()
    found = run(
        network, judge=lambda _: next(given), on_epoch=lambda epoch, network: after.append(weights(network)),
        on_best=lambda network: told.append(len(after) + 1),
    )  # fmt: skip
    assert (found.best, found.best_epoch, told) == (0.9, 2, [1, 2])
    assert same(weights(network), after[1])
    assert not same(after[1], after[3])


def test_the_rate_falls_after_five_epochs_and_the_run_ends_after_ten() -> None:
    found = run(made(), Training(epochs=50, batch=12, learning_rate=0.01), judge=lambda _: 0.5)
    assert (found.ended, len(found.history), found.best_epoch) == ("no better", 11, 1)
    assert [epoch.learning_rate for epoch in found.history] == pytest.approx([0.01] * 6 + [0.001] * 5)
    quick = Training(epochs=50, batch=12, patience=Patience(slower=1, end=2))
    assert len(run(made(), quick, judge=lambda _: 0.5).history) == 3


def test_the_cosine_rises_falls_and_knows_no_early_end() -> None:
    found = run(made(), Training(epochs=40, batch=4, schedule="cosine", learning_rate=0.01), judge=lambda _: 0.5)
    rates = [epoch.learning_rate for epoch in found.history]
    assert len(rates) == 40
    assert max(rates) == max(rates[10:20])
    assert rates[-1] < 0.02 * 0.01
    assert all(a > b for a, b in pairwise(rates[14:]))


def test_what_was_learned_until_the_time_was_up_is_judged_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = 0.0

    def later(numbers: Integers, random: np.random.Generator) -> Any:
        nonlocal seconds
        seconds += 10
        return changed(numbers, random)

    monkeypatch.setattr(supervised, "now", lambda: seconds)
    options = replace(SHORT, minutes=50 / 60, schedule="cosine")
    told: list[Epoch] = []
    found = run(made(), options, later, checkpoint=tmp_path / "run", on_epoch=lambda epoch, network: told.append(epoch))
    assert (found.ended, found.steps) == ("finished", 5)
    assert [epoch.number for epoch in found.history] == [1, 2]  # of three steps, and of two
    assert tuple(told) == found.history
    more = run(Two(), replace(options, minutes=200 / 60, epochs=3), later, checkpoint=tmp_path / "run")
    assert [epoch.number for epoch in more.history] == [1, 2, 2, 3]
    assert (more.ended, more.steps, more.seconds) == ("finished", 9, 90)
    assert more.best == max(epoch.score for epoch in more.history)


def test_pieces_of_a_batch_sum_to_the_batch() -> None:
    whole, pieces = (made(lambda: nn.Conv2d(3, 2, 1)) for _ in range(2))
    run(whole, SHORT, fixed)
    run(pieces, replace(SHORT, at_once=3), fixed)
    for one, other in zip(whole.parameters(), pieces.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("stopped_at", [2, 6])  # amid an epoch, and at its end
def test_a_continued_run_is_one_that_was_never_stopped(tmp_path: Path, stopped_at: int) -> None:
    straight = made()
    whole = run(straight)
    seen = 0

    def interrupting(numbers: Integers, random: np.random.Generator) -> Any:
        nonlocal seen
        seen += 1
        if seen == stopped_at:
            os.kill(os.getpid(), signal.SIGINT)
        return changed(numbers, random)

    first = run(made(), batches=interrupting, checkpoint=tmp_path / "run")
    assert (first.ended, first.steps) == ("interrupted", stopped_at)
    torch.manual_seed(77)  # neither the weights that are given now nor torch's numbers matter
    network = Two()
    second = run(network, checkpoint=tmp_path / "run")
    assert same(weights(network), weights(straight))
    assert [(e.loss, e.score) for e in second.history] == [(e.loss, e.score) for e in whole.history]
    assert second.best == whole.best
    longer = run(Two(), replace(SHORT, epochs=5), checkpoint=tmp_path / "run")
    assert longer.steps == 15


def test_the_seed_decides_and_torchs_own_numbers_stay() -> None:
    one, other, third = made(), made(), made()
    torch.manual_seed(9)
    expected = torch.rand(1)
    torch.manual_seed(9)
    run(one)
    assert torch.equal(torch.rand(1), expected)
    run(other)
    run(third, replace(SHORT, seed=1))
    assert same(weights(one), weights(other))
    assert not same(weights(one), weights(third))


def test_a_loss_that_is_no_number_ends_the_run_with_the_best() -> None:
    network = made()
    after: list[dict[str, Tensor]] = []

    def poisoned(numbers: Integers, random: np.random.Generator) -> Any:
        if len(after) == 1:
            with torch.no_grad():
                next(network.parameters()).fill_(torch.nan)
        return changed(numbers, random)

    found = run(network, batches=poisoned, on_epoch=lambda epoch, network: after.append(weights(network)))
    assert (found.ended, found.best_epoch) == ("diverged", 1)
    assert same(weights(network), after[0])


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="a batch of 13"):
        run(made(), replace(SHORT, batch=13))
    run(made(), replace(SHORT, epochs=1), checkpoint=tmp_path / "run")
    for options in (replace(SHORT, seed=1), replace(SHORT, labels=LabelLoss(dice=1.0)), replace(SHORT, batch=6)):
        with pytest.raises(BadInput, match="of another run"):
            run(made(), options, checkpoint=tmp_path / "run")
    with pytest.raises(BadInput, match="of another run"):
        run(made(lambda: nn.Conv2d(3, 2, 1)), checkpoint=tmp_path / "run")
    (tmp_path / "run").write_bytes(b"nothing")
    with pytest.raises(BadInput, match="damaged"):
        run(made(), checkpoint=tmp_path / "run")
    for wrong in ({"batch": 0}, {"seed": -1}, {"learning_rate": 0.0}, {"minutes": 0.0}, {"auxiliary_weight": -1.0}):
        with pytest.raises(BadInput):
            Training(**wrong)


SCRIPT = """
import os, sys
from pathlib import Path
import torch
from torch import nn
from dataclasses import replace
from itertools import pairwise
from tests.distill.test_supervised import SHORT, Two, changed, fixed, made, run, weights

torch.set_num_threads(1)
folder = Path(sys.argv[1])
plain = made(lambda: nn.Conv2d(3, 2, 1))
run(plain, batches=fixed)
straight, parted = made(), made()
whole = run(straight)
run(parted, replace(SHORT, epochs=2), checkpoint=folder / "run")
torch.manual_seed(int(os.environ["RANK"]))
parted = Two()
run(parted, checkpoint=folder / "run")
torch.save([weights(plain), weights(straight), weights(parted)], folder / f"{os.environ['RANK']}.pt")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the name of the loopback interface is Linux's")
def test_two_processes_of_torchrun_learn_what_one_does(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    command.append(f"--master-port={port}")
    done = subprocess.run(
        [*command, str(tmp_path / "script.py"), str(tmp_path)], env=environment, capture_output=True, text=True,
        check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for ours, theirs in zip(one, other, strict=True):
        assert same(ours, theirs)
    alone = made(lambda: nn.Conv2d(3, 2, 1))
    run(alone, batches=fixed)
    for name, value in alone.state_dict().items():  # without norms two halves of a batch are the batch
        assert torch.allclose(one[0][name], value, atol=1e-5)
    assert same(one[1], one[2])  # and a run of both goes on where it was stopped
