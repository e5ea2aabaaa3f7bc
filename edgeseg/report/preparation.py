"""How a network was made ready for INT8, in sentences for a page and a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeseg.report.placement import short

NAMED = 3  # convolutions of one reason


def preparation_lines(report: Mapping[str, Any]) -> list[str]:
    """A sentence each of what the "preparation" of a build says; none where there is none.

    >>> row = {"folded": 1, "equalized": 0, "gain_db": {"openvino": -0.3}, "fitted": {"openvino": {"biases": 4}}}
    >>> for line in preparation_lines({"preparation": row}):
    ...     print(line)
    normalisations folded: 1
    channels left as they are: evened out, the scores' signal to noise changes by -0.3 dB (openvino)
    biases corrected for openvino: 4 convolutions
    """
    row = report.get("preparation")
    if row is None:
        return []
    lines = [f"normalisations folded: {row['folded']}"] if row["folded"] else []
    if gains := ", ".join(f"{gain:+.1f} dB ({name})" for name, gain in row["gain_db"].items()):
        done = f"channels evened out in {row['equalized']} pairs of convolutions"
        what = done if row["equalized"] else "channels left as they are: evened out"
        lines.append(f"{what}, the scores' signal to noise changes by {gains}")
    for name, fit in row.get("fitted", {}).items():
        lines.extend(_fit(name, fit))
    lines.extend(_recovered(one) for one in row.get("recovered", ()))
    return lines


def _fit(name: str, fit: Mapping[str, Any]) -> list[str]:
    if "biases" in fit:
        return [f"biases corrected for {name}: {fit['biases']} convolutions"]
    gain = fit["median_gain_db"]
    said = "" if gain is None else f"; their outputs err {gain:.1f} dB less than with nearest steps (median)"
    lines = [f"weights rounded to serve their outputs: {fit['rounded']} convolutions{said}"]
    by_reason: dict[str, list[str]] = {}
    for node, reason in fit["left"].items():
        by_reason.setdefault(short(reason), []).append(node)
    lines += [f"rounded to the nearest step: {_some(nodes)} ({reason})" for reason, nodes in by_reason.items()]
    return lines


def _some(nodes: Sequence[str]) -> str:
    return ", ".join(nodes[:NAMED]) + (f" and {len(nodes) - NAMED} more" if len(nodes) > NAMED else "")


def _recovered(one: Mapping[str, Any]) -> str:
    same = f"{100 * one['before']:.2f} → {100 * one['after']:.2f} %"
    return (
        f"INT8 weights learned from FP32 for {one['dialect']}, {one['steps']} steps on {one['frames']} frames: "
        f"masks as in FP32 on {same} of the pixels of {one['held_out']} frames held out, "
        f"{'kept' if one['kept'] else 'not kept'}"
    )
