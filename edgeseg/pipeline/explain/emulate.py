"""A deployed engine as a graph that ONNX Runtime can look into, and how that was come by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from calibration import CalibrationError
from edgeseg import quantize
from edgeseg.backends.onnxruntime import AS_WRITTEN
from edgeseg.bundle import Bundle, Variant
from edgeseg.errors import EdgesegError, MissingOnMachine, ModelError
from edgeseg.pipeline.explain.ir import from_ir
from edgeseg.pipeline.network import networks_in
from edgeseg.pipeline.search.suffix import emulated as without_fakes


@dataclass(frozen=True, slots=True)
class Emulated:
    """`graph`: None where there is nothing to look into, and `how` says why."""

    graph: bytes | None
    how: str
    notes: tuple[str, ...] = ()
    optimization: str = AS_WRITTEN  # for ONNX Runtime


def emulation_of(opened: Bundle, chosen: Variant, reference: bytes) -> Emulated:
    """The variant's own graph where it has one; OpenVINO's IR read back; else the INT8 graph made again from scales."""
    graph = opened.graph(chosen)
    if chosen.precision == "fp32":
        return Emulated(None, "there is no quantization: the engine computes in FP32")
    if chosen.files[0].endswith(".onnx"):
        try:
            return Emulated(without_fakes(graph), "the graph in the bundle, node by node on ONNX Runtime")
        except ValueError as error:
            return Emulated(None, f"the graph in the bundle cannot be emulated: {error}")
    if chosen.precision != "int8":
        return Emulated(
            None, f"there is no quantization: the runtime itself computes the FP32 graph in {chosen.precision.upper()}"
        )
    files: Mapping[str, bytes] = {name: opened.files[name] for name in chosen.files}
    weights = next((content for name, content in files.items() if name.endswith(".bin")), b"")
    try:
        found, notes = from_ir(reference, graph, weights)
        return Emulated(found, "the IR in the bundle, read back and emulated on ONNX Runtime", notes)
    except (ModelError, MissingOnMachine) as error:
        return _again(opened, reference, str(error))


def _again(opened: Bundle, reference: bytes, why: str) -> Emulated:
    """From the scales in the bundle: what the engine ought to be, not what it is."""
    try:
        network = next((one for one in networks_in(opened) if one.fp32.graph == reference), None)
        if network is None or network.table is None:
            return Emulated(None, f"the engine's files cannot be looked into ({why}), and the bundle has no scales")
        made = network.int8(replace(quantize.OPENVINO, fake=False))
    except (CalibrationError, EdgesegError, ValueError) as error:
        return Emulated(None, f"the engine's files cannot be looked into ({why}), nor made again: {error}")
    return Emulated(
        made.graph,
        "made again from the bundle's scales, since the engine's files cannot be looked into: a fault in them is not "
        "seen here",
        (why,),
    )
