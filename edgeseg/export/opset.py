"""The version of the operator set that a graph asks of its engine.

17 is the default: the newest that TensorRT 8.6 takes, and old enough for every ONNX Runtime and OpenVINO. torch's
exporter writes 18. onnx.version_converter has no way down for Resize, Reduce and Split, so the step is done here: an
operator whose definition did not change between the two needs nothing, and of those that changed in 18 the ones that
networks use can be written in 17's way. A graph with any other keeps its opset, and the caller is told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgeseg.errors import ModelError
from edgeseg.export.graph import attribute, constant, opset_of, shape_of

if TYPE_CHECKING:
    import onnx

OLDEST = 13  # of what fuse() adds: ArgMax, Softmax and Squeeze as they are today
DEFAULT = 17


def lowered(proto: onnx.ModelProto, target: int = DEFAULT) -> tuple[onnx.ModelProto, str | None]:
    """The same graph at opset `target`, and None; or the graph as it is, and the reason."""
    import onnx

    now = opset_of(proto)
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    for node in result.graph.node:
        if node.domain not in ("", "ai.onnx"):
            continue
        if any(attr.HasField("g") or attr.graphs for attr in node.attribute):
            return proto, f"opset {now} kept: {node.op_type} holds a graph of its own"
        try:
            same = (
                onnx.defs.get_schema(node.op_type, target).since_version
                == onnx.defs.get_schema(node.op_type, now).since_version
            )
        except onnx.defs.SchemaError:
            return proto, f"opset {now} kept: {node.op_type} does not exist in opset {target}"
        if not same and (now > 18 or target < 13 or not _as_in_17(result, node)):
            return proto, f"opset {now} kept: {node.op_type} cannot be written in opset {target}"
    for entry in result.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = target
    return result, None


def raised(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A graph older than OLDEST brought to DEFAULT by onnx's converter. Raises ModelError if it cannot."""
    import onnx

    now = opset_of(proto)
    if now >= OLDEST:
        return proto
    try:
        result = onnx.version_converter.convert_version(proto, DEFAULT)
        onnx.checker.check_model(result)
    except Exception as error:  # the converter raises RuntimeError, IndexError, ValidationError, ConvertError…
        raise ModelError(
            f"the ONNX graph is of opset {now}, wanted {OLDEST} or newer, and it cannot be converted "
            f"({str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}). "
            f"Export it again with opset_version={DEFAULT}"
        ) from error
    return result


def _as_in_17(proto: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    """Rewrite one node of opset 18 in place in the way of 13 to 17; False if that cannot be."""
    from onnx import helper

    if node.op_type == "Resize":
        new = {"antialias": 0, "axes": [], "keep_aspect_ratio_policy": b"stretch"}  # with what 17 means without them
        for attr in [attr for attr in node.attribute if attr.name in new]:
            if helper.get_attribute_value(attr) != new[attr.name]:
                return False
            node.attribute.remove(attr)
        return True
    if node.op_type == "Pad":
        return len(node.input) < 4 or not node.input[3]
    if node.op_type in ("ScatterND", "ScatterElements"):
        return attribute(node, "reduction", b"none") in (b"none", b"add", b"mul")
    if node.op_type == "Split":
        return _explicit_split(proto, node)
    if node.op_type.startswith("Reduce"):
        if len(node.input) < 2 or not node.input[1]:
            return not attribute(node, "noop_with_empty_axes", 0)
        axes = constant(proto, node.input[1])
        if axes is None or axes.size == 0:
            return False
        del node.input[1:]
        for attr in [a for a in node.attribute if a.name == "noop_with_empty_axes"]:
            node.attribute.remove(attr)
        node.attribute.append(helper.make_attribute("axes", [int(axis) for axis in axes.ravel()]))
        return True
    return False


def _explicit_split(proto: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    """Opset 18 splits by a number of parts, the last of which may be smaller; 17 wants the size of each."""
    import onnx
    from onnx import numpy_helper

    parts = attribute(node, "num_outputs", None)
    if parts is None:
        return True
    shapes = {value.name: shape_of(value) for value in onnx.shape_inference.infer_shapes(proto).graph.value_info}
    shape, axis = shapes.get(node.input[0]), attribute(node, "axis", 0)
    size = shape[axis] if shape else None
    if not isinstance(size, int):
        return False
    each = -(-size // parts)
    sizes = [each] * (parts - 1) + [size - each * (parts - 1)]
    name = f"{node.output[0]}_split"
    proto.graph.initializer.append(numpy_helper.from_array(np.array(sizes, np.int64), name))
    node.input.append(name)
    for attr in [attr for attr in node.attribute if attr.name == "num_outputs"]:
        node.attribute.remove(attr)
    return True
