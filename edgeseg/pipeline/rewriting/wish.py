"""What a rewritten network shall become, and the words of the command line that say so. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgeseg.errors import BadInput

Kind = Literal["macs", "ms", "speedup", "bytes"]

SAMPLES = 48  # frames to fit to


@dataclass(frozen=True, slots=True)
class Budget:
    """`macs`: share of the original's multiplications; `ms`: milliseconds a frame; `speedup`: how many times as fast;
    `bytes`: of all weights. Raises BadInput for what nothing can fulfil."""

    kind: Kind
    value: float

    def __post_init__(self) -> None:
        if not (0 < self.value < float("inf")):
            raise BadInput(f"a budget is a positive number; {self.value:g} came")
        if self.kind == "macs" and self.value > 1:
            raise BadInput(f"a budget of operations is a share of the original's, at most 1; {self.value:g} came")
        if self.kind == "speedup" and self.value < 1:
            raise BadInput(f"a speed-up is how many times as fast, at least 1; {self.value:g} came")

    @property
    def in_time(self) -> bool:
        return self.kind in ("ms", "speedup")

    def __str__(self) -> str:
        words = {
            "macs": f"{self.value:g} of the operations",
            "ms": f"{self.value:.4g} ms",
            "speedup": f"{self.value:g} times as fast",
            "bytes": f"{self.value:g} bytes of weights",
        }
        return words[self.kind]


@dataclass(frozen=True, slots=True)
class Wish:
    """What the network shall become. Raises BadInput for what nothing can fulfil."""

    budget: Budget = field(default_factory=lambda: Budget("speedup", 2.0))
    rules: tuple[str, ...] = ()  # all, if empty
    minutes: float = 0.0  # of recovery
    labels: bool = False  # in recovery, learn from labels too
    align: int = 8  # ranks are multiples of it
    samples: int = SAMPLES
    seed: int = 0
    refine: bool = False  # tune each layer's chain behind its non-linearity too, and keep that if it is better
    timed: bool = True  # whether layers that are not faster on the target are put back
    bytes_each: int = 4  # of a weight in the precision to be deployed
    checkpoint: Path | None = None  # of the recovery

    def __post_init__(self) -> None:
        if self.align < 1 or self.samples < 4 or not 0 <= self.minutes < float("inf"):
            raise BadInput("align is 1 or more, samples 4 or more, minutes of recovery 0 or more")
        if self.labels and not self.minutes:
            raise BadInput("labels are for the recovery: say --distill MINUTES too, or leave --labels away")
        if self.budget.in_time and not self.timed:
            raise BadInput("a budget in time needs layers to be timed; untimed goes with a share of the operations")


def wish_of(words: dict[str, Any], *, precision: str, out: Path | None = None) -> Wish | None:
    """The wish in a command's options, which are taken out of `words`; None where no rules are wished for.

    Raises BadInput for several budgets, and for a budget or minutes without rules.
    """
    given: list[tuple[str, Kind, float | None]] = [
        ("--macs", "macs", words.pop("macs")),
        ("--speedup", "speedup", words.pop("speedup")),
        ("--latency", "ms", words.pop("latency")),
        ("--bytes", "bytes", words.pop("weight_bytes")),
    ]
    budgets = [(option, Budget(kind, float(value))) for option, kind, value in given if value is not None]
    if len(budgets) > 1:
        raise BadInput(f"one budget, please: {' and '.join(option for option, _ in budgets)} came")
    rules, minutes, samples = words.pop("rules"), words.pop("minutes"), words.pop("samples")
    rest = {name: words.pop(name) for name in ("labels", "align", "seed", "untimed", "refine")}
    if rules is not None and not rules:
        raise BadInput("no rule was named: say all, or names of rules")
    if not rules:
        flags = [f"--{name}" for name in ("labels", "untimed", "refine") if rest[name]]
        if budgets or minutes or flags:
            asked = budgets[0][0] if budgets else "--distill" if minutes else flags[0]
            raise BadInput(f"{asked} is about rewriting: say --rewrite all too, or names of rules")
        return None
    return Wish(
        budget=budgets[0][1] if budgets else Budget("speedup", 2.0),
        rules=() if tuple(rules) == ("all",) else tuple(rules),
        minutes=minutes,
        labels=rest["labels"],
        align=rest["align"],
        samples=max(4, samples or SAMPLES),
        seed=rest["seed"],
        refine=rest["refine"],
        timed=not rest["untimed"],
        bytes_each=1 if precision == "int8" else 2 if precision == "fp16" else 4,
        checkpoint=out.with_suffix(".recovery") if out is not None and minutes else None,
    )
