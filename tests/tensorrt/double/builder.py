"""Builder: what makes a build fail, and how it tells of its progress."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tests.tensorrt.double import faults
from tests.tensorrt.double.config import Config, Profile
from tests.tensorrt.double.graphs import producers
from tests.tensorrt.double.network import Network, report
from tests.tensorrt.double.plan import Plan

if TYPE_CHECKING:
    from tests.tensorrt.double.classes import Library

_LAYERS = 30  # steps of the longest phase, as the real builder tells


class Builder:
    """Behind Builder."""

    def __init__(self, library: Library, logger: Any) -> None:
        self.library, self.logger = library, logger
        self.max_threads = 1
        self.num_DLA_cores = 0 if library.rtx else faults.dla_cores()
        self.max_DLA_batch_size = 4096
        self.platform_has_fast_fp16 = self.platform_has_fast_int8 = self.platform_has_tf32 = True

    def create_network(self, flags: int = 0) -> Network:
        return Network(self.library, self.logger, flags)

    def create_builder_config(self) -> Config:
        return Config(self.library, self.logger)

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def reset(self) -> None:
        self.max_threads = 1

    def is_network_supported(self, network: Network, config: Config) -> bool:
        return not self._refused(network, config)

    def build_engine(self, network: Network, config: Config) -> Any:
        from tests.tensorrt.double.engine import Runtime

        built = self.build_serialized_network(network, config)
        return None if built is None else Runtime(self.library, self.logger).deserialize_cuda_engine(built)

    def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        faults.crash("build")
        monitor = getattr(config, "progress_monitor", None)
        if self._refused(network, config):
            return None
        assert network.model is not None
        for phase in _phases(monitor, network.num_layers):
            if phase == "cancelled":
                self._error("Error Code 7: BuildCanceled (Build canceled by user)")
                return None
        if asked := faults.asked("ERROR"):
            self._error(asked)
            return None
        if (name := _without_implementation(network)) is not None:
            self._error(f"Error Code 10: Internal Error (Could not find any implementation for node {name}.)")
            return None
        if config.cache is not None:
            config.cache.add(network)
        return Plan.of(self.library, network, config).to_bytes()

    def _error(self, text: str) -> None:
        head = "IBuilder::buildSerializedNetwork: " if self.library.rtx or self.library.version >= (10,) else ""
        report(self.library, self.logger, "ERROR", head + text)

    def _refused(self, network: Network, config: Config) -> bool:
        problem = next(_problems(self.library, network, config), None)
        if problem is not None:
            self._error(problem)
        return problem is not None


def _problems(library: Library, network: Network, config: Config) -> Iterator[str]:
    """What a builder says before it begins."""
    if network.model is None or not network.outputs:
        yield "Error Code 4: API Usage Error (Network must have at least one output. In validate)"
        return
    if network.strongly_typed:
        for flag in ("FP16", "BF16", "INT8", "FP8"):
            if config.has(flag):
                yield (
                    "Error Code 3: API Usage Error (Parameter check failed, condition: "
                    f"!config.getFlag(BuilderFlag::k{flag}). )"
                )
        if any(layer.asked() for layer in network.layers):
            yield (
                "Error Code 4: API Usage Error (Precision and output type constraints cannot be set on a layer of a "
                "strongly typed network.)"
            )
    else:
        for flag, dtype, word in (("INT8", "INT8", "int8"), ("FP16", "HALF", "fp16"), ("BF16", "BF16", "bf16")):
            seen = any(dtype in [t.dtype_name() for t in layer.outputs] + layer.asked() for layer in network.layers)
            if seen and not config.has(flag):
                yield (
                    f"Error Code 4: Internal Error ({word} precision has been set for a layer or layer output, but "
                    f"{word} is not configured in the builder)"
                )
    if config.device() == "DLA" and not library.rtx:  # TensorRT-RTX takes the setting, and builds for the GPU
        cores = faults.dla_cores()
        if not 0 <= config.DLA_core < cores:
            yield (
                f"Error Code 3: API Usage Error (DLA core {config.DLA_core} was asked for, this platform has {cores} "
                "DLA cores. Check that DLA is supported.)"
            )
        elif not config.has("GPU_FALLBACK"):
            odd = next((la for la in network.layers if la.type not in ("CONVOLUTION", "ACTIVATION", "POOLING")), None)
            if odd is not None:
                yield (
                    f"Error Code 9: Internal Error (Default DLA is enabled but layer {odd.name} is not supported on "
                    "DLA and falling back to GPU is not enabled.)"
                )
    dynamic = [tensor for tensor in network.inputs if -1 in tensor.shape]
    if dynamic and not config.profiles:
        yield (
            "Error Code 4: API Usage Error (Network has dynamic or shape inputs, but no optimization profile has been "
            "defined. In validate)"
        )
    for tensor in dynamic:
        for number, profile in enumerate(config.profiles):
            ranges = profile.shapes.get(tensor.name)
            if ranges is None:
                yield (
                    f"Error Code 4: API Usage Error (Dynamic input tensor {tensor.name} is missing dimensions in "
                    f"profile {number}.)"
                )
                return
            if len(ranges[0]) != len(tensor.shape):
                yield (
                    f"Error Code 4: API Usage Error (Dynamic-shaped input tensor {tensor.name} has {len(tensor.shape)} "
                    f"dimensions but profile {number} has {len(ranges[0])} dimensions.)"
                )
                return
            for axis, length in enumerate(tensor.shape):
                told = [shape[axis] for shape in ranges]
                if length != -1 and told != [length] * 3:
                    yield (
                        f"Error Code 4: API Usage Error (Dimension mismatch for tensor {tensor.name} and profile "
                        f"{number}. At dimension axis {axis}, profile has min={told[0]}, opt={told[1]}, max={told[2]} "
                        f"but tensor has {length}.)"
                    )


def _without_implementation(network: Network) -> str | None:
    """The node that a test wants no kernel for, while it reads a DequantizeLinear or a tensor of FP16."""
    assert network.model is not None
    made = producers(network.model)
    for node, layer in zip(network.model.graph.node, network.layers, strict=True):
        always = faults.unbuildable().get(node.name)
        behind = any(made[name].op_type == "DequantizeLinear" for name in node.input if name in made)
        half = any(tensor.dtype_name() == "HALF" for tensor in layer.inputs)
        if always is not None and (always or behind or half):
            return str(node.name)
    return None


def _phases(monitor: Any, layers: int) -> Iterator[str]:
    """Report the phases of a build and their steps; yields "cancelled" and stops where a step said so."""
    phases = (("Cloning network graph", layers), ("Optimizing graph", _LAYERS), ("Timing graph nodes", layers))
    whole = "Building engine"
    if monitor is not None:
        monitor.phase_start(whole, None, len(phases))
    go = True
    for number, (name, steps) in enumerate(phases):
        if monitor is not None:
            monitor.phase_start(name, whole, steps)
        for step in range(steps):
            faults.dawdle()
            if monitor is not None and not monitor.step_complete(name, step):
                go = False
                break
        if monitor is not None:
            monitor.phase_finish(name)
            go = go and bool(monitor.step_complete(whole, number))
        if not go:
            break
        yield name
    if monitor is not None:
        monitor.phase_finish(whole)
    if not go:
        yield "cancelled"
