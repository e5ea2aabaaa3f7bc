"""The document of a search, edgeseg.search/1, and its journal in the cache: the same command goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgeseg import cache
from edgeseg.pipeline.search.floor import Floor, Outcome

if TYPE_CHECKING:
    from edgeseg.pipeline.search.candidates import Candidate
    from edgeseg.pipeline.search.sensitivity import Losses
    from edgeseg.pipeline.search.times import Costs

SCHEMA = "edgeseg.search/1"


@dataclass(slots=True)
class Journal:
    """Outcomes of candidates by the digest of their graphs. `entry`: None keeps nothing. No floor is part of it."""

    entry: str | None
    outcomes: dict[str, Outcome | None] = field(default_factory=dict)  # None: the runtime refuses it

    @classmethod
    def of(cls, *parts: object, use_cache: bool) -> Journal:
        """That of the same networks, frames and runtime."""
        if not use_cache:
            return cls(None)
        entry = cache.key("search-journal", *parts)
        stored = cache.load("search", entry)
        held = {} if stored is None else json.loads(stored)
        return cls(entry, {digest: None if row is None else Outcome.from_json(row) for digest, row in held.items()})

    def write(self, digest: str, found: Outcome | None) -> None:
        self.outcomes[digest] = found
        if self.entry is not None:
            content = {digest: None if row is None else row.to_json() for digest, row in self.outcomes.items()}
            cache.store("search", self.entry, json.dumps(content).encode())


def report(
    *,
    name: str,
    backend: str,
    metric: str,
    classes: Sequence[str],
    floor: Floor,
    reached: bool,
    ended: str,
    frames: Mapping[str, Any],
    losses: Losses | None,
    costs: Costs | None,
    fp32: Mapping[str, Any],
    candidates: Sequence[Candidate],
    seconds: float,
    emulated: bool,
) -> dict[str, Any]:
    """`ended`: "done", "time", "interrupted" or "refused". Times in ms, accuracies in points of 100.

    "groups": convolutions that read the same tensors, and what all of them in float cost together, where measured.
    """
    units = []
    for row in losses.rows if losses is not None else ():
        cost = costs.of.get(row.node) if costs is not None else None
        units.append(
            {
                "node": row.node,
                "snr_db": {"alone": row.alone.snr_db, "without": None if row.without is None else row.without.snr_db},
                "agreement": {
                    "alone": row.alone.agreement,
                    "without": None if row.without is None else row.without.agreement,
                },
                "ms": None if cost is None else cost.ms,
                "ms_from": None if cost is None else "measured" if cost.measured else "predicted",
            }
        )
    return {
        "schema": SCHEMA,
        "name": name,
        "backend": backend,
        "metric": metric,
        "classes": list(classes),
        "floor": {"max_drop": floor.max_drop, "max_class_drop": floor.max_class_drop, "margin": floor.margin},
        "reached": reached,
        "ended": ended,
        "seconds": round(seconds, 2),
        "selection": dict(frames),
        "judged": "emulated" if emulated else "on the runtime",
        "everything_int8": None
        if losses is None
        else {"snr_db": losses.everything.snr_db, "agreement": losses.everything.agreement, "frames": losses.frames},
        "convolutions": sorted(units, key=lambda unit: unit["agreement"]["alone"]),
        "groups": [{"nodes": sorted(group), "ms": whole.ms} for group, whole in costs.together.items()]
        if costs is not None
        else [],
        "fp32": dict(fp32),
        "candidates": [candidate.to_json(classes) for candidate in candidates],
    }
