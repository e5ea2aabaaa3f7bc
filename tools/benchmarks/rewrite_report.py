"""The comparison from top to bottom; each table is printed when it is known, so a later failure costs no other."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.rewrite import OURS, TRIES, Bench, judged, miou, recovered, rows_of, say, setting_of, zero_shot
from benchmarks.rewrite_making import reason
from benchmarks.rewrite_peers import PEERS
from benchmarks.rewrite_picture import picture
from benchmarks.rewrite_pruning import AGAIN, DEEPEST, GRADIENTS, STEPS
from benchmarks.rewrite_race import budget_of, deployed
from edgeseg.errors import BadInput
from edgeseg.report.text import DASH, number
from edgeseg.types import Precision

Table = Callable[[Sequence[str], Sequence[Sequence[str]]], str]
HEADER = ("method", "budget", "operations", "mIoU %", "drop", "agree %", "CPU s", "wall s")
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")


def report(
    place: Path,
    echo: Callable[[str], object],
    table: Table,
    *,
    shares: str,
    methods: str,
    race: str,
    rounds: int,
    repeat: int,
    **words: Any,
) -> dict[str, Any]:
    """The document; its `picture` is an SVG. `echo` is given the tables as Markdown. Raises BadInput."""
    budgets = [budget_of(word) for word in _words(race)] if race != "none" else []
    setting = setting_of(shares=_shares(shares), methods=_methods(methods), seeds=repeat, **words)
    with _cache(place / "cache"):
        bench = zero_shot(setting)
        rows = rows_of(bench, bench.made, judged(bench, bench.made))
        assert bench.original is not None
        whole = miou(setting, bench.original)
        document: dict[str, Any] = {
            "schema": "edgeseg.bench-rewrite/1",
            "model": setting.model.name,
            "fit": {
                "split": setting.fit_split,
                "frames": len(bench.works[0].fit),
                "held_out": len(bench.works[0].held),
            },
            "evaluation": {"split": setting.eval_split, "frames": bench.original.frames},
            "macs": bench.works[0].whole.macs,
            "miou": whole,
            "threads": setting.threads,
            "seeds": setting.seeds,
            "minutes": setting.minutes,
            "prepared_s": bench.prepared_s,
            "peak_rss_mb": bench.peak_mb,
            "peers": {name: _version(name) for name in ("torch-pruning", "tensorly")},
            "zero_shot": rows,
        }
        echo(f"{_opening(document, bench)}\n\n**Without learning**\n\n{table(HEADER, _cells(rows))}\n")
        echo("\n".join((*_ours(bench, rows), "", *_fairness(document), "", *_notes(rows))))
        best = rows
        if setting.minutes > 0:
            learned = recovered(bench)
            best = rows_of(bench, learned, judged(bench, learned))
            document["learned"] = best
            echo(f"\n**After {setting.minutes:g} minutes of learning each**\n\n{table(HEADER, _cells(best))}\n")
            echo("\n".join((_ways(setting.peer_tries), "", *_notes(best))))
        document["picture"] = picture(f"{document['model']}: mIoU by what is left of the operations", whole, best)
        document["deployed"] = []
        for precision in PRECISIONS if budgets else ():
            try:
                found = deployed(setting, budgets, precision, rounds)
            except Exception as error:  # the tables above are worth more than a clean end
                say(f"  {reason(error)}")
                echo(f"\n**Deployed, {precision.upper()}**: {reason(error)}")
                continue
            document["deployed"].append(found)
            echo(f"\n{_deployed(found, table)}")
    return document


def _shares(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(word) for word in _words(text))
    except ValueError:
        raise BadInput(f"--shares wants numbers with commas between them, got '{text}'") from None
    if not found or not all(0 < share <= 1 for share in found):
        raise BadInput(f"--shares wants shares of the operations, above 0 and at most 1, got '{text}'")
    return tuple(sorted(set(found), reverse=True))


def _methods(text: str) -> tuple[str, ...]:
    every = (OURS, *PEERS)
    found = tuple(_words(text)) or every
    unknown = [name for name in found if name not in every]
    if unknown:
        raise BadInput(f"there is no method '{unknown[0]}'; there are: {', '.join(every)}")
    return found


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _opening(document: dict[str, Any], bench: Bench) -> str:
    given, judged_by = document["fit"], document["evaluation"]
    peers = ", ".join(f"{name} {found}" for name, found in document["peers"].items())
    return (
        f"{document['model']}: {document['macs'] / 1e6:.1f} M multiplications, mIoU {100 * document['miou']:.2f} on "
        f"{judged_by['frames']} frames of '{judged_by['split']}'. Everyone is given the same {given['frames']} frames "
        f"of '{given['split']}' without labels, and {given['held_out']} more, held out, to decide between variants by. "
        f"Operations: multiplications left, one counter for all. Drop: mIoU points that the original has more. Agree: "
        f"pixels that get the original's class. Seconds: from the file of weights (peers: from the network in memory) "
        f"to the network, {bench.setting.threads} thread{'s' * (bench.setting.threads > 1)}. {peers}."
    )


def _cells(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    found = []
    for row in rows:
        asked = DASH if row["asked"] is None else f"{row['asked']:g}"
        name = f"**{OURS}**" if row["method"] == OURS else row["method"]
        if not row["miou"]:
            found.append((name, asked, DASH, row["failure"].replace("|", "/") or "failed", *[DASH] * 4))
            continue
        found.append(
            (
                name,
                asked,
                number(statistics.fmean(row["share"]), 3),
                _spread(row["miou"], 2, 100),
                number(row["drop"], 2, 100),
                _spread(row["agreement"], 2, 100),
                number(statistics.fmean(row["cpu_s"]), 1),
                number(statistics.fmean(row["wall_s"]), 1),
            )
        )
    return found


def _spread(values: Sequence[float], digits: int, factor: float) -> str:
    mean = number(statistics.fmean(values), digits, factor)
    if len(values) == 1:
        return mean
    return f"{mean} ({number(min(values), digits, factor)} to {number(max(values), digits, factor)})"


def _ours(bench: Bench, rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Where our seconds went."""
    first = bench.prepared_s[0]
    steps = ", ".join(f"{name} {first[name]:.1f}" for name in ("capture", "exact", "options") if name in first)
    fits = [
        f"{row['asked']:g}: {row['parts_s'][0].get('choose', 0) + row['parts_s'][0].get('fit', 0):.1f}"
        for row in rows
        if row["method"] == OURS and row["miou"]
    ]
    yield (
        f"{OURS}, seconds: {steps} once ({first['wall_s']:.1f} with loading, {first['cpu_s']:.1f} of the processor), "
        f"then choosing and fitting, held-out frames included, by budget {', '.join(fits) or DASH}. "
        f"Peak memory {number(bench.peak_mb, 0)} MB, torch and frames included."
    )


def _fairness(document: dict[str, Any]) -> Iterator[str]:
    yield "What each was given:"
    yield f"* {OURS}: `edgeseg rewrite`, its defaults, layers not timed; with or without rescaling, by held-out frames"
    yield "* all peers: batch norms re-estimated on the same frames or not, by held-out frames; then our exact rewrites"
    yield (
        f"* Torch-Pruning: iterative, {STEPS} steps on the way to {100 * DEEPEST:.0f} % of the channels instead of the "
        "usual few, importance anew before each, stopped at the budget (1 % over it is let pass); layers that make the "
        f"outputs are kept; Taylor: norms and gradients anew every {AGAIN} steps, from {GRADIENTS} of the frames, of "
        "the cross entropy with the original's decisions, and not normalised by group, which did better here"
    )
    yield "* Tucker-2: every k x k convolution, ranks one fraction of its channels, the largest within the budget"
    yield "* depthwise separable: every k x k convolution but the one on the image; it has one share"


def _ways(tries: int) -> str:
    way = TRIES[1]
    more = (
        f" Peers learn twice, for as many minutes each, the second time at learning rate {way['learning_rate']:g} with "
        "batch norms put back; the better by held-out frames counts (seconds: of both)."
        if tries > 1
        else ""
    )
    return (
        "Distillation by edgeseg.distill with the same options, frames and minutes for all; of before and after, the "
        "better by held-out frames." + more
    )


def _notes(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        for note in dict.fromkeys(row["notes"]):
            yield f"* {row['method']}, {DASH if row['asked'] is None else format(row['asked'], 'g')}: {note}"


def _deployed(found: dict[str, Any], table: Table) -> str:
    cells = []
    for row in found["rows"]:
        if row["failure"]:
            cells.append((row["budget"], DASH, row["failure"].replace("|", "/"), *[DASH] * 6))
            continue
        latency, speed = row["latency_ms"], row.get("speed")
        cells.append(
            (
                row["budget"],
                number(row["share"], 3),
                number(row["miou"], 2, 100),
                number(row["drop"], 2, 100),
                number(row["agreement"], 2, 100),
                number(latency["p50"]),
                number(latency["p90"]),
                DASH if speed is None else f"{speed['ratio']:.2f}x ({speed['low']:.2f} to {speed['high']:.2f})",
                number(row["rewrite_s"], 1),
            )
        )
    header = ("budget", "operations", "mIoU %", "drop", "agree %", "p50 ms", "p90 ms", "speed-up (95 %)", "rewrite s")
    told = ", ".join(f"{name} {value}" for name, value in found["settings"].items() if name != "decision")
    return (
        f"**Deployed, {found['precision'].upper()}**: {found['engine']}{f' ({told})' if told else ''}, "
        f"{found['rounds']} interleaved rounds, mIoU of the engines on {found['frames']} frames. Operations: of the "
        f"original. Speed-up: against the original's engine, same precision. Rewrite: the whole, layers timed.\n\n"
        f"{table(header, cells)}"
    )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


@contextmanager
def _cache(folder: Path) -> Iterator[None]:
    """Nothing that was measured at another time counts."""
    before = os.environ.get("EDGESEG_CACHE")
    os.environ["EDGESEG_CACHE"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["EDGESEG_CACHE"]
        else:
            os.environ["EDGESEG_CACHE"] = before
