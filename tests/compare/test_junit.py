"""The JUnit XML, by the structure that GitLab, Jenkins and GitHub's readers share."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from edgeseg.compare import compare, latency
from edgeseg.compare.junit import junit
from tests.compare.making import made, write

# Element -> attributes it must have, attributes it may have, elements within; after the schema of Apache Ant's task as
# Jenkins (jenkins-junit.xsd) and GitLab (name, classname, time, file; failure, error, skipped, system-out) read it.
COUNTS = {"tests", "failures", "errors", "skipped", "time"}
STRUCTURE: dict[str, tuple[set[str], set[str], set[str]]] = {
    "testsuites": ({"name", *COUNTS}, set(), {"testsuite"}),
    "testsuite": ({"name", *COUNTS}, {"timestamp", "hostname"}, {"testcase", "system-out"}),
    "testcase": ({"name", "classname", "time"}, {"file"}, {"failure", "skipped"}),
    "failure": ({"message", "type"}, set(), set()),
    "skipped": ({"message"}, set(), set()),
    "system-out": (set(), set(), set()),
}


def faults(root: ElementTree.Element) -> list[str]:
    """Where a tree is not of that structure, or its counts are not those of its cases."""
    found = [] if root.tag == "testsuites" else [f"the root is {root.tag}"]
    for one in root.iter():
        if one.tag not in STRUCTURE:
            found.append(f"{one.tag} is unknown")
            continue
        must, may, within = STRUCTURE[one.tag]
        found += [f"{one.tag} lacks {name}" for name in sorted(must - set(one.attrib))]
        found += [f"{one.tag} has {name}" for name in sorted(set(one.attrib) - must - may)]
        found += [f"{child.tag} in {one.tag}" for child in one if child.tag not in within]
        found += [f"{one.tag}: time {one.get('time')!r}"] * ("time" in must and not _number(one.get("time")))
        if one.tag in ("testsuites", "testsuite"):
            true = {"tests": "testcase", "failures": "failure", "errors": "error", "skipped": "skipped"}
            for key, tag in true.items():
                if one.get(key) != str(len(list(one.iter(tag)))):
                    found.append(f"{one.tag}: {key} is {one.get(key)}")
        if one.tag == "testcase":
            found += [f"a case has {len(one)} outcomes"] * (len(one) > 1)
            found += [f"{key} is empty" for key in ("name", "classname") if not one.get(key)]
    cases = [(case.get("classname"), case.get("name")) for case in root.iter("testcase")]
    return found + ["two cases of one name"] * (len(cases) != len(set(cases)))


def _number(text: str | None) -> bool:
    return re.fullmatch(r"[0-9]+(\.[0-9]+)?", text or "") is not None


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """One metric that fails, one that passes, one that cannot be told."""
    monkeypatch.setattr(latency, "RESAMPLES", 200)
    timed, judged = made.paired_latency(7, 1.2), made.video(7, 0.0, frames=120)
    budget = tmp_path / "budget.toml"
    budget.write_text('[miou]\nmax_drop = 5\n[latency.p50]\nmax_rise = "5 %"\n[latency.p99]\nmax_rise = "5 %"\n')
    sides = [write(tmp_path / f"{k}.json", [timed[k], judged[k]]) for k in (0, 1)]
    return compare(*sides, budget=budget)


def test_the_structure_that_readers_share(found: dict[str, Any]) -> None:
    text = junit(found)
    assert text.startswith(b"<?xml version='1.0' encoding='utf-8'?>\n")
    root = ElementTree.fromstring(text)
    assert faults(root) == []
    assert {key: root.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "3",
        "failures": "1",
        "errors": "0",
        "skipped": "1",
    }
    cases = {case.get("name"): case for case in root.iter("testcase")}
    assert cases["latency.p50"].get("classname") == "bench.single-stream.net.int8"
    assert len(cases["miou"]) == 0
    failure, skipped = cases["latency.p50"][0], cases["latency.p99"][0]
    assert (failure.tag, failure.get("type")) == ("failure", "budget")
    for part in ("ms before", "ms after", "95 % interval", "allowed +5 %", "worse"):
        assert part in (failure.get("message") or "")
    assert failure.text == failure.get("message")
    assert (skipped.tag, "662 samples" in (skipped.get("message") or "")) == ("skipped", True)
    assert (root.findtext("testsuite/system-out") or "").startswith("Failed: latency.p50")


def test_odd_names_are_kept_where_xml_can_hold_them(found: dict[str, Any]) -> None:
    odd = "Straße <b> & \"quoted\" 'x' 道路 ]]> v1.2"
    for group in found["groups"]:
        group["after"]["bundle"] = odd + "\x00\x1b[31m\ud800\uffff"
    text = junit(found)
    assert b"<b>" not in text
    root = ElementTree.fromstring(text)
    assert faults(root) == []
    # Readers cut class names at dots, so those of names become _.
    clean = odd.replace(".", "_") + "�" * 2 + "[31m" + "�" * 2
    for case in root.iter("testcase"):
        assert clean in (case.get("classname") or "")
    assert ElementTree.fromstring(ElementTree.tostring(root)).tag == "testsuites"


def test_the_check_sees_damage(found: dict[str, Any]) -> None:
    def spoiled(what: str, of: str, then: str) -> list[str]:
        text = junit(found).decode()
        assert of in text
        return faults(ElementTree.fromstring(text.replace(of, then, 1).encode()))

    assert spoiled("a count", 'failures="1"', 'failures="0"') == ["testsuites: failures is 0"]
    assert spoiled("no time", ' time="0"', "") == ["testsuites lacks time", "testsuites: time None"]
    assert spoiled("a strange one", ' type="budget"', ' kind="budget"') == ["failure lacks type", "failure has kind"]
    assert "two cases of one name" in spoiled("twice", 'name="latency.p99"', 'name="latency.p50"')


def test_nothing_in_the_budget_is_no_case_but_a_file(tmp_path: Path, found: dict[str, Any]) -> None:
    for group in found["groups"]:
        for one in group["metrics"]:
            one["gate"] = None
    root = ElementTree.fromstring(junit(found))
    assert faults(root) == []
    assert root.get("tests") == "0"
    assert json.loads(json.dumps(found)) == found
