"""A network as Python that people can read: a class of torch's own modules, and a factory that makes it.

The text needs torch alone. Its state dict has one name for each tensor that the network holds.
"""

from __future__ import annotations

import json
import keyword
import math
import operator
import re
import sys
from itertools import pairwise
from typing import Any

import torch
from torch import fx, nn

from edgeseg.errors import ModelError
from edgeseg.rewrite.capture import Network
from edgeseg.rewrite.tracing import fetch, schema_name

_FUNCTIONS = {  # ATen calls that a function of torch makes with the same arguments in the same order
    **{f"aten::{name}": f"F.{name}" for name in ("relu", "silu", "gelu", "hardswish", "hardsigmoid", "elu", "mish")},
    **{f"aten::{name}": f"F.{name}" for name in ("softplus", "leaky_relu", "hardtanh", "prelu", "pixel_shuffle")},
    **{f"aten::{name}": f"F.{name}" for name in ("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "pad")},
    **{f"aten::{name}": f"torch.{name}" for name in ("cat", "stack", "sigmoid", "tanh", "exp", "sqrt", "clamp")},
    "aten::adaptive_max_pool2d": "F.adaptive_max_pool2d",
}
_METHODS = {  # the same for methods of the first argument; "*": a list of sizes is written without its brackets
    **dict.fromkeys(("aten::view", "aten::reshape", "aten::_unsafe_view", "aten::permute", "aten::expand"), "*"),
    **dict.fromkeys(("aten::flatten", "aten::unsqueeze", "aten::squeeze", "aten::transpose", "aten::contiguous"), ""),
    **dict.fromkeys(("aten::mean", "aten::sum", "aten::amax", "aten::softmax", "aten::chunk", "aten::split"), ""),
    **dict.fromkeys(("aten::index_select", "aten::select", "aten::narrow", "aten::argmax", "aten::clone"), ""),
}
_INFIX = {"aten::add": "+", "aten::sub": "-", "aten::mul": "*", "aten::div": "/"}
_RESIZE = {
    "aten::upsample_nearest2d": "nearest",
    "aten::_upsample_nearest_exact2d": "nearest-exact",
    "aten::upsample_bilinear2d": "bilinear",
    "aten::upsample_bicubic2d": "bicubic",
}
_RESERVED = ("self", "image", "x", "torch", "nn", "F", "ops", "float", "network", "Network")


def source_of(network: Network, title: str, *, readable: bool = True) -> tuple[str, dict[str, torch.Tensor]]:
    """The text of a module with `network()`, and the state dict for what that returns.

    The network's modules must be Conv2d, ConvTranspose2d, Linear and BatchNorm2d alone, as capture() makes them.
    `readable`: calls are written as torch's functions and methods, where there is one; otherwise as ATen has them.
    Raises ModelError for what cannot be written.
    """
    lines: list[str] = []
    state: dict[str, torch.Tensor] = {}
    attributes: dict[str, str] = {}
    for node in network.graph.nodes:
        if node.op not in ("call_module", "get_attr") or str(node.target) in attributes:
            continue
        target = str(node.target)
        name = attributes[target] = _identifier(target, set(attributes.values()))
        held = fetch(network, target)
        if isinstance(held, nn.Module):
            lines.append(f"self.{name} = {_constructor(held, target)}")
            state |= {f"{name}.{key}": value for key, value in held.state_dict().items()}
            continue
        made = f"torch.zeros({tuple(held.shape)}{'' if held.dtype == torch.float32 else f', dtype={held.dtype}'})"
        if isinstance(held, nn.Parameter):
            lines.append(f"self.{name} = nn.Parameter({made})")
        else:
            lines.append(f'self.register_buffer("{name}", {made})')
        state[name] = held.detach()
    forward = "\n".join(f"        {line}" for line in _forward(network, attributes, readable))
    return _TEMPLATE.format(
        title=title,
        ops="\nops = torch.ops.aten\n" if "ops." in forward else "",
        init="\n".join(f"        {line}" for line in ("super().__init__()", *lines)),
        forward=forward,
    ), state


_TEMPLATE = '''\
"""{title}"""

import torch
from torch import nn
from torch.nn import functional as F
{ops}

class Network(nn.Module):
    def __init__(self):
{init}

    def forward(self, image):
{forward}


def network():
    return Network()
'''


def _identifier(path: str, taken: set[str]) -> str:
    name = re.sub(r"\W", "_", path, flags=re.ASCII).lstrip("_")
    if not name or name[0].isdigit():
        name = f"layer_{name}"
    if keyword.iskeyword(name) or hasattr(nn.Module(), name):
        name += "_"
    free, number = name, 1
    while free in taken:
        free, number = f"{name}_{number}", number + 1
    return free


def _constructor(module: nn.Module, name: str) -> str:
    options: list[str] = []
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        options = [f"{module.in_channels}", f"{module.out_channels}", _short(module.kernel_size)]
        for option, usual in (("stride", 1), ("padding", 0), ("output_padding", 0), ("groups", 1), ("dilation", 1)):
            value = getattr(module, option)
            if value not in (usual, (usual, usual)):
                options.append(f"{option}={_short(value)}")
    elif isinstance(module, nn.Linear):
        options = [f"{module.in_features}", f"{module.out_features}"]
    elif isinstance(module, nn.BatchNorm2d):
        return f"nn.BatchNorm2d({module.num_features}{'' if module.eps == 1e-5 else f', eps={module.eps!r}'})"
    else:
        raise ModelError(f"'{name}' is a {type(module).__qualname__}, which cannot be written as Python")
    if module.bias is None:
        options.append("bias=False")
    return f"nn.{type(module).__name__}({', '.join(options)})"


def _short(value: Any) -> str:
    return str(value[0]) if isinstance(value, tuple) and len(set(value)) == 1 else repr(value)


def _forward(network: Network, attributes: dict[str, str], readable: bool) -> list[str]:
    names: dict[fx.Node, str] = {}
    statements = [node for node in network.graph.nodes if node.op not in ("get_attr", "placeholder")]
    following = dict(pairwise(statements))
    taken, lines = {*_RESERVED, *keyword.kwlist}, []
    for node in network.graph.nodes:
        if node.op == "placeholder":
            names[node] = "image"
        elif node.op == "get_attr":
            names[node] = f"self.{attributes[str(node.target)]}"
        elif node.op == "output":
            lines.append(f"return {_literal(node.args[0], names)}")
        else:
            if node.op == "call_module":
                value = f"self.{attributes[str(node.target)]}({_literal(node.args[0], names)})"
            else:
                value = _call(node, names, readable)
            # What only the next line needs is x; the rest has a name.
            if set(node.users) == {following[node]}:
                names[node] = "x"
            else:
                names[node] = name = f"{node.name}_" if node.name in taken else node.name
                taken.add(name)
            lines.append(f"{names[node]} = {value}")
    return lines


def _call(node: fx.Node, names: dict[fx.Node, str], readable: bool) -> str:
    parts = [_literal(value, names) for value in node.args]
    options = {key: _literal(value, names) for key, value in node.kwargs.items()}
    if node.target is operator.getitem:
        return f"{parts[0]}[{parts[1]}]"
    name = schema_name(node)
    if not name.startswith("aten::"):
        raise ModelError(f"the network calls {node.target}, which cannot be written as Python")
    if readable and (written := _readable(node, name, parts, options)):
        return written
    return f"{str(node.target).replace('aten.', 'ops.', 1)}({_joined(parts, options)})"


def _readable(node: fx.Node, name: str, parts: list[str], options: dict[str, str]) -> str | None:
    if name in _FUNCTIONS:
        return f"{_FUNCTIONS[name]}({_joined(parts, options)})"
    if name in _INFIX and len(parts) == 2 and not options:
        return f"{parts[0]} {_INFIX[name]} {parts[1]}"
    if name in _METHODS:
        sizes = parts[1:]
        if _METHODS[name] == "*" and len(parts) > 1 and isinstance(node.args[1], list | tuple):
            sizes = [parts[1][1:-1].removesuffix(","), *parts[2:]]
        method = "reshape" if name == "aten::_unsafe_view" else name.removeprefix("aten::")
        return f"{parts[0]}.{method}({_joined(sizes, options)})"
    if name in _RESIZE and str(node.target).endswith(".vec") and not options:
        size, factors = parts[1], parts[3] if len(parts) == 4 else parts[2]
        asked = f"size={size}" if size != "None" else f"scale_factor={factors}"
        corners = f", align_corners={parts[2]}" if len(parts) == 4 else ""
        return f'F.interpolate({parts[0]}, {asked}, mode="{_RESIZE[name]}"{corners})'
    if name in _RESIZE and len(parts) == (2 if "nearest" in _RESIZE[name] else 3) and not options:
        corners = f", align_corners={parts[2]}" if len(parts) == 3 else ""
        return f'F.interpolate({parts[0]}, size={parts[1]}, mode="{_RESIZE[name]}"{corners})'
    if name == "aten::slice" and not options:
        dimension, start, end, *step = node.args[1:] if len(parts) > 3 else (-1, 0, 0)
        if isinstance(dimension, int) and dimension >= 0 and step in ([], [1]):
            return f"{parts[0]}[{':, ' * dimension}{start or ''}:{'' if end == sys.maxsize else end}]"
    return None


def _joined(parts: list[str], options: dict[str, str]) -> str:
    return ", ".join([*parts, *(f"{key}={value}" for key, value in options.items())])


def _literal(value: Any, names: dict[fx.Node, str]) -> str:
    if isinstance(value, fx.Node):
        return names[value]
    if isinstance(value, tuple):
        return f"({', '.join(_literal(part, names) for part in value)}{',' * (len(value) == 1)})"
    if isinstance(value, list):
        return f"[{', '.join(_literal(part, names) for part in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(k, names)}: {_literal(v, names)}" for k, v in value.items()) + "}"
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else f'float("{value}")'
    if isinstance(value, torch.device):
        return f'torch.device("{value}")'
    if value is None or isinstance(value, bool | int | torch.dtype | torch.memory_format | torch.layout):
        return repr(value)
    raise ModelError(f"a {type(value).__qualname__} in the network cannot be written as Python")
