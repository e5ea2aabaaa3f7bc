"""Every row of the notes rewritten by one rule: it costs less, says nearly the same, and goes on to INT8."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="the networks are torch's")

import torch

from edgeseg.rewrite.network import macs_of
from tests.families import making
from tests.families.families import DEEP, FAMILIES, INT8, NARROW, SHARE


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in DEEP])
def test_rewritten_it_costs_less_and_says_nearly_the_same(name: str) -> None:
    factory, arguments = FAMILIES[name]
    found = making.made(factory, **arguments)
    before = making.teacher(found.module)
    rule, share = ("bottleneck", 0.95) if name in NARROW else ("separable", SHARE)
    after, count = making.rewritten_to(before, share, rule)
    assert count >= 1
    assert macs_of(after, making.SIZE) <= share * macs_of(before, making.SIZE)
    small = making.exported(after, arguments.get("classes", len(making.NAMES)))
    assert making.agreement(small.expected, found.expected) >= 0.7
    assert making.agreement(making.masks(small.model, "onnxruntime", small.frames), small.expected) >= 0.9995
    quantized = making.int8(small.model, "onnxruntime")
    given = making.masks(quantized, "onnxruntime", small.frames, "int8")
    assert making.agreement(given, small.expected) >= INT8.get(name, 0.75)
