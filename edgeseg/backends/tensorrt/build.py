"""ONNX graph → serialized engine: parse, configure, build. The same calls for TensorRT 8.5 to 11 and TensorRT-RTX.

Precision comes from the graph: the network is strongly typed where the library knows that. Where it does not (8.x), the
builder's flags allow what the graph asks for, and layers that the graph keeps in FP32 are held there.
NVIDIA: "TensorRT Developer Guide", sections on strongly typed networks, explicit quantization and the ONNX parser.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgeseg.backends.tensorrt.library import logger, network_flags, strongly_typed, version_of
from edgeseg.backends.tensorrt.options import Options
from edgeseg.errors import BadInput, ModelError
from edgeseg.types import FRAME, Precision

EXTERNAL_TACTICS = ("CUBLAS", "CUBLAS_LT", "CUDNN")  # the sources that libraries other than TensorRT bring
Progress = Callable[[str, int, int], bool]  # phase, steps done, steps in all → whether to go on


class BuildFailed(ModelError):
    """The library refused a graph. `nodes` are the names in its message, of ONNX nodes where the parser kept them."""

    def __init__(self, message: str, nodes: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.nodes = nodes


class BuildCancelled(Exception):
    """Somebody asked for the build to end."""


@dataclass(frozen=True, slots=True)
class Product:
    """What a build gives."""

    engine: bytes
    timings: bytes  # the timing cache after the build; empty where there is none
    warnings: tuple[str, ...]


def build(
    trt: Any,
    graph: bytes,
    precision: Precision,
    options: Options,
    *,
    timings: bytes = b"",
    on_progress: Progress = lambda phase, done, total: True,
    capability: tuple[int, int] | None = None,
) -> Product:
    """Build a serialized engine. `timings`: a timing cache of earlier builds. `capability`: TensorRT-RTX only.

    Raises BuildFailed where the library refuses the graph, BadInput for options that this version does not have,
    BuildCancelled when `on_progress` answered False.
    """
    refused = refusal(trt, options)
    if refused:
        raise BadInput(refused)
    said: list[tuple[str, str]] = []

    def heard(severity: str, text: str) -> None:
        if severity in ("error", "internal_error", "warning"):  # what is verbose has a line for every tactic
            said.append((severity, text))

    log = logger(trt, heard)
    builder = trt.Builder(log)
    network = builder.create_network(network_flags(trt))
    _parse(trt, network, log, graph, said)
    config = builder.create_builder_config()
    _configure(trt, builder, network, config, precision, options)
    if capability is not None:
        _aim(trt, config, capability)
    cache = None
    if hasattr(config, "create_timing_cache") and capability is None:
        cache = config.create_timing_cache(timings)
        if cache is None or not config.set_timing_cache(cache, False):  # of another version or GPU: begin anew
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, False)
    monitor = _monitor(trt, on_progress) if hasattr(config, "progress_monitor") else None  # from 10.0
    if monitor is not None:
        config.progress_monitor = monitor
    serialized = builder.build_serialized_network(network, config)
    if monitor is not None and monitor.cancelled:
        raise BuildCancelled
    if serialized is None:
        raise _failed(trt, said)
    warnings = tuple(dict.fromkeys(text for severity, text in said if severity == "warning"))
    return Product(bytes(serialized), _serialized(cache), warnings)


def merged(trt: Any, timings: bytes, others: bytes) -> bytes:
    """Two timing caches as one; `timings` alone where the other is damaged or of another library."""
    if others == timings:  # TensorRT-RTX 1.7.1 ends the process when a cache is combined with itself
        return timings
    log = logger(trt, lambda severity, text: None)
    config = trt.Builder(log).create_builder_config()
    first, second = config.create_timing_cache(timings), config.create_timing_cache(others)
    if first is None or second is None or not first.combine(second, False):
        return timings
    return _serialized(first)


def refusal(trt: Any, options: Options) -> str | None:
    """Why this version of the library cannot build with these options, None if it can."""
    config = trt.IBuilderConfig
    levels = getattr(trt, "HardwareCompatibilityLevel", None)
    have = f"this is {getattr(trt, '__name__', 'TensorRT')} {trt.__version__}"
    if options.version_compatible and not hasattr(trt.BuilderFlag, "VERSION_COMPATIBLE"):
        return f"version-compatible engines are for TensorRT 8.6 and later, {have}. Build without version-compatible."
    if options.hardware == "ampere+" and not hasattr(levels, "AMPERE_PLUS"):
        return f"hardware=ampere+ is for TensorRT 8.6 and later, {have}. Build without it, once for each GPU."
    if options.hardware == "same-capability" and not hasattr(levels, "SAME_COMPUTE_CAPABILITY"):
        return f"hardware=same-capability is for TensorRT 10.9 and later, {have}. Build without it, or with ampere+."
    if options.level != Options().level and not hasattr(config, "builder_optimization_level"):
        return f"optimisation levels are for TensorRT 8.6 and later, {have}. Build without level."
    if options.dla >= 0 and not hasattr(config, "DLA_core"):
        return f"this library has no DLA: {have}. Build without dla; the GPU runs it all."
    return None


def _parse(trt: Any, network: Any, log: Any, graph: bytes, said: list[tuple[str, str]]) -> None:
    parser = trt.OnnxParser(network, log)
    if parser.parse(graph):
        return
    reasons, nodes = [], []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        node, operator = _node(error, graph)
        where = f"node '{node}'{f' ({operator})' if operator else ''}: " if node else ""
        if node:
            nodes.append(node)
        reasons.append(f"{where}{str(error.desc()).strip()}")
    if not reasons:
        reasons = [text for severity, text in said if severity in ("error", "internal_error")] or [
            "it does not say why"
        ]
    found = tuple(nodes) or _quoted("\n".join(reasons))
    raise BuildFailed(
        f"TensorRT {trt.__version__} cannot read the graph: {'; '.join(reasons)}. Change that operator in the network, "
        "or run it with --backend onnxruntime.",
        found,
    )


def _node(error: Any, graph: bytes) -> tuple[str, str]:
    """Name and operator of the node that a parser's error is about, empty where it is about none."""
    if hasattr(error, "node_name"):  # from 10.0
        return str(error.node_name()), str(error.node_operator())
    import onnx

    index = int(error.node())  # before, a number in the graph's own order
    try:
        nodes = onnx.load_from_string(graph).graph.node
    except Exception:  # protobuf's own, for what is no graph at all: which is what the parser says then
        return "", ""
    return (nodes[index].name or nodes[index].output[0], nodes[index].op_type) if 0 <= index < len(nodes) else ("", "")


def _configure(trt: Any, builder: Any, network: Any, config: Any, precision: Precision, options: Options) -> None:
    flags = trt.BuilderFlag
    if options.workspace_mb:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
    if hasattr(config, "builder_optimization_level"):  # from 8.6
        config.builder_optimization_level = options.level
    if not options.tf32:
        config.clear_flag(flags.TF32)
    if options.sparse:
        config.set_flag(flags.SPARSE_WEIGHTS)
    if options.no_external_tactics:
        sources = config.get_tactic_sources()
        for name in EXTERNAL_TACTICS:
            if hasattr(trt.TacticSource, name):  # up to 10.x: later versions, and TensorRT-RTX, load none of them
                sources &= ~(1 << int(getattr(trt.TacticSource, name)))
        config.set_tactic_sources(sources)
    if options.version_compatible:
        config.set_flag(flags.VERSION_COMPATIBLE)
    if options.hardware != "none":
        levels = trt.HardwareCompatibilityLevel
        wanted = levels.AMPERE_PLUS if options.hardware == "ampere+" else levels.SAME_COMPUTE_CAPABILITY
        config.hardware_compatibility_level = wanted
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # so that the inspector tells types; free at run time
    if options.dla >= 0:
        if options.dla >= builder.num_DLA_cores:
            raise BadInput(
                f"dla={options.dla} was asked for, and TensorRT finds {builder.num_DLA_cores} DLA cores here. "
                "Orin AGX and NX have them; desktop GPUs, Orin Nano and Thor do not. Build without dla."
            )
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = options.dla
        config.set_flag(flags.GPU_FALLBACK)
    if not strongly_typed(trt):
        _allow(trt, network, config, precision, options)
    _shape(builder, network, config, options)


def _allow(trt: Any, network: Any, config: Any, precision: Precision, options: Options) -> None:
    """Weak typing (8.x): flags allow INT8 and FP16; what the graph itself computes in FP32 is held there."""
    if precision == "int8":
        config.set_flag(trt.BuilderFlag.INT8)
    if precision != "fp16" and options.arithmetic != "f16":
        return
    config.set_flag(trt.BuilderFlag.FP16)
    if precision != "fp16":
        return
    held = False
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        types = [layer.get_output(number).dtype for number in range(layer.num_outputs)]
        if types and all(kind == trt.float32 for kind in types) and layer.type != trt.LayerType.CONSTANT:
            layer.precision = trt.float32
            held = True
    if held:
        config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)


def _shape(builder: Any, network: Any, config: Any, options: Options) -> None:
    """An optimisation profile for a graph whose input is open in some length."""
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(tensor.shape)
        if tensor.name != FRAME or -1 not in shape:
            if options.shapes is not None:
                raise BadInput("shapes are for a graph built with --dynamic; this one takes one size of frame")
            continue
        if options.shapes is None:
            raise BadInput(
                "a dynamic graph needs to know what it will be given: say --trt shapes=LEAST:BEST:MOST, each as "
                "FRAMESxHEIGHTxWIDTH, as shapes=1x180x240:1x360x480:4x720x960"
            )
        profile = builder.create_optimization_profile()
        profile.set_shape(tensor.name, *((*sizes, 3) for sizes in options.shapes))
        if config.add_optimization_profile(profile) < 0:
            raise BadInput(f"TensorRT refuses the shapes for an input of {shape}: check LEAST:BEST:MOST")


def _aim(trt: Any, config: Any, capability: tuple[int, int]) -> None:
    """Build for a GPU that need not be here (TensorRT-RTX)."""
    name = f"SM{capability[0]}{capability[1]}"
    if not hasattr(trt.ComputeCapability, name):
        there = ", ".join(sorted(member for member in dir(trt.ComputeCapability) if re.fullmatch(r"SM\d+", member)))
        raise BadInput(
            f"TensorRT-RTX {trt.__version__} does not build for compute capability {capability[0]}.{capability[1]}; it "
            f"builds for {there}. Use --backend tensorrt on this GPU."
        )
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, name), 0)


def _monitor(trt: Any, on_progress: Progress) -> Any:
    class _Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the base exists in the library only
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.cancelled = False
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            self._told(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return self._told(phase_name, step + 1)

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

        def _told(self, phase: str, done: int) -> bool:
            if not on_progress(phase, done, self._steps.get(phase, 0)):
                self.cancelled = True
            return not self.cancelled

    return _Monitor()


def _serialized(cache: Any) -> bytes:
    return b"" if cache is None else bytes(cache.serialize())


def _failed(trt: Any, said: list[tuple[str, str]]) -> BuildFailed:
    errors = [text for severity, text in said if severity in ("error", "internal_error")]
    text = "; ".join(dict.fromkeys(errors)) or "it does not say why"
    advice = "Build with --fp32, or with another runtime."
    if out_of_memory(text):
        advice = "Close what else uses the GPU's memory, or limit what tactics may take: --trt workspace=512"
    elif "FP32 GEMM is not supported" in text:  # TensorRT-RTX on Turing
        advice = "Build with --fp16: this GPU's matrix products are not compiled in FP32. Or use another runtime."
    elif version_of(trt)[0] == 8 and "int8" in text.lower():
        advice = "See whether --fp16 builds; the network's Q/DQ is what this version stumbles over."
    return BuildFailed(f"TensorRT {trt.__version__} could not build the engine: {text}. {advice}", _quoted(text))


def out_of_memory(text: str) -> bool:
    """Whether that is what the library's words are about."""
    return re.search(r"out ?of ?memory|insufficient memory", text, re.IGNORECASE) is not None


def _quoted(text: str) -> tuple[str, ...]:
    """Names of nodes as messages carry them: "node NAME.", "operation 'NAME'", "{ForeignNode[A...B]}", "A + B"."""
    found: list[str] = []
    for match in re.findall(
        r"(?:for node|[Nn]ode(?: name)?:?|layer|operation)\s+['\"]?([^\s'\"]+(?: \+ [^\s'\"]+)*)", text
    ):
        inner = re.fullmatch(r"\{?ForeignNode\[(.+)\]\}?[.,:;]?", match)
        parts = re.split(r"\.\.\.| \+ ", inner[1] if inner else match)
        found += [part.strip(".,:;()[]{}") for part in parts]
    return tuple(dict.fromkeys(name for name in found if name))
