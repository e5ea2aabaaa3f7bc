"""The networks of tools/networks: any size, the traits that they are there for, and a spec that finds them again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from networks.branchy import Pyramid, branchy
from networks.compact import compact

from edgeseg.intake.load import load
from edgeseg.spec import spec_for
from edgeseg.types import Torch
from tests.quantize.making import STREET

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.mark.parametrize("make", [compact, branchy])
@pytest.mark.parametrize("size", [(48, 64), (45, 61), (16, 16)])
def test_scores_have_the_size_of_the_image(make: type[nn.Module], size: tuple[int, int]) -> None:
    network = make(5).eval()
    with torch.no_grad():
        assert network(torch.rand(2, 3, *size)).shape == (2, 5, *size)


def test_the_sums_of_a_pyramid_follow_its_branches() -> None:
    torch.manual_seed(0)
    pyramid = Pyramid(10, 13, residual=False).eval()
    pyramid.bent = nn.Identity()  # type: ignore[assignment]
    x = torch.randn(1, 10, 20, 20)
    with torch.no_grad():
        small = pyramid.reduce(x)
        one, two, four, eight, sixteen = (branch(small) for branch in pyramid.branches)
        parts = [one, two, two + four, two + four + eight, two + four + eight + sixteen]
        assert torch.allclose(pyramid(x), torch.cat(parts, dim=1), atol=1e-6)
    assert one.shape[1] == 5  # what does not divide by five
    assert two.shape[1] == 2


def test_the_hard_traits_are_there() -> None:
    modules = list(branchy(11).modules())
    assert any(isinstance(module, nn.PReLU) for module in modules)
    assert any(isinstance(module, nn.ConvTranspose2d) for module in modules)
    assert {module.dilation[0] for module in modules if isinstance(module, nn.Conv2d)} == {1, 2, 4, 8, 16}
    assert {module.dilation[0] for module in compact(11).modules() if isinstance(module, nn.Conv2d)} == {1, 2, 4, 8}


def train(out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    data = out.parent / "street.toml"
    data.write_text(STREET, encoding="utf-8")
    few = ["--size", "32", "48", "--epochs", "1", "--minutes", "1", "--batch", "2", "--fp32", "--data", str(data)]
    command = [sys.executable, str(TOOLS / "train_reference"), "-o", str(out), *few, *more]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_trained_network_is_loaded_by_its_spec(tmp_path: Path) -> None:
    done = train(tmp_path / "small", "--network", "compact", "--crop", "24", "32")
    assert done.returncode == 0, done.stderr
    assert "mIoU" in done.stdout
    assert (tmp_path / "compact.py").read_bytes() == (TOOLS / "networks/compact.py").read_bytes()
    spec = spec_for(tmp_path / "small.pt", None)
    assert spec.factory == "compact:compact"
    loaded = load(tmp_path / "small.pt", spec)
    stored = torch.load(tmp_path / "small.pt", weights_only=True)
    assert isinstance(loaded, Torch)
    assert np.array_equal(loaded.module.state_dict()["head.weight"].numpy(), stored["head.weight"].numpy())


def test_another_file_of_that_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "branchy.py").write_text("mine = 1\n")
    done = train(tmp_path / "small", "--network", "branchy")
    assert done.returncode != 0
    assert "say another folder" in done.stderr
    assert (tmp_path / "branchy.py").read_text() == "mine = 1\n"
