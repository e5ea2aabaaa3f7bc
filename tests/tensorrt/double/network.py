"""INetworkDefinition, its layers and tensors: an ONNX graph as the parser left it, a layer for each node."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.tensorrt.double.graphs import KINDS, Tensors

if TYPE_CHECKING:
    import onnx

    from tests.tensorrt.double.classes import Library


class Network:
    """Behind INetworkDefinition."""

    def __init__(self, library: Library, logger: Any, flags: int) -> None:
        self.library, self.logger, self.flags = library, logger, flags
        self.name = "Unnamed Network 0"
        self.model: onnx.ModelProto | None = None
        self.layers: list[Layer] = []
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []

    @property
    def strongly_typed(self) -> bool:
        if self.library.rtx or self.library.version >= (11,):
            return True
        return self._flag("STRONGLY_TYPED")

    @property
    def explicit_batch(self) -> bool:
        return self.library.version >= (10,) or self.library.rtx or self._flag("EXPLICIT_BATCH")

    @property
    def has_implicit_batch_dimension(self) -> bool:
        return not self.explicit_batch

    def _flag(self, name: str) -> bool:
        known = self.library.surface.classes["NetworkDefinitionCreationFlag"].enum or {}
        return name in known and bool(self.flags >> known[name] & 1)

    def get_flag(self, flag: Any) -> bool:
        return self.strongly_typed if flag.name == "STRONGLY_TYPED" else bool(self.flags >> flag.value & 1)

    def fill(self, model: onnx.ModelProto, tensors: Tensors) -> None:
        """Take the whole of a graph that the parser found nothing against."""
        self.model = model
        made = {name: Tensor(name, *tensors.of(name)) for name in tensors.names()}
        for tensor in made.values():  # before 10.0 the parser narrows 64-bit integers
            if not self.library.has("DataType", tensor.dtype):
                tensor.dtype = "INT32"
        self.inputs = [made[name] for name in tensors.inputs]
        self.outputs = [made[value.name] for value in model.graph.output]
        for value in self.inputs:
            value.is_network_input = True
        for value in self.outputs:
            value.is_network_output = True
        for node in model.graph.node:  # INT8 is what quantizes to, whichever type the zero point has
            if node.op_type == "QuantizeLinear" and made[node.output[0]].dtype == "UINT8":
                made[node.output[0]].dtype = "INT8"
        self.layers = [
            Layer(
                node.name,
                self._kind(node.op_type),
                [made[name] for name in node.input if name in made and not tensors.folded(node, name)],
                [made[name] for name in node.output if name in made],
                metadata=f"[ONNX Layer: {node.name}]",
            )
            for node in model.graph.node
        ]

    def _kind(self, operator: str) -> str:
        kind = KINDS.get(operator, "IDENTITY")
        return kind if self.library.has("LayerType", kind) else "IDENTITY"

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    @property
    def num_outputs(self) -> int:
        return len(self.outputs)

    def get_layer(self, index: int) -> Layer | None:
        return self.layers[index] if self._within(len(self.layers), index, "layer") else None

    def get_input(self, index: int) -> Tensor | None:
        return self.inputs[index] if self._within(len(self.inputs), index, "network input") else None

    def get_output(self, index: int) -> Tensor | None:
        return self.outputs[index] if self._within(len(self.outputs), index, "network output") else None

    def _within(self, count: int, index: int, what: str) -> bool:
        if not 0 <= index < count:
            text = f"Error Code 3: API Usage Error (Invalid {what} index: {index}.)"
            report(self.library, self.logger, "ERROR", text)
        return 0 <= index < count


@dataclass(eq=False)
class Tensor:
    """Behind ITensor."""

    name: str
    shape: tuple[int, ...]  # -1 where dynamic
    dtype: Any  # the name of a member of DataType; what a caller assigns is the member
    is_network_input: bool = False
    is_network_output: bool = False
    is_shape_tensor: bool = False
    is_execution_tensor: bool = True
    wrapper: Any = None

    def dtype_name(self) -> str:
        return self.dtype if isinstance(self.dtype, str) else str(self.dtype.name)

    def set_dynamic_range(self, low: float, high: float) -> bool:
        self.dynamic_range = (low, high)
        return low < high


@dataclass(eq=False)
class Layer:
    """Behind ILayer: one ONNX node."""

    name: str
    type: str
    inputs: list[Tensor]
    outputs: list[Tensor]
    metadata: str = ""
    precision: Any = "FLOAT"
    output_types: dict[int, Any] = field(default_factory=dict)
    wrapper: Any = None

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        if name == "precision":
            object.__setattr__(self, "precision_is_set", not isinstance(value, str))

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    @property
    def num_outputs(self) -> int:
        return len(self.outputs)

    def get_input(self, index: int) -> Tensor | None:
        return self.inputs[index] if 0 <= index < len(self.inputs) else None

    def get_output(self, index: int) -> Tensor | None:
        return self.outputs[index] if 0 <= index < len(self.outputs) else None

    def reset_precision(self) -> None:
        self.precision = "FLOAT"

    def set_output_type(self, index: int, dtype: Any) -> None:
        self.output_types[index] = dtype

    def get_output_type(self, index: int) -> Any:
        return self.output_types.get(index) or self.outputs[index].dtype

    def output_type_is_set(self, index: int) -> bool:
        return index in self.output_types

    def reset_output_type(self, index: int) -> None:
        self.output_types.pop(index, None)

    def asked(self) -> list[str]:
        """Names of the precisions that the caller asked of this layer."""
        told = [self.precision, *self.output_types.values()]
        return [value.name for value in told if not isinstance(value, str)]


def report(library: Library, logger: Any, severity: str, text: str) -> None:
    """Tell the caller's logger, as the library does; what its `log` raises does not come through."""
    try:
        logger.log(library.constant(f"ILogger.Severity.{severity}"), text)
    except Exception as error:
        print(f"[ERROR] Exception caught in log(): {error}")
