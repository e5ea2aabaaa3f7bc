"""What was timed before a recovery, kept beside it: the same command must come to the same network to go on from there.

Times differ from run to run, and with them what is chosen within a budget in time. Only whole networks are in here: the
times of layers are in the cache anyway, by the settings of the engine, which are kept too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeseg.files import write_whole
from edgeseg.types import OnnxModel


@dataclass(slots=True)
class Journal:
    """`path`: None keeps nothing. `engine`: name and settings of the target; `times`: milliseconds by networks."""

    path: Path | None = None
    engine: dict[str, Any] = field(default_factory=dict)
    times: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def beside(cls, checkpoint: Path | None) -> Journal:
        """That of the recovery, if there is one to go on with; else a new one."""
        if checkpoint is None:
            return cls()
        path = place(checkpoint)
        try:
            held = json.loads(path.read_text(encoding="utf-8")) if checkpoint.exists() and path.exists() else {}
            return cls(path, dict(held.get("engine", {})), {key: list(ms) for key, ms in held.get("times", {}).items()})
        except (ValueError, AttributeError, TypeError):  # damaged: time again, the recovery says if it is another's
            return cls(path)

    def together(self, models: Sequence[OnnxModel], measure: Callable[[], list[float]]) -> list[float]:
        """Milliseconds of networks in turns, measured unless they are known."""
        key = " ".join(model.digest for model in models)
        known = self.times.get(key)
        if known is None or len(known) != len(models):
            known = self.times[key] = measure()
        return known

    def write(self) -> None:
        if self.path is not None:
            content = {"edgeseg_times": 1, "engine": self.engine, "times": self.times}
            write_whole(self.path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def place(checkpoint: Path) -> Path:
    """Where the journal of a recovery is."""
    return checkpoint.with_name(f"{checkpoint.name}.json")
