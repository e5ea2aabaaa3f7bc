"""Runtime and ICudaEngine: the bytes of an engine back as one, where they belong to this release."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from tests.tensorrt.double import faults
from tests.tensorrt.double.context import Context, RuntimeConfig
from tests.tensorrt.double.graphs import Tensors, with_shapes
from tests.tensorrt.double.inspector import Inspector, layers_of
from tests.tensorrt.double.network import report
from tests.tensorrt.double.plan import MAGIC, Plan

if TYPE_CHECKING:
    from tests.tensorrt.double.classes import Library


class Runtime:
    """Behind Runtime."""

    def __init__(self, library: Library, logger: Any) -> None:
        self.library, self.logger = library, logger
        self.engine_host_code_allowed = False
        self.DLA_core = -1
        self.num_DLA_cores = 0 if library.rtx else faults.dla_cores()
        self.max_threads = 1

    def deserialize_cuda_engine(self, serialized: bytes) -> CudaEngine | None:
        faults.crash("deserialize")
        plan = Plan.from_bytes(serialized)
        if plan is None:
            what = "Version tag" if serialized.startswith(MAGIC[:4]) else "Magic tag"
            return self._refused(f"Serialization assertion failed. {what} does not match, or the engine is damaged.")
        here = self.library.surface
        if not plan.opens_in(here.module, here.version):
            return self._refused(
                "Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed.Version tag does not match. "
                f"Note: Current Version: {here.version}, Serialized Engine Version: {plan.version}"
            )
        if plan.version != here.version and not self.engine_host_code_allowed:
            return self._refused("Cannot deserialize engine with lean runtime: engine host code is not allowed.")
        if plan.dla >= 0 and not 0 <= self.DLA_core < self.num_DLA_cores:
            return self._refused(f"Cannot deserialize DLA engine: DLA core {self.DLA_core} is not there.")
        return CudaEngine(self, plan)

    def _refused(self, text: str) -> CudaEngine | None:
        head = "IRuntime::deserializeCudaEngine: " if self.library.rtx or self.library.version >= (10,) else ""
        report(self.library, self.logger, "ERROR", f"{head}Error Code 1: Serialization ({text})")
        return None


class CudaEngine:
    """Behind ICudaEngine."""

    def __init__(self, runtime: Runtime, plan: Plan) -> None:
        import onnx

        self.library, self.logger, self.plan = runtime.library, runtime.logger, plan
        self.model = onnx.ModelProto.FromString(plan.graph)
        self.tensors = Tensors(self.model)
        self.inputs = list(self.tensors.inputs)
        self.outputs = [value.name for value in self.model.graph.output]
        self.name = "Unnamed Network 0"
        self.num_optimization_profiles = max(1, len(plan.profiles))
        self.device_memory_size = self.device_memory_size_v2 = 1 << 20
        self.refittable = False
        self._sizes: dict[tuple[Any, ...], dict[str, tuple[int, ...]]] = {}

    @cached_property
    def session(self) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Its optimiser gives other masks for Q/DQ with FP16 scales (seen with 1.32); as written, they are right.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        return onnxruntime.InferenceSession(self.plan.graph, options, providers=["CPUExecutionProvider"])

    @property
    def num_io_tensors(self) -> int:
        return len(self.inputs) + len(self.outputs)

    @property
    def num_layers(self) -> int:
        return len(layers_of(self.plan))

    @property
    def hardware_compatibility_level(self) -> str:
        return self.plan.hardware

    @property
    def profiling_verbosity(self) -> str:
        return self.plan.verbosity

    def get_tensor_name(self, index: int) -> str | None:
        names = [*self.inputs, *self.outputs]
        return names[index] if 0 <= index < len(names) else None

    def get_tensor_mode(self, name: str) -> str:
        return "INPUT" if name in self.inputs else "OUTPUT" if name in self.outputs else "NONE"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name not in (*self.inputs, *self.outputs):
            self.complain("ICudaEngine::getTensorShape", f"Given invalid tensor name: {name}.")
            return ()
        return self.tensors.of(name)[0]

    def get_tensor_dtype(self, name: str) -> str:
        return self.tensors.dtype(name)

    def get_tensor_location(self, name: str) -> str:
        return "DEVICE"

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        if not 0 <= profile_index < len(self.plan.profiles):
            shape = self.get_tensor_shape(name)
            return [shape] * 3 if profile_index == 0 and -1 not in shape else []
        return list(self.plan.profiles[profile_index].get(name, ()))

    def create_execution_context(self, *told: Any) -> Context:
        return Context(self, next((value for value in told if isinstance(value, RuntimeConfig)), None))

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig()

    def create_engine_inspector(self) -> Inspector:
        return Inspector(self.library, self.plan)

    def serialize(self) -> bytes:
        return self.plan.to_bytes()

    def output_shapes(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """What the outputs are for these inputs."""
        key = tuple(sorted(shapes.items()))
        if key not in self._sizes:
            tensors = Tensors(with_shapes(self.model, shapes))
            self._sizes[key] = {name: tensors.of(name)[0] for name in self.outputs}
        return self._sizes[key]

    def complain(self, where: str, text: str) -> None:
        report(
            self.library,
            self.logger,
            "ERROR",
            f"{where}: Error Code 3: API Usage Error (Parameter check failed, {text})",
        )
