"""How a run ends: in time, with what is no number, by Ctrl-C; and how it is continued."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgeseg.distill import Distillation, Progress, loop
from edgeseg.errors import BadInput
from tests.distill.making import damaged, frames, teacher
from tests.distill.running import SHORT, run, same, weights


class Clock:
    """Time passes when networks run: seconds by module name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        monkeypatch.setattr(loop, "now", lambda: self.seconds)

    def slow(self, network: nn.Module, seconds: float) -> nn.Module:
        clock = self

        class Slow(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.network = network

            def forward(self, x: Tensor) -> Tensor:
                clock.seconds += seconds * len(x)
                return self.network(x)  # type: ignore[no-any-return]

        return Slow()


@pytest.mark.parametrize(("minutes", "per_frame"), [(1.0, 0.1), (2.0, 0.5), (10.0, 1.0), (0.5, 0.02)])
def test_the_time_given_is_kept(minutes: float, per_frame: float, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, original = Clock(monkeypatch), teacher()
    options = Distillation(minutes=minutes, batch=2, learning_rate=1e-3)
    rates: list[float] = []
    found = run(
        options,
        clock.slow(damaged(original), per_frame),
        teacher=clock.slow(original, per_frame),
        on_progress=lambda progress: rates.append(progress.learning_rate),
    )
    assert 0.95 * 60 * minutes <= clock.seconds <= 1.05 * 60 * minutes
    assert found.seconds == clock.seconds
    assert found.stopped == "finished"
    assert found.history[-1].step == found.steps == len(rates)
    # up, then down to nearly nothing
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(1e-3, rel=0.2)
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] < 0.2e-3
    judging = sum(4 * per_frame for _ in found.history)
    assert judging < 0.12 * clock.seconds


def test_too_little_time_gives_back_what_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, original = Clock(monkeypatch), teacher()
    found = run(Distillation(minutes=0.1), clock.slow(damaged(original), 1.0), teacher=clock.slow(original, 1.0))
    assert (found.stopped, found.kept, found.steps) == ("no time", "before", 0)
    assert found.after == found.before


class Breaking(nn.Module):
    """Its scores are no numbers for some of its calls."""

    def __init__(self, network: nn.Module, calls: range) -> None:
        super().__init__()
        self.network, self.calls, self.count = network, calls, [0]

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.count[0] += 1
            if self.count[0] in self.calls:
                return self.network(x) * float("nan")  # type: ignore[no-any-return]
        return self.network(x)  # type: ignore[no-any-return]


def test_no_number_once_goes_back_to_the_best_at_half_the_rate() -> None:
    original = teacher()
    rates: dict[int, float] = {}
    found = run(
        SHORT,
        Breaking(damaged(original), range(12, 13)),
        teacher=original,
        on_progress=lambda progress: rates.setdefault(progress.step, progress.learning_rate) and None,
    )
    usual: dict[int, float] = {}
    run(SHORT, teacher=original, on_progress=lambda p: usual.setdefault(p.step, p.learning_rate) and None)
    assert found.stopped == "finished"
    assert found.kept == "after"
    assert found.notes == ("the loss was no number after step 11; back to the best, at half the learning rate",)
    assert [rates[k] / usual[k] for k in (1, 11, 12, 24)] == pytest.approx([1, 1, 0.5, 0.5])


def test_no_number_again_stops_with_the_best() -> None:
    original = teacher()
    found = run(SHORT, Breaking(damaged(original), range(12, 99)), teacher=original)
    assert found.stopped == "diverged"
    assert found.steps == 11
    assert len(found.notes) == 2
    assert all(bool(torch.isfinite(value).all()) for value in found.student.parameters())
    assert found.after.agreement == max(p.score.agreement for p in found.history if p.score)


def test_no_number_at_once_gives_back_what_was_given() -> None:
    original = teacher()
    student = damaged(original)
    found = run(SHORT, Breaking(student, range(99)), teacher=original)
    assert (found.stopped, found.kept, found.steps) == ("diverged", "before", 0)
    assert same({f"network.{name}": value for name, value in weights(student).items()}, weights(found.student))


def interrupting(step: int) -> Any:
    def see(progress: Progress) -> None:
        if progress.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    return see


def test_ctrl_c_keeps_what_was_learned() -> None:
    usual = signal.getsignal(signal.SIGINT)
    found = run(SHORT, on_progress=interrupting(15))
    assert found.stopped == "interrupted"
    assert found.steps == 15
    assert found.kept == "after"
    assert found.after.agreement > found.before.agreement
    assert signal.getsignal(signal.SIGINT) is usual


def test_a_second_ctrl_c_ends_it() -> None:
    def see(progress: Progress) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(SHORT, on_progress=see)


@pytest.mark.parametrize("norm", ["none", "updating"])
def test_a_run_that_is_continued_is_the_run_that_was_not_interrupted(tmp_path: Path, norm: Any) -> None:
    options = replace(SHORT, norm=norm)
    whole = run(options)
    path = tmp_path / "run.pt"
    first = run(options, on_progress=interrupting(13), checkpoint=path)
    assert first.steps == 13
    before = torch.load(path, weights_only=True)["seconds"]
    assert 0 < before <= first.seconds
    second = run(options, checkpoint=path)
    assert second.steps == 24
    assert second.notes[-1].startswith("continued after step 13")
    assert same(weights(second.student), weights(whole.student))
    assert second.seconds > before
    assert [p.step for p in second.history] == sorted({13, *(p.step for p in whole.history)})
    third = run(options, checkpoint=path)  # it was over
    assert third.steps == 24
    assert same(weights(third.student), weights(whole.student))
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]
    torch.load(path, weights_only=True)


def test_a_checkpoint_is_written_on_the_way_and_counts_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, original = Clock(monkeypatch), teacher()
    path = tmp_path / "run.pt"
    student, slow = damaged(original), clock.slow(original, 1.0)
    options = Distillation(minutes=5, batch=2)
    written: list[float] = []

    class Killed(Exception):
        pass

    def see(progress: Progress) -> None:
        if path.exists() and (not written or path.stat().st_mtime_ns != written[-1]):
            written.append(path.stat().st_mtime_ns)
        if progress.seconds > 200:
            raise Killed

    with pytest.raises(Killed):
        run(options, student, teacher=slow, on_progress=see, checkpoint=path)
    assert 4 <= len(written) <= 7  # every 30 of 200 seconds
    lost = clock.seconds
    found = run(options, student, teacher=slow, checkpoint=path)
    assert found.stopped == "finished"
    assert 0.95 * 300 <= found.seconds <= 1.05 * 300
    assert clock.seconds - lost < 150


@pytest.mark.parametrize("what", ["options", "student", "teacher", "frames", "held_out"])
def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "run.pt"
    options = replace(SHORT, steps=2)
    run(options, checkpoint=path)
    before = path.read_bytes()
    others: dict[str, dict[str, Any]] = {
        "options": {"options": replace(options, learning_rate=1e-4)},
        "student": {"student": damaged(teacher(), seed=8)},
        "teacher": {"student": damaged(teacher()), "teacher": teacher(seed=3)},
        "frames": {"frames": frames(15)},
        "held_out": {"held_out": frames(4, seed=8)},
    }
    arguments: dict[str, Any] = {"options": options, "checkpoint": path} | others[what]
    with pytest.raises(BadInput, match=r"run\.pt is of another run.*Delete it"):
        run(**arguments)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "run.pt"
    run(replace(SHORT, steps=2), checkpoint=path)
    path.write_bytes(path.read_bytes()[:2000] if content is None else content)
    with pytest.raises(BadInput, match=r"run\.pt is no checkpoint"):
        run(replace(SHORT, steps=2), checkpoint=path)


def test_a_checkpoint_runs_nothing(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "sprung"),))

    path = tmp_path / "run.pt"
    torch.save({"edgeseg_distill": 1, "fingerprint": Trap()}, path)
    with pytest.raises(BadInput, match="is no checkpoint"):
        run(checkpoint=path)
    assert not (tmp_path / "sprung").exists()
