"""What the zoo adds to the networks of tests.tensorrt: the real parser and builder of TensorRT-RTX take it."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="the networks are torch's")

from tests.families import making
from tests.families.families import FAMILIES
from tests.tensorrt.test_rtx_families import _rtx, refused, variants

SOME = ("patch", "fcn8s, caffe", "segnet", "deeplabv3+, stride 8", "pspnet", "resnext, shuffled", "u-net, cropped")


@pytest.mark.parametrize("name", SOME)
def test_tensorrt_rtx_builds_it_in_fp32_and_int8(name: str) -> None:
    _rtx()
    factory, arguments = FAMILIES[name]
    wanted = ("fp32", "int8+fp16")
    for what, precision, graph in variants(making.made(factory, **arguments).model):
        if what in wanted:
            assert not refused(graph, precision), what
