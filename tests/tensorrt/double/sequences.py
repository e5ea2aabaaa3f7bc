"""The same steps on the double and on the real tensorrt_rtx, each with an outcome that can be compared as JSON.

Run as a program it prints those of an installed module: a crash of a real library is then that of a child.
"""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from tests.tensorrt.double import graphs_of

FLAG, LEVEL = "trt.BuilderFlag.TF32", "builder_optimization_level"
EXPRESSIONS = (
    # members that are there and those that are not
    *("c.nope", "setattr(c, 'nope', 1)", "trt.BuilderFlag.FP16", "trt.IBuilderConfig.nope", "trt.ILayer.precision"),
    *("setattr(c, 'num_optimization_profiles', 1)", "hasattr(trt.IBuilderConfig, 'DLA_core')", "trt.nope", "b.nope"),
    *("setattr(b, 'max_threads', 2)", "setattr(trt.BuilderFlag.TF32, 'name', 1)", "setattr(trt.ILogger(), 'q', 1)"),
    *("c.int8_calibrator", "b.platform_has_fast_fp16", "callable(n.mark_debug)", "b.build_engine", "b.gpu_allocator"),
    # arguments
    *("c.set_flag(3)", f"c.set_flag({FLAG}, 1)", f"c.set_flag(flag={FLAG})", f"c.set_flag(flg={FLAG})", "c.set_flag()"),
    *("c.set_flag('x')", "b.create_network(1.0)", "b.create_network('1')", "b.create_network(numpy.int64(1)) is None"),
    *("b.create_network(True) is None", "b.create_network(None)", "b.build_serialized_network(n, None)"),
    *("b.build_serialized_network(n)", "trt.Builder(None)", "trt.Builder()", "trt.OnnxParser(n)", "trt.Logger('x')"),
    *("trt.OnnxParser(n, None)", "trt.IBuilderConfig()", "trt.IHostMemory()", "trt.ITensor()", "trt.Runtime(3)"),
    *("p.parse('text')", "p.parse(3)", "p.parse()", "c.create_timing_cache('text')", "c.set_timing_cache(None, False)"),
    *("profile.set_shape('x', 1, (1,), (1,))", "profile.set_shape('x', [1], (1,), trt.Dims([1]))"),
    *("profile.set_shape('y', (1, 3), (1, 3), (1, 3, 4))", "profile.get_shape('nothing')", "profile.set_shape('x')"),
    *("c.add_optimization_profile(trt.Builder)", "c.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1.5)"),
    *("c.set_memory_pool_limit(1, 2)", "p.set_flag(1)", "n.get_flag(0)", "n.get_layer('0')"),
    # enumerations
    *(f"repr({FLAG})", f"str({FLAG})", f"{FLAG} == 6", f"{FLAG} < 6", f"1 << {FLAG}", f"int({FLAG})", f"{FLAG}.name"),
    *(f"isinstance({FLAG}, int)", "repr(trt.BuilderFlag(5))", "trt.BuilderFlag(77).name", "trt.BuilderFlag('x')"),
    *(
        f"{FLAG} == trt.BuilderFlag(6)",
        f"len({{{FLAG}, trt.BuilderFlag(6)}})",
        "trt.BuilderFlag.__members__['TF32'].value",
    ),
    *(f"{FLAG} == trt.DataType(6)", f"{FLAG} <= {FLAG}", f"{FLAG} | {FLAG}", "trt.float32.name", "trt.uint8.itemsize"),
    *("trt.Logger.WARNING.value", "trt.ILogger.Severity.ERROR.value", "trt.Logger.Severity is trt.ILogger.Severity"),
    *("trt.nptype(trt.uint8).__name__", "trt.volume((2, 3))", "trt.nptype(trt.fp8)"),
    # properties and what they start with
    *(
        f"setattr(c, '{LEVEL}', '3')",
        f"setattr(c, '{LEVEL}', 9)",
        f"c.{LEVEL}",
        f"setattr(c, '{LEVEL}', 2)",
        f"c.{LEVEL}",
    ),
    *("setattr(c, 'hardware_compatibility_level', 0)", "setattr(c, 'progress_monitor', None)", "c.progress_monitor"),
    *(
        "setattr(c, 'progress_monitor', object())",
        "c.flags",
        "c.profiling_verbosity.name",
        "c.DLA_core",
        "c.max_aux_streams",
    ),
    *("c.num_compute_capabilities", "c.default_device_type.name", "b.num_DLA_cores", "c.engine_capability.name"),
    *(
        "c.avg_timing_iterations",
        "c.max_num_tactics",
        "c.plugins_to_serialize",
        "c.runtime_platform.name",
        "b.max_threads",
    ),
    *("c.get_flag(trt.BuilderFlag.TF32)", "c.clear_flag(trt.BuilderFlag.TF32)", "c.get_flag(trt.BuilderFlag.TF32)"),
    *(
        "c.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1 << 20)",
        "b.logger is log",
        "c.tiling_optimization_level.name",
    ),
    *(
        "c.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE)",
        "n.name",
        "n.num_layers",
        "n.num_inputs",
        "n.num_outputs",
    ),
    *("c.set_compute_capability(trt.ComputeCapability.SM86, 0)", "setattr(c, 'num_compute_capabilities', 2)"),
    *("c.set_compute_capability(trt.ComputeCapability.SM86, 1)", "c.get_compute_capability(1).name"),
    *("c.get_compute_capability(0).name", "c.num_compute_capabilities", "c.set_compute_capability(86, 0)"),
    *("p.num_errors", "p.get_error(0)", "p.flags", "p.supports_operator('Conv')", "p.supports_operator('Foo')"),
    *(
        "n.get_layer(0)",
        "n.get_input(0)",
        "n.get_output(0)",
        "n.get_flag(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)",
    ),
    *("trt.Logger().min_severity.name", "trt.Logger(trt.Logger.INFO).min_severity.name", "c.num_optimization_profiles"),
    # lengths and memory
    *("tuple(trt.Dims((1, 2)))", "trt.Dims((1, 2)) == (1, 2)", "repr(trt.Dims([1, -1]))", "len(trt.Dims((1, 2)))"),
    *("trt.Dims((1, 2))[1]", "trt.Dims((1, 2))[0:1]", "-1 in trt.Dims((1, -1))", "trt.Dims((1, 2)) == [1, 2]"),
    *("memory.nbytes == len(bytes(memory))", "memoryview(memory).nbytes == memory.nbytes", "len(memory)", "memory[0]"),
    *("iter(memory)", "memory == bytes(memory)", "memory.decode", "memory.nope", "setattr(memory, 'nbytes', 3)"),
    *("memory.dtype.name", "memory + b''", "Forgetful()", "trt.IProgressMonitor() is None", "trt.Runtime(log) is None"),
    *("trt.Runtime(log).deserialize_cuda_engine(b'garbage' * 20)", "trt.Runtime(log).deserialize_cuda_engine(b'')"),
    *("trt.Runtime(log).deserialize_cuda_engine('text')", "isinstance(log, trt.ILogger)"),
)


def outcomes(trt: Any) -> dict[str, Any]:
    """What comes of every step, by its name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            **{f"{number} {text}": value for number, (text, value) in enumerate(_expressions(trt))},
            **{name: _graph(trt, *made) for name, made in graphs_of.CASES.items()},
            **{name: step(trt) for name, step in STEPS.items()},
        }


def _expressions(trt: Any) -> list[tuple[str, Any]]:
    import numpy

    log = recorder(trt)
    builder = trt.Builder(log)
    config, network = builder.create_builder_config(), builder.create_network(0)

    class Forgetful(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            """Without the constructor of its base."""

    names = {
        "trt": trt,
        "log": log,
        "b": builder,
        "c": config,
        "n": network,
        "p": trt.OnnxParser(network, log),
        "profile": builder.create_optimization_profile(),
        "memory": config.create_timing_cache(b"").serialize(),
        "Forgetful": Forgetful,
        "numpy": numpy,
    }
    return [(text, _tried(partial(eval, text, dict(names)))) for text in EXPRESSIONS]


def _tried(action: Callable[[], Any]) -> Any:
    try:
        value = action()
    except Exception as error:
        return f"raises {type(error).__name__}"
    return value if isinstance(value, (bool, int, str, list, type(None))) else str(value)


def recorder(trt: Any) -> Any:
    """A logger that keeps what it is told, in `said`: (severity, text)."""

    class Recorder(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.said: list[tuple[str, str]] = []

        def log(self, severity: Any, msg: str) -> None:
            self.said.append((severity.name, msg))

    return Recorder()


def parsed(trt: Any, graph: bytes, flags: int = 0) -> tuple[Any, ...]:
    """logger, builder, network, parser, and whether it parsed."""
    log = recorder(trt)
    builder = trt.Builder(log)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, log)
    return log, builder, network, parser, parser.parse(graph)


def config_for(trt: Any, builder: Any) -> Any:
    config = builder.create_builder_config()
    if hasattr(config, "num_compute_capabilities"):
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    return config


def _graph(trt: Any, graph: bytes, shapes: Any = None) -> Any:
    """Parse and build: errors by code and node; layers; whether it was built, and the code of what went wrong."""
    log, builder, network, parser, went = parsed(trt, graph)
    errors = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        errors.append([error.code().name, error.node(), error.node_name(), error.node_operator()])
    found: dict[str, Any] = {"parsed": went, "errors": errors}
    if not went:
        return found
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    found["tensors"] = [[t.name, list(t.shape), t.dtype.name] for t in (*inputs, *outputs)]
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    wanted = ("CONVOLUTION", "QUANTIZE", "DEQUANTIZE", "ACTIVATION", "RESIZE", "CONCATENATION")
    found["layers"] = [[la.name, la.type.name, la.get_output(0).dtype.name] for la in layers if la.type.name in wanted]
    config = config_for(trt, builder)
    if shapes is not None:
        profile = builder.create_optimization_profile()
        profile.set_shape(*shapes)
        found["profile"] = config.add_optimization_profile(profile)
    serialized = builder.build_serialized_network(network, config)
    found["built"] = serialized is not None
    failures = [text for severity, text in log.said if severity == "ERROR" and "buildSerializedNetwork" in text]
    found["failure"] = failures[-1].partition("(")[0] if failures else ""
    return found


def _second_parse(trt: Any) -> Any:
    *_, network, parser, went = parsed(trt, graphs_of.convolution())
    return [went, parser.parse(graphs_of.convolution()), network.num_layers]


def _layers(trt: Any) -> Any:
    _, _, network, _, _ = parsed(trt, graphs_of.convolution())
    layer, tensor = network.get_layer(0), network.get_input(0)
    return [
        *(layer.name, layer.num_inputs, layer.num_outputs, layer.get_input(0).name, layer.get_output(0).name),
        *(layer.get_input(5), layer.metadata, network.get_layer(0) is layer, network.get_input(0) is tensor),
        *(tensor.is_network_input, tensor.is_network_output, list(tensor.shape), type(tensor.shape).__name__),
        *(
            _tried(lambda: setattr(layer, "precision", trt.float16)),
            _tried(lambda: setattr(tensor, "dtype", trt.float16)),
        ),
        *(_tried(lambda: setattr(layer, "name", "other")), layer.name, _tried(lambda: setattr(tensor, "name", 3))),
    ]


def _monitored(stop_after: int | None) -> Callable[[Any], Any]:
    def step(trt: Any) -> Any:
        events: list[tuple[str, str]] = []

        class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.IProgressMonitor.__init__(self)
                self.parents: list[Any] = []

            def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
                events.append(("start", phase_name))
                self.parents.append(parent_phase)

            def step_complete(self, phase_name: str, step: int) -> bool:
                events.append(("step", phase_name))
                return stop_after is None or sum(kind == "step" for kind, _ in events) < stop_after

            def phase_finish(self, phase_name: str) -> None:
                events.append(("finish", phase_name))

        log, builder, network, _, _ = parsed(trt, graphs_of.convolution())
        config, monitor = config_for(trt, builder), Monitor()
        config.progress_monitor = monitor
        built = builder.build_serialized_network(network, config) is not None
        kinds = [kind for kind, _ in events]
        steps = kinds.count("step")
        started = sorted(name for kind, name in events if kind == "start")
        finished = sorted(name for kind, name in events if kind == "finish")
        return [
            *(
                built,
                started == finished,
                events[0],
                events[-1],
                monitor.parents[0],
                config.progress_monitor is monitor,
            ),
            *(steps > 3 if stop_after is None else steps, any("BuildCanceled" in text for _, text in log.said)),
        ]

    return step


def _timing_cache(trt: Any) -> Any:
    """Which calls warn, and what comes of each."""
    log = recorder(trt)
    config = trt.Builder(log).create_builder_config()
    found: list[Any] = []

    def told(action: Callable[[], Any]) -> Any:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            value = action()
        found.append([type(value).__name__, value is True, [warning.category.__name__ for warning in caught]])
        return value

    cache = told(lambda: config.create_timing_cache(b""))
    other = told(lambda: config.create_timing_cache(b"garbage" * 10))
    told(lambda: config.set_timing_cache(cache, False))
    told(config.get_timing_cache)
    told(cache.serialize)
    told(lambda: cache.combine(other, False))
    told(cache.reset)
    return found


def _twice(trt: Any) -> Any:
    """One network, built twice; arguments by name."""
    _, builder, network, _, _ = parsed(trt, graphs_of.convolution())
    made = [builder.build_serialized_network(network=network, config=config_for(trt, builder)) for _ in range(2)]
    return [made[0].nbytes == made[1].nbytes, type(made[0]).__name__, made[0].nbytes > 100]


def _device(trt: Any) -> Any:
    """TensorRT-RTX takes the setting of a DLA, and builds for the GPU."""
    _, builder, network, _, _ = parsed(trt, graphs_of.convolution())
    config = config_for(trt, builder)
    config.default_device_type, config.DLA_core = trt.DeviceType.DLA, 0
    return builder.build_serialized_network(network, config) is not None


STEPS: dict[str, Callable[[Any], Any]] = {
    "a second parse into one network": _second_parse,
    "layers and tensors": _layers,
    "progress of a whole build": _monitored(None),
    "a build cancelled at its first step": _monitored(1),
    "a build cancelled at its third step": _monitored(3),
    "timing cache": _timing_cache,
    "built twice": _twice,
    "DLA": _device,
}

if __name__ == "__main__":
    print("outcomes:" + json.dumps(outcomes(importlib.import_module(sys.argv[1]))))
