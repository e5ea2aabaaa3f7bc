"""tools/bench rewrite: peers are what they claim to be, and what fails is a row, not the end."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import benchmarks.rewrite as bench
import benchmarks.rewrite_making as making
import benchmarks.rewrite_peers as peers
import benchmarks.rewrite_pruning as pruning
from benchmarks.rewrite_picture import picture
from benchmarks.rewrite_race import budget_of
from benchmarks.rewrite_report import _cells, _methods, _shares

from edgeseg.errors import BadInput
from edgeseg.rewrite.network import Network, layers, macs_of
from tests import rewriting
from tests.rewrite import nets

BENCH = Path(__file__).resolve().parents[2] / "tools" / "bench"
SIZE = rewriting.SIZE


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> bench.Setting:
    folder = tmp_path_factory.mktemp("bench")
    model, data = rewriting.network(folder), rewriting.street(folder)
    words: dict[str, Any] = {"fit_split": "train", "eval_split": "val", "shares": (0.6, 0.3), "samples": 8}
    return bench.setting_of(model, None, data, methods=("separable",), **words)


@pytest.fixture(scope="module")
def begun(setting: bench.Setting) -> bench.Bench:
    """Prepared, nothing made."""
    begun = bench.Bench(setting)
    assert bench._ours(begun, 0, keep=False) == []
    return begun


@pytest.fixture(scope="module")
def start(begun: bench.Bench) -> making.Start:
    return making.start_of(bench._source(begun.setting), begun.works[0])


def small(inputs: int = 6, outputs: int = 8, **words: Any) -> Network:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, **words)
    return nets.captured(nets.lively(nn.Sequential(nn.Conv2d(3, inputs, 1), conv, nn.Conv2d(outputs, 2, 1)))).float()


def of(network: Network) -> Tensor:
    with torch.no_grad():
        found: Tensor = network(torch.randn(1, 3, *nets.SIZE, generator=torch.Generator().manual_seed(7)))
    return found


def test_a_separable_kernel_is_found_exactly() -> None:
    network = small()
    (layer,) = [layer for layer in layers(network, nets.SIZE) if layer.conv.taps == 9]
    module = network.get_submodule(layer.name)
    assert isinstance(module, nn.Conv2d)
    filters, mixed = torch.randn(1, 6, 3, 3), torch.randn(8, 6, 1, 1)
    with torch.no_grad():
        module.weight.copy_(filters * mixed)
    changed = peers.replaced(network, nets.SIZE, peers._separated)
    assert macs_of(changed, nets.SIZE) < macs_of(network, nets.SIZE)
    torch.testing.assert_close(of(changed), of(network), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("inputs", [3, 8])
def test_a_kernel_of_low_rank_is_its_tucker_decomposition(inputs: int) -> None:
    tensorly = pytest.importorskip("tensorly")
    decompose = importlib.import_module("tensorly.decomposition").partial_tucker
    network = small(inputs, 16)
    (layer,) = [layer for layer in layers(network, nets.SIZE) if layer.conv.taps == 9]
    module = network.get_submodule(layer.name)
    assert isinstance(module, nn.Conv2d)
    inner = min(inputs, 3)
    parts = torch.randn(16, 4), torch.randn(4, inner, 3, 3), torch.randn(inputs, inner)
    with torch.no_grad():
        module.weight.copy_(torch.einsum("oa,abkl,ib->oikl", *parts))
    with tensorly.backend_context("pytorch"):
        ranks = {layer.name: (4, inner)}
        changed = peers.replaced(network, nets.SIZE, lambda a, b: peers._tucked(decompose, ranks, a, b))
    assert macs_of(changed, nets.SIZE) < macs_of(network, nets.SIZE)
    torch.testing.assert_close(of(changed), of(network), rtol=1e-4, atol=1e-4)


def test_the_largest_ranks_within_the_budget_are_taken() -> None:
    found = [layer for layer in layers(small(32, 32), nets.SIZE) if layer.conv.taps == 9]
    budget = 0.4 * found[0].macs
    fraction = peers._fraction(found, budget)
    assert peers._tucker_macs(found[0], fraction) <= budget
    assert peers._tucker_macs(found[0], fraction + 1 / 32) > budget
    with pytest.raises(ValueError, match="below what ranks of 1 need"):
        peers._fraction(found, 1.0)


def test_norms_are_estimated_anew_and_folded_behind_chains(start: making.Start) -> None:
    network = peers.replaced(start.captured, SIZE, peers._separated)
    wrong = [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
    assert wrong
    for norm in wrong:
        norm.running_mean = torch.full_like(norm.bias, 7.0)
    assert making.reestimate(network, start.images, start.together)
    means: list[float] = []

    def see(module: nn.Module, _given: Any, made: Tensor) -> None:
        assert isinstance(module, nn.BatchNorm2d)
        means.append(float((made.mean((0, 2, 3)) - module.bias).abs().max()))

    first = next(part for part in network.modules() if isinstance(part, nn.BatchNorm2d))
    hook = first.register_forward_hook(see)
    with torch.no_grad():
        wanted = network(torch.cat(start.images[:4]))
        network(torch.cat(start.images))
    hook.remove()
    assert means[-1] < 1e-3  # over the frames of the estimate the norm's outputs have its bias as mean
    done = making.folded(network)
    chains = sum(isinstance(part, nn.Sequential) for part in network.children())
    kept = [part for part in done.modules() if isinstance(part, nn.BatchNorm2d)]
    assert chains == 0 or len(kept) < len(wrong)
    with torch.no_grad():
        torch.testing.assert_close(done(torch.cat(start.images[:4])), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["tucker", "l2-uniform", "taylor"])
def test_peers_keep_to_the_budget_and_their_outputs_their_shape(
    start: making.Start, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "STEPS", 40)
    monkeypatch.setattr(pruning, "GRADIENTS", 2)
    _, needs, method = peers.PEERS[name]
    pytest.importorskip(needs[0])
    shares = (0.6, 0.3)
    made = sorted(method(start, shares), key=lambda one: -(one.asked or 0))
    with torch.no_grad():
        shape = start.work.teacher(start.images[0]).shape
        for one, share in zip(made, shares, strict=True):
            assert one.failure == ""
            assert one.network is not None
            assert one.share is not None
            assert one.asked == share
            assert 0.7 * share < one.share <= making.MET * share
            assert one.share == macs_of(one.network, SIZE) / start.work.whole.macs
            assert one.network(start.images[0]).shape == shape
            assert one.wall_s is not None
            assert one.wall_s > 0


def test_a_method_that_fails_is_a_row_with_its_reason(begun: bench.Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(start: making.Start, shares: Sequence[float]) -> Iterator[making.Made]:
        yield making.guarded(making.Made("broken", shares[0]), lambda made: replace(made, network=start.work.teacher))
        raise RuntimeError("no | such\nthing")

    monkeypatch.setitem(peers.PEERS, "broken", ("broken", (), broken))
    monkeypatch.setitem(peers.PEERS, "absent", ("absent", ("no_such_package",), broken))
    begun = replace(begun, setting=replace(begun.setting, methods=("broken", "absent", "separable")))
    begun.made = bench._peers(begun)
    rows = bench.rows_of(begun, begun.made, bench.judged(begun, begun.made))
    cells = {
        (row[0], row[1]): row
        for row in _cells([{**row, "share": row["share"] and [1.0], "cpu_s": [0.0], "wall_s": [0.0]} for row in rows])
    }
    assert cells["broken", "0.6"][5] == "100.00"  # it is the original
    assert cells["broken", "0.6"][4] == "0.00"
    assert cells["broken", "0.3"][3] == "RuntimeError: no / such"
    assert cells["absent", "0.6"][3] == "not installed: no_such_package"
    assert cells["depthwise separable, SVD", "–"][3] != "–"


def test_budgets_and_methods_are_read() -> None:
    assert _shares("0.2, 0.6,0.2") == (0.6, 0.2)
    assert _methods("") == (bench.OURS, *peers.PEERS)
    assert (budget_of("2.5x").kind, budget_of("0.3").kind) == ("speedup", "macs")
    for wrong in ("1.5", "0", "some", ""):
        with pytest.raises(BadInput):
            _shares(wrong)
    with pytest.raises(BadInput, match="no method 'tuckr'"):
        _methods("tuckr")
    with pytest.raises(BadInput, match="is no budget"):
        budget_of("fast")


def test_the_picture_has_a_line_for_each_method() -> None:
    rows = [
        {"method": name, "miou": [value], "share": [share]}
        for name, share, value in (("a", 0.6, 0.5), ("a", 0.1, 0.3), ("b<", 0.2, 0.1))
    ]
    drawn = picture("net", 0.6, [*rows, {"method": "c", "miou": [], "share": []}])
    assert drawn.count("<polyline") == 2
    assert "b&lt;: 10.00 % at 0.200" in drawn
    assert picture("net", 0.6, rows[3:]) == ""


def test_the_command_prints_its_tables(setting: bench.Setting, tmp_path: Path) -> None:
    words = ["rewrite", "--model", setting.model, "--data", setting.model.parent / "dataset.toml", "--shares", "0.5"]
    words += ["--samples", "8", "--methods", "edgeseg,separable", "--minutes", "0.02", "--race", "none"]
    words += ["--svg", tmp_path / "a.svg", "--json", tmp_path / "a.json"]
    done = subprocess.run([sys.executable, str(BENCH), *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| **edgeseg** | 0.5 |") == 2
    assert done.stdout.count("| depthwise separable, SVD | – |") == 2
    document = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert [row["method"] for row in document["learned"]][:1] == ["edgeseg"]
    assert document["zero_shot"][0]["share"][0] <= 0.5
    assert (tmp_path / "a.svg").read_text(encoding="utf-8").startswith("<svg")
