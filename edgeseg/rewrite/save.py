"""A rewritten network as files: NAME.pt2, NAME.pt with the NAME.py that makes the network, and the spec of both."""

from __future__ import annotations

import importlib.util
import io
import json
import keyword
import re
import sys
import warnings
from collections.abc import Collection
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from edgeseg.errors import BadInput, ModelError
from edgeseg.files import require_writable, write_whole
from edgeseg.rewrite.capture import Network, alike, capture, tidy
from edgeseg.rewrite.source import source_of
from edgeseg.rewrite.tracing import fetch
from edgeseg.spec import spec_to_dict
from edgeseg.types import ModelSpec, Torch

MARK = "Written by edgeseg"  # in the first lines of a NAME.py


@dataclass(frozen=True, slots=True)
class Places:
    """Where save() writes."""

    exported: Path  # NAME.pt2
    weights: Path  # NAME.pt
    source: Path  # NAME.py, or what of NAME is a name in Python
    spec: Path  # NAME.toml

    @property
    def all(self) -> tuple[Path, ...]:
        return (self.exported, self.weights, self.source, self.spec)


def places(out: Path, inputs: Collection[Path] = ()) -> Places:
    """The files for `out`, NAME.pt2 (or NAME.pt). Raises BadInput where they cannot be written: ask before the work.

    None of the `inputs` is overwritten, whatever path leads to it, and no NAME.py that edgeseg did not write: it may be
    what makes the network that was read.
    """
    if out.suffix not in (".pt2", ".pt"):
        raise BadInput(f"{out}: a rewritten network is written as NAME.pt2 (and NAME.pt, NAME.py, NAME.toml beside it)")
    stem = out.with_suffix(".pt2").stem
    found = Places(
        out.with_name(f"{stem}.pt2"),
        out.with_name(f"{stem}.pt"),
        out.with_name(f"{_module_name(stem)}.py"),
        out.with_name(f"{stem}.toml"),
    )
    for path in found.all:
        require_writable(path)
        if path.is_dir():
            raise BadInput(f"{path} is a folder, and it is not overwritten. Choose another place.")
        if path.exists() and any(given.exists() and path.samefile(given) for given in inputs):
            raise BadInput(f"{path} is read by this run, and it is not overwritten. Choose another name than {out}")
    if found.source.exists() and MARK not in found.source.read_text(encoding="utf-8", errors="replace")[:1000]:
        raise BadInput(f"{found.source} is not from edgeseg, and it is not overwritten. Choose another name than {out}")
    return found


def save(network: Network, spec: ModelSpec, out: Path) -> tuple[Path, ...]:
    """Write the network for `out`, NAME.pt2: that file, NAME.pt, NAME.py, NAME.toml; existing ones are replaced whole.

    NAME.pt2 is an exported program for one image of the spec's size; NAME.pt a state dict; NAME.py needs torch alone
    and has the factory of NAME.pt, which NAME.toml names. Both forms give what the network gives: NAME.py is run
    before anything is written. Raises BadInput where nothing can be written, ModelError for what cannot be saved.
    """
    files, size = places(out), spec.input.size
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(3))
    flat = flattened(network, spec)
    height, width = size
    title = (
        f"The network of {files.weights.name}, rewritten. {MARK}, which replaces this file when it writes it again.\n\n"
        f"Takes float32 (N, 3, {height}, {width}), N = 1 if sizes are written into it.\n"
    )
    with torch.no_grad():
        wanted = flat(image)
    for readable in (True, False):
        code, state = source_of(flat, title, readable=readable)
        if _gives(code, state, image, wanted):
            break
    else:
        raise ModelError(f"the network cannot be written as Python: {files.source.name} would not compute the same")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        exported = io.BytesIO()
        torch.export.save(torch.export.export(flat, (image,), strict=False), exported)
        weights = io.BytesIO()
        torch.save({name: value.detach().clone() for name, value in state.items()}, weights)
    made = replace(spec, factory=f"{files.source.stem}:network", factory_args={})
    for path, data in zip(
        files.all, (exported.getvalue(), weights.getvalue(), code.encode(), _toml(made).encode()), strict=True
    ):
        write_whole(path, data)
    _forget(files.source)
    return files.all


def flattened(network: Network, spec: ModelSpec) -> Network:
    """The same network with its chains and containers taken apart into convolutions and ATen calls, float32.

    A named tuple, which no file can keep, becomes a dict if the spec asks for an output by its name, else a tuple.
    """
    flat = capture(Torch(network, "pickle"), spec.input.size).network
    for node in list(flat.graph.nodes):
        if node.op == "output":
            node.args = (_without_names(node.args[0], isinstance(spec.output.index, str)),)
        elif node.op == "get_attr":
            held = fetch(flat, node.target)
            if held.is_floating_point() and held.dtype != torch.float32:  # a file is read as float32
                name = f"{node.target}_float"
                flat.register_buffer(name, held.detach().float())
                with flat.graph.inserting_after(node):
                    cast = flat.graph.call_function(torch.ops.aten.to.dtype, (node, held.dtype))
                node.replace_all_uses_with(cast, delete_user_cb=lambda user, cast=cast: user is not cast)
                node.target = name
    tidy(flat)
    return flat


def _without_names(value: Any, keep: bool) -> Any:
    if isinstance(value, fx.Node):
        return value
    if isinstance(value, dict):
        return {key: _without_names(part, keep) for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_asdict") and keep:
        return {key: _without_names(part, keep) for key, part in value._asdict().items()}
    if isinstance(value, tuple):
        return tuple(_without_names(part, keep) for part in value)
    return [_without_names(part, keep) for part in value] if isinstance(value, list) else value


def _gives(code: str, state: dict[str, torch.Tensor], image: torch.Tensor, wanted: Any) -> bool:
    space: dict[str, Any] = {"__name__": "network"}
    try:
        exec(compile(code, "network.py", "exec"), space)
        made: nn.Module = space["network"]().eval()
        made.load_state_dict(state)
        with torch.no_grad():
            given = made(image)
    except Exception:  # written code that does not run is no more than code that gives something else
        return False
    return alike(given, wanted, 1e-6)


def _module_name(stem: str) -> str:
    """`stem` as a name that Python can import, and that hides no package."""
    name = re.sub(r"\W", "_", stem, flags=re.ASCII)
    if not name or name[0].isdigit():
        name = f"_{name}"
    installed = {*sys.stdlib_module_names, *sys.builtin_module_names, *metadata.packages_distributions(), "edgeseg"}
    return f"{name}_network" if keyword.iskeyword(name) or name in installed else name


def _forget(path: Path) -> None:
    """Let a module that this process has imported before be imported anew."""
    module = sys.modules.get(path.stem)
    origin = getattr(module, "__file__", None)
    if origin is not None and Path(origin).resolve() == path.resolve():
        del sys.modules[path.stem]
    # Python trusts its compiled copy by the second and the size of the source.
    Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)


def _toml(spec: ModelSpec) -> str:
    data = spec_to_dict(spec)
    tables = {key: value for key, value in data.items() if isinstance(value, dict)}
    lines = [f"{key} = {_toml_value(value)}" for key, value in data.items() if key not in tables]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {_toml_value(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return f"[{', '.join(map(_toml_value, value))}]"
    return repr(value)
