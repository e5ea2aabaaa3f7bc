"""From any network to one plain graph of ATen calls that returns what the network returns and changes nothing.

torch.export comes first; what it refuses is traced over one image. Either way calls in place are gone afterwards, and
so is all that has no effect in inference: dropout, guards, switches of autograd.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import operator
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.graph import _PyTreeCodeGen
from torch.utils._pytree import tree_unflatten

from edgeseg.errors import ModelError

WRAPPED = "network."  # before the names of a network that had to be wrapped

_SAME = {  # calls that give their first argument as it is
    "aten::alias",
    "aten::detach",
    "aten::lift_fresh",
    "aten::lift_fresh_copy",
    "aten::positive",
}
_DROPOUT = {"aten::dropout", "aten::feature_dropout", "aten::alpha_dropout", "aten::feature_alpha_dropout"}
_CHECKS = {"aten::_assert_tensor_metadata", "aten::_assert_async", "aten::_assert_scalar", "aten::sym_constrain_range"}


def traced(module: nn.Module, image: torch.Tensor, returned: Any) -> tuple[fx.GraphModule, tuple[str, ...]]:
    """The plain graph of `module` for one image float32 (1, 3, H, W), with the tensors it holds; notes for people.

    `returned` is what the module gave for an image. Values that only the author's code knows (a dataclass, an object)
    become dicts by the names of their fields. Raises ModelError for what cannot be traced.
    """
    if not _is_plain(returned):
        plain_values(returned)  # refuses what cannot be turned
        module = _Plain(module)
    with _quiet(), torch.no_grad():
        graph_module, notes = _graph_of(module, image)
        found = _plain(graph_module)
        if any(_mutates(node) for node in found.graph.nodes):
            try:
                program = torch.export.export(found, (image.clone(),), strict=False).run_decompositions({})
                found = _plain(_graph_module(program.module()))
            except ModelError:
                raise
            except Exception as error:  # torch.export lets through whatever its passes raise
                raise ModelError(
                    f"the network works in place in a way that cannot be taken out ({first_line(error)}). "
                    "Write it with operations that return their result"
                ) from error
        notes += _stateless(found)
    return found, notes


def plain_values(returned: Any) -> Any:
    """The same in tensors, tuples, lists and dicts. Raises ModelError for an object without fields."""
    if returned is None or isinstance(returned, torch.Tensor | bool | int | float | str):
        return returned
    if isinstance(returned, Mapping):
        return {key: plain_values(value) for key, value in returned.items()}
    if isinstance(returned, tuple) and hasattr(returned, "_fields"):
        return type(returned)(*map(plain_values, returned))
    if isinstance(returned, tuple | list):
        return type(returned)(map(plain_values, returned))
    if dataclasses.is_dataclass(returned) and not isinstance(returned, type):
        return {field.name: plain_values(getattr(returned, field.name)) for field in dataclasses.fields(returned)}
    if hasattr(returned, "__dict__"):
        return {key: plain_values(value) for key, value in vars(returned).items() if not key.startswith("_")}
    raise ModelError(
        f"the network returns a {type(returned).__qualname__}: wanted tensors, alone or in a tuple or dict"
    )


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0][:200]}"


def fetch(root: nn.Module, target: Any) -> Any:
    value: Any = root
    for part in str(target).split("."):
        value = getattr(value, part)
    return value


def schema_name(node: fx.Node) -> str:
    """Such as "aten::conv2d"; "" for what is no ATen call."""
    return str(node.target._schema.name) if isinstance(node.target, torch._ops.OpOverload) else ""


def arguments_of(node: fx.Node) -> dict[str, Any]:
    """The arguments of an ATen call by name, with defaults."""
    assert isinstance(node.target, torch._ops.OpOverload)
    schema = node.target._schema.arguments
    found = {part.name: part.default_value for part in schema}
    return found | dict(zip(found, node.args, strict=False)) | node.kwargs


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch.export warns, logs and prints graphs before it raises what it found."""
    loggers = [logging.getLogger(name) for name in ("torch.export", "torch._export", "torch.fx", "torch._subclasses")]
    levels = [logger.level for logger in loggers]
    said = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


class _Plain(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.training = False  # as the network is; eval() would walk into it, which not every network bears

    def forward(self, image: torch.Tensor) -> Any:
        return plain_values(self.network(image))


def _is_plain(value: Any) -> bool:
    if type(value) is dict:
        return all(isinstance(key, str) and _is_plain(part) for key, part in value.items())
    if isinstance(value, tuple | list) and (type(value) in (tuple, list) or hasattr(value, "_fields")):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, torch.Tensor | bool | int | float | str)


def _graph_of(module: nn.Module, image: torch.Tensor) -> tuple[fx.GraphModule, tuple[str, ...]]:
    said = ""
    parts = nn.Module.named_modules(module)  # some networks hide the method behind an attribute of that name
    scripted = [
        name.removeprefix(WRAPPED) or "the network" for name, part in parts if isinstance(part, torch.jit.ScriptModule)
    ]
    if not scripted:
        try:
            return _graph_module(torch.export.export(module, (image,), strict=False).module()), ()
        except Exception as error:  # torch.export lets through whatever it and the network raise
            said = f"torch.export refused it ({first_line(error)}); "
    try:
        made = make_fx(module, tracing_mode="real", pre_dispatch=True, _error_on_data_dependent_ops=False)(image)
    except Exception as error:  # as above
        raise ModelError(
            f"the network cannot be captured for rewriting: {said}tracing failed too ({first_line(error)}). "
            "Save it with torch.export.export and torch.export.save, and give the .pt2"
        ) from error
    if "the network" in scripted:
        scripted = ["the network"]
    what = f"{', '.join(scripted[:3])}{', …' * (len(scripted) > 3)}: scripted; " if scripted else said
    return made, (f"{what}captured by tracing: branches that depend on the image are fixed as they were for one",)


def _graph_module(module: nn.Module) -> fx.GraphModule:
    assert isinstance(module, fx.GraphModule)
    return module


def _plain(module: fx.GraphModule) -> fx.GraphModule:
    """The same module around a graph that returns a tensor, or a tuple, list or dict of them, by plain calls."""
    graph = fx.Graph()
    returned: Any = graph.graph_copy(module.graph, {})
    codegen = module.graph._codegen
    if isinstance(codegen, _PyTreeCodeGen):
        structure = codegen.pytree_info.out_spec
        assert structure is not None
        returned = tree_unflatten(list(returned) if isinstance(returned, tuple | list) else [returned], structure)
    graph.output(returned)
    for node in list(graph.nodes):
        if node.op == "call_function" and str(node.target).startswith("wrap_with_"):
            _inline(node, module)
    for node in list(graph.nodes):
        if _is_check(node):
            graph.erase_node(node)
        elif (same := _copied(node) or _same_as(node)) is not None:
            node.replace_all_uses_with(same)
            graph.erase_node(node)
    for node in list(graph.nodes):
        _out_of_place(node)
    for node in reversed(list(graph.nodes)):  # not eliminate_dead_code: it keeps what works in place
        if not node.users and node.op in ("get_attr", "call_function") and not _mutates(node):
            graph.erase_node(node)
    graph.lint()
    return fx.GraphModule(module, graph)


def _inline(node: fx.Node, module: fx.GraphModule) -> None:
    """Put the graph that a block such as `with torch.no_grad()` became in place of its call."""
    kind, at = str(node.target), 1
    if kind == "wrap_with_autocast":
        device, dtype, enabled = node.args[:3]
        if enabled and device == "cpu":
            raise ModelError(f"a part of the network runs in {dtype} (torch.autocast), wanted float32: remove that")
        at = 4
    elif kind != "wrap_with_set_grad_enabled":
        raise ModelError(f"the network uses {kind}, which cannot be rewritten")
    holder, graph = node.args[at], node.graph
    assert isinstance(holder, fx.Node)
    inner = fetch(module, holder.target)
    places = [place for place in inner.graph.nodes if place.op == "placeholder"]
    known = dict(zip(places, node.args[at + 1 :], strict=True))
    with graph.inserting_before(node):
        outputs: Any = graph.graph_copy(inner.graph, known)
    for place, made in known.items():
        if place.op == "get_attr" and isinstance(made, fx.Node):
            made.target = f"{holder.target}.{place.target}"
    for user in list(node.users):
        if user.target is operator.getitem:
            user.replace_all_uses_with(outputs[user.args[1]])
            graph.erase_node(user)
    if node.users:
        node.replace_all_uses_with(outputs)
    graph.erase_node(node)


def _is_check(node: fx.Node) -> bool:
    if node.op == "call_module":
        return node.target == "_guards_fn"
    return schema_name(node) in _CHECKS or node.target is torch._C._set_grad_enabled


def _same_as(node: fx.Node) -> fx.Node | None:
    """What a call gives unchanged in inference."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    name = schema_name(node).removesuffix("_")
    idle = name in _SAME or (name in _DROPOUT and not arguments_of(node)["train"])
    return node.args[0] if idle else None


def _copied(node: fx.Node) -> fx.Node | None:
    """What a write in place gives once nothing is written: torch has no gradient of that call, aten::copy."""
    if schema_name(node) != "aten::copy":
        return None
    place, source = node.args[:2]
    assert isinstance(place, fx.Node)
    assert isinstance(source, fx.Node)
    wanted, given = place.meta["val"], source.meta["val"]
    with node.graph.inserting_before(node):
        if given.dtype != wanted.dtype:
            source = node.graph.call_function(torch.ops.aten.to.dtype, (source, wanted.dtype))
        if given.shape != wanted.shape:
            source = node.graph.call_function(torch.ops.aten.expand.default, (source, list(wanted.shape)))
    return source


def _mutates(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _out_of_place(node: fx.Node) -> None:
    """Make a call in place one that returns its result, if no other node looks at the same memory."""
    changed = node.args[0] if _mutates(node) and node.args else None
    if not isinstance(changed, fx.Node) or changed.op not in ("call_function", "placeholder"):
        return
    if changed.op == "call_function" and (_views(changed) or not schema_name(changed)):
        return
    order = {other: at for at, other in enumerate(node.graph.nodes)}
    if any(order[user] < order[node] and _views(user) for user in changed.users):
        return
    assert isinstance(node.target, torch._ops.OpOverload)
    packet = getattr(torch.ops.aten, schema_name(node).removeprefix("aten::").removesuffix("_"), None)
    overload = getattr(packet, node.target._overloadname or "default", None)
    if not schema_name(node).endswith("_") or overload is None:
        return
    node.target = overload
    changed.replace_all_uses_with(node, delete_user_cb=lambda user: order[user] > order[node])


def _views(node: fx.Node) -> bool:
    """Whether the result may share memory with an argument."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return node.op == "call_function"
    return any(part.alias_info is not None for part in node.target._schema.returns)


def _stateless(found: fx.GraphModule) -> tuple[str, ...]:
    """Take out what writes into buffers. Raises ModelError if the result depends on what was written."""
    written: dict[str, fx.Node] = {}
    for node in list(found.graph.nodes):
        if not _mutates(node):
            continue
        place = node.args[0]
        if not isinstance(place, fx.Node) or place.op not in ("get_attr", "placeholder"):
            raise ModelError(f"the network works in place ({schema_name(node)}) in a way that cannot be taken out")
        node.replace_all_uses_with(place)
        found.graph.erase_node(node)
        if place.op == "get_attr":
            written[str(place.target)] = place
    found.graph.eliminate_dead_code()
    needed = {node.target for node in found.graph.nodes if node.op == "get_attr"} & written.keys()
    if needed:
        raise ModelError(
            f"the network changes its buffer '{sorted(map(str, needed))[0].removeprefix(WRAPPED)}' while it runs and "
            "computes with it, so its result depends on the images before: it cannot be rewritten"
        )
    names = ", ".join(name.removeprefix(WRAPPED) for name in written)
    return (f"{names} is no longer written to while the network runs",) if written else ()
