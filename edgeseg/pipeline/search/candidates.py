"""The candidates of a search, the fastest first: what each keeps in float, its time, its loss, and which is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgeseg.pipeline.search.floor import Outcome
from edgeseg.pipeline.search.steps import Kept, Unit, cost
from edgeseg.pipeline.search.times import Costs


@dataclass(frozen=True, slots=True)
class Candidate:
    """One network that was judged: a dot of the picture.

    `ms`: of a whole run, `measured` in turns with the other finalists or else predicted from single differences; None
    where nothing could be timed. `outcome`: None where the runtime refuses it. `short`: points beyond the floor.
    """

    kept: frozenset[str]
    ms: float | None
    measured: bool
    outcome: Outcome | None
    short: float
    chosen: bool = False

    def to_json(self, classes: Sequence[str]) -> dict[str, Any]:
        found = self.outcome
        worst = None if found is None else found.worst_class
        return {
            "kept": sorted(self.kept),
            "ms": self.ms,
            "ms_from": None if self.ms is None else "measured" if self.measured else "predicted",
            "accuracy": None if found is None else found.accuracy,
            "drop": None if found is None else found.drop,
            "error": None if found is None else found.error,
            "worst_class": None
            if found is None or worst is None
            else {
                "name": classes[worst] if worst < len(classes) else f"class {worst}",
                "drop": found.class_drops[worst],
            },
            "meets": self.short <= 0,
            "chosen": self.chosen,
        }


def candidates(
    outcomes: Mapping[Kept, Outcome | None],
    trail: Mapping[Kept, float],
    units: Sequence[Unit],
    times: Mapping[str, float],
    names: Mapping[str, Kept],
    price: Costs | None,
) -> tuple[Candidate, ...]:
    """All that were judged. `times`: milliseconds by name, "int8" among them, where the race was run; `names`: what the
    names keep. Chosen is the fastest that meets the floor, of those that were raced if any; else the closest to it.
    """
    measured = {kept: times[name] for name, kept in names.items() if name in times}
    if "int8" in times:
        measured[frozenset()] = times["int8"]
    base = times.get("int8") or (price.int8_ms if price is not None else None)
    # What was raced ran at another pace than when single differences were taken.
    pace = base / price.int8_ms if base and price is not None and price.int8_ms else 1.0
    made = []
    for kept, found in outcomes.items():
        if kept not in trail:
            continue
        ms = measured.get(kept, None if base is None else base + pace * cost(kept, units))
        made.append(Candidate(kept, ms, kept in measured, found, trail[kept]))
    good = [candidate for candidate in made if candidate.short <= 0]
    raced = [candidate for candidate in good if candidate.measured]

    def order(candidate: Candidate) -> tuple[float, float, int]:
        return candidate.ms or 0.0, cost(candidate.kept, units), len(candidate.kept)

    best = min(raced or good, key=order) if good else min(made, key=lambda c: (c.short, *order(c)))
    return tuple(replace(candidate, chosen=candidate is best) for candidate in sorted(made, key=order))
