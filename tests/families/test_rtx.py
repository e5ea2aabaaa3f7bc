"""What the zoo adds to the networks of tests.tensorrt: the real parser and builder of TensorRT-RTX take it.

EDGESEG_RTX_ALL=1 builds every family in every precision: some minutes.
"""

from __future__ import annotations

import os

import pytest

pytest.importorskip("torch", reason="the networks are torch's")

from tests.families import making
from tests.families.families import FAMILIES
from tests.tensorrt.test_rtx_families import _rtx, refused, variants

ALL = bool(os.environ.get("EDGESEG_RTX_ALL"))
SOME = ("patch", "fcn8s, caffe", "segnet", "deeplabv3+, stride 8", "pspnet", "resnext, shuffled", "u-net, cropped")


@pytest.mark.parametrize("name", FAMILIES if ALL else SOME)
def test_tensorrt_rtx_builds_it(name: str) -> None:
    _rtx()
    factory, arguments = FAMILIES[name]
    for what, precision, graph in variants(making.made(factory, **arguments).model):
        if ALL or what in ("fp32", "int8+fp16"):
            assert not refused(graph, precision), what
