"""The same engine without Python: the `trtexec` command line of each TensorRT version for a build's options.

What each version takes is from the option parsers of the samples that come with it (NVIDIA/TensorRT, the release
branches' samples/common/sampleOptions.cpp): --builderOptimizationLevel, --versionCompatible,
--hardwareCompatibilityLevel and --skipInference (before: --buildOnly) from 8.6, --stronglyTyped from 10.0 to 10.16,
sameComputeCapability from 10.9; --fp16 and --int8 until 10.16. DLA: "Working with DLA", TensorRT 11.4.1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from edgeseg.backends.tensorrt.options import DEFAULTS, Options, Shape
from edgeseg.errors import BadInput
from edgeseg.types import FRAME, Precision

Version = tuple[int, ...]
KNOWN = "8.5, 8.6, 10.0 to 10.16, 11.0 and later"


def version_from(text: str) -> Version:
    """`10.3` or `10.3.0.26` as numbers; without a minor version, its first. Raises BadInput for one not known here."""
    if not re.fullmatch(r"\d{1,3}(\.\d{1,4}){0,3}", text.strip()):
        raise BadInput(f"--tensorrt {text}: wanted the version of TensorRT on the device, as 8.5, 8.6, 10.3 or 11.")
    found = tuple(map(int, text.strip().split(".")))
    version = found if len(found) > 1 else (*found, 0)
    if version < (8, 5):
        raise BadInput(f"--tensorrt {text}: 8.5 is the first that takes frames of uint8. There are: {KNOWN}.")
    if version[0] not in (8, 10, 11) or (8, 6) < version[:2] < (10, 0):
        raise BadInput(f"--tensorrt {text}: no such version is known here. There are: {KNOWN}.")
    return version


def strongly_typed(options: Options, version: Version) -> bool:
    """Whether the graph's own types decide, and it must be written in the precision wanted; else flags allow it.

    From 10.0, where trtexec can be told so, and always from 11.0. A DLA takes a strongly typed network from 11 only.
    """
    return version >= (11,) or (version >= (10,) and options.dla < 0)


def command(
    options: Options,
    version: Version,
    *,
    onnx: str,
    engine: str,
    precision: Precision,
    dynamic: Shape | None = None,
    float_layers: Sequence[str] = (),
    timing_cache: str = "",
    program: str = "trtexec",
) -> list[str]:
    """The words of the command that builds `engine` from the file `onnx`, and runs nothing.

    `dynamic`: of a graph with open lengths, the (frames, height, width) to build for unless the options say more.
    `float_layers`: what must stay FP32 in a network that flags put into FP16, by the names of the ONNX nodes.
    Raises BadInput for what this version of TensorRT cannot do, naming the version that can.
    """
    refused = refusal(options, version, precision)
    if refused:
        raise BadInput(refused)
    words = [program, f"--onnx={onnx}", f"--saveEngine={engine}"]
    words += _types(options, version, precision, float_layers)
    if options.workspace_mb:
        words.append(f"--memPoolSize=workspace:{options.workspace_mb}")
    if version >= (8, 6):
        words.append(f"--builderOptimizationLevel={options.level}")
    if not options.tf32:
        words.append("--noTF32")
    if options.sparse:
        words.append("--sparsity=enable")
    if options.no_external_tactics and version < (11,):  # later ones have no such sources
        words.append("--tacticSources=-CUBLAS,-CUBLAS_LT,-CUDNN")
    if options.version_compatible:
        words.append("--versionCompatible")
    if options.hardware != "none":
        level = "ampere+" if options.hardware == "ampere+" else "sameComputeCapability"
        words.append(f"--hardwareCompatibilityLevel={level}")
    if options.dla >= 0:
        words += [f"--useDLACore={options.dla}", "--allowGPUFallback"]
    words += _shapes(options, dynamic)
    if timing_cache:
        words.append(f"--timingCacheFile={timing_cache}")
    return [*words, "--profilingVerbosity=detailed", "--skipInference" if version >= (8, 6) else "--buildOnly"]


def check_command(
    options: Options,
    version: Version,
    *,
    engine: str,
    frame: str,
    output: str,
    dynamic: Shape | None = None,
    program: str = "trtexec",
) -> list[str]:
    """The words that run an engine once on the raw bytes in `frame` and write its mask to `output`, a JSON file.

    `dynamic`: (frames, height, width) of those bytes, for a graph with open lengths.
    """
    words = [program, f"--loadEngine={engine}", f"--loadInputs={FRAME}:{frame}", f"--exportOutput={output}"]
    if dynamic is not None:
        words.append(f"--shapes={FRAME}:{_lengths(dynamic)}")
    if options.version_compatible:  # the engine carries code of its own, which must be allowed
        words.append("--versionCompatible")
    if options.dla >= 0:
        words.append(f"--useDLACore={options.dla}")
    return [*words, "--iterations=1", "--warmUp=0", "--duration=0"]


def refusal(options: Options, version: Version, precision: Precision) -> str | None:
    """Why this version of TensorRT cannot build that, None if it can."""
    have = f"this is for {'.'.join(map(str, version))}"
    if options.version_compatible and version < (8, 6):
        return f"version-compatible engines are for TensorRT 8.6 and later, {have}. Leave out version-compatible."
    if options.hardware == "ampere+" and version < (8, 6):
        return f"hardware=ampere+ is for TensorRT 8.6 and later, {have}. Leave it out, and build once for each GPU."
    if options.hardware == "same-capability" and version < (10, 9):
        return f"hardware=same-capability is for TensorRT 10.9 and later, {have}. Leave it out, or say ampere+."
    if options.level != DEFAULTS.level and version < (8, 6):
        return f"optimisation levels are for TensorRT 8.6 and later, {have}. Leave out level."
    if precision == "bf16" and version < (10,):
        return f"BF16 is for TensorRT 10.0 and later, {have}. Say --precision fp16."
    if options.dla < 0:
        return None
    if (10, 8) <= version < (11, 4) or version[:3] == (11, 4, 0):
        return f"a Jetson's DLA is for TensorRT up to 10.7 and from 11.4.1, {have}. Leave out dla; the GPU runs it all."
    if precision in ("fp32", "bf16"):
        return f"a DLA computes in FP16 or INT8, not in {precision.upper()}. Say --precision fp16, or leave out dla."
    if precision == "int8" and version < (11,):
        return (
            f"before TensorRT 11 a DLA takes INT8 from a calibration cache and not from a graph, {have}. "
            "Say --precision fp16 with dla, or leave out dla."
        )
    if options.hardware != "none" or options.version_compatible:
        return "an engine for a DLA is for just that device and version. Leave out hardware and version-compatible."
    return None


def _types(options: Options, version: Version, precision: Precision, float_layers: Sequence[str]) -> list[str]:
    if strongly_typed(options, version):
        return ["--stronglyTyped"] if version < (11,) else []
    words = []
    if precision == "int8":
        words.append("--int8")
    if precision == "fp16" or (precision == "int8" and options.arithmetic == "f16"):
        words.append("--fp16")
        held = [name for name in float_layers if not set(name) & set(":,*'")]  # these mean something to trtexec
        if held:
            words += ["--precisionConstraints=prefer", f"--layerPrecisions={','.join(f'{name}:fp32' for name in held)}"]
    return words


def _shapes(options: Options, dynamic: Shape | None) -> list[str]:
    if dynamic is None:
        if options.shapes is not None:
            raise BadInput("shapes are for a graph built with --dynamic; this one takes one size of frame.")
        return []
    least, best, most = options.shapes or (dynamic, dynamic, dynamic)
    return [
        f"--{name}Shapes={FRAME}:{_lengths(shape)}" for name, shape in (("min", least), ("opt", best), ("max", most))
    ]


def _lengths(shape: Shape) -> str:
    return "x".join(map(str, (*shape, 3)))
