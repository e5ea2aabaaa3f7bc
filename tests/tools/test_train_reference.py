"""tools/train_reference as its user runs it: every piece of training at once, going on, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from edgeseg.intake.load import load
from edgeseg.spec import spec_for
from edgeseg.types import Torch
from tests.quantize.making import STREET

TOOL = Path(__file__).resolve().parents[2] / "tools" / "train_reference"


def train(out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    data = out.parent / "street.toml"
    data.write_text(STREET, encoding="utf-8")
    few = ["--size", "32", "48", "--minutes", "1", "--fp32", "--data", str(data), "--widths", "4,6,8"]
    command = [sys.executable, str(TOOL), "-o", str(out), *few, *more]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_all_pieces_together_and_going_on(tmp_path: Path) -> None:
    out = tmp_path / "small"
    pieces = [
        "--schedule",
        "plateau",
        "--judge",
        "loss",
        "--focal",
        "2",
        "--smoothing",
        "0.1",
        "--balance",
        "effective",
    ]
    pieces += ["--crop", "24", "32", "--positive", "0.5", "--batch", "4"]
    first = train(out, *pieces, "--epochs", "1")
    assert first.returncode == 0, first.stderr
    assert "epoch 1/1" in first.stderr
    second = train(out, *pieces, "--epochs", "2")
    assert second.returncode == 0, second.stderr
    assert "epoch 2/2" in second.stderr
    assert "epoch 1/2" not in second.stderr  # that one was over
    assert second.stdout.splitlines()[-1].startswith("mIoU")
    model = load(out.with_suffix(".pt"), spec_for(out.with_suffix(".pt"), None))
    assert isinstance(model, Torch)
    kept = torch.load(f"{out}.checkpoint", weights_only=True)
    assert kept["best_epoch"] in (1, 2)
    for name, value in model.module.state_dict().items():
        assert torch.equal(value, kept["best"][name])


def test_positive_crops_want_a_size(tmp_path: Path) -> None:
    done = train(tmp_path / "small", "--positive", "0.5")
    assert done.returncode != 0
    assert "--crop HEIGHT WIDTH" in done.stderr


def test_a_family_of_the_zoo_with_its_auxiliary_heads(tmp_path: Path) -> None:
    out = tmp_path / "inception"
    sizes = [
        "--network",
        "googlenet",
        "--argument",
        "width=4",
        "--argument",
        "decoder=8",
        "--argument",
        "auxiliary=true",
    ]
    done = train(out, *sizes, "--epochs", "1", "--batch", "4", "--size", "64", "64")
    assert done.returncode == 0, done.stderr
    spec = spec_for(out.with_suffix(".pt"), None)
    assert spec.factory == "edgeseg.zoo:googlenet"
    model = load(out.with_suffix(".pt"), spec)
    assert isinstance(model, Torch)
    assert model.module(torch.zeros(1, 3, 64, 64)).shape == (1, len(spec.output.classes), 64, 64)


def test_arguments_that_no_factory_takes_are_said(tmp_path: Path) -> None:
    for told, said in (("width", "wanted NAME=VALUE"), ("wide=3", "unexpected keyword"), ("width=0", "width")):
        done = train(tmp_path / "small", "--network", "segnet", "--argument", told)
        assert done.returncode == 1
        assert said in done.stderr.splitlines()[-1]
