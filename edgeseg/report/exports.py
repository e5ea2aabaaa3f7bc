"""The numbers of documents where people already look: CSV, TensorBoard, MLflow. Names are those of `metrics`.

A step is the place of a document in its series, in order of time: 0 for the first with this bundle, engine and
scenario. So give all documents of a series at once.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edgeseg.errors import BadInput, need
from edgeseg.files import write_whole
from edgeseg.report.metrics import Measured, measured
from edgeseg.report.sources import Source

_ABOUT = ("time", "file", "schema", "bundle", "variant", "precision", "scenario", "machine")
_TAG = "edgeseg.document"  # of a run in MLflow: what it was made from, so that nothing is logged twice
_OURS = ".edgeseg"  # what the names of our event files end with


def write_csv(found: Sequence[Source], out: Path) -> list[Path]:
    """One table of all numbers, a row for each (`metric`, `value`); or, where `out` is a folder or has no suffix, a
    table for each kind of document, a row for each engine, and samples.csv with all raw latencies.

    UTF-8 with a header. Text that a spreadsheet would take for a formula gets an apostrophe. Raises BadInput.
    """
    rows = _rows(found)
    if out.suffix and not out.is_dir():
        lines = [{**about, "metric": key, "value": value} for _, about, m in rows for key, value in m.values.items()]
        return [_table(lines, out)]
    written = []
    for kind in dict.fromkeys(one.kind for one, _, _ in rows):
        written.append(
            _table([{**about, **m.values} for one, about, m in rows if one.kind == kind], out / f"{kind}.csv")
        )
    if samples := [line for one, about, _ in rows for line in _samples(one, about)]:
        written.append(_table(samples, out / "samples.csv"))
    return written


def write_tensorboard(found: Sequence[Source], folder: Path) -> list[Path]:
    """Scalars, and histograms of raw latencies, as TensorBoard events: a run (a folder) for each bundle and engine.

    What an earlier call wrote into these runs is replaced. Needs tensorboardX, and neither torch nor TensorFlow.
    """
    writers = need("tensorboardX", extra="tensorboard", why="writing TensorBoard events")
    rows = _rows(found)
    runs: dict[Path, list[tuple[int, Measured]]] = {}
    for step, (_, _, m) in zip(_steps(rows), rows, strict=True):
        place = folder.joinpath(*(_part(name) for name in (m.bundle, m.variant, m.scenario) if name))
        runs.setdefault(place, []).append((step, m))
    for place, some in runs.items():
        for old in place.glob(f"events.out.tfevents.*{_OURS}"):
            old.unlink()
        with writers.SummaryWriter(str(place), filename_suffix=_OURS) as writer:
            for step, m in some:
                when = _moment(m.source).timestamp()
                for key, value in m.values.items():
                    writer.add_scalar(key.replace(".", "/", 1), value, step, walltime=when)
                for kind, samples in (m.source.document.get("samples_ms") or {}).items():
                    if samples:
                        writer.add_histogram(f"samples_ms/{kind}", samples, step, walltime=when)
                if command := m.source.document.get("command"):
                    writer.add_text("command", f"`{command}`", step, walltime=when)
    return list(runs)


def log_mlflow(found: Sequence[Source], uri: str) -> list[str]:
    """Log each engine of each document as a run of MLflow, in an experiment called as the bundle; the new runs' ids.

    `uri`: http(s)://…, sqlite:///FILE.db, or a folder where MLflow still allows that. Metrics have the time of their
    document; settings, versions and machine are parameters and tags. What was logged before is not logged again.
    Raises BadInput where the store refuses, MissingOnMachine without mlflow.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
    mlflow = need("mlflow", extra="mlflow", why="logging to MLflow")
    entities = need("mlflow.entities", extra="mlflow", why="logging to MLflow")
    made = []
    rows = _rows(found)
    try:
        client = mlflow.MlflowClient(tracking_uri=uri)
        for step, (source, about, m) in zip(_steps(rows), rows, strict=True):
            known = client.get_experiment_by_name(m.bundle)
            experiment = known.experiment_id if known else client.create_experiment(m.bundle)
            digest = _digest(source, m)
            if client.search_runs([experiment], filter_string=f"tags.`{_TAG}` = '{digest}'", max_results=1):
                continue
            when = int(_moment(source).timestamp() * 1000)
            tags = {_TAG: digest, **{f"edgeseg.{key}": value for key, value in about.items() if value}}
            if command := source.document.get("command"):
                tags["edgeseg.command"] = str(command)[:5000]
            run = client.create_run(
                experiment, start_time=when, tags=tags, run_name=f"{m.variant} {m.scenario}".strip()
            )
            name = run.info.run_id
            metrics = [entities.Metric(_metric(key), value, when, step) for key, value in m.values.items()]
            for at in range(0, len(metrics), 1000):  # the most of one call
                client.log_batch(name, metrics=metrics[at : at + 1000])
            parameters = [entities.Param(_metric(key), value[:500]) for key, value in _parameters(source, m).items()]
            for at in range(0, len(parameters), 100):
                client.log_batch(name, params=parameters[at : at + 100])
            client.set_terminated(name, status="FINISHED", end_time=when)
            made.append(name)
    except mlflow.exceptions.MlflowException as error:
        raise BadInput(f"MLflow at {_shown(uri)} refused: {error}") from error
    return made


def _rows(found: Sequence[Source]) -> list[tuple[Source, dict[str, str], Measured]]:
    """In order of time. Raises BadInput where there is nothing to write."""
    ordered = sorted(found, key=_moment)
    rows = [(source, _about(source, m), m) for source in ordered for m in measured(source)]
    if not rows:
        kinds = ", ".join(dict.fromkeys(source.schema for source in found))
        raise BadInput(f"there is no number to write in documents of {kinds}: give those of bench, eval, build, stream")
    return rows


def _about(source: Source, m: Measured) -> dict[str, str]:
    when = source.time
    precision = m.source.document.get("precision") or next(
        (e.get("precision") for e in m.source.document.get("engines") or () if e["name"] == m.variant), ""
    )
    values = (
        f"{when:%Y-%m-%dT%H:%M:%SZ}" if when else "",
        source.path.name,
        source.schema,
        *(m.bundle, m.variant, str(precision), m.scenario, m.machine),
    )
    return dict(zip(_ABOUT, values, strict=True))


def _steps(rows: Sequence[tuple[Source, dict[str, str], Measured]]) -> Iterator[int]:
    seen: Counter[tuple[str, ...]] = Counter()
    for _, _, m in rows:
        key = (m.bundle, m.variant, m.scenario)
        yield seen[key]
        seen[key] += 1


def _samples(source: Source, about: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    for kind, samples in (source.document.get("samples_ms") or {}).items():
        for index, value in enumerate(samples):
            yield {**about, "what": kind, "index": index, "ms": value}


def _table(rows: Sequence[Mapping[str, Any]], out: Path) -> Path:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writerow({key: _plain(key) for key in columns})
    writer.writerows({key: _plain(value) for key, value in row.items()} for row in rows)
    return write_whole(out, text.getvalue().encode())


def _plain(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def _moment(source: Source) -> datetime:
    """When it was measured; where the document does not say, when its file was written."""
    return source.time or datetime.fromtimestamp(source.path.stat().st_mtime, timezone.utc)


def _part(name: str) -> str:
    """A name as a folder: a bundle may be called ../x."""
    return re.sub(r"[^\w.-]+", "_", name).lstrip(".") or "_"


def _metric(name: str) -> str:
    """A name as MLflow allows it."""
    return re.sub(r"[^\w./ :-]", "_", name)[:250]


def _digest(source: Source, m: Measured) -> str:
    text = json.dumps([source.document, m.variant], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _parameters(source: Source, m: Measured) -> dict[str, str]:
    document = source.document
    engine = next((e for e in document.get("engines", ()) if e["name"] == m.variant), document)
    found = {key: str(engine[key]) for key in ("backend", "precision") if engine.get(key)}
    found |= {"variant": m.variant, "scenario": m.scenario, "machine": m.machine}
    found |= {f"setting.{key}": str(value) for key, value in (engine.get("settings") or {}).items()}
    return found | {f"version.{key}": str(value) for key, value in (document.get("versions") or {}).items()}


def _shown(uri: str) -> str:
    return re.sub(r"//[^/@]*@", "//***@", uri)
