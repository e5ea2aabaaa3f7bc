"""The document of a rewrite, edgeseg.rewrite/1: every change, what was predicted of it, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeseg.backends import Engine
from edgeseg.measure.confusion import scores
from edgeseg.measure.evaluate import Accuracy
from edgeseg.measure.latency import Latency
from edgeseg.measure.machine import machine, peak_rss_mb, versions
from edgeseg.pipeline.rewriting.budgets import Shape, dense, shape
from edgeseg.pipeline.rewriting.students import Student, Work
from edgeseg.pipeline.rewriting.wish import Budget
from edgeseg.rewrite.network import Network, macs_of, parameters_of
from edgeseg.rewrite.values import Conv, Layer


def report(
    work: Work,
    student: Student,
    network: Network,
    engine: Engine,
    latency: Mapping[str, Latency],
    accuracy: Mapping[str, Accuracy],
    points: Mapping[str, Student],
    *,
    names: Sequence[str],
    budget: Budget,
    rules: Sequence[str],
    recovery: Mapping[str, Any] | None,
    times: Mapping[Shape, float],
    split: str,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Everything about one rewrite. `latency`, `accuracy`: by "original", "rewritten" and the labels of `points`."""
    size = work.spec.input.size
    found = {name: _points(one, names) for name, one in accuracy.items()}
    metric = "mIoU" if any(one.labelled for one in accuracy.values()) else "agreement"
    return {
        "schema": "edgeseg.rewrite/1",
        "name": work.spec.name,
        "size": list(size),
        "rules": list(rules),
        "budget": {"kind": budget.kind, "value": budget.value},
        "macs": {"before": work.whole.macs, "after": macs_of(network, size)},
        "parameters": {"before": work.whole.parameters, "after": parameters_of(network)},
        "layers": [_layer(layer, student, times) for layer in work.layers]
        + [{"name": name, "was": "", "rule": None, "reason": why} for name, why in work.left],
        "exact": [
            {
                "rule": change.rule,
                "layers": list(change.layers),
                "says": change.says,
                "macs": [change.macs_before, change.macs_after],
            }
            for change in work.exact
        ],
        "fit": {"frames": len(work.fit), "held_out": len(work.held), "variant": student.variant},
        "latency": {
            "backend": engine.backend,
            "precision": engine.precision,
            "before": latency["original"].to_json(),
            "after": latency["rewritten"].to_json(),
        },
        "accuracy": {
            "metric": metric,
            "split": split,
            "frames": accuracy["original"].frames,
            "before": found["original"],
            "after": found["rewritten"],
            "unrecovered": found.get("unrecovered"),
            "agreement": accuracy["rewritten"].agreement.overall,
        },
        "recovery": dict(recovery) if recovery is not None else None,
        "curve": _curve(work, points, found, latency, "miou" if metric == "mIoU" else "agreement", network),
        "notes": list(work.notes),
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "peak_rss_mb": peak_rss_mb(),
        "machine": machine(),
        "versions": versions(),
    }


def _points(accuracy: Accuracy, names: Sequence[str]) -> float:
    """mIoU where frames are labelled, else agreement with the original; 0 to 1."""
    return scores(accuracy.matrix, names).miou if accuracy.labelled else accuracy.agreement.overall


def _layer(layer: Layer, student: Student, times: Mapping[Shape, float]) -> dict[str, Any]:
    option = student.chosen.options.get(layer.name)
    slower = student.chosen.slower.get(layer.name)
    reason = None
    if option is None:
        reason = f"not faster on the target: {slower}" if slower else "left as it is by the budget"
    ms = None
    if option is not None and shape(option) in times:
        ms = [layer.calls * times[dense(layer)], layer.calls * times[shape(option)]]
    return {
        "name": layer.name,
        "was": _was(layer.conv),
        "rule": option.choice.label if option else None,
        "macs": [layer.macs, option.macs if option else layer.macs],
        "damage": option.damage if option else 0.0,
        "unexplained": student.unexplained.get(layer.name),
        "ms": ms,
        "reason": reason,
    }


def _was(conv: Conv) -> str:
    words = [f"{conv.kernel[0]}x{conv.kernel[1]} {conv.inputs}→{conv.outputs}"]
    if conv.stride != (1, 1):
        words.append(f"stride {conv.stride[0]}" if conv.stride[0] == conv.stride[1] else f"stride {conv.stride}")
    if conv.dilation != (1, 1):
        words.append(f"dilation {conv.dilation[0]}" if conv.dilation[0] == conv.dilation[1] else f"{conv.dilation}")
    return ", ".join(words)


def _curve(
    work: Work,
    points: Mapping[str, Student],
    found: Mapping[str, float],
    latency: Mapping[str, Latency],
    metric: str,
    network: Network,
) -> list[dict[str, Any]]:
    if not points:
        return []
    size = work.spec.input.size
    macs = {label: macs_of(point.network, size) for label, point in points.items()}
    macs |= {"original": work.whole.macs, "rewritten": macs_of(network, size)}
    return [
        {
            "label": label,
            "budget": macs[label] / work.whole.macs,
            "macs": macs[label],
            "ms": latency[label].p50 or latency[label].mean,
            metric: found[label],
        }
        for label in macs
    ]
