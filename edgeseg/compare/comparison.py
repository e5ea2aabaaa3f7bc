"""Two sets of documents as one: every metric before and after, its interval, its verdict, and what the gate says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeseg.compare import latency
from edgeseg.compare.accuracy import accuracy, other_frames, uncounted
from edgeseg.compare.budget import Rule, default_budget, read_budget
from edgeseg.compare.chance import INTERVAL, LEVEL, Estimate
from edgeseg.compare.matching import Group, groups, halves, left_out, matched, read
from edgeseg.compare.values import Document, classes, reasons, values
from edgeseg.compare.verdict import UNKNOWN, Judged, exit_code, judge
from edgeseg.compare.vocabulary import judged_in, metric
from edgeseg.errors import BadInput

SCHEMA = "edgeseg.compare/1"
_MACHINE = ("cpu", "architecture", "cores_usable", "gpu", "gpus", "governor")
_TIMES = ("latency", "end_to_end", "cold", "fps", "missed", "dropped")


def compare(base: Path, new: Path | None = None, *, budget: Path | None = None, seed: int = 0) -> dict[str, Any]:
    """The document edgeseg.compare/1 of two JSON files, or folders of them; see `exit_code` in it.

    Without `new`, `base` holds both engines: the first is before. `budget`: a budget.toml; without, `default_budget`.
    Raises BadInput, naming file and key, for documents or budgets that cannot be used.
    """
    before = groups(read(base))
    after = before if new is None else groups(read(new))
    pairs = halves(before, base) if new is None else matched(before, after, base, new or base)
    notes = [] if new is None else [*left_out(before, pairs, base), *left_out(after, pairs, new)]
    rules = _rules(budget, pairs)
    kinds = {group.kind for group, _ in pairs}
    used = {name: rule for name, rule in rules.items() if judged_in(name, kinds)}
    if budget is not None:
        notes += [f"{name} is in the budget, but not in such documents" for name in rules if name not in used]
        if not used:
            raise BadInput(f"{budget}: nothing in it ({', '.join(rules)}) is measured in {base} ({', '.join(kinds)}).")

    rows: list[Judged] = []
    parts: list[dict[str, Any]] = []
    for a, b in pairs:
        found, method, said = _rows(a, b, used, base, new or base, seed, wanted=budget is not None)
        parts.append(_part(a, b, method, said, len(found)))
        rows += found
    judged = judge(rows, used)
    at = 0
    for part in parts:
        part["metrics"] = [_json(row) for row in judged[at : at + part.pop("count")]]
        at += len(part["metrics"])
    code = exit_code(judged)
    return {
        "schema": SCHEMA,
        "base": str(base),
        "new": str(new or base),
        "budget": {
            "file": None if budget is None else str(budget),
            "rules": {name: rule.text for name, rule in used.items()},
        },
        "level": LEVEL,
        "interval_level": INTERVAL,
        "gate": {0: "passed", 1: "failed", 4: UNKNOWN}[code],
        "exit_code": code,
        "groups": parts,
        "notes": notes,
    }


def _rules(budget: Path | None, pairs: Sequence[tuple[Group, Group]]) -> dict[str, Rule]:
    if budget is None:
        return default_budget()
    documents = [document for pair in pairs for group in pair for document in group.documents]
    known = [names for document in documents if (names := classes(document)) is not None]
    sequences = [one["name"] for document in documents for one in document.get("sequences") or ()]
    return read_budget(
        budget, classes=None if not known else {c for names in known for c in names}, sequences=sequences
    )


def _rows(
    a: Group, b: Group, rules: Mapping[str, Rule], base: Path, new: Path, seed: int, *, wanted: bool
) -> tuple[list[Judged], str, list[str]]:
    """The metrics of a pair, unjudged; by what method; and what a person should know.

    `wanted`: somebody asked for these rules, so what they name and nobody measured is a row too.
    """
    sides = [[values(document) for document in group.documents] for group in (a, b)]
    names = list(dict.fromkeys(name for side in sides for found in side for name in found))
    why = {name: text for d in (*a.documents, *b.documents) for name, text in reasons(d).items()}
    names += [
        name
        for name in dict.fromkeys((*why, *(rules if wanted else ())))
        if name not in names and judged_in(name, [a.kind])
    ]
    where = f"{base} or {new}"
    paired = latency.paired(a.documents, b.documents) if a.kind == "bench" else []
    obstacle = None if paired else _obstacle(a.documents, b.documents)
    estimates: dict[str, Estimate] = {}
    levels: dict[str, Estimate] = {}
    within: list[list[dict[str, Estimate]]] = []  # of each side, of each run
    others, frames = _frames(a, b)
    if a.kind in ("eval", "build") and others is None and frames is None:
        estimates = accuracy(a.documents[0], b.documents[0], where, seed)
    if a.kind == "bench":
        few = min(len(a.documents), len(b.documents)) < latency.REPEATS
        alone = few and not paired and obstacle is None
        if alone or any(rule.limit is not None for rule in rules.values()):
            each = [[latency.of_one(document, where, seed) for document in group.documents] for group in (a, b)]
            levels = each[1][0] if len(b.documents) == 1 else {}
            within = each if alone else within
    if paired:
        estimates = latency.of_pairs(paired, where, seed)

    rows = []
    same = a.documents == b.documents
    for name in names:
        of = metric(name)
        found = [[one[name] for one in side if name in one] for side in sides]
        middle = [_middle(side) for side in found]
        scaled = None
        if all(found) and (of.points or min(map(min, found)) > 0):
            scaled = [[of.scaled(value) for value in side] for side in found]
        timed = name.split(".")[0] in _TIMES or (a.kind == "stream" and name == "fps")
        elsewhere = obstacle is not None and name == "memory" and _elsewhere([*a.documents, *b.documents])
        estimate, reason = estimates.get(name), None
        if estimate is None and scaled is None:
            reason = why.get(name, "it was not measured on both sides")
        elif same:
            estimate = Estimate(0.0)
        elif estimate is None and timed and obstacle is not None:
            reason = obstacle
        elif estimate is None and paired and name.startswith("cold."):
            reason = "opened in one call: the first also loads the runtime for the others; bench each by itself"
        elif estimate is None and elsewhere:  # other kernels, that pack weights in another way
            reason = elsewhere
        elif estimate is None and scaled is not None:
            estimate, reason = _separate(name, scaled, a, within, others, frames)
        rows.append(Judged(of, middle[0], middle[1], estimate, levels.get(name), reason))
    return rows, _method(a, b, paired, others or frames), _notes(a, b, obstacle)


def _separate(
    name: str,
    scaled: list[list[float]],
    a: Group,
    within: Sequence[Sequence[Mapping[str, Estimate]]],
    others: str | None,
    frames: str | None,
) -> tuple[Estimate | None, str | None]:
    """A change from values of separate runs, and why it is wide or missing."""
    if name == "size":
        return Estimate(scaled[1][0] - scaled[0][0]), None
    exact = a.kind in ("eval", "build") and metric(name).points
    if exact and others is None and len(set(scaled[0] + scaled[1])) == 1:
        return Estimate(0.0), None
    if exact:
        return None, others or frames or "no counts per frame for it"
    enough = min(map(len, scaled)) >= latency.REPEATS
    if metric(name).points and not enough:
        return None, f"{len(scaled[0])} and {len(scaled[1])} runs; a share needs {latency.REPEATS} a side"
    errors = [one[name].error / len(runs) for runs in within for one in runs if name in one]
    kept = (
        f"{len(scaled[0])} and {len(scaled[1])} separate runs; bench both in one call, or {latency.REPEATS} runs a side"
    )
    if name == "build_memory":
        kept = "a build takes as much as its steps that did not come from the cache"
    of = "engine_memory" if (a.kind, name) == ("bench", "memory") else name
    return latency.of_runs(of, scaled[0], scaled[1], errors), "runs differ" if enough else kept


def _frames(a: Group, b: Group) -> tuple[str | None, str | None]:
    """Why accuracy cannot be compared at all, and why not frame by frame; None if it can."""
    if a.kind not in ("eval", "build"):
        return None, None
    first, second = a.documents[0], b.documents[0]
    others = other_frames(first, second)
    if others is None and a.kind == "build":
        # Evaluations of one graph are the same; builds of one name may have chosen other weights each time.
        for group in (a, b):
            if any(one.get("per_frame") != group.documents[0].get("per_frame") for one in group.documents):
                return None, f"{len(group.documents)} builds of one name that differ: compare one with one"
    return others, uncounted(first, second)


def _obstacle(before: Sequence[Document], after: Sequence[Document]) -> str | None:
    """Why times of separate runs say nothing about each other; None if they do."""
    documents = [*before, *after]
    if (elsewhere := _elsewhere(documents)) is not None:
        return elsewhere
    if len({str(document.get("frames_digest")) for document in documents}) > 1:
        return "other frames: frames_digest differs"
    for document in documents:
        slowdown = document.get("slowdown") or {}
        if slowdown.get("moved") or slowdown.get("throttled"):
            return "clocks moved: " + ("; ".join(map(str, slowdown.get("text") or ())) or "see slowdown")
    return None


def _elsewhere(documents: Sequence[Document]) -> str | None:
    machines = [document.get("machine") or {} for document in documents]
    for key in _MACHINE:
        # Only engines that run on a GPU name it: beside one that does not, that says nothing.
        told = [machine for machine in machines if key != "gpu" or machine.get(key) is not None]
        seen = list(dict.fromkeys(str(machine.get(key)) for machine in told))
        if len(seen) > 1:
            return f"another machine: {key} is {' and '.join(seen)}"
    return None


def _method(a: Group, b: Group, paired: Sequence[Any], frames: str | None) -> str:
    counts = f"{len(a.documents)} and {len(b.documents)} runs"
    if a.kind == "eval":
        return "values only: " + frames if frames else f"paired, {len(a.documents[0]['per_frame']['names'])} frames"
    if a.kind == "build" and frames is None:
        return f"accuracy paired, {len(a.documents[0]['per_frame']['names'])} frames; times separate, {counts}"
    if paired:
        return f"paired, {len(paired)} interleaved run{'s' * (len(paired) > 1)}"
    if min(len(a.documents), len(b.documents)) >= latency.REPEATS:
        return f"repeated, {counts}"
    return f"separate, {counts}"


def _notes(a: Group, b: Group, obstacle: str | None) -> list[str]:
    notes = [] if obstacle is None or a.kind == "eval" else [obstacle]
    notes += ["both sides hold the same documents"] if a.documents == b.documents else []
    first, second = a.documents[0], b.documents[0]
    for key in ("precision", "threads"):
        if first.get(key) != second.get(key):
            notes.append(f"{key}: {first.get(key)} before, {second.get(key)} after")
    old, now = (document.get("versions") or {} for document in (first, second))
    changed = [
        f"{name} {old.get(name)} → {now.get(name)}" for name in sorted({*old, *now}) if old.get(name) != now.get(name)
    ]
    if changed:
        notes.append("versions: " + ", ".join(changed))
    for side, group in (("before", a), ("after", b)):
        said = [text for d in group.documents for text in (d.get("slowdown") or {}).get("text") or ()]
        notes += [f"{side}: {text}" for text in dict.fromkeys(map(str, said))]
    if a.kind == "eval" and (len(a.documents) > 1 or len(b.documents) > 1):
        notes.append("of several evaluations of one engine the first counts; they are the same")
    return notes


def _middle(found: Sequence[float]) -> float | None:
    """Of several runs the geometric mean; the mean where there is a zero."""
    if not found:
        return None
    if min(found) > 0:
        return found[0] if len(found) == 1 else math.exp(math.fsum(map(math.log, found)) / len(found))
    return math.fsum(found) / len(found)


def _part(a: Group, b: Group, method: str, notes: list[str], count: int) -> dict[str, Any]:
    def side(group: Group) -> dict[str, Any]:
        return {"bundle": group.bundle, "variant": group.variant, "runs": len(group.documents)}

    return {
        "kind": a.kind,
        "scenario": a.scenario,
        "before": side(a),
        "after": side(b),
        "method": method,
        "notes": notes,
        "count": count,
    }


def _json(row: Judged) -> dict[str, Any]:
    """Values in `unit`, change and interval in `change_unit`: shares are points of 100."""
    of = row.metric
    change = None if row.change is None else row.change.change
    before, after = row.before, row.after
    if change is None and before is not None and after is not None and (of.points or min(before, after) > 0):
        change = of.scaled(after) - of.scaled(before)  # what came, though nothing is known about it
    return {
        "name": of.name,
        "unit": of.unit,
        "less_is_better": of.less_is_better,
        "before": row.before,
        "after": row.after,
        "change": None if change is None else of.change(change),
        "change_unit": of.change_unit,
        "interval": None if row.interval is None else list(row.interval),
        "p": row.p,
        "allowed": None if row.rule is None else row.rule.text,
        "verdict": row.verdict,
        "reason": row.reason,
        "gate": row.gate,
        "gate_reason": row.gate_reason,
    }
