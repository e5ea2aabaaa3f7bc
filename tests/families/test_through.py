"""Every row of the notes from torch to INT8: exported, quantized, and run on both CPU runtimes."""

from __future__ import annotations

import logging

import pytest

pytest.importorskip("torch", reason="the networks are torch's")

import torch

from edgeseg.zoo.chance import lively
from tests.families import making
from tests.families.families import FAMILIES, INT8

BACKENDS = ("onnxruntime", "openvino")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def made(name: str) -> making.Made:
    factory, arguments = FAMILIES[name]
    return making.made(factory, **arguments)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_both_runtimes_say_what_torch_says(name: str, backend: str) -> None:
    found = made(name)
    assert len(making.distinct(found.expected)) >= 2, "one class everywhere shows nothing"
    assert making.agreement(making.masks(found.model, backend, found.frames), found.expected) >= 0.9995


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_int8_says_nearly_the_same(name: str, backend: str) -> None:
    found = made(name)
    small = making.int8(found.model, backend)
    assert {"DequantizeLinear", "FakeQuantize"} & set(making.kinds(small.graph)), "nothing was quantized"
    given = making.masks(small, backend, found.frames, "int8")
    assert making.agreement(given, found.expected) >= INT8.get(name, 0.8)


def test_exporters_say_nothing_that_a_user_cannot_act_on(caplog: pytest.LogCaptureFixture) -> None:
    factory, arguments = FAMILIES["segnet"]
    making.exported(lively(making.network(factory, **arguments), torch.cat(making.images(2))))
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_network_with_other_weights_is_found_out() -> None:
    """What the tests above compare can differ."""
    one = made("fcn8s")
    other = making.exported(lively(making.network("fcn8s", width=4), torch.cat(making.images(2)), seed=3))
    assert making.agreement(making.masks(other.model, "onnxruntime", one.frames), one.expected) < 0.7
