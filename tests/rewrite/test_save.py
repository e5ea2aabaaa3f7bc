"""What is written is read back by the package's own reader, and computes exactly the same."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from edgeseg.errors import BadInput, ModelError
from edgeseg.export.outputs import pick
from edgeseg.intake import load
from edgeseg.rewrite.modules import Fork, Shuffle, Take
from edgeseg.rewrite.network import Network, capture, layers, tidy
from edgeseg.rewrite.save import MARK, places, save
from edgeseg.rewrite.source import source_of
from edgeseg.spec import read_spec, spec_for, spec_to_dict
from edgeseg.types import InputSpec, ModelSpec, OutputSpec, Torch
from tests import models
from tests.models import seeded
from tests.rewrite.networks import HABITS, SIZE, conv, of

SPEC = ModelSpec("m", InputSpec(SIZE))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def network_of(make: Callable[[], nn.Module], size: tuple[int, int] = SIZE) -> Network:
    return capture(Torch(seeded(make), "pickle"), size).network


def leaves(value: Any) -> list[Tensor]:
    return [part for part in _pytree.tree_leaves(value) if isinstance(part, Tensor)]


def picture(size: tuple[int, int] = SIZE) -> Tensor:
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def check(network: Network, spec: ModelSpec, out: Path) -> tuple[Path, ...]:
    """Save, read both forms back, compare; the files."""
    image = picture(spec.input.size)
    wanted = leaves(network(image))
    files = save(network, spec, out)
    assert sorted(path.name for path in out.parent.iterdir() if path.is_file()) == sorted(path.name for path in files)
    for path, form in zip(files[:2], ("exported", "state_dict"), strict=True):
        read = load(path, spec_for(path))
        assert isinstance(read, Torch)
        assert read.form == form
        given = leaves(read.module(image))
        assert all(torch.equal(a, b) for a, b in zip(given, wanted, strict=True)), form
    return files


@pytest.mark.parametrize(
    "name",
    [
        *("padding reflect", "same even", "transposed", "twice", "dict of lists", "dataclass", "prelu", "resized"),
        *(
            "buffers",
            "weight norm",
            "branch",
            "scripted part",
            "attention",
            "shuffle",
            "in place",
            "norms",
            "taken names",
        ),
    ],
)
def test_rare_habits_come_back(name: str, tmp_path: Path) -> None:
    check(network_of(HABITS[name]), SPEC, tmp_path / "small.pt2")


@pytest.mark.parametrize("name", ["unet", "dict", "tuple", "transposed", "pyramid", "depthwise"])
def test_published_habits_come_back(name: str, tmp_path: Path) -> None:
    spec = ModelSpec("m", InputSpec(models.SIZE))
    *_, source, _ = check(network_of(models.ALL[name], models.SIZE), spec, tmp_path / "small.pt2")
    text = source.read_text(encoding="utf-8")
    assert "ops." not in text, "a common operation has no readable form"


def test_a_network_that_is_read_again_has_its_names(tmp_path: Path) -> None:
    network, spec = network_of(models.ALL["unet"], models.SIZE), ModelSpec("m", InputSpec(models.SIZE))
    exported, *_ = save(network, spec, tmp_path / "small.pt2")
    read = load(exported, spec)
    assert isinstance(read, Torch)
    again = capture(read, models.SIZE).network
    assert layers(again, models.SIZE) == layers(network, models.SIZE)
    assert torch.equal(again(picture(models.SIZE)), network(picture(models.SIZE)))


def chained() -> Network:
    """One layer rewritten into every piece that a rule may leave."""
    network = network_of(of(lambda s, x: s.b(s.a(x).relu()), a=conv(3, 8, 3, padding=1), b=conv(8, 5, 1)))
    chain = nn.Sequential(
        Fork([nn.Conv2d(3, 4, (3, 1), padding=(1, 0)), nn.Conv2d(3, 8, (1, 3), padding=(0, 1), bias=False)]),
        Shuffle(3),
        Take(torch.tensor([7, 0, 3, 3, 11, 2, 5, 1])),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        nn.Conv2d(8, 32, 1),
        nn.PixelShuffle(2),
        nn.BatchNorm2d(8, eps=1e-3),
        nn.ConvTranspose2d(8, 8, 2, 2),
        nn.Upsample(scale_factor=0.25, mode="bilinear"),
    )
    network.set_submodule("a", chain.eval())
    return network


def test_chains_of_rules_are_written_flat(tmp_path: Path) -> None:
    *_, source, _ = check(chained(), SPEC, tmp_path / "small.pt2")
    text = source.read_text(encoding="utf-8")
    assert "self.a_0_convs_0 = nn.Conv2d(3, 4, (3, 1), padding=(1, 0))" in text
    assert "self.a_3 = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)" in text
    assert "self.a_6 = nn.BatchNorm2d(8, eps=0.001)" in text
    assert "self.a_7 = nn.ConvTranspose2d(8, 8, 2, stride=2)" in text
    assert 'self.register_buffer("a_2_index", torch.zeros((8,), dtype=torch.int64))' in text
    assert "F.pixel_shuffle(x, 2)" in text


def test_the_source_needs_torch_alone(tmp_path: Path) -> None:
    _, weights, source, _ = save(chained(), SPEC, tmp_path / "small.pt2")
    tree = ast.parse(source.read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} == {"torch"}
    code = (
        "import sys, torch\nfrom small import network\nmade = network().eval()\n"
        f"print(made.load_state_dict(torch.load({weights.name!r}, weights_only=True)))\n"
        f"print(tuple(made(torch.zeros(1, 3, {SIZE[0]}, {SIZE[1]})).shape), 'edgeseg' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["<All keys matched successfully>", f"(1, 5, {SIZE[0]}, {SIZE[1]}) False"]


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("my-net.v2.pt2", "my_net_v2"),
        ("small.pt", "small"),
        ("3x.pt2", "_3x"),
        ("class.pt2", "class_network"),
        ("torch.pt2", "torch_network"),
        ("json.pt2", "json_network"),
        ("größe klein.pt2", "gr__e_klein"),
    ],
)
def test_names_that_python_cannot_import(name: str, module: str, tmp_path: Path) -> None:
    files = check(network_of(HABITS["prelu"]), SPEC, tmp_path / name)
    stem = name.rpartition(".")[0]
    assert [path.name for path in files] == [f"{stem}.pt2", f"{stem}.pt", f"{module}.py", f"{stem}.toml"]
    assert read_spec(files[3]).factory == f"{module}:network"


def test_the_spec_comes_back_whole(tmp_path: Path) -> None:
    spec = ModelSpec(
        'a "name" 𝄞 ü',
        InputSpec(SIZE, "bgr", "rgb", 1.0, (0.485, 1e-7, -3.0), (1e20, 0.5, 2.0), "area"),
        OutputSpec("out", ("road", 'a "b" \\ c', "straße"), "probabilities", 0.25, True),
        factory="somewhere.nets:make",
        factory_args={"classes": 4},
    )
    *_, path = save(network_of(HABITS["named"]), spec, tmp_path / "small.pt2")
    found = spec_to_dict(read_spec(path))
    assert found.pop("factory") == "small:network"
    wanted = spec_to_dict(spec)
    del wanted["factory"], wanted["factory_args"]
    assert found == wanted


@torch.no_grad()
@pytest.mark.parametrize("index", ["out", "aux", 0, 1])
def test_a_named_tuple_keeps_what_the_spec_asks_for(index: int | str, tmp_path: Path) -> None:
    network, spec = network_of(HABITS["named"]), ModelSpec("m", InputSpec(SIZE), OutputSpec(index))
    wanted = pick(network(picture()), index)[0]
    for path in save(network, spec, tmp_path / "small.pt2")[:2]:
        read = load(path, spec_for(path))
        assert isinstance(read, Torch)
        assert torch.equal(pick(read.module(picture()), index)[0], wanted)


def test_existing_files_are_replaced_also_in_one_process(tmp_path: Path) -> None:
    out = tmp_path / "small.pt2"
    check(network_of(HABITS["prelu"]), SPEC, out)
    # the same length and perhaps the same second: Python must not run what it compiled before
    check(network_of(of(lambda s, x: s.b(s.c(x)), c=conv(3, 4, 3), b=conv(4, 4, 1))), SPEC, out)
    check(network_of(of(lambda s, x: s.b(s.d(x)), d=conv(3, 4, 3), b=conv(4, 4, 1))), SPEC, out)


def test_a_factory_of_somebody_else_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "small.py").write_text("def network(): ...\n", encoding="utf-8")
    with pytest.raises(BadInput, match=r"small\.py is not from edgeseg"):
        places(tmp_path / "small.pt2")
    with pytest.raises(BadInput, match=r"small\.py is not from edgeseg"):
        save(network_of(HABITS["prelu"]), SPEC, tmp_path / "small.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["small.py"]


@pytest.mark.parametrize("name", ["small.pt2", "small.pt", "small.py", "small.toml"])
def test_what_a_run_reads_is_not_overwritten(name: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / name).write_text(MARK, encoding="utf-8")
    places(tmp_path / "small.pt2", [tmp_path / "another.pt2"])
    with pytest.raises(BadInput, match=rf"{name} is read by this run, and it is not overwritten"):
        places(tmp_path / "small.pt2", [tmp_path / "other" / ".." / name])


@pytest.mark.parametrize("name", ["small", "small.onnx", "small.py"])
def test_another_suffix_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"NAME\.pt2"):
        places(tmp_path / name)


def test_a_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "small.toml").mkdir()
    with pytest.raises(BadInput, match="is a folder"):
        places(tmp_path / "small.pt2")


def test_what_cannot_be_written_as_python_is_refused() -> None:
    network = network_of(HABITS["prelu"])
    network.set_submodule("a", nn.Sequential(nn.Conv2d(3, 4, 3)))
    with pytest.raises(ModelError, match="'a' is a Sequential"):
        source_of(network, "title")


@torch.no_grad()
def test_values_that_are_no_plain_numbers(tmp_path: Path) -> None:
    """Infinities, types, slices, names that mean something to Python."""

    def forward(self: Any, x: Tensor) -> dict[str, Any]:
        y = getattr(self, "0")(x).masked_fill(x[:, :1, 1:-1, 1:-1] > 1, float("-inf")).clamp(min=-3.5)
        z = (y * getattr(self, "class") + self.__x).to(torch.float64)[:, 1:3, ::2]
        return {"a'b\"": z.float(), "labels": y.argmax(1), "size": (3, None, True, 0.5)}

    network = network_of(of(forward, **{"0": conv(3, 4, 3), "class": torch.rand(4, 1, 1), "__x": torch.rand(1)}))
    *_, source, _ = check(network, SPEC, tmp_path / "small.pt2")
    assert "self.layer_0 = nn.Conv2d(3, 4, 3)" in source.read_text(encoding="utf-8")


def test_resizing_as_scripts_call_it_is_readable() -> None:
    aten = torch.ops.aten
    network = network_of(
        of(
            lambda s, x: aten.upsample_bilinear2d(aten.upsample_nearest2d(s.a(x), [9, 7]), [12, 13], True),
            a=conv(3, 4, 3),
        )
    )
    code, state = source_of(network, "title")
    space: dict[str, Any] = {"__name__": "made"}
    exec(compile(code, "made.py", "exec"), space)
    made = space["network"]().eval()
    made.load_state_dict(state)
    assert torch.equal(made(picture()), network(picture()))
    assert code.count("F.interpolate(") == 2
    assert "ops." not in code


def test_the_readable_form_and_the_other_agree() -> None:
    network = network_of(models.ALL["unet"], models.SIZE)
    for readable in (True, False):
        code, state = source_of(network, MARK, readable=readable)
        space: dict[str, Any] = {"__name__": "made"}
        exec(compile(code, "made.py", "exec"), space)
        made = space["network"]().eval()
        made.load_state_dict(state)
        image = picture(models.SIZE)
        assert torch.equal(made(image), network(image))
        assert ("ops.relu.default(" in code) is not readable


def test_a_network_that_was_tidied_after_a_change(tmp_path: Path) -> None:
    network = network_of(models.ALL["tuple"], models.SIZE)
    (output,) = (node for node in network.graph.nodes if node.op == "output")
    output.args = (output.args[0][0],)
    tidy(network)
    check(network, ModelSpec("m", InputSpec(models.SIZE)), tmp_path / "small.pt2")
