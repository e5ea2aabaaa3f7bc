"""Whatever is wrong in a document, the page is made or the file is named: never a traceback."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeseg.errors import BadInput
from edgeseg.report import svg
from edgeseg.report.exports import write_csv
from edgeseg.report.history import history
from edgeseg.report.html import write_report
from edgeseg.report.sources import sources
from tests.report.documents import bench, build, evaluation, put

STRANGE: tuple[Any, ...] = (None, "x", [], {}, -1, True, [None], {"a": {}})


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every key in a document, down to three levels, the first of every list."""
    items = document.items() if isinstance(document, dict) else list(enumerate(document))[:1]
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list) and len(path) < 2:
            yield from places(value, (*path, key))


@pytest.mark.parametrize("make", [bench, evaluation, build])
def test_a_strange_value_anywhere(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svg, "available", lambda: False)  # tables are quick
    refused = made = 0
    nameless = []
    for at, place in enumerate(places(make())):
        document = copy.deepcopy(make())
        inner = document
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = STRANGE[at % len(STRANGE)]
        path = put(tmp_path, "strange.json", document)
        for work in (
            lambda p=path: write_report([p], tmp_path / "page.html"),
            lambda p=path: write_csv(sources([p]), tmp_path / "x.csv"),
            lambda p=path: history([p]),
        ):
            try:
                work()
                made += 1
            except BadInput as error:
                refused += 1
                if "strange.json" not in str(error) and "no document with a metric" not in str(error):
                    nameless.append((place, str(error)))
    assert nameless == []
    assert refused > 10
    assert made > 10


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_number_is_refused(number: str, tmp_path: Path) -> None:
    text = json.dumps(bench()).replace('"fps": ', f'"fps": {number}, "x": ', 1)
    path = tmp_path / "n.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match=rf"n\.json.*{number}"):
        write_report([path], tmp_path / "page.html")
