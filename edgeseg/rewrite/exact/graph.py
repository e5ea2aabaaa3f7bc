"""How exact rewrites read and edit a network: shapes, arguments by name, modules of their own, multiplications."""

from __future__ import annotations

import operator
from collections.abc import Container, Iterable, Iterator
from itertools import count
from math import prod
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from edgeseg.rewrite.network import Network
from edgeseg.rewrite.values import Pair

aten = torch.ops.aten
Spatial: TypeAlias = nn.Conv2d | nn.ConvTranspose2d
Kind = TypeVar("Kind", bound=nn.Module)


def ops(names: str) -> frozenset[str]:
    """ATen operations as `name_of` gives them."""
    return frozenset(f"aten::{name}" for name in names.split())


# One number in, one number out: they commute with everything that only moves numbers about.
POINTWISE = ops(
    "relu relu6 leaky_relu elu selu celu gelu silu mish sigmoid tanh hardtanh hardswish hardsigmoid softplus clamp "
    "clamp_min clamp_max abs neg exp square sqrt dropout feature_dropout clone alias detach contiguous"
)
# The same with a trailing underscore writes in place; in a captured graph its result is all that is read.
POINTWISE_ = POINTWISE | {f"{name}_" for name in POINTWISE}
NEAREST = ops("upsample_nearest2d _upsample_nearest_exact2d")
# The weights of each output sum to one: they commute with whatever is affine in each position.
AVERAGING = NEAREST | ops("upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa")


def propagate(network: Network, size: Pair) -> None:
    """Puts into each node's `meta["shape"]` the shape of what it gives for an image (1, 3, *size)."""
    parts = (*network.parameters(), *network.buffers())
    kinds = [part.dtype for part in parts if part.is_floating_point()]
    image = torch.zeros(1, 3, *size, dtype=kinds[0] if kinds else torch.float32)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with torch.no_grad():
        try:
            with mode:
                _Recorder(network).run(mode.from_tensor(image))
        except Exception:  # an operation that knows nothing of fake tensors raises whatever it likes
            _Recorder(network).run(image)


class _Recorder(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        n.meta["shape"] = tuple(result.shape) if isinstance(result, Tensor) else ()
        return result


def shape(node: fx.Node) -> tuple[int, ...]:
    """Of what the node gave in `propagate`; () if that was no tensor."""
    return tuple(int(length) for length in node.meta.get("shape", ()))


def plane(node: fx.Node) -> Pair:
    """Height and width of maps (N, C, H, W)."""
    _, _, height, width = shape(node)
    return height, width


def name_of(node: fx.Node) -> str:
    """The operation that a node calls, without its overload, as "aten::relu"; "" if it calls none."""
    if node.op != "call_function":
        return ""
    schema = getattr(node.target, "_schema", None)
    return str(schema.name) if schema is not None else ""


def arguments(node: fx.Node) -> dict[str, Any]:
    """What an ATen call gets, by the names of its schema, defaults included."""
    schema = node.target._schema  # type: ignore[union-attr]
    given = {part.name: part.default_value for part in schema.arguments}
    return given | dict(zip(given, node.args, strict=False)) | node.kwargs


def functional(target: Any) -> Any:
    """The overload of an operation that does not write in place."""
    name, _, overload = str(target).removeprefix("aten.").rpartition(".")
    return getattr(getattr(aten, name.rstrip("_")), overload) if name.endswith("_") else target


def module_of(network: Network, node: Any, kind: type[Kind]) -> Kind | None:
    """The module that a node calls, if it is of this kind."""
    if not isinstance(node, fx.Node) or node.op != "call_module":
        return None
    module = network.get_submodule(str(node.target))
    return module if isinstance(module, kind) else None


def conv_of(network: Network, node: Any) -> nn.Conv2d | None:
    """A convolution with zero padding given in numbers."""
    module = module_of(network, node, nn.Conv2d)
    return module if module is not None and module.padding_mode == "zeros" and padding_of(module) is not None else None


def padding_of(module: nn.Conv2d) -> Pair | None:
    """On each side; None if "same" needs more on one side than on the other."""
    if isinstance(module.padding, str):
        if module.padding == "valid":
            return (0, 0)
        whole = [module.dilation[axis] * (module.kernel_size[axis] - 1) for axis in (0, 1)]
        return None if any(length % 2 for length in whole) else (whole[0] // 2, whole[1] // 2)
    return (int(module.padding[0]), int(module.padding[1]))


def pair(value: Iterable[int]) -> Pair:
    first, second = value
    return int(first), int(second)


def source(node: fx.Node) -> fx.Node:
    """The first thing that a node reads."""
    return node.all_input_nodes[0]


def parts_of_cat(node: fx.Node) -> list[fx.Node] | None:
    """What a concatenation of channels puts together."""
    if name_of(node) != "aten::cat":
        return None
    given = arguments(node)
    parts = list(given["tensors"])
    dimensions = len(shape(node))
    return parts if dimensions >= 2 and given["dim"] % dimensions == 1 else None


def mirrors(node: fx.Node) -> bool:
    """Whether it pads rows and columns with values from inside: reflected, replicated or from the other end."""
    if name_of(node) in ("aten::reflection_pad2d", "aten::replication_pad2d"):
        return True
    if name_of(node) != "aten::pad" or len(shape(node)) != 4:
        return False
    given = arguments(node)
    return given["mode"] != "constant" and len(given["pad"]) <= 4


def constant(network: Network, node: Any) -> Tensor | None:
    """The tensor of a get_attr node, or of a call that gets nothing but such tensors and numbers."""
    if not isinstance(node, fx.Node):
        return None
    if node.op == "get_attr":
        value = operator.attrgetter(str(node.target))(network)
        return value.detach() if isinstance(value, Tensor) else None
    tags = getattr(node.target, "tags", ())
    if node.op != "call_function" or not callable(node.target) or torch.Tag.nondeterministic_seeded in tags:
        return None
    read = {source: constant(network, source) for source in node.all_input_nodes}
    if any(tensor is None for tensor in read.values()):
        return None
    arguments = fx.map_arg((node.args, node.kwargs), lambda source: read[source])
    with torch.no_grad():
        value = node.target(*arguments[0], **arguments[1])
    return value if isinstance(value, Tensor) else None


def calls(network: Network, node: fx.Node) -> list[fx.Node]:
    """All nodes that call the module which this one calls."""
    return [other for other in network.graph.nodes if other.op == "call_module" and other.target == node.target]


def first_calls(network: Network, only: Container[str] | None = None) -> Iterator[tuple[str, fx.Node]]:
    """Each module that is called, by name, and the first node that calls it; `only`: of these names.

    Those that calls are given to while it runs do not come.
    """
    names = dict.fromkeys(str(node.target) for node in network.graph.nodes if node.op == "call_module")
    for name in names:
        if only is None or name in only:
            yield name, next(node for node in network.graph.nodes if node.target == name)


def place(network: Network, wanted: str, module: nn.Module) -> str:
    """Adds a module under a name like the one wanted; gives the name."""
    names = {name for name, _ in (*network.named_modules(), *network.named_parameters(), *network.named_buffers())}
    name = next(
        name
        for number in count()
        if (name := wanted if number == 0 else f"{wanted}_{number}") not in names
        and not any(name.startswith(f"{leaf}.") for leaf in _leaves(network))
    )
    network.add_submodule(name, module.eval())
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return name


def _leaves(network: Network) -> set[str]:
    return {str(node.target) for node in network.graph.nodes if node.op in ("call_module", "get_attr")}


def macs(network: Network, nodes: Iterable[fx.Node]) -> int:
    """Multiplications for one image, of the convolutions and linear layers among `nodes`; needs `propagate`."""
    total = 0
    for node in nodes:
        if node.op != "call_module":
            continue
        module = network.get_submodule(str(node.target))
        if isinstance(module, nn.Conv2d):
            total += module.weight.numel() * prod(shape(node)[2:])
        elif isinstance(module, nn.ConvTranspose2d):
            total += module.weight.numel() * prod(shape(source(node))[2:])
        elif isinstance(module, nn.Linear):
            total += module.weight.numel() * prod(shape(node)[1:-1])
        elif isinstance(module, nn.Sequential):
            total += _macs_of_chain(module, shape(source(node)))
    return total


def _macs_of_chain(chain: nn.Sequential, size: tuple[int, ...]) -> int:
    total, value = 0, torch.zeros(1, *size[1:], device="meta")
    for piece in chain:
        if not isinstance(piece, nn.Conv2d):
            break
        after = torch.nn.functional.conv2d(
            value,
            piece.weight.to("meta", torch.float32),
            None,
            piece.stride,
            piece.padding,
            piece.dilation,
            piece.groups,
        )
        total += piece.weight.numel() * prod(after.shape[2:])
        value = after
    return total


def new_conv(
    weight: Tensor,
    bias: Tensor | None,
    like: nn.Module,
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> nn.Conv2d:
    """A convolution of these weights (Co, Ci/groups, kh, kw), in the type of the weights of `like`."""
    made = nn.Conv2d(
        weight.shape[1] * groups,
        weight.shape[0],
        pair(weight.shape[2:]),
        stride,
        padding,
        dilation,
        groups,
        bias is not None,
        dtype=kind_of(like),
    )
    with torch.no_grad():
        made.weight.copy_(weight)
        if made.bias is not None and bias is not None:
            made.bias.copy_(bias)
    return made


def kind_of(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


def double(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.detach().double()


def follow(graph: fx.Graph, after: fx.Node, target: Any, *args: Any) -> fx.Node:
    """A call of an operation, or of a module if `target` is a name, right after a node."""
    with graph.inserting_after(after):
        return graph.call_module(target, args) if isinstance(target, str) else graph.call_function(target, args)


def by_group(weight: Tensor, groups: int) -> Tensor:
    """(groups * n, ...) to (groups, n, ...)."""
    return weight.reshape(groups, -1, *weight.shape[1:])


def copy_reading(graph: fx.Graph, after: fx.Node, node: fx.Node, new: fx.Node) -> fx.Node:
    """The same operation of one input once more, after a node, reading `new` and writing nothing in place."""
    old = node.all_input_nodes[0]
    with graph.inserting_after(after):
        made = graph.node_copy(node, lambda read: new if read is old else read)
    made.target = functional(node.target)
    return made


def replace(network: Network, old: fx.Node, new: fx.Node) -> None:
    """Whoever read `old` reads `new`."""
    if "shape" in old.meta:
        new.meta["shape"] = old.meta["shape"]
    old.replace_all_uses_with(new)
    network.graph.erase_node(old)


def depth_to_space(graph: fx.Graph, node: fx.Node, factor: Pair, channels: int, size: Pair) -> fx.Node:
    """(N, channels * fh * fw, *size) to (N, channels, H * fh, W * fw), as pixel_shuffle orders the channels."""
    if factor == (1, 1):
        return node
    if factor[0] == factor[1]:
        return follow(graph, node, aten.pixel_shuffle.default, node, factor[0])
    apart = follow(graph, node, aten.reshape.default, node, [-1, channels, *factor, *size])
    turned = follow(graph, apart, aten.permute.default, apart, [0, 1, 4, 2, 5, 3])
    whole = [-1, channels, size[0] * factor[0], size[1] * factor[1]]
    return follow(graph, turned, aten.reshape.default, turned, whole)


def crop(graph: fx.Graph, node: fx.Node, start: Pair, length: Pair, have: Pair) -> fx.Node:
    """Rows and columns from `start` on; nothing is called where all that is there is wanted."""
    for axis in (0, 1):
        if (start[axis], length[axis]) != (0, have[axis]):
            end = start[axis] + length[axis]
            node = follow(graph, node, aten.slice.Tensor, node, axis + 2, start[axis], end)
    return node
