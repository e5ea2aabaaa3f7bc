"""Which node of a fused graph is the first that computes something else than the network does.

Every tensor of the graph is held against the network's own intermediate values: by name where the exporter kept the
names of torch.export's nodes (or the graph is a foreign one, compared with itself before fusing), else against all
values of the same shape, of which one must match. Closeness is the signal-to-noise ratio; float32 rounding leaves over
100 dB, a wrong weight or mode seldom over 30.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeseg.errors import ModelError
from edgeseg.export import graph as g
from edgeseg.export import reference as ref
from edgeseg.export.foreign import layout_of, settle
from edgeseg.export.network import INPUT, captured, quiet, scores_only
from edgeseg.export.outputs import pick
from edgeseg.types import LOGITS, MASK, ModelSpec, Onnx, OnnxModel, Pixels, Torch

if TYPE_CHECKING:
    import onnx
    import torch

FLOOR_DB = 40.0


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first node whose output differs, in the graph's order."""

    node: str  # its name in the ONNX graph
    op: str
    tensor: str  # the name of its output
    snr_db: float  # of the network's value over the difference
    module: str | None  # where in the torch network, if that is known
    uncompared: tuple[str, ...]  # nodes just before it that have no counterpart: the fault may be in these

    def __str__(self) -> str:
        place = f" (torch module {self.module})" if self.module else ""
        more = ", …" if len(self.uncompared) > 4 else ""
        doubt = f"; not compared, just before it: {', '.join(self.uncompared[:4])}{more}" if self.uncompared else ""
        ratio = "nothing in common" if math.isinf(self.snr_db) else f"signal to noise {self.snr_db:.0f} dB"
        return f"The first node that differs is {self.node}, {self.op}{place}: {ratio}{doubt}."


@dataclass(frozen=True, slots=True)
class _Values:
    """Intermediate values of the network for one frame, and the torch modules that made them."""

    tensors: Mapping[str, NDArray[Any]]
    modules: Mapping[str, str]


def first_divergence(
    model: Torch | Onnx, fused: OnnxModel, frame: Pixels, *, floor_db: float = FLOOR_DB
) -> Divergence | None:
    """The first node of `fused` whose output on `frame` is less than `floor_db` close to the network's; None if none.

    `frame` is (H, W, 3) of the spec's size. Takes a run of the network with all its values kept in memory.
    """
    spec = fused.spec
    proto = g.parse(fused.graph)
    found = g.run_all(proto, np.ascontiguousarray(frame[np.newaxis]))
    if isinstance(model, Onnx):
        wanted = _onnx_values(model, spec, frame)
    else:
        # The tracing exporter writes paths of modules; such a graph has no names of torch.export's to compare by.
        wanted = _torch_values(model, spec, frame, traced=any(name.startswith("/") for name in found))
    closeness = {name: _closeness(name, value, wanted.tensors) for name, value in found.items() if value.ndim >= 3}
    named = {name for name, (by_name, _) in closeness.items() if by_name}
    good = {name for name, (_, ratio) in closeness.items() if ratio >= floor_db}
    # The decision hides much of what came before it, so that a good mask excuses nothing.
    excused = good | _ancestors(proto, {name for name in good if name != MASK and not name.startswith("edgeseg/")})

    suspects = [
        (node, name) for node in proto.graph.node for name in node.output if name in closeness and name not in excused
    ]
    if not suspects:
        return None
    certain = [(node, name) for node, name in suspects if name in named]
    inside = named - {INPUT, LOGITS, MASK}
    # Where nodes have counterparts by name, one that has none proves nothing; where none has, all are held by value.
    trust_names = certain and (inside or certain[0][1] == INPUT)
    node, name = (certain if trust_names else suspects)[0]
    near = _unproven_before(proto, node, good, named)
    return Divergence(node.name or name, node.op_type, name, closeness[name][1], wanted.modules.get(name), near)


def _closeness(name: str, value: NDArray[Any], wanted: Mapping[str, NDArray[Any]]) -> tuple[bool, float]:
    """Whether there is a counterpart by name, and the decibels to it, or else to the closest of the same shape."""
    if name in wanted:
        return True, g.snr_db(wanted[name], value)
    same = (g.snr_db(other, value) for other in wanted.values() if other.shape == value.shape)
    return False, max(same, default=-math.inf)


def _ancestors(proto: onnx.ModelProto, names: set[str]) -> set[str]:
    """All tensors that one of `names` is computed from: what a good value was made of is good enough."""
    reached = set(names)
    for node in reversed(proto.graph.node):
        if reached & set(node.output):
            reached |= set(node.input)
    return reached


def _unproven_before(proto: onnx.ModelProto, node: onnx.NodeProto, good: set[str], named: set[str]) -> tuple[str, ...]:
    """The nodes from which `node` is reached without passing a compared value, in the graph's order."""
    open_ends, unproven = set(node.input), []
    before = list(proto.graph.node)[: list(proto.graph.node).index(node)]
    for earlier in reversed(before):
        made = set(earlier.output) & open_ends
        if made and not made & (good | named) and earlier.op_type not in ("Constant", "Shape"):
            unproven.append(earlier.name or earlier.output[0])
            open_ends |= set(earlier.input)
    return tuple(unproven[::-1])


def _torch_values(model: Torch, spec: ModelSpec, frame: Pixels, *, traced: bool) -> _Values:
    import torch

    image = ref.torch_input(frame, spec)
    with torch.no_grad(), quiet():
        returned = model.module(image)
        inner = None
        if not traced:
            try:
                inner = _program_values(model, spec, image, wrap=not isinstance(returned, torch.Tensor))
            except Exception as error:  # torch.export refuses some networks; they were exported by tracing
                if model.exported is not None:
                    raise ModelError(f"the exported program cannot be run node by node: {error}") from error
        inner = inner or _traced_values(model.module, spec, image)
        logits = ref.torch_logits(pick(returned, spec.output.index)[0], spec)
        mask = ref.torch_mask(logits, spec)
    outside = {INPUT: image.numpy(), LOGITS: logits.numpy(), MASK: mask.numpy()}
    return _Values({**inner.tensors, **outside}, inner.modules)


def _program_values(model: Torch, spec: ModelSpec, image: torch.Tensor, *, wrap: bool) -> _Values:
    """The values of the program that the ONNX exporter works from: its tensors carry the names of these nodes."""
    import torch

    module = scores_only(model.module, spec.output.index) if wrap and model.exported is None else model.module
    _, program = captured(model, module, image.numpy(), opset=None, dynamic=False)
    tensors: dict[str, NDArray[Any]] = {}
    modules: dict[str, str] = {}

    class Keep(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            value = super().run_node(n)
            if n.op == "call_function" and isinstance(value, torch.Tensor):
                tensors[n.name] = value.numpy()
                stack = list(n.meta.get("nn_module_stack", {}).values())
                if stack and stack[-1][0]:
                    modules[n.name] = str(stack[-1][0]).removeprefix("L['self'].").removeprefix("network.")
            return value

    signature = program.graph_signature
    weights = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    constants = signature.inputs_to_lifted_tensor_constants
    arguments = []
    for node in program.graph.nodes:
        if node.op != "placeholder":
            continue
        if node.name in weights:
            target = weights[node.name]
            held = program.state_dict if target in program.state_dict else program.constants
            arguments.append(held[target])
        else:
            arguments.append(program.constants[constants[node.name]] if node.name in constants else image)
    Keep(program.graph_module).run(*arguments)
    return _Values(tensors, modules)


def _traced_values(network: torch.nn.Module, spec: ModelSpec, image: torch.Tensor) -> _Values:
    """The values of a TorchScript, whose graph is made to return all of them. ONNX keeps none of their names."""
    import torch

    script: Any = network
    if not isinstance(network, torch.jit.ScriptModule):
        script = torch.jit.trace(network, image, strict=False)  # type: ignore[no-untyped-call]
    graph = torch.jit.freeze(script.eval()).graph.copy()
    values, modules = [], {}
    for node in graph.nodes():
        for value in node.outputs():
            if node.kind() != "prim::Constant" and value.type().isSubtypeOf(torch._C.TensorType.get()):
                modules[value.debugName()] = node.scopeName().rpartition("::")[2]
                values.append(value)
    names = [value.debugName() for value in values]
    whole = graph.create("prim::TupleConstruct", values)
    whole.output().setType(torch._C.TupleType([torch._C.TensorType.get()] * len(values)))
    graph.appendNode(whole)
    for _ in list(graph.outputs()):
        graph.eraseOutput(0)
    graph.registerOutput(whole.output())
    graph.eraseInput(0)  # the module itself, all of which freezing made constants
    made = torch._C._create_function_from_graph("values", graph)(image)
    return _Values(
        {f"torch:{name}": value.numpy() for name, value in zip(names, made, strict=True)},
        {f"torch:{name}": module for name, module in modules.items()},
    )


def _onnx_values(model: Onnx, spec: ModelSpec, frame: Pixels) -> _Values:
    """The values of a foreign graph as it came, but for the size of its input."""
    proto = settle(g.parse(model.graph), spec, dynamic=False, notes=[])
    image = ref.onnx_input(proto, frame, spec)
    tensors = g.run_all(proto, image)
    scores = tensors[proto.graph.output[0].name]
    logits = ref.numpy_logits(scores, spec, layout_of(proto) == "NHWC")
    outside = {proto.graph.input[0].name: image, LOGITS: logits, MASK: ref.numpy_mask(logits, spec)}
    return _Values({**tensors, **outside}, {})
