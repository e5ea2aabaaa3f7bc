"""Every row of the notes through the real parser and builder of TensorRT-RTX, in FP32, FP16 and INT8."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="the networks are torch's")

from tests.families import making
from tests.families.families import FAMILIES
from tests.tensorrt.test_rtx_families import _rtx, refused, variants


@pytest.mark.parametrize("name", FAMILIES)
def test_tensorrt_rtx_builds_it(name: str) -> None:
    _rtx()
    factory, arguments = FAMILIES[name]
    for what, precision, graph in variants(making.made(factory, **arguments).model):
        assert not refused(graph, precision), what
