"""Documents of every schema as edgeseg makes them on the tiny network; by hand where that takes a GPU or long."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import edgeseg
from edgeseg.benchmark import SCENARIOS, Plan, measure
from edgeseg.bundle import read_bundle
from edgeseg.evaluation import evaluate
from edgeseg.measure.latency import summarize
from edgeseg.pipeline.explain.run import explain
from tests.benchmark.fakes import Clock, FakeEngine, opened
from tests.report.documents import MACHINE, evaluation
from tests.test_report import bench_document
from tests.test_report_rewriting import document as rewrite_document
from tests.test_search_report import document as search_document


def documents(built: Path, street: Path) -> list[dict[str, Any]]:
    """At least one of every schema; plain JSON."""
    made: list[Any] = [bench_document(), evaluation(), rewrite_document(), search_document(), gpu(), profile()]
    for scenario in SCENARIOS:
        clock = Clock()
        plan = Plan(scenario, seconds=0.5, samples=70, fps=20.0 if scenario == "camera" else None)
        made += measure([opened(FakeEngine(clock, 10.0), "net")], plan, clock=clock, sleep=clock.sleep)
    made.append(evaluate(built, street / "dataset.toml"))
    made.append(explain(built, data=street / "dataset.toml", frames=4, layer_frames=2, seconds=5.0, gallery=1))
    made.append(dict(read_bundle(built).verdict))
    made.append(edgeseg.stream(built, "street:48x64@30?seed=1&frames=12", agreement=0))
    return [json.loads(json.dumps(one, allow_nan=False)) for one in made]


def profile() -> dict[str, Any]:
    row = {"name": "a", "op": "Conv", "detail": "3x3", "output": [1, 8, 48, 64], "macs": 9, "parameters": 3}
    row |= {"activations": 5, "separable_macs": 4, "bottleneck_macs": None}
    return {"schema": "edgeseg.profile/1", "layers": [row], "uncounted": [], "machine": MACHINE, "versions": {"a": "1"}}


def gpu() -> dict[str, Any]:
    """One half, as tools/bench gpu writes it."""
    times = summarize([1_000_000] * 20).to_json() | {"p25": 1.0, "p75": 1.0}
    way = {"way": "torch eager fp32", "precision": "fp32", "miou": 0.5, "agreement": 1.0, "agrees_with": "itself"}
    row = {"engine": "e", "edgeseg_ms": times, "bare_ms": times, "more_us": {"p25": -1.0, "p50": 0.0, "p75": 2.0}}
    model = {
        "model": "net",
        "file": "net.pt",
        "size": [48, 64],
        "notes": [],
        "evaluation": {"split": "val", "frames": 3, "labelled": True, "digest": "0"},
        "rows": [way | {"latency_ms": times}, {"way": "tensorrt int8", "failure": "no kernel"}],
        "overhead": [row],
    }
    return {
        "schema": "edgeseg.bench.gpu/1",
        "gpu": {"name": "a GPU", "compute_capability": [8, 9], "driver_cuda": 12040, "memory_bytes": 1},
        "libraries": {"torch": "2"},
        "missing": {},
        "rounds": 20,
        "models": [model],
        "options": {},
        "machine": MACHINE,
        "versions": {"numpy": "2"},
        "command": ["tools/bench"],
    }
