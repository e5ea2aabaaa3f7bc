"""A comparison as JUnit XML, which GitLab, Jenkins and others show: a test case for every budgeted metric."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

from edgeseg.compare.text import budget_line, cells, summary

# What XML 1.0 cannot hold, not even escaped.
_FORBIDDEN = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(document: Mapping[str, Any]) -> bytes:
    """`failure` where the gate fails, `skipped` where it cannot tell; what no budget names is left out."""
    gated = [(group, one) for group in document["groups"] for one in group["metrics"] if one["gate"] is not None]
    counts = {
        "tests": len(gated),
        "failures": sum(one["gate"] == "failed" for _, one in gated),
        "errors": 0,
        "skipped": sum(one["gate"] == "cannot tell" for _, one in gated),
    }
    numbers = {key: str(value) for key, value in counts.items()}
    # Nothing is timed here, but some readers want the attribute.
    suites = ElementTree.Element("testsuites", {"name": "edgeseg compare", **numbers, "time": "0"})
    suite = ElementTree.SubElement(suites, "testsuite", {"name": "edgeseg compare", **numbers, "time": "0"})
    for group, one in gated:
        where = ".".join(
            _clean(part).replace(".", "_")
            for part in (group["kind"], group["scenario"], group["after"]["bundle"], group["after"]["variant"])
        )
        case = ElementTree.SubElement(suite, "testcase", {"classname": where, "name": _clean(one["name"]), "time": "0"})
        name, before, after, change, interval, allowed, verdict, _ = cells(one)
        text = (
            f"{name}: {before} before, {after} after, change {change} (95 % interval {interval}), allowed {allowed}; "
            f"{verdict}. {one['gate_reason'] or ''}"
        ).strip()
        if one["gate"] == "failed":
            failure = ElementTree.SubElement(case, "failure", {"message": _clean(text), "type": "budget"})
            failure.text = _clean(text)
        elif one["gate"] == "cannot tell":
            ElementTree.SubElement(case, "skipped", {"message": _clean(text)})
    out = ElementTree.SubElement(suite, "system-out")
    out.text = _clean(f"{summary(document)}\n{budget_line(document)}")
    ElementTree.indent(suites)
    found: bytes = ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True)
    return found + b"\n"


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)
