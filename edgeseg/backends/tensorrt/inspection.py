"""What a built engine really computes in, read from its inspector: its layers, and a verdict on what was asked for.

`EngineInspector.get_engine_information(JSON)` gives one object with "Layers", in full only for an engine that was
built with ProfilingVerbosity.DETAILED (else a list of names). Its keys, from TensorRT 8.5 to 11 and TensorRT-RTX:
"Format/Datatype" up to 10, "Format" and "DataType" from 11.0, "Metadata" with the ONNX nodes from 8.6 (NVIDIA:
"TensorRT Developer Guide", Engine Inspector; "Migrating IEngineInspector Usage from TensorRT 10.x to 11.x").
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from edgeseg.backends.tensorrt.layers import Layer, LayerPrecision
from edgeseg.errors import BadInput, CannotTell
from edgeseg.types import Precision

# Narrow to wide; also the order in which people read them.
ORDER: tuple[LayerPrecision, ...] = ("int8", "fp8", "fp16", "bf16", "fp32", "other")
assert set(ORDER) == set(get_args(LayerPrecision))

# What counts as having the precision: the one asked for, or a narrower one.
_ENOUGH: dict[Precision, frozenset[LayerPrecision]] = {
    "int8": frozenset({"int8"}),
    "fp16": frozenset({"int8", "fp8", "fp16", "bf16"}),
    "bf16": frozenset({"int8", "fp8", "fp16", "bf16"}),
    "fp32": frozenset(ORDER),
}
LEAST_SHARE = 0.5  # of the convolutions

_DATA_TYPES: tuple[tuple[str, LayerPrecision | None], ...] = (  # None: integers that are no precision of a network
    (r"(?<![a-z])int8", "int8"),
    (r"bf16|bfloat16", "bf16"),
    (r"fp8|e4m3|e5m2", "fp8"),
    (r"fp16|half|float16", "fp16"),
    (r"fp32|float", "fp32"),
)
_IDLE = {"constant", "signal", "wait"}  # nothing of these runs
_MOVING = {"reformat", "noop", "copy", "copynode"}
# Kernels that Myelin, TensorRT's graph compiler, generates have their operations in their names, four letters each.
_GENERATED = re.compile(r"__myl_((?:[A-Z][a-z]{1,3})+)")
_MOVES = {"Move", "Cast", "Tran", "Resh", "Conc", "Slic"}
# A tactic's name holds the types of its operands: first what it reads, then what it writes or multiplies by.
_OPERAND = r"(?:i8|s8|u8|e4m3|e5m2|bf16|tf32|f16|f32)"
_OPERANDS = re.compile(rf"(?:^|_)({_OPERAND}){_OPERAND}(?=_|$)")
_OF_OPERAND: dict[str, LayerPrecision] = {
    "i8": "int8",
    "s8": "int8",
    "u8": "int8",
    "e4m3": "fp8",
    "e5m2": "fp8",
    "bf16": "bf16",
    "f16": "fp16",
    "tf32": "fp32",
    "f32": "fp32",
}
_TACTIC_WORDS: tuple[tuple[str, LayerPrecision], ...] = (
    (r"int8|i8816|i16832|(?<![a-z])imma", "int8"),
    (r"hcudnn|h884|h1688|h16816|fp16|(?<![a-z])hmma", "fp16"),
    (r"bf16", "bf16"),
    (r"scudnn|sgemm|fp32", "fp32"),
)
_CONVOLVING_TACTIC = re.compile(r"fprop|dgrad|implicit_gemm|cudnn|winograd|depthwise|deconv|(?<![a-z])conv", re.I)
_CONVOLUTION_NODE = re.compile(r"(?:^|[/.:_])(?:conv(?:transpose)?|conv(?:_transpose)?[123]d)(?:_\d+)?$", re.I)
_PRODUCT = re.compile(r"gemm|matrix_?mul|matmul|fullyconnected|fully_connected", re.I)
_ANOTHER_PROFILE = re.compile(r"\[profile +[1-9]\d*\]")


def layers_of(information: str, convolutions: Collection[str] = ()) -> tuple[Layer, ...]:
    """The layers of an engine in the inspector's order, each with the precision that it computes in.

    `information`: the inspector's JSON. `convolutions`: names of the graph's Conv and ConvTranspose nodes, to know them
    in kernels that the inspector does not call convolutions; without, node names are judged by their last word.
    A layer's precision comes from its weights' type, its inputs' types and its tactic's name, in this order of trust;
    "other" where none of them says it, so all layers are "other" where only names were kept. Constants, and what
    synchronises streams, run nothing and are left out, as are the layers of other profiles than the first. An empty
    text, for an engine that nobody could inspect, gives no layers.

    Raises BadInput for a text that no inspector wrote.
    """
    if not information.strip():
        return ()
    try:
        # TensorRT separates the nodes in "Metadata" by control characters, and does not escape them.
        content = json.loads(information, strict=False)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"wanted the JSON of TensorRT's engine inspector; this is none: {error}") from error
    rows = content.get("Layers") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict | str) for row in rows):
        raise BadInput('wanted the JSON of TensorRT\'s engine inspector, an object with a list "Layers"; none is here.')
    known = frozenset(convolutions)
    layers = []
    for row in rows:
        told: Mapping[str, Any] = {"Name": row} if isinstance(row, str) else row
        name, kind = _text(told, "Name"), _text(told, "LayerType")
        idle = kind.lower() in _IDLE or name.startswith("[trainStation")
        if not idle and not _ANOTHER_PROFILE.search(name):
            layers.append(_layer(told, name, kind, known))
    return _with_hidden_convolutions(tuple(layers), known)


def _layer(row: Mapping[str, Any], name: str, kind: str, known: frozenset[str]) -> Layer:
    moves = _only_moves(name, kind)
    convolves = not moves and _says_convolution(row, kind)
    nodes = _nodes(row, name)
    if not convolves and not moves and kind.lower() == "gemm":  # what multiplies matrices may be a convolution of 1x1
        convolves = any(_is_convolution(node, known) for node in nodes)
    if not kind and not moves:  # names only: TensorRT joins those of the nodes
        convolves = any(_is_convolution(node, known) for node in nodes)
    return Layer(name, kind, _precision(row, multiplies=convolves), convolves, moves, nodes)


def _only_moves(name: str, kind: str) -> bool:
    if kind.lower() in _MOVING or name.startswith(("Reformatting CopyNode", "reformat")):
        return True
    found = _GENERATED.match(name)
    return found is not None and set(re.findall(r"[A-Z][a-z]+", found[1])) <= _MOVES


def _says_convolution(row: Mapping[str, Any], kind: str) -> bool:
    said = f"{kind} {_text(row, 'ParameterType')}".lower()
    if "convolution" in said or "correlation" in said or kind.lower() in ("conv", "deconv"):
        return True
    # Of a generated kernel the tactic is its own name, which may hold anything.
    tactic = _text(row, "TacticName")
    generated = kind.lower() == "kgen" or tactic.startswith("__myl")
    pools = "pool" in said
    return not generated and not pools and _CONVOLVING_TACTIC.search(tactic) is not None


def _with_hidden_convolutions(layers: tuple[Layer, ...], known: frozenset[str]) -> tuple[Layer, ...]:
    """A whole region in one layer, or a generated kernel, convolves if it holds a convolution that no other does."""
    claimed = {node for layer in layers if layer.convolution for node in layer.nodes}
    return tuple(
        replace(layer, convolution=True)
        if not layer.convolution
        and not layer.reformat
        and any(node not in claimed and _is_convolution(node, known) for node in layer.nodes)
        else layer
        for layer in layers
    )


def _is_convolution(node: str, known: frozenset[str]) -> bool:
    return node in known if known else _CONVOLUTION_NODE.search(node) is not None


def _nodes(row: Mapping[str, Any], name: str) -> tuple[str, ...]:
    found = re.findall(r"\[ONNX Layer: ([^\]]*)\]", _text(row, "Metadata"))
    if not found and "Metadata" not in row:  # up to 8.5: the layer is named after them
        inner = re.sub(r"\{ForeignNode\[(.*)\]\}", r"\1", name).replace("...", " + ")
        parts = re.split(r"\s*\+\s*|,\s*", re.sub(r"\bPWN\(|\)(?=\)|,|$|\s\+)", "", inner))
        found = [part.strip() for part in parts if part.strip() and "(Unnamed Layer" not in part]
    return tuple(dict.fromkeys(found))


def _precision(row: Mapping[str, Any], *, multiplies: bool) -> LayerPrecision:
    inputs = [_data_type(tensor) for tensor in _tensors(row, "Inputs")]
    data = inputs[0] if inputs else None
    weights = row.get("Weights")
    stored = _type_in(_text(weights, "Type")) if isinstance(weights, Mapping) else None
    tactic = _of_tactic(_text(row, "TacticName"))
    if stored is not None:
        # Narrow weights under wide data are stored so and widened before the product.
        return stored if data is None or ORDER.index(data) <= ORDER.index(stored) else data
    if multiplies and data is not None:
        return data
    seen = [kind for kind in inputs if kind is not None]
    if seen:  # several: what is narrower is widened to the others
        return max(seen, key=ORDER.index)
    return tactic or "other"


def _data_type(tensor: Mapping[str, Any]) -> LayerPrecision | None:
    for key, value in tensor.items():  # "DataType" and "Datatype" both occur from 11.0 on; before "Format/Datatype"
        if key.lower() == "datatype" and isinstance(value, str) and (found := _type_in(value)):
            return found
    for key, value in tensor.items():
        if key.lower() in ("format/datatype", "format") and isinstance(value, str):
            return _type_in(value)
    return None


def _type_in(text: str) -> LayerPrecision | None:
    lower = text.lower()
    return next((kind for pattern, kind in _DATA_TYPES if re.search(pattern, lower)), None)


def _of_tactic(name: str) -> LayerPrecision | None:
    lower = name.lower()
    if lower.startswith("__myl"):  # made of the names of operations, types are not among them
        return None
    if operands := _OPERANDS.search(lower):
        return _OF_OPERAND[operands[1]]
    return next((kind for pattern, kind in _TACTIC_WORDS if re.search(pattern, lower)), None)


def _tensors(row: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    found = row.get(key)
    return [tensor for tensor in found if isinstance(tensor, Mapping)] if isinstance(found, list) else []


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    return value if isinstance(value, str) else ""


def with_times(layers: Iterable[Layer], times: Mapping[str, float]) -> tuple[Layer, ...]:
    """The layers with the median milliseconds that `times` gives for their names.

    A layer whose name joins several by " + " takes the sum where each of them has a time and the whole has none.
    Layers without a time keep None.
    """

    def of(layer: Layer) -> float | None:
        if layer.name in times:
            return float(times[layer.name])
        parts = layer.name.split(" + ")
        return float(sum(times[part] for part in parts)) if all(part in times for part in parts) else None

    return tuple(layer if (ms := of(layer)) is None else replace(layer, ms=ms) for layer in layers)


@dataclass(frozen=True, slots=True)
class Precisions:
    """How much of an engine runs in what: counts and milliseconds by precision, of what computes; reformats apart."""

    convolutions: Mapping[LayerPrecision, int]
    layers: Mapping[LayerPrecision, int]
    ms: Mapping[LayerPrecision, float] | None  # None where the engine was not profiled
    reformats: int
    reformat_ms: float | None

    def share(self, precision: LayerPrecision) -> float:
        """From 0 to 1: of the time where it was measured, else of the convolutions, or of the layers without any."""
        amounts: Mapping[LayerPrecision, float] = self.ms or (
            self.convolutions if sum(self.convolutions.values()) else self.layers
        )
        whole = sum(amounts.values())
        return amounts.get(precision, 0) / whole if whole else 0.0

    @property
    def reformat_share(self) -> float | None:
        """Of the whole engine's time, from 0 to 1; None where it was not measured."""
        if self.ms is None or self.reformat_ms is None:
            return None
        whole = sum(self.ms.values()) + self.reformat_ms
        return self.reformat_ms / whole if whole else 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "convolutions": dict(self.convolutions),
            "layers": dict(self.layers),
            "ms": None if self.ms is None else dict(self.ms),
            "reformats": self.reformats,
            "reformat_ms": self.reformat_ms,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Precisions:
        """What `to_json` gave. Raises BadInput for anything else."""
        try:
            counts = {key: {_known(p): int(n) for p, n in value[key].items()} for key in ("convolutions", "layers")}
            ms = None if value["ms"] is None else {_known(p): float(t) for p, t in value["ms"].items()}
            reformat_ms = None if value["reformat_ms"] is None else float(value["reformat_ms"])
            return cls(counts["convolutions"], counts["layers"], ms, int(value["reformats"]), reformat_ms)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BadInput(f"wanted the precisions of an engine as edgeseg writes them: {error!r}.") from error


def _known(name: str) -> LayerPrecision:
    if name not in ORDER:
        raise ValueError(f"there is no precision {name!r}")
    return name


def precisions(layers: Sequence[Layer]) -> Precisions:
    """The summary of an engine. Time counts only where every layer that multiplies has one."""
    computing = [layer for layer in layers if not layer.reformat]
    judged = _judged(layers)
    moving = [layer for layer in layers if layer.reformat]
    timed = bool(judged) and all(layer.ms is not None for layer in judged)
    return Precisions(
        _counts(layer.precision for layer in computing if layer.convolution),
        _counts(layer.precision for layer in computing),
        _milliseconds(computing) if timed else None,
        len(moving),
        sum(layer.ms or 0.0 for layer in moving) if timed else None,
    )


def _judged(layers: Iterable[Layer]) -> list[Layer]:
    """The layers by which an engine is judged: its convolutions, else its matrix products, else all that computes."""
    computing = [layer for layer in layers if not layer.reformat]
    products = [layer for layer in computing if _PRODUCT.search(layer.kind)]
    return [layer for layer in computing if layer.convolution] or products or computing


def _counts(found: Iterable[LayerPrecision]) -> dict[LayerPrecision, int]:
    every = list(found)
    return {precision: every.count(precision) for precision in ORDER if precision in every}


def _milliseconds(layers: Iterable[Layer]) -> dict[LayerPrecision, float]:
    found: dict[LayerPrecision, float] = {}
    for layer in layers:
        found[layer.precision] = found.get(layer.precision, 0.0) + (layer.ms or 0.0)
    return {precision: found[precision] for precision in ORDER if precision in found}


def told(layers: Sequence[Layer]) -> bool:
    """Whether the inspector said anything about precisions: not of an engine that was built without details."""
    return any(layer.precision != "other" for layer in layers)


def summary(layers: Sequence[Layer]) -> str:
    """One line for people: INT8 71 % of the time (17 of 18 convolutions), FP16 22 %, FP32 7 %; 6 reformats 3 %"""
    if not told(layers):
        return "the engine does not tell what its layers compute in"
    found = precisions(layers)
    convolutions, parts = sum(found.convolutions.values()), []
    amounts: Mapping[LayerPrecision, float] = found.ms or (found.convolutions if convolutions else found.layers)
    for place, precision in enumerate(sorted(amounts, key=ORDER.index)):
        part = f"{precision.upper()} {100 * found.share(precision):.0f} %"
        if place == 0 and found.ms is not None:
            part += " of the time"
            if convolutions:
                part += f" ({found.convolutions.get(precision, 0)} of {convolutions} convolutions)"
        elif place == 0:
            part += f" ({amounts[precision]} of {sum(amounts.values())} {'convolutions' if convolutions else 'layers'})"
        parts.append(part)
    share = found.reformat_share
    more = "" if share is None else f" {100 * share:.0f} %"
    moved = f"; {found.reformats} reformat{'s' * (found.reformats != 1)}{more}" if found.reformats else ""
    return ", ".join(parts) + moved


def blockers(layers: Iterable[Layer], asked: Precision) -> tuple[str, ...]:
    """The convolutions that are not in the precision asked for, by their ONNX nodes, and what they are in instead."""
    return tuple(
        f"{' + '.join(layer.nodes) or layer.name} ({layer.precision.upper()})"
        for layer in layers
        if layer.convolution and layer.precision not in _ENOUGH[asked]
    )


def absent(layers: Sequence[Layer], asked: Precision) -> str | None:
    """Why the engine does not have the precision that was asked for, None if it has.

    It has it where at least half of its convolutions run in it or in a narrower one: counted, and not by their time, of
    which the narrow ones take less, as they should. Of a network without convolutions, half of the matrix products,
    or of all that computes. FP32 is never absent.
    Raises CannotTell where the inspector does not say enough: the engine was built without details, or the layers of
    unknown precision would decide.
    """
    if asked == "fp32":
        return None
    judged = _judged(layers)
    if not told(judged):
        raise CannotTell(
            f"whether the engine runs in {asked.upper()} cannot be read from it: "
            f"{'it tells names of layers and nothing else' if layers else 'it tells no layers'}. "
            "Build it with detailed profiling verbosity (trtexec: --profilingVerbosity=detailed)."
        )
    timed = all(layer.ms is not None for layer in judged) and sum(layer.ms or 0.0 for layer in judged) > 0
    enough = [layer for layer in judged if layer.precision in _ENOUGH[asked]]
    count, has = len(enough), len(enough) / len(judged)
    unknown = sum(layer.precision == "other" for layer in judged) / len(judged)
    if has >= LEAST_SHARE:
        return None
    what = "convolutions" if judged[0].convolution else "layers"
    share = f"{count} of {len(judged)} {what}"
    if timed:
        time = sum(layer.ms or 0.0 for layer in enough) / sum(layer.ms or 0.0 for layer in judged)
        share += f", {100 * time:.0f} % of their time"
    if has + unknown >= LEAST_SHARE:
        raise CannotTell(
            f"whether the engine runs in {asked.upper()} cannot be told: {share} do, and of "
            f"{sum(layer.precision == 'other' for layer in judged)} the inspector does not say it."
        )
    others = blockers(judged, asked)
    shown = f" Not: {', '.join(others[:4])}{' and others' if len(others) > 4 else ''}." if others else ""
    only = "no " + what.removesuffix("s") if count == 0 else f"only {share}"
    return f"{asked.upper()} was asked for, and {only} of the engine runs in it ({summary(layers)}).{shown}"
