"""The form in which networks are rewritten: a graph of ATen operations in which convolutions are modules of their own.

Any network becomes one by torch.export (or, if it holds scripted parts or is TorchScript, by tracing one image):
functional calls, containers and methods are gone, padding modes are nodes before the convolution, and a convolution
that is used twice is one module called by two nodes. What is no convolution, linear layer or batch norm stays the
ATen call that it was.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.graph import _PyTreeCodeGen
from torch.utils._pytree import tree_unflatten

from edgeseg.errors import ModelError
from edgeseg.types import Torch

Network = fx.GraphModule  # call_module: Conv2d, ConvTranspose2d, Linear, BatchNorm2d or what a rule put there


@dataclass(frozen=True, slots=True)
class Captured:
    """A network ready to be rewritten, and what about it stays as it is."""

    network: Network
    untouched: tuple[tuple[str, str], ...]  # name of a layer, why it is left alone
    notes: tuple[str, ...] = ()  # for people


@dataclass(frozen=True, slots=True)
class _Call:
    """A convolution, linear layer or batch norm as ATen calls it, with its arguments by name."""

    kind: type[nn.Module]
    input: fx.Node
    weight: fx.Node | None
    bias: fx.Node | None
    options: tuple[tuple[str, Any], ...]  # what the module's constructor takes besides the channels
    statistics: tuple[fx.Node, fx.Node] | None = None


def capture(model: Torch, size: tuple[int, int]) -> Captured:
    """The network for images float32 (1, 3, H, W) of one size, in eval mode; its weights are copies.

    Raises ModelError for what cannot be captured.
    """
    image = torch.zeros(1, 3, *size)
    graph_module, notes = _traced(model, image)
    graph = _plain(graph_module)
    for node in list(graph.nodes):
        if node.op == "call_module" and not node.users and node.target == "_guards_fn":
            graph.erase_node(node)
    names = _names(model)
    holder, untouched = nn.Module(), []
    constants = {node: _fetch(graph_module, node.target) for node in graph.nodes if node.op == "get_attr"}
    calls = {node: call for node in graph.nodes if (call := _call(node, constants)) is not None}
    homes: dict[tuple[Any, ...], str] = {}
    owners: dict[fx.Node, set[tuple[Any, ...]]] = defaultdict(set)
    for call in calls.values():
        for part in (call.weight, call.bias, *(call.statistics or ())):
            if part is not None:
                owners[part].add(_identity(call))
    taken: set[str] = set()
    replaced: dict[fx.Node, fx.Node] = {}
    for node, call in calls.items():
        name = _home(call, node, names, constants)
        parts = [part for part in (call.weight, call.bias) if part is not None]
        users = {user for part in parts for user in part.users} - set(calls)
        if users or any(len(owners[part]) > 1 for part in parts):
            untouched.append((name, "its weights are tied: something else uses them too"))
            continue
        identity = _identity(call)
        if identity not in homes:
            homes[identity] = _free(name, taken)
            _place(holder, homes[identity], _module(call, constants))
        with graph.inserting_after(node):
            made = graph.call_module(homes[identity], (replaced.get(call.input, call.input),))
            made.meta = {key: value for key, value in node.meta.items() if key in ("val", "tensor_meta")}
        replaced[node] = made
        node.replace_all_uses_with(made)
        graph.erase_node(node)
    for node in reversed(list(graph.nodes)):
        if node.op == "get_attr":
            if not node.users:
                graph.erase_node(node)
            else:
                label = names.get(_key(constants[node]), str(node.target))
                node.target = _hold(holder, _free(label, taken), constants[node])
    network = fx.GraphModule(holder, graph, "Network").eval()
    tidy(network)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return Captured(network, tuple(dict.fromkeys(untouched)), notes)


def _traced(model: Torch, image: torch.Tensor) -> tuple[fx.GraphModule, tuple[str, ...]]:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        said = ""
        if model.exported is not None:
            return _unwrapped(model.exported.module()), ()
        scripted = [name or "the network" for name, part in model.module.named_modules() if _scripted(part)]
        if not scripted:
            try:
                return _unwrapped(torch.export.export(model.module, (image,), strict=False).module()), ()
            except Exception as error:  # torch.export lets through whatever it and the network raise
                said = f"torch.export refused it ({_first_line(error)}); "
        try:
            traced = make_fx(model.module, tracing_mode="real", pre_dispatch=True)(image)
        except Exception as error:
            raise ModelError(
                f"the network cannot be captured for rewriting: {said}tracing failed too ({_first_line(error)}). "
                "Save it with torch.export.export and torch.export.save, and give the .pt2"
            ) from error
    what = f"{', '.join(scripted[:3])} is scripted; " if scripted else said
    return traced, (f"{what}captured by tracing: branches that depend on the image are fixed as they were for one",)


def _unwrapped(module: nn.Module) -> fx.GraphModule:
    assert isinstance(module, fx.GraphModule)
    return module


def _scripted(part: nn.Module) -> bool:
    return isinstance(part, torch.jit.ScriptModule)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0][:200]}"


def _fetch(root: nn.Module, target: Any) -> Any:
    value: Any = root
    for part in str(target).split("."):
        value = getattr(value, part)
    return value


def _key(value: Any) -> Any:
    return (value.data_ptr(), tuple(value.shape)) if isinstance(value, torch.Tensor) else id(value)


def _names(model: Torch) -> dict[Any, str]:
    """The names that the network's author gave to its tensors."""
    module = model.module
    return {_key(value): name for name, value in (*module.named_buffers(), *module.named_parameters())}


def _call(node: fx.Node, constants: dict[fx.Node, Any]) -> _Call | None:
    """What `node` calls, if it is a layer whose weights are constant, and is called as its module would be."""
    if node.op != "call_function" or not hasattr(node.target, "_schema"):
        return None
    schema = node.target._schema
    arguments = {part.name: part.default_value for part in schema.arguments}
    arguments |= dict(zip(arguments, node.args, strict=False)) | node.kwargs
    weight, bias = arguments.get("weight"), arguments.get("bias")
    if not all(part is None or part in constants for part in (weight, bias)):
        return None
    source = arguments.get("input")
    if not isinstance(source, fx.Node):
        return None
    name = schema.name
    if name in ("aten::conv2d", "aten::convolution", "aten::_convolution", "aten::conv_transpose2d"):
        if weight is None or constants[weight].dim() != 4:
            return None
        transposed = name == "aten::conv_transpose2d" or bool(arguments.get("transposed"))
        padding = arguments["padding"]
        options: list[tuple[str, Any]] = [
            ("stride", _pair(arguments["stride"])),
            ("padding", padding if isinstance(padding, str) else _pair(padding)),
            ("dilation", _pair(arguments["dilation"])),
            ("groups", int(arguments["groups"])),
        ]
        if transposed:
            options.append(("output_padding", _pair(arguments["output_padding"])))
        return _Call(nn.ConvTranspose2d if transposed else nn.Conv2d, source, weight, bias, tuple(options))
    if name == "aten::linear" and weight is not None:
        return _Call(nn.Linear, source, weight, bias, ())
    if name == "aten::batch_norm" and not arguments["training"]:
        mean, variance = arguments["running_mean"], arguments["running_var"]
        if mean not in constants or variance not in constants:
            return None
        return _Call(nn.BatchNorm2d, source, weight, bias, (("eps", float(arguments["eps"])),), (mean, variance))
    return None


def _pair(value: Any) -> tuple[int, int]:
    return (int(value[0]), int(value[-1]))


def _identity(call: _Call) -> tuple[Any, ...]:
    return (call.kind, call.weight, call.bias, call.options, call.statistics)


def _home(call: _Call, node: fx.Node, names: dict[Any, str], constants: dict[fx.Node, Any]) -> str:
    for part in (call.weight, call.bias, *(call.statistics or ())):
        if part is not None and (name := names.get(_key(constants[part]))):
            stem, _, last = name.rpartition(".")
            return stem if stem and last in ("weight", "bias", "running_mean") else name.replace(".", "_")
    return node.name


def _free(name: str, taken: set[str]) -> str:
    """`name`, or with a number behind it if it is taken or inside of what is."""
    free, number = name, 1
    while free in taken or any(free.startswith(f"{other}.") or other.startswith(f"{free}.") for other in taken):
        free, number = f"{name.replace('.', '_')}_{number}", number + 1
    taken.add(free)
    return free


def _module(call: _Call, constants: dict[fx.Node, Any]) -> nn.Module:
    options = dict(call.options)
    weight = constants[call.weight] if call.weight is not None else None
    bias = constants[call.bias] if call.bias is not None else None
    made: nn.Module
    if call.kind is nn.BatchNorm2d:
        assert call.statistics is not None
        mean, variance = (constants[part].detach().clone() for part in call.statistics)
        made = nn.BatchNorm2d(len(mean), eps=options["eps"])
        made.running_mean, made.running_var = mean, variance
        with torch.no_grad():
            for parameter, value in ((made.weight, weight), (made.bias, bias)):
                if parameter is not None and value is not None:
                    parameter.copy_(value)
        return made
    assert weight is not None
    if call.kind is nn.Linear:
        made = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    elif call.kind is nn.ConvTranspose2d:
        made = nn.ConvTranspose2d(
            weight.shape[0],
            weight.shape[1] * options["groups"],
            tuple(weight.shape[2:]),
            bias=bias is not None,
            **options,
        )
    else:
        made = nn.Conv2d(
            weight.shape[1] * options["groups"],
            weight.shape[0],
            tuple(weight.shape[2:]),
            bias=bias is not None,
            **options,
        )
    with torch.no_grad():
        made.weight.copy_(weight)
        if bias is not None:
            made.bias.copy_(bias)
    return made


def _place(root: nn.Module, path: str, module: nn.Module) -> None:
    *parents, last = path.split(".")
    for name in parents:
        if name not in root._modules:
            root.add_module(name, nn.Module())
        root = root.get_submodule(name)
    root.add_module(last, module)


def _hold(root: nn.Module, path: str, value: Any) -> str:
    """Keep a tensor that an ATen call takes, as a buffer if it is none to be trained."""
    name = path.replace(".", "_")
    if isinstance(value, nn.Parameter):
        root.register_parameter(name, nn.Parameter(value.detach().clone(), requires_grad=False))
    elif isinstance(value, torch.Tensor):
        root.register_buffer(name, value.detach().clone())
    else:
        raise ModelError(f"the network keeps a {type(value).__name__} as '{path}', which cannot be rewritten")
    return name


def _plain(module: fx.GraphModule) -> fx.Graph:
    """A copy of the graph that returns what the network returns: a tensor, or a tuple, list or dict of them."""
    plain = fx.Graph()
    returned: Any = plain.graph_copy(module.graph, {})
    codegen = module.graph._codegen
    if isinstance(codegen, _PyTreeCodeGen):
        structure = codegen.pytree_info.out_spec
        assert structure is not None
        returned = tree_unflatten(list(returned) if isinstance(returned, tuple | list) else [returned], structure)
    plain.output(returned)
    for node in plain.nodes:
        node.meta = {key: value for key, value in node.meta.items() if key == "val"}
    return plain


def tidy(network: Network) -> None:
    """After a change of the graph: what nothing needs any more goes, and the code is written anew."""
    network.graph.eliminate_dead_code()
    network.delete_all_unused_submodules()
    network.graph.lint()
    network.recompile()
