"""The form in which networks are rewritten: a graph of ATen calls in which convolutions are modules of their own.

Any network becomes one by torch.export (or, if it holds scripted parts or is TorchScript, by tracing one image):
functional calls, containers and methods are gone, padding modes are nodes before the convolution, weights that are
computed from parameters are computed once, and a convolution that is used twice is one module called by two nodes.
What is no convolution, linear layer or batch norm stays the ATen call that it was.
"""

from __future__ import annotations

import keyword
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree

from edgeseg.errors import ModelError
from edgeseg.rewrite.calls import Call, call_of, module_of
from edgeseg.rewrite.constants import Constants, place_of
from edgeseg.rewrite.tracing import WRAPPED, first_line, plain_values, schema_name, traced
from edgeseg.types import Torch

Network = fx.GraphModule  # call_module: Conv2d, ConvTranspose2d, Linear, BatchNorm2d or what a rule put there

TOLERANCE = 1e-4  # of the largest value of an output


@dataclass(frozen=True, slots=True)
class Captured:
    """A network ready to be rewritten, and what about it stays as it is."""

    network: Network
    untouched: tuple[tuple[str, str], ...]  # name of a layer, why it is left alone
    notes: tuple[str, ...] = ()  # for people


def capture(model: Torch, size: tuple[int, int]) -> Captured:
    """The network for images float32 (1, 3, H, W) of one size, in eval mode; its weights are copies.

    Layers have the names that the network's author gave them. What it computes is checked against the model on an
    image of noise. Raises ModelError for what cannot be captured, or is another network afterwards.
    """
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    wanted = _run(model, image, size)
    found, notes = traced(model.module, image.clone(), wanted)
    _note_shapes(found, image)
    constants = Constants(found)
    graph, names = found.graph, _names(model)
    calls: dict[fx.Node, Call] = {}
    untouched: dict[str, str] = {}
    for node in graph.nodes:
        call = call_of(node, constants)
        if isinstance(call, Call):
            calls[node] = call
        elif call is not None:
            untouched[_label(node, (), names, constants)] = call
    owners = _owners(graph, calls, constants)
    holder, taken, homes = nn.Module(), set[str](), dict[Any, str]()
    replaced: dict[fx.Node, fx.Node] = {}
    for node, call in calls.items():
        name, identity = _label(node, call.parts, names, constants), _identity(call, constants)
        if _tied(call, owners, constants):
            untouched[name] = "its weights are tied: something else uses them too"
            continue
        if identity not in homes:
            homes[identity] = _free(name, taken)
            _place(holder, homes[identity], module_of(call, constants))
        replaced[call.node] = _replace(call, homes[identity], replaced.get(call.input, call.input))
    _clear(graph)
    for node in list(graph.nodes):
        if node.op == "get_attr":
            node.target = _hold(holder, _free(_plain_name(node, names, constants), taken), constants.value(node))
    _free_batch(graph)
    network = fx.GraphModule(holder, graph, "Network").eval()
    tidy(network)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    _check(network, model, image, size)
    return Captured(network, tuple(untouched.items()), notes)


def tidy(network: Network) -> None:
    """After a change of the graph: what nothing needs any more goes, and the code is written anew."""
    _clear(network.graph)
    network.delete_all_unused_submodules()
    used = {node.target for node in network.graph.nodes if node.op == "get_attr"}
    for name in [*dict(network.named_parameters(recurse=False)), *dict(network.named_buffers(recurse=False))]:
        if name not in used:
            delattr(network, name)
    network.graph.lint()
    network.recompile()


def _clear(graph: fx.Graph) -> None:
    """As fx's own eliminate_dead_code, which keeps what it believes to have effects: here nothing has any."""
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("placeholder", "output"):
            graph.erase_node(node)


def _run(model: Torch, image: torch.Tensor, size: tuple[int, int]) -> Any:
    with torch.no_grad():
        try:
            return model.module(image.clone())
        except Exception as error:  # user code can raise anything
            raise ModelError(
                f"the network does not take an image of {size[0]}x{size[1]} (height x width): {first_line(error)}. "
                "Set input.size in the spec"
            ) from error


class _Shapes(fx.Interpreter):
    """Notes in each node's `meta` the shape of what it gives, and the path of the author's module that it is from."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        stack = [path for path, _ in (n.meta.get("nn_module_stack") or {}).values()]
        shape = tuple(result.shape) if isinstance(result, torch.Tensor) else ()
        n.meta = {"shape": shape, "path": str(stack[-1]) if stack else ""}
        return result


def _note_shapes(found: fx.GraphModule, image: torch.Tensor) -> None:
    try:
        with torch.no_grad():
            _Shapes(found).run(image.clone())
    except Exception as error:  # an operation can raise anything
        raise ModelError(f"the captured network does not run: {first_line(error)}") from error


def _check(network: Network, model: Torch, image: torch.Tensor, size: tuple[int, int]) -> None:
    other = torch.randn(image.shape, generator=torch.Generator().manual_seed(1))
    wanted = _run(model, other, size)
    with torch.no_grad():
        given = network(other.clone())
    if alike(given, plain_values(wanted)):
        return
    if not alike(plain_values(_run(model, other, size)), plain_values(wanted)):
        raise ModelError(
            "the network gives another result each time for the same image, so it cannot be rewritten: "
            "look for a dropout without `training=self.training`, or for random numbers"
        )
    raise ModelError(
        "the captured network does not compute what the network computes: its branches depend on the image, or it "
        "keeps a state that a graph does not have. Save it with torch.export.export, and give the .pt2"
    )


def alike(one: Any, other: Any, tolerance: float = TOLERANCE) -> bool:
    """Whether two results are the same tensors up to rounding, in the same order."""
    ones, others = (
        [leaf for leaf in _pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)] for value in (one, other)
    )
    return len(ones) == len(others) and all(
        a.shape == b.shape and a.dtype == b.dtype and _close(a, b, tolerance) for a, b in zip(ones, others, strict=True)
    )


def _close(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> bool:
    if not a.numel():
        return True
    if not a.is_floating_point():
        return float((a != b).double().mean()) < 1e-3  # labels: a tie may fall either way
    finite = a.isfinite() & b.isfinite()
    if not bool(((a == b) | (a.isnan() & b.isnan()))[~finite].all()):
        return False
    a, b = a[finite].double(), b[finite].double()
    return not a.numel() or float((a - b).abs().max()) <= tolerance * max(float(b.abs().max()), 1e-6)


def _names(model: Torch) -> dict[Any, str]:
    """The names that the network's author gave to its tensors, by their place in memory."""
    tensors = (*nn.Module.named_buffers(model.module), *nn.Module.named_parameters(model.module))
    return {place_of(value): name.replace("_orig_mod.", "") for name, value in tensors}


def _label(node: fx.Node, parts: tuple[fx.Node, ...], names: dict[Any, str], constants: Constants) -> str:
    """The author's name of the layer that `node` calls."""
    weights = parts or [part for part in node.all_input_nodes if constants.is_constant(part)]
    for root in (root for part in weights for root in sorted(constants.roots(part), key=lambda root: root.name)):
        if name := names.get(place_of(constants.value(root))):
            stem, _, last = name.partition(".parametrizations.")[0].rpartition(".")
            if ".parametrizations." in name:
                return f"{stem}.{last}" if stem else last
            if name in ("weight", "bias"):  # the network is one layer
                return node.name
            if stem and (last.startswith("weight") or last in ("bias", "running_mean")):
                return stem
            return name.replace(".", "_")
    return node.meta["path"].removeprefix(WRAPPED) or node.name


def _plain_name(node: fx.Node, names: dict[Any, str], constants: Constants) -> str:
    name = names.get(place_of(constants.value(node)), str(node.target).removeprefix(WRAPPED))
    return name.replace(".", "_")


def _identity(call: Call, constants: Constants) -> Any:
    return (call.kind, call.options, *(constants.same(part) for part in (call.weight, call.bias, *call.statistics)))


def _owners(graph: fx.Graph, calls: dict[fx.Node, Call], constants: Constants) -> dict[Any, set[Any]]:
    """For each held tensor what computes with it: layers, or nodes that are none."""
    owners: dict[Any, set[Any]] = defaultdict(set)
    for node in graph.nodes:
        if constants.is_constant(node):
            continue
        call = calls.get(node)
        for part in node.all_input_nodes:
            if constants.is_constant(part):
                owner = _identity(call, constants) if call is not None and part in call.parts else node
                for root in constants.roots(part):
                    owners[place_of(constants.value(root))].add(owner)
    return owners


def _tied(call: Call, owners: dict[Any, set[Any]], constants: Constants) -> bool:
    for part in (call.weight, call.bias):
        if part is None:
            continue
        size = constants.value(part).numel()
        for root in constants.roots(part):
            value = constants.value(root)
            if value.numel() >= size and len(owners[place_of(value)]) > 1:
                return True
    return False


def _replace(call: Call, home: str, source: fx.Node) -> fx.Node:
    graph = call.node.graph
    with graph.inserting_before(call.node):
        if call.before:
            source = graph.call_function(torch.ops.aten.constant_pad_nd.default, (source, list(call.before)))
            source.meta = {"shape": (), "path": ""}
        made = graph.create_node("call_module", home, (source,))
    made.meta = dict(call.node.meta)
    call.node.replace_all_uses_with(made)
    graph.erase_node(call.node)
    return made


def _free(name: str, taken: set[str]) -> str:
    """`name`, or with something behind it if it is taken, inside of what is, or means something to torch or Python."""
    parts = name.split(".")
    name = ".".join(f"{part}_" if hasattr(fx.GraphModule, part) or keyword.iskeyword(part) else part for part in parts)
    free, number = name, 1
    while free in taken or any(free.startswith(f"{other}.") or other.startswith(f"{free}.") for other in taken):
        free, number = f"{name.replace('.', '_')}_{number}", number + 1
    taken.add(free)
    return free


def _place(root: nn.Module, path: str, module: nn.Module) -> None:
    *parents, last = path.split(".")
    for name in parents:
        if name not in root._modules:
            root.add_module(name, nn.Module())
        root = root.get_submodule(name)
    root.add_module(last, module)


def _hold(root: nn.Module, name: str, value: Any) -> str:
    """Keep a tensor that an ATen call takes, as a buffer if it is none to be trained."""
    if isinstance(value, nn.Parameter):
        root.register_parameter(name, nn.Parameter(value.detach().clone(), requires_grad=False))
    elif isinstance(value, torch.Tensor):
        root.register_buffer(name, value.detach().clone())
    else:
        raise ModelError(f"the network keeps a {type(value).__name__} as '{name}', which cannot be rewritten")
    return name


def _free_batch(graph: fx.Graph) -> None:
    """Where a batch of 1 was written into a view as a number, leave the first dimension open."""
    for node in graph.nodes:
        shape = node.meta.get("shape")
        if not shape or 0 in shape or len(node.args) < 2:
            continue
        if schema_name(node) in ("aten::view", "aten::reshape", "aten::_unsafe_view"):
            node.args = (node.args[0], [-1, *shape[1:]])
        elif schema_name(node) in ("aten::expand", "aten::broadcast_to"):
            source, sizes = node.args[0], node.args[1]
            same = isinstance(source, fx.Node) and len(source.meta["shape"]) == len(shape) and shape[0] == 1
            if same and isinstance(sizes, list | tuple):
                node.args = (source, [-1, *sizes[1:]], *node.args[2:])
