"""Every form of a model file, as people's scripts write them, and every way in which they arrive broken."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from edgeseg.errors import MissingOnMachine, ModelError, SpecError
from edgeseg.intake import Onnx, Torch, load
from edgeseg.types import InputSpec, ModelSpec
from tests import models

SPEC = ModelSpec("tiny", InputSpec(models.SIZE), factory="tests.models:UNet")
PIXELS = models.image(models.frames(1))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return models.seeded(models.UNet)


def loaded(path: Path, spec: ModelSpec = SPEC, **options: Any) -> Torch:
    model = load(path, spec, **options)
    assert isinstance(model, Torch)
    return model


def same(model: Torch, net: nn.Module, tolerance: float = 0.0) -> bool:
    with torch.no_grad():
        return torch.allclose(model.module(PIXELS), net(PIXELS), atol=tolerance, rtol=0)


def test_state_dict(tmp_path: Path, net: nn.Module) -> None:
    torch.save(net.state_dict(), tmp_path / "net.pt")
    model = loaded(tmp_path / "net.pt")
    assert model.form == "state_dict"
    assert not model.module.training
    assert not any(p.requires_grad for p in model.module.parameters())
    assert same(model, net)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3, "pytorch-lightning_version": "2.0"},
        lambda state: {"model": state, "optimizer": {"lr": 0.1}},
        lambda state: {"model_state_dict": state},
        lambda state: {"net": state},
        lambda state: {"ema": {"module": state}, "updates": 4},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
        lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()},
        lambda state: {"state_dict": {f"model.net.{key}": value for key, value in state.items()}},
        lambda state: {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")},
    ],
    ids=["lightning", "model", "model_state_dict", "net", "ema", "parallel", "compiled", "both", "attribute", "old"],
)
def test_checkpoints_of_many_habits(tmp_path: Path, net: nn.Module, wrap: Callable[[Any], Any]) -> None:
    torch.save(wrap(net.state_dict()), tmp_path / "net.pt")
    assert same(loaded(tmp_path / "net.pt"), net)


def test_the_suffix_is_only_a_name(tmp_path: Path, net: nn.Module) -> None:
    torch.save(net.state_dict(), tmp_path / "net.onnx")
    assert loaded(tmp_path / "net.onnx").form == "state_dict"
    torch.jit.trace(net, PIXELS).save(str(tmp_path / "net.pth"))  # type: ignore[no-untyped-call]
    assert loaded(tmp_path / "net.pth").form == "torchscript"


def test_old_pickle_layout(tmp_path: Path, net: nn.Module) -> None:
    torch.save(net.state_dict(), tmp_path / "net.pt", _use_new_zipfile_serialization=False)
    assert same(loaded(tmp_path / "net.pt"), net)


def test_half_precision_weights_become_float32(tmp_path: Path, net: nn.Module) -> None:
    torch.save({key: value.half() for key, value in net.state_dict().items()}, tmp_path / "net.pt")
    model = loaded(tmp_path / "net.pt")
    assert {p.dtype for p in model.module.parameters()} == {torch.float32}
    assert not same(model, net)
    assert same(model, net, tolerance=0.5)


def test_a_factory_beside_the_model_file(tmp_path: Path) -> None:
    for folder, channels in (("first", 2), ("second", 3)):  # two projects with a module of the same name
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "beside.py").write_text(
            f"from torch import nn\ndef make(inputs=3):\n    return nn.Conv2d(inputs, {channels}, 1)\n"
        )
        torch.save(nn.Conv2d(3, channels, 1).state_dict(), tmp_path / folder / "net.pt")
        before = list(sys.path)
        model = loaded(tmp_path / folder / "net.pt", ModelSpec("b", InputSpec((4, 4)), factory="beside:make"))
        assert model.module(torch.zeros(1, 3, 4, 4)).shape[1] == channels
        assert sys.path == before


def test_factory_arguments(tmp_path: Path) -> None:
    net = models.seeded(models.UNet, classes=3, width=4)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    spec = ModelSpec("n", InputSpec((8, 8)), factory="tests.models:UNet", factory_args={"classes": 3, "width": 4})
    assert same(loaded(tmp_path / "net.pt", spec), net)


@pytest.mark.parametrize(
    ("factory", "arguments", "says"),
    [
        ("tests.models", {}, "module:function"),
        ("no_such_module:make", {}, "cannot be imported"),
        ("tests.models:NoSuchNet", {}, "cannot be imported"),
        ("tests.models:UNet", {"colour": 3}, "factory_args"),
        ("tests.models:frames", {"count": 1}, "torch.nn.Module"),
    ],
)
def test_bad_factories(tmp_path: Path, net: nn.Module, factory: str, arguments: dict[str, Any], says: str) -> None:
    torch.save(net.state_dict(), tmp_path / "net.pt")
    with pytest.raises(SpecError, match=says):
        load(tmp_path / "net.pt", ModelSpec("n", InputSpec((8, 8)), factory=factory, factory_args=arguments))


def test_a_state_dict_without_factory_says_so(tmp_path: Path, net: nn.Module) -> None:
    torch.save(net.state_dict(), tmp_path / "net.pt")
    with pytest.raises(ModelError, match="factory"):
        load(tmp_path / "net.pt", ModelSpec("n", InputSpec((8, 8))))


def test_weights_that_do_not_fit_are_tabled(tmp_path: Path, net: nn.Module) -> None:
    state = dict(net.state_dict())
    state["classifier.weight"] = state.pop("head.weight")
    state["first.0.weight"] = state["first.0.weight"][:4]
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(ModelError) as caught:
        load(tmp_path / "net.pt", SPEC)
    message = str(caught.value)
    assert "1 missing, 1 unexpected, 1 of another shape" in message
    assert "head.weight" in message
    assert "classifier.weight" in message
    assert "file [4, 3, 3, 3], network [8, 3, 3, 3]" in message


def test_close_names_are_shown(tmp_path: Path, net: nn.Module) -> None:
    state = {key.replace("bottom.0", "bottom.conv0"): value for key, value in net.state_dict().items()}
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(ModelError, match=r"bottom\.0\.weight.*closest: bottom\.conv0\.weight"):
        load(tmp_path / "net.pt", SPEC)


def test_a_table_of_everything_stays_short(tmp_path: Path) -> None:
    torch.save({f"other.part{i}": torch.zeros(1) for i in range(500)}, tmp_path / "net.pt")
    with pytest.raises(ModelError, match="more") as caught:
        load(tmp_path / "net.pt", SPEC)
    assert len(str(caught.value).splitlines()) < 25


def test_torchscript(tmp_path: Path, net: nn.Module) -> None:
    for script in (torch.jit.trace(net, PIXELS), torch.jit.script(models.Depthwise().eval())):  # type: ignore[no-untyped-call]
        script.save(str(tmp_path / "net.pt"))
        model = loaded(tmp_path / "net.pt")
        assert model.form == "torchscript"
        assert not model.module.training
        assert model.module(PIXELS).shape == (1, models.CLASSES, *models.SIZE)


def test_torchscript_traced_in_training_mode_is_refused(tmp_path: Path) -> None:
    traced = torch.jit.trace(models.UNet().train(), PIXELS, check_trace=False)  # type: ignore[no-untyped-call]
    traced.save(str(tmp_path / "net.pt"))
    with pytest.raises(ModelError, match=r"training mode.*eval\(\)"):
        load(tmp_path / "net.pt", SPEC)


def test_exported_program(tmp_path: Path, net: nn.Module) -> None:
    torch.export.save(torch.export.export(net, (PIXELS,)), tmp_path / "net.pt2")
    model = loaded(tmp_path / "net.pt2")
    assert model.form == "exported"
    assert model.exported is not None
    assert same(model, net, tolerance=1e-5)


def test_programs_of_training_or_half_precision_are_refused(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(models.OneChannel().train(), (PIXELS,)), tmp_path / "train.pt2")
    with pytest.raises(ModelError, match="training mode: batch_norm"):
        load(tmp_path / "train.pt2", SPEC)
    half = nn.Conv2d(3, 2, 1).half().eval()
    torch.export.save(torch.export.export(half, (PIXELS.half(),)), tmp_path / "half.pt2")
    with pytest.raises(ModelError, match="float16, wanted float32"):
        load(tmp_path / "half.pt2", SPEC)


def test_dropout_in_training_is_found() -> None:
    from edgeseg.intake.torch_files import exported_in_training

    class Always(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.dropout(x)  # training=True is the default of the function

    assert exported_in_training(torch.export.export(Always().eval(), (PIXELS,)))
    assert not exported_in_training(torch.export.export(nn.Dropout().eval(), (PIXELS,)))


def test_a_pickled_module_needs_trust(tmp_path: Path, net: nn.Module) -> None:
    for content in (net, {"model": net, "epoch": 1}):
        torch.save(content, tmp_path / "net.pt")
        with pytest.raises(ModelError, match=r"tests\.models\.\w+.*--trust-pickle"):
            load(tmp_path / "net.pt", SPEC)
        model = loaded(tmp_path / "net.pt", trust_pickle=True)
        assert model.form == "pickle"
        assert same(model, net)


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("trap_was_sprung"),))


def test_a_hostile_pickle_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Trap()}, tmp_path / "net.pt")
    with pytest.raises(ModelError, match="run code"):
        load(tmp_path / "net.pt", SPEC)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ModelError):
        load(tmp_path / "plain.pt", SPEC)
    assert not (tmp_path / "trap_was_sprung").exists()
    with pytest.raises(ModelError):  # the trap works: it is the refusal that stopped it
        load(tmp_path / "net.pt", SPEC, trust_pickle=True)
    assert (tmp_path / "trap_was_sprung").exists()


def test_a_pickled_module_whose_code_is_gone(tmp_path: Path) -> None:
    (tmp_path / "vanishing.py").write_text("from torch import nn\nclass Net(nn.Conv2d): pass\n")
    sys.path.insert(0, str(tmp_path))
    try:
        importlib.invalidate_caches()
        torch.save(importlib.import_module("vanishing").Net(3, 2, 1), tmp_path / "net.pt")
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("vanishing")
    assert loaded(tmp_path / "net.pt", trust_pickle=True).form == "pickle"  # found beside the model
    sys.modules.pop("vanishing", None)
    (tmp_path / "vanishing.py").unlink()
    importlib.invalidate_caches()
    with pytest.raises(ModelError, match=r"vanishing.*source"):
        load(tmp_path / "net.pt", SPEC, trust_pickle=True)


def test_shadowed_modules(tmp_path: Path) -> None:
    net = models.seeded(models.ShadowedModules)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    model = loaded(tmp_path / "net.pt", ModelSpec("s", InputSpec((8, 8)), factory="tests.models:ShadowedModules"))
    assert isinstance(vars(model.module)["modules"], list)
    assert not any(part.training for part in nn.Module.modules(model.module))
    assert same(model, net)


def test_a_checkpoint_without_weights(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "metrics": [1.0]}, tmp_path / "net.pt")
    with pytest.raises(ModelError, match=r"no weights.*epoch, metrics"):
        load(tmp_path / "net.pt", SPEC)


def small_onnx(path: Path, **options: Any) -> None:
    weight = onnx.helper.make_tensor("w", 1, (2, 3, 1, 1), [1.0] * 6)
    if options:
        weight = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight).repeat(400, 0), "w")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["x", "w"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, ["n", 3, "h", "w"])],
        [onnx.helper.make_tensor_value_info("y", 1, ["n", None, "h", "w"])],
        [weight],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save_model(model, str(path), **options)


def test_onnx_with_its_weights_in_another_file(tmp_path: Path) -> None:
    small_onnx(tmp_path / "net.onnx")
    assert isinstance(load(tmp_path / "net.onnx", SPEC), Onnx)
    small_onnx(tmp_path / "big.bin", save_as_external_data=True, location="big.data", size_threshold=16)
    model = load(tmp_path / "big.bin", SPEC)
    assert isinstance(model, Onnx)
    weights = onnx.numpy_helper.to_array(onnx.load_model_from_string(model.graph).graph.initializer[0])
    assert weights.shape == (800, 3, 1, 1)
    assert (weights == 1).all()
    (tmp_path / "big.data").unlink()
    with pytest.raises(ModelError, match="beside it"):
        load(tmp_path / "big.bin", SPEC)


def test_onnx_needs_no_torch(tmp_path: Path) -> None:
    small_onnx(tmp_path / "net.onnx")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path; from edgeseg.types import *; from edgeseg.intake import load\n"
        "from edgeseg.export import from_onnx, fuse\n"
        f"spec = ModelSpec('n', InputSpec((8, 8))); model = load(Path({str(tmp_path / 'net.onnx')!r}), spec)\n"
        "print(len(fuse(from_onnx(model, spec).graph, spec).graph))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


def test_a_torch_model_without_torch_names_the_cure(
    tmp_path: Path, net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(net.state_dict(), tmp_path / "net.pt")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingOnMachine, match=r"edgeseg\[torch\]"):
        load(tmp_path / "net.pt", SPEC)


def test_files_that_are_no_models(tmp_path: Path) -> None:
    import zipfile

    with pytest.raises(ModelError, match="no model file"):
        load(tmp_path / "missing.pt", SPEC)
    with pytest.raises(ModelError, match="folder"):
        load(tmp_path, SPEC)
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.writestr("a/readme.txt", "hello")
    for name, content, says in (
        ("empty.pt", b"", "empty"),
        ("text.onnx", b"this is not a model at all\n" * 9, "not a model|no ONNX graph"),
        ("net.h5", b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5"),
        ("net.safetensors", (64).to_bytes(8, "little") + b'{"a":1}' + bytes(64), "safetensors"),
        ("some.zip", (tmp_path / "some.zip").read_bytes(), "not one of torch's"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=says):
            load(tmp_path / name, SPEC)


@pytest.mark.parametrize("form", ["state_dict", "legacy", "torchscript", "exported", "onnx"])
@pytest.mark.parametrize("keep", [0.02, 0.5, 0.98])
def test_truncated_files(tmp_path: Path, net: nn.Module, form: str, keep: float) -> None:
    path = tmp_path / "net.pt"
    if form == "torchscript":
        torch.jit.trace(net, PIXELS).save(str(path))  # type: ignore[no-untyped-call]
    elif form == "exported":
        torch.export.save(torch.export.export(nn.Conv2d(3, 2, 1), (PIXELS,)), path)
    elif form == "onnx":
        small_onnx(path)
    else:
        torch.save(net.state_dict(), path, _use_new_zipfile_serialization=form == "state_dict")
    whole = path.read_bytes()
    path.write_bytes(whole[: max(1, int(len(whole) * keep))])
    with pytest.raises(ModelError):
        load(path, SPEC)
