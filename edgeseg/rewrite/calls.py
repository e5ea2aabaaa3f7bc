"""Convolutions, linear layers and batch norms among ATen calls, and the modules that compute the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from edgeseg.rewrite.constants import Constants
from edgeseg.rewrite.tracing import arguments_of, schema_name

_CONVOLUTIONS = {
    *("aten::convolution", "aten::_convolution", "aten::conv1d", "aten::conv2d", "aten::conv3d"),
    *("aten::conv_transpose1d", "aten::conv_transpose2d", "aten::conv_transpose3d"),
}
_NORMS = {"aten::batch_norm", "aten::_native_batch_norm_legit_no_training"}


@dataclass(frozen=True, slots=True)
class Call:
    """A layer as ATen calls it, with its arguments by name."""

    kind: type[nn.Module]
    node: fx.Node  # whose result is the layer's
    input: fx.Node
    weight: fx.Node | None
    bias: fx.Node | None
    options: tuple[tuple[str, Any], ...]  # what the module's constructor takes besides the channels
    statistics: tuple[fx.Node, ...] = ()
    before: tuple[int, ...] = ()  # zeros to put around the input first: left, right, top, bottom

    @property
    def parts(self) -> tuple[fx.Node, ...]:
        return tuple(part for part in (self.weight, self.bias, *self.statistics) if part is not None)


def call_of(node: fx.Node, constants: Constants) -> Call | str | None:
    """The layer that `node` calls; or why it must stay as it is; None if it is no layer."""
    name = schema_name(node)
    if name not in (*_CONVOLUTIONS, *_NORMS, "aten::linear"):
        return None
    arguments = arguments_of(node)
    source, weight, bias = arguments["input"], arguments["weight"], arguments["bias"]
    if constants.is_constant(node):
        return None
    tensors = [part for part in (weight, bias) if part is not None]
    if not all(constants.is_constant(part) for part in tensors) or constants.is_constant(source):
        return "its weights are computed from the image"
    if any(constants.value(part).dtype != torch.float32 for part in tensors):
        return f"its weights are {constants.value(tensors[0]).dtype}, not float32"
    shape = source.meta["shape"]
    if name in _CONVOLUTIONS:
        dimensions = constants.value(weight).dim() - 2
        if dimensions != 2:
            return f"it is a convolution in {dimensions} dimension{'s' * (dimensions > 1)}"
        return _convolution(name, node, arguments) if len(shape) == 4 else "its input has no batch dimension"
    if name == "aten::linear":
        return Call(nn.Linear, node, source, weight, bias, ()) if constants.value(weight).dim() == 2 else None
    statistics = arguments["running_mean"], arguments["running_var"]
    if arguments.get("training") or None in statistics or len(shape) != 4:
        return None
    if not all(constants.is_constant(part) for part in statistics):
        return None
    result = node
    if name == "aten::_native_batch_norm_legit_no_training":  # it returns more than the result
        result = next(iter(node.users))
        if len(node.users) != 1 or result.args[1:] != (0,):
            return None
    return Call(nn.BatchNorm2d, result, source, weight, bias, (("eps", float(arguments["eps"])),), statistics)


def _convolution(name: str, node: fx.Node, arguments: dict[str, Any]) -> Call:
    source, weight, bias = arguments["input"], arguments["weight"], arguments["bias"]
    transposed = name == "aten::conv_transpose2d" or bool(arguments.get("transposed"))
    dilation, padding, around = _pair(arguments["dilation"]), arguments["padding"], (0, 0, 0, 0)
    if padding == "valid":
        padding = (0, 0)
    elif padding == "same":
        kernel = weight.meta["shape"][2:]
        total = tuple(dilation[axis] * (kernel[axis] - 1) for axis in (0, 1))
        padding = (total[0] // 2, total[1] // 2)
        around = (0, total[1] % 2, 0, total[0] % 2)  # what is odd goes to the right and to the bottom
    options: list[tuple[str, Any]] = [
        ("stride", _pair(arguments["stride"])),
        ("padding", _pair(padding)),
        ("dilation", dilation),
        ("groups", int(arguments["groups"])),
    ]
    if transposed:
        options.append(("output_padding", _pair(arguments["output_padding"])))
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    return Call(kind, node, source, weight, bias, tuple(options), before=around if any(around) else ())


def _pair(value: Any) -> tuple[int, int]:
    return (int(value[0]), int(value[-1]))


def module_of(call: Call, constants: Constants) -> nn.Module:
    """The module, with copies of the weights."""
    options = dict(call.options)
    weight = constants.value(call.weight) if call.weight is not None else None
    bias = constants.value(call.bias) if call.bias is not None else None
    made: nn.BatchNorm2d | nn.Linear | nn.Conv2d | nn.ConvTranspose2d
    if call.kind is nn.BatchNorm2d:
        mean, variance = (constants.value(part).detach().clone() for part in call.statistics)
        made = nn.BatchNorm2d(len(mean), eps=options["eps"])
        made.running_mean, made.running_var = mean, variance
    else:
        assert weight is not None
        inputs, outputs = weight.shape[1], weight.shape[0]
        kernel = (int(weight.shape[-2]), int(weight.shape[-1]))
        if call.kind is nn.Linear:
            made = nn.Linear(inputs, outputs, bias is not None)
        elif call.kind is nn.ConvTranspose2d:
            groups = options["groups"]
            made = nn.ConvTranspose2d(outputs, inputs * groups, kernel, bias=bias is not None, **options)
        else:
            made = nn.Conv2d(inputs * options["groups"], outputs, kernel, bias=bias is not None, **options)
    with torch.no_grad():
        if weight is not None:
            made.weight.copy_(weight)
        if made.bias is not None and bias is not None:
            made.bias.copy_(bias)
    return made.eval()
