"""The torch forms of a model file: what torch.save, torch.jit.save and torch.export.save wrote. Needs torch."""

from __future__ import annotations

import contextlib
import importlib
import pickle
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeseg.errors import ModelError, SpecError
from edgeseg.intake.weights import find_classes, find_module, find_weights, put
from edgeseg.types import ModelSpec, Torch


def load_saved(path: Path, spec: ModelSpec, *, trust_pickle: bool) -> Torch:
    """A file of torch.save: a state dict, a checkpoint that holds one, or (trusted) a whole module."""
    content = _unpickle(path, trust_pickle=trust_pickle)
    module = find_module(content)
    if module is not None:
        return Torch(_ready(module), "pickle")
    weights = find_weights(content)
    if weights is None:
        raise ModelError(
            f"{path} holds no weights: wanted a state dict (name -> tensor), alone or under one of "
            f"'state_dict', 'model', 'net', 'ema'; found {_describe(content)}"
        )
    if spec.factory is None:
        raise ModelError(
            f"{path} holds weights only (a state dict), so the network's code is needed too: put "
            'factory = "module:function" into the spec, a function that returns the network '
            f"(looked for in {path.parent} and in the installed packages)"
        )
    module = _call_factory(spec, path.parent)
    put(weights, module, file=path.name, factory=spec.factory, classes=find_classes(content))
    return Torch(_ready(module), "state_dict")


def load_torchscript(path: Path) -> Torch:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated, but the files are there
            module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError, OSError) as error:
        raise ModelError(f"the TorchScript in {path} cannot be read: {_first_line(error)}") from error
    module = _ready(module)
    names = _scripted_in_training(module)
    if names:
        raise _trained_mode(path, names, "call model.eval() before torch.jit.trace or torch.jit.script")
    return Torch(module, "torchscript")


def load_exported(path: Path) -> Torch:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.load(str(path))
    except Exception as error:  # torch raises whatever its parser meets: KeyError, AssertionError, RuntimeError…
        raise ModelError(
            f"the exported program in {path} cannot be read by torch {torch.__version__}: {_first_line(error)}. "
            "It is damaged, or written by another version of torch: export it again with this one"
        ) from error
    if program.example_inputs and len(program.graph_signature.user_inputs) != 1:
        raise ModelError(
            f"{path} takes {len(program.graph_signature.user_inputs)} inputs, wanted one image (1, 3, H, W)"
        )
    names = exported_in_training(program)
    if names:
        raise _trained_mode(path, names, "call model.eval() before torch.export.export")
    kinds = {t.dtype for t in program.state_dict.values() if t.is_floating_point()} - {torch.float32}
    if kinds:
        raise ModelError(
            f"{path} was exported in {', '.join(sorted(map(str, kinds)))}, wanted float32: call model.float() "
            "before torch.export.export (edgeseg lowers the precision itself, and measures what that costs)"
        )
    return Torch(program.module(), "exported", program)


def exported_in_training(program: torch.export.ExportedProgram) -> list[str]:
    """The batch norm and dropout nodes of a program that compute what they do in training, by name."""
    names = []
    for node in program.graph.nodes:
        if node.op != "call_function" or not hasattr(node.target, "_schema"):
            continue
        operator = node.target._schema.name.partition("::")[2]
        if operator == "_native_batch_norm_legit_functional" or operator == "_native_batch_norm_legit":
            names.append(node.name)
        elif "batch_norm" in operator or "dropout" in operator:
            arguments = [argument.name for argument in node.target._schema.arguments]
            flags = dict(zip(arguments, node.args, strict=False)) | node.kwargs
            if any(flags.get(flag) is True for flag in ("training", "train")):
                names.append(node.name)
    return names


def _scripted_in_training(module: Any) -> list[str]:
    """The same for TorchScript: eval() cannot reach a flag that tracing wrote into the graph as a constant."""
    flag = {"aten::batch_norm": 5, "aten::instance_norm": 5, "aten::dropout": 2, "aten::feature_dropout": 2}
    names = []
    try:
        nodes = list(module.inlined_graph.nodes())
    except RuntimeError:  # a graph torch cannot inline; the export will speak of it
        return []
    for node in nodes:
        at = flag.get(node.kind())
        if at is None or node.kind() == "aten::instance_norm":
            continue
        source = list(node.inputs())[at].node()
        if source.kind() == "prim::Constant" and list(node.inputs())[at].toIValue() is True:
            names.append(node.scopeName() or node.kind())
    return names


def _trained_mode(path: Path, names: list[str], cure: str) -> ModelError:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ModelError(
        f"{path} was captured in training mode: {', '.join(names[:3])}{more} would use the statistics of each batch "
        f"or drop values at random. To mend it, {cure}, and save it again"
    )


def _unpickle(path: Path, *, trust_pickle: bool) -> object:
    try:
        with warnings.catch_warnings(), _importable(path.parent):
            warnings.simplefilter("ignore")
            return torch.load(str(path), map_location="cpu", weights_only=not trust_pickle)
    except pickle.UnpicklingError as error:
        if trust_pickle or "eights only load failed" not in str(error):
            raise ModelError(f"{path} is damaged: {_first_line(error)}") from error
        raise ModelError(
            f"{path} holds more than weights{_named_globals(path)}: reading it would run code that the file brings. "
            "Save the weights alone, torch.save(model.state_dict(), 'weights.pt'), and name a factory in the spec; "
            "or, if you trust where the file comes from, pass --trust-pickle"
        ) from error
    except (AttributeError, ImportError) as error:
        raise ModelError(
            f"{path} is a pickled module whose code is not here: {error}. Put its source beside the model file, "
            "or install it; better, save a state dict and name a factory in the spec"
        ) from error
    except Exception as error:  # a damaged pickle can raise anything: EOFError, KeyError, RuntimeError, ValueError…
        raise ModelError(f"{path} is damaged: {_first_line(error)}. Copy or save it again") from error


def _named_globals(path: Path) -> str:
    find = getattr(torch.serialization, "get_unsafe_globals_in_checkpoint", None)
    if find is None:
        return ""
    try:
        found = find(str(path))
    except Exception:  # only sharpens a message; older layouts are not supported by it
        return ""
    found = sorted(found, key=lambda name: (name.startswith(("torch.", "builtins.", "collections.")), name))
    return f" ({', '.join(found[:4])}{', …' if len(found) > 4 else ''})" if found else ""


def _call_factory(spec: ModelSpec, folder: Path) -> nn.Module:
    assert spec.factory is not None
    name, _, function = spec.factory.partition(":")
    if not name or not function:
        raise SpecError(f'factory must be "module:function", not "{spec.factory}"')
    arguments = dict(spec.factory_args)
    with _importable(folder, name.partition(".")[0]):
        try:
            make = getattr(importlib.import_module(name), function)
        except (ImportError, AttributeError) as error:
            raise SpecError(
                f'factory "{spec.factory}" cannot be imported ({error}); looked in {folder} and the installed packages'
            ) from error
        try:
            module = make(**arguments)
        except TypeError as error:
            raise SpecError(f'factory "{spec.factory}" does not take factory_args {arguments}: {error}') from error
    if not isinstance(module, nn.Module):
        raise SpecError(f'factory "{spec.factory}" returned {_describe(module)}, wanted a torch.nn.Module')
    return module


@contextlib.contextmanager
def _importable(folder: Path, top: str | None = None) -> Iterator[None]:
    """Let `folder` be imported from, first, for a while; a module `top` of the same name from elsewhere gives way."""
    place = str(folder.resolve())
    if top and ((folder / f"{top}.py").is_file() or (folder / top / "__init__.py").is_file()):
        loaded = sys.modules.get(top)
        origin = getattr(loaded, "__file__", None)
        if loaded is not None and (origin is None or not Path(origin).resolve().is_relative_to(place)):
            for name in [n for n in sys.modules if n == top or n.startswith(f"{top}.")]:
                del sys.modules[name]
    importlib.invalidate_caches()  # the file may be younger than Python's listing of its folder
    sys.path.insert(0, place)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(place)


def _ready(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module.float().eval()


def _describe(value: object) -> str:
    if isinstance(value, Mapping):
        return f"a dict with the keys {', '.join(map(str, list(value)[:6])) or '(none)'}"
    return f"a {type(value).__module__}.{type(value).__qualname__}"


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
