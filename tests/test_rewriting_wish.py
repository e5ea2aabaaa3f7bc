"""What a rewritten network shall become: the words of the command line, and what of them makes no sense."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from edgeseg.cli import main
from edgeseg.errors import BadInput
from edgeseg.pipeline.rewriting.wish import SAMPLES, Budget, Kind, Wish, wish_of

NOTHING: dict[str, Any] = {
    "macs": None,
    "speedup": None,
    "latency": None,
    "weight_bytes": None,
    "rules": None,
    "minutes": 0.0,
    "labels": False,
    "align": 8,
    "samples": None,
    "seed": 0,
    "untimed": False,
    "refine": False,
}


def wished(precision: str = "fp32", out: Path | None = None, **words: Any) -> Wish | None:
    return wish_of({**NOTHING, **words}, precision=precision, out=out)


@pytest.mark.parametrize(
    ("words", "budget", "said"),
    [
        ({}, Budget("speedup", 2.0), "2 times as fast"),
        ({"macs": 0.3}, Budget("macs", 0.3), "0.3 of the operations"),
        ({"latency": 12.5}, Budget("ms", 12.5), "12.5 ms"),
        ({"speedup": 3}, Budget("speedup", 3.0), "3 times as fast"),
        ({"weight_bytes": 70_000}, Budget("bytes", 70_000.0), "70000 bytes of weights"),
    ],
)
def test_budgets(words: dict[str, Any], budget: Budget, said: str) -> None:
    wish = wished(rules=("all",), **words)
    assert wish is not None
    assert wish.budget == budget
    assert str(wish.budget) == said
    assert wish.budget.in_time == (budget.kind in ("ms", "speedup"))


def test_all_words_are_taken_out_of_the_options_and_others_stay() -> None:
    words = {**NOTHING, "rules": ("separable", "pruned"), "data": "x", "samples": 7, "seed": 3, "align": 16}
    wish = wish_of(words, precision="int8", out=Path("deep/net.pt2"))
    assert words == {"data": "x"}
    assert wish == Wish(rules=("separable", "pruned"), samples=7, seed=3, align=16, bytes_each=1)


@pytest.mark.parametrize(("precision", "size"), [("fp32", 4), ("fp16", 2), ("int8", 1)])
def test_bytes_of_a_weight(precision: str, size: int) -> None:
    wish = wished(precision, rules=("all",))
    assert wish is not None
    assert wish.bytes_each == size
    assert wish.rules == ()  # all of them
    assert wish.samples == SAMPLES


def test_recovery_has_a_checkpoint_beside_what_is_written() -> None:
    wish = wished(out=Path("deep/net.pt2"), rules=("all",), minutes=2.0, labels=True)
    assert wish is not None
    assert (wish.minutes, wish.labels, wish.checkpoint) == (2.0, True, Path("deep/net.recovery"))
    without = wished(rules=("all",), minutes=2.0)
    assert without is not None
    assert without.checkpoint is None


def test_no_rules_are_no_wish() -> None:
    assert wished() is None
    assert wished(samples=100, seed=4, align=16) is None  # a build has samples of its own


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"macs": 0.3, "speedup": 2.0, "rules": ("all",)}, "one budget, please: --macs and --speedup came"),
        ({"macs": 0.3, "latency": 2.0, "weight_bytes": 9}, "--macs and --latency and --bytes"),
        ({"macs": 0.3}, "--macs is about rewriting: say --rewrite all"),
        ({"latency": 3.0}, "--latency is about rewriting"),
        ({"minutes": 1.0}, "--distill is about rewriting"),
        ({"labels": True}, "--labels is about rewriting"),
        ({"untimed": True}, "--untimed is about rewriting"),
        ({"refine": True}, "--refine is about rewriting"),
        ({"rules": ()}, "no rule was named"),
        ({"macs": math.nan, "rules": ("all",)}, "a positive number; nan came"),
        ({"macs": 0.0, "rules": ("all",)}, "a positive number; 0 came"),
        ({"speedup": math.inf, "rules": ("all",)}, "a positive number; inf came"),
        ({"macs": 1.5, "rules": ("all",)}, "at most 1; 1.5 came"),
        ({"speedup": 0.5, "rules": ("all",)}, "at least 1; 0.5 came"),
        ({"latency": -1.0, "rules": ("all",)}, "a positive number; -1 came"),
        ({"minutes": -1.0, "rules": ("all",)}, "minutes of recovery 0 or more"),
        ({"minutes": math.nan, "rules": ("all",)}, "minutes of recovery 0 or more"),
        ({"minutes": math.inf, "rules": ("all",)}, "minutes of recovery 0 or more"),
        ({"align": 0, "rules": ("all",)}, "align is 1 or more"),
        ({"untimed": True, "rules": ("all",)}, "a budget in time needs layers to be timed"),
        ({"untimed": True, "latency": 3.0, "rules": ("all",)}, "a budget in time needs layers to be timed"),
        ({"labels": True, "rules": ("all",)}, "labels are for the recovery: say --distill"),
    ],
)
def test_what_makes_no_sense(words: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        wished(**words)


@pytest.mark.parametrize(
    ("kind", "value"), [("macs", 1.0), ("macs", 1e-6), ("speedup", 1.0), ("ms", 1e-3), ("bytes", 1e12)]
)
def test_the_ends_of_what_makes_sense(kind: Kind, value: float) -> None:
    assert Budget(kind, value).value == value


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--macs", "0"), "not in the range"),
        (("--macs", "1.1"), "not in the range"),
        (("--macs", "nan"), "positive number; nan came"),
        (("--speedup", "0.9"), "not in the range"),
        (("--latency", "12s"), "wanted milliseconds like 12ms, came '12s'"),
        (("--latency", "-3ms"), "positive number of milliseconds"),
        (("--latency", "infms"), "positive number of milliseconds"),
        (("--bytes", "0"), "not in the range"),
        (("--macs", "0.5", "--speedup", "2"), "one budget, please"),
        (("--rules", "magic"), "no rule 'magic'; there are: separable"),
        (("--samples", "3"), "not in the range"),
        (("--distill", "inf"), "minutes of recovery"),
        (("--untimed",), "a budget in time needs layers"),
        (("-o", "small.onnx"), "written as NAME.pt2"),
    ],
)
def test_edgeseg_rewrite_refuses(options: tuple[str, ...], message: str, tmp_path: Path) -> None:
    """All before the model is looked into."""
    (tmp_path / "net.pt2").write_bytes(b"nothing that could be loaded")
    (tmp_path / "net.toml").write_text("nor a spec", encoding="utf-8")
    result = run("rewrite", tmp_path / "net.pt2", "--data", tmp_path, *options)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--macs", "0.5"), "--macs is about rewriting: say --rewrite all"),
        (("--distill", "1"), "--distill is about rewriting"),
        (("--rewrite", "all", "--macs", "0.5", "--bytes", "10"), "one budget, please"),
        (("--rewrite", ","), "no rule was named"),
        (("--rewrite", "all", "--dynamic"), "rewritten for one size: build without --dynamic"),
        (("--rewrite", "separable,magic"), "no rule 'magic'"),
    ],
)
def test_build_refuses(options: tuple[str, ...], message: str, tmp_path: Path) -> None:
    (tmp_path / "net.pt2").write_bytes(b"nothing that could be loaded")
    result = run("build", tmp_path / "net.pt2", "--data", tmp_path, "-o", tmp_path / "o.edgeseg", *options)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert not (tmp_path / "o.edgeseg").exists()


@pytest.mark.parametrize("value", ["12ms", "12", " 12.0 MS ", "1.2e1ms"])
def test_milliseconds(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def instead(_model: Path, **options: Any) -> None:
        seen.update(options)
        raise BadInput("enough")

    monkeypatch.setattr("edgeseg.pipeline.rewriting.run.rewrite", instead)
    monkeypatch.chdir(tmp_path)
    Path("net.pt2").write_bytes(b"")
    assert run("rewrite", "net.pt2", "--data", tmp_path, "--latency", value).exit_code == 2
    assert seen["wish"] == Wish(Budget("ms", 12.0))
    assert seen["out"] == Path("net-small.pt2")
    assert seen["precision"] == "fp32"
    assert seen["curve"] is False
