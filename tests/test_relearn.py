"""`--recover` in a build: what was learned is kept only where it gives more of the FP32 masks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from calibration import load_recipe
from edgeseg.console import Console
from edgeseg.data import Reading
from edgeseg.errors import BadInput
from edgeseg.pipeline import relearn
from edgeseg.pipeline.calibrate import calibrated
from edgeseg.pipeline.network import Network
from edgeseg.pipeline.recover import recover
from edgeseg.quantize import ONNXRUNTIME_X86, TENSORRT
from tests.quantize import making
from tests.test_preparation import folder_of

COARSE = replace(ONNXRUNTIME_X86, weight_bits=3)
QUIET = Console()


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Reading:
    return folder_of(making.frames(40, seed=1), tmp_path_factory.mktemp("waves"))


@pytest.fixture(scope="module")
def network(reading: Reading) -> Network:
    model = making.unet()
    return Network(model, calibrated(model, reading, load_recipe("mse"), False, QUIET)[0])


def steps(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """So many steps instead of minutes: no clock decides."""
    monkeypatch.setattr(relearn, "recover", lambda *a, **how: recover(*a, **how | {"minutes": 5.0, "steps": count}))


def test_what_was_learned_is_deployed_in_its_dialect_alone(
    network: Network, reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps(monkeypatch, 120)
    found, (row,) = relearn.relearned(network, reading, [COARSE], 1.0, verdict=None, console=QUIET)
    assert row["kept"], row
    assert 1 - row["after"] < 0.9 * (1 - row["before"])
    assert row["frames"] + row["held_out"] == 40
    assert set(found.fitted) == {"onnxruntime-x86"}
    assert found.int8(COARSE).graph != network.int8(COARSE).graph
    assert found.int8(TENSORRT).graph == network.int8(TENSORRT).graph
    assert found.fp32.graph == network.fp32.graph  # what is learned from stays


def test_what_is_no_better_is_not_kept(network: Network, reading: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    steps(monkeypatch, 1)
    monkeypatch.setattr(relearn, "_same_masks", lambda *_: 0.99)
    found, (row,) = relearn.relearned(network, reading, [COARSE], 1.0, verdict=None, console=QUIET)
    assert not row["kept"]
    assert not found.fitted


def test_frames_of_the_verdict_are_left_out(reading: Reading, network: Network, tmp_path: Path) -> None:
    verdict = replace_indices(reading, range(0, 40, 2))
    learn, held = relearn._frames(reading, verdict, network)
    odd = [frame for index, frame in enumerate(making.frames(40, seed=1)) if index % 2]
    assert len(learn) + len(held) == 20
    for frame in (*learn, *held):
        assert any(np.array_equal(frame, other) for other in odd)
    assert not any(np.array_equal(a, b) for a in learn for b in held)
    with pytest.raises(BadInput, match="too few"):
        relearn._frames(reading, replace_indices(reading, range(39)), network)


def replace_indices(reading: Reading, indices: Any) -> Reading:
    from edgeseg.data import read

    return read(reading.split, indices, color=reading.color, labels=False)
