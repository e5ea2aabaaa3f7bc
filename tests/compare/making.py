"""Documents as edgeseg writes them, from the simulations of tools/bench compare."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import benchmarks.compare as made

__all__ = ["gate_of", "made", "metrics", "write"]


def write(path: Path, document: Any) -> Path:
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def metrics(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for group in document["groups"] for one in group["metrics"]}


def gate_of(document: dict[str, Any]) -> tuple[str, int]:
    return document["gate"], document["exit_code"]
