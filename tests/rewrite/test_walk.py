"""Walking through a network layer by layer gives what running it frame by frame gives, in memory and in files."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeseg.rewrite.network import Network, layers
from edgeseg.rewrite.walk import Store, walk
from tests import models
from tests.rewrite import teachers
from tests.rewrite.networks import HABITS, conv, of
from tests.rewrite.networks import SIZE as SMALL

MAKERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int]]] = {
    **{name: (models.ALL[name], teachers.SIZE) for name in ("unet", "dict", "tuple", "concatenated", "pyramid")},
    **{name: (models.ALL[name], teachers.SIZE) for name in ("transposed", "depthwise", "multiples_of_8")},
    **{name: (HABITS[name], SMALL) for name in ("twice", "buffers", "attention", "in place", "changes its input")},
    "split": (
        of(
            lambda s, x: s.b(torch.cat(s.a(x).chunk(2, 1)[::-1], 1)) + s.c(s.a(x)).sum(),
            a=conv(3, 4, 3, padding=1),
            b=conv(4, 5, 3, padding=1),
            c=conv(4, 2, 3),
        ),
        SMALL,
    ),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go."""
    path = tmp_path / "temporary"
    path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path


def left(folder: Path) -> list[Path]:
    return list(folder.glob("edgeseg-*"))  # torch has a folder of its own there


@torch.no_grad()
def first_inputs(network: Network, names: Sequence[str], frames: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    """By running frame by frame: the inputs of the first call of each, in the order of those calls."""
    seen: dict[str, list[Tensor]] = {}
    for frame, image in enumerate(frames):

        def record(name: str, x: Tensor, frame: int = frame) -> None:
            found = seen.setdefault(name, [])
            if len(found) == frame:
                found.append(x.clone())

        def hook_for(name: str, record: Callable[[str, Tensor], None] = record) -> Callable[..., None]:
            return lambda _module, inputs, _output: record(name, inputs[0])

        hooks = [network.get_submodule(name).register_forward_hook(hook_for(name)) for name in names]
        network(image.clone())
        for hook in hooks:
            hook.remove()
    return seen


def same(one: Tensor, other: Tensor) -> bool:
    """Up to the rounding of a convolution that finds its input in another order in memory."""
    return one.shape == other.shape and float((one - other).abs().max()) <= 3e-6 * float(other.abs().max())


@pytest.mark.parametrize("limit", [1 << 30, 60_000, 0])
@pytest.mark.parametrize("name", MAKERS)
def test_inputs_are_those_of_an_ordinary_run(name: str, limit: int, folder: Path) -> None:
    make, size = MAKERS[name]
    network = teachers.network_of(make, size)
    frames = teachers.images(3, size=size)
    names = [layer.name for layer in layers(network, size)]
    wanted = first_inputs(network, names, frames)
    found = [(name, [x.clone() for x in inputs]) for name, inputs in walk(network, names[::-1], frames, limit=limit)]
    assert [name for name, _ in found] == list(wanted)  # in the order of their calls, whatever was asked
    for name, inputs in found:
        assert len(inputs) == len(frames)
        for given, right in zip(inputs, wanted[name], strict=True):
            assert same(given, right)
    assert left(folder) == []
    assert all(torch.equal(a, b) for a, b in zip(frames, teachers.images(3, size=size), strict=True))


@pytest.mark.parametrize("limit", [1 << 30, 0])
@pytest.mark.parametrize("name", ["unet", "twice", "concatenated"])
def test_what_follows_sees_what_was_replaced(name: str, limit: int) -> None:
    make, size = MAKERS[name]
    network, frames = teachers.network_of(make, size), teachers.images(2, size=size)
    names = [layer.name for layer in layers(network, size)]
    found: dict[str, list[Tensor]] = {}
    for name, inputs in walk(network, names, frames, limit=limit):
        found[name] = [x.clone() for x in inputs]
        old = network.get_submodule(name)
        network.set_submodule(name, nn.Sequential(old, nn.Hardtanh(-0.5, 0.75)))
    # the network is now replaced throughout: running it is what walking through it must have seen
    wanted = first_inputs(network, names, frames)
    for name in names:
        for given, right in zip(found[name], wanted[name], strict=True):
            assert same(given, right)


def test_some_layers_or_none() -> None:
    network, frames = teachers.unet(), teachers.images(2)
    names = [layer.name for layer in layers(network, teachers.SIZE)]
    wanted = first_inputs(network, names, frames)
    ((name, inputs),) = walk(network, [names[3]], frames)
    assert name == names[3]
    assert same(inputs[1], wanted[name][1])
    assert list(walk(network, [], frames)) == []
    assert list(walk(network, ["no such layer"], frames)) == []


def test_what_is_no_longer_needed_is_let_go() -> None:
    """At the last layer of a chain nothing is left but its input."""
    network = teachers.network_of(
        lambda: nn.Sequential(*(nn.Conv2d(3 if k == 0 else 4, 4, 3, padding=1) for k in range(6)))
    )
    names = [layer.name for layer in layers(network, teachers.SIZE)]
    alive: list[int] = []
    for _, inputs in walk(network, names, teachers.images(2)):
        del inputs
        gc.collect()
        maps = [
            part for part in gc.get_objects() if type(part) is Tensor and tuple(part.shape) == (1, 4, *teachers.SIZE)
        ]
        alive.append(len(maps))
        del maps
    assert max(alive) <= 2  # one for each frame


def test_a_walk_that_is_given_up_leaves_nothing(folder: Path) -> None:
    network, frames = teachers.unet(), teachers.images(2)
    names = [layer.name for layer in layers(network, teachers.SIZE)]
    steps = walk(network, names, frames, limit=0)
    next(steps)
    next(steps)
    assert len(left(folder)) == 1  # it does spill
    steps.close()  # type: ignore[attr-defined]
    assert left(folder) == []
    assert torch.is_grad_enabled()

    def stopped() -> None:
        for position, _ in enumerate(walk(network, names, frames, limit=0)):
            if position == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    gc.collect()
    assert left(folder) == []


def test_no_gradients_are_kept() -> None:
    network = teachers.network_of(HABITS["twice"], SMALL)
    image = torch.randn(1, 3, *SMALL, requires_grad=True)
    ((_, (x,)),) = walk(network, ["a"], [image])
    assert not F.relu(x * 2).requires_grad or x is image


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool, torch.float16])
def test_a_store_gives_back_what_it_got(dtype: torch.dtype, folder: Path) -> None:
    wanted = [(torch.randn(2, 3, 4 + k) * 10).to(dtype) for k in range(4)]
    size = wanted[0].numel() * wanted[0].element_size()
    with Store(size) as store:
        kept = [store.keep(part) for part in wanted]
        assert kept[0] is wanted[0]  # within the limit
        assert all(part.untyped_storage().filename is not None for part in kept[1:])
        for given, right in zip(kept, wanted, strict=True):
            assert given.dtype == right.dtype
            assert torch.equal(given, right)
        kept[2].zero_()
        assert torch.equal(kept[3], wanted[3])  # each has a file of its own
    assert left(folder) == []
    assert torch.equal(kept[3], wanted[3])  # and is not pulled from under those who hold it


def test_a_store_takes_a_part_of_a_tensor(folder: Path) -> None:
    whole = torch.arange(24.0).view(2, 3, 4)
    with Store(0) as store:
        assert torch.equal(store.keep(whole.transpose(0, 2)[1:]), whole.transpose(0, 2)[1:])
        assert store.keep(torch.empty(0, 4)).shape == (0, 4)


def test_what_is_released_makes_room(folder: Path) -> None:
    with Store(16) as store:
        first, second = store.keep(torch.ones(4)), store.keep(torch.ones(4))
        assert second.untyped_storage().filename is not None
        store.release(second)  # was never in memory: no room from that
        assert store.keep(torch.ones(4)).untyped_storage().filename is not None
        store.release(first)
        third = torch.ones(4)
        assert store.keep(third) is third


def test_a_limit_is_of_what_is_held_at_a_time(folder: Path) -> None:
    """Twelve maps go by, of which two are needed at any time: four fit, and so nothing is spilled."""
    network = teachers.network_of(
        lambda: nn.Sequential(*(nn.Conv2d(3 if k == 0 else 4, 4, 3, padding=1) for k in range(6)))
    )
    names = [layer.name for layer in layers(network, teachers.SIZE)]
    size = 4 * 4 * teachers.SIZE[0] * teachers.SIZE[1]
    for limit, spills in ((4 * size, False), (size, True)):
        seen = [len(left(folder)) for _ in walk(network, names, teachers.images(2), limit=limit)]
        assert any(seen) == spills
