"""The published schemas: real documents fit, damaged ones are refused, as an independent validator says too."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeseg.documents import VERSIONS, checked, fault, read_documents, schema_of
from edgeseg.documents.check import WORDS
from edgeseg.errors import BadInput
from tests.documents.made import documents

jsonschema = pytest.importorskip("jsonschema", reason="the independent validator: pip install jsonschema")
NAMES = [f"{name}/{n}" for name, known in VERSIONS.items() for n in known]


@pytest.fixture(scope="module")
def made(built: Path, street: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGESEG_CACHE", str(tmp_path_factory.mktemp("cache")))
        return documents(built, street)


def short(value: Any) -> Any:
    """The same with at most three items in a list: long ones would only take long."""
    if isinstance(value, dict):
        return {key: short(child) for key, child in value.items()}
    return [short(child) for child in value[:3]] if isinstance(value, list) else value


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every key, and the first two items of every list; long objects with their first keys."""
    items = list(value.items())[:60] if isinstance(value, dict) else list(enumerate(value))[:2]
    for key, child in items:
        yield (*path, key)
        if isinstance(child, dict | list):
            yield from places(child, (*path, key))


def at(document: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        document = document[key]
    return document


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_is_one_and_uses_only_what_is_checked(name: str) -> None:
    schema = schema_of(name)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["properties"]["schema"] == {"const": name}

    def words(part: Any) -> Iterator[str]:
        yield from part
        for key in ("properties", "$defs"):
            for inner in part.get(key, {}).values():
                yield from words(inner)
        for inner in (*part.get("anyOf", ()), *(part[key] for key in ("items", "additionalProperties") if key in part)):
            yield from words(inner)

    assert set(words(schema)) <= WORDS


def test_there_is_a_document_of_every_schema_and_all_fit(made: list[dict[str, Any]]) -> None:
    assert {one["schema"] for one in made} == {*NAMES} - {"edgeseg.compare/1"}
    for one in made:
        assert fault(one, schema_of(one["schema"])) is None
        jsonschema.validate(one, schema_of(one["schema"]), cls=jsonschema.Draft202012Validator)
        assert checked(one, Path("a.json")) is one


def test_damage_anywhere_is_judged_as_the_validator_judges_it(made: list[dict[str, Any]]) -> None:
    refused = let_through = 0
    seen = set()
    for whole in made:
        schema, document = schema_of(whole["schema"]), short(whole)
        validator = jsonschema.Draft202012Validator(schema)
        for path in places(document):
            place = (
                document["schema"],
                document.get("scenario"),
                *(0 if isinstance(key, int) else key for key in path),
            )
            if place in seen:
                continue
            seen.add(place)
            *parent, last = path
            was = at(document, path)
            other: Any = (None, -1, 1.5, True, [], {})[len(seen) % 6]
            wrong: tuple[Any, ...] = ("missing", 3 if isinstance(was, str) else "text", other)
            for bad in wrong:
                inner = at(document, tuple(parent))
                before = copy.copy(inner)
                if bad == "missing":
                    del inner[last]
                else:
                    inner[last] = bad
                ours, theirs = fault(document, schema), bool(validator.is_valid(document))
                assert (ours is None) == theirs, (path, bad, ours)
                if ours is None:
                    let_through += 1
                else:
                    refused += 1
                    tail = str(path[-1])
                    assert tail in ours[0] or str(path[0]) in ours[0], (path, bad, ours)
                if isinstance(inner, dict):
                    inner.clear()
                    inner.update(before)
                else:
                    inner[:] = before
    assert refused > 800
    assert let_through > 100


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_no_number_is_refused_wherever_it_stands(made: list[dict[str, Any]], bad: float, tmp_path: Path) -> None:
    for document in made:
        for path in list(places(document))[:40]:
            spoiled = copy.deepcopy(document)
            at(spoiled, path[:-1])[path[-1]] = bad
            with pytest.raises(BadInput, match=r"a\.json, .*(finite number|wanted a text)"):
                checked(spoiled, tmp_path / "a.json")


@pytest.mark.parametrize(
    ("schema", "change", "told"),
    [
        ("edgeseg.bench/2", lambda d: d["samples_ms"].update(engine=[]), "samples_ms.engine: wanted at least 1 items"),
        ("edgeseg.bench/2", lambda d: d["samples_ms"]["whole"].__setitem__(3, -1.0), r"samples_ms.whole\[3\]: .*0.*-1"),
        ("edgeseg.bench/2", lambda d: d["latency_ms"].update(p50="fast"), "latency_ms.p50: "),
        ("edgeseg.bench/2", lambda d: d.update(versions={}), "versions: wanted at least 1 keys"),
        ("edgeseg.eval/2", lambda d: d.update(frames=0), "frames: wanted at least 1, came 0"),
        ("edgeseg.eval/2", lambda d: d.update(iou={}), "iou: wanted at least 1 keys"),
        ("edgeseg.eval/2", lambda d: d.update(miou=1.01), "miou: wanted at most 1, came 1.01"),
        ("edgeseg.eval/2", lambda d: d["per_frame"].pop("fn"), "per_frame.fn: this key is missing"),
        ("edgeseg.eval/2", lambda d: d["per_frame"].update(names=[]), "per_frame.names: wanted at least 1"),
        ("edgeseg.build/1", lambda d: d.update(engines=[]), "engines: wanted at least 1 items"),
        ("edgeseg.build/1", lambda d: d["engines"][0].pop("latency_ms"), r"engines\[0\].latency_ms: this key is miss"),
        ("edgeseg.build/1", lambda d: d.update(rewriting={"schema": "edgeseg.rewrite/1"}), "rewriting.name: this key"),
        (
            "edgeseg.build/1",
            lambda d: d.update(search=[{"schema": "edgeseg.search/9"}]),
            r"search\[0\].schema: version",
        ),
        ("edgeseg.stream/1", lambda d: d.update(sources=[]), "sources: wanted at least 1"),
        ("edgeseg.stream/1", lambda d: d["frames"].update(dropped=True), "frames.dropped: wanted integer, came true"),
    ],
)
def test_the_file_and_the_key_are_named(
    made: list[dict[str, Any]], schema: str, change: Any, told: str, tmp_path: Path
) -> None:
    good = copy.deepcopy(next(one for one in made if one["schema"] == schema))
    bad = copy.deepcopy(good)
    change(bad)
    (tmp_path / "a.json").write_text(json.dumps(bad))
    with pytest.raises(BadInput, match=rf"a\.json, {told}"):
        read_documents(tmp_path / "a.json")
    (tmp_path / "b.json").write_text(json.dumps([good, bad]))
    with pytest.raises(BadInput, match=rf"b\.json, \[1\]\.{told}"):
        read_documents(tmp_path / "b.json")


def test_a_bundle_gives_its_build(built: Path, tmp_path: Path) -> None:
    (document,) = read_documents(built)
    assert document["schema"] == "edgeseg.build/1"
    assert document["engines"]
    with pytest.raises(BadInput):
        read_documents(tmp_path)


def test_a_key_that_no_schema_names_is_let_through(made: list[dict[str, Any]]) -> None:
    for one in made:
        assert fault(one | {"from_tomorrow": [1]}, schema_of(one["schema"])) is None
    with pytest.raises(KeyError):
        schema_of("edgeseg.bench/9")
