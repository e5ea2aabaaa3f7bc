"""A network as a build quantizes it, and how a bundle keeps it: for engines that are made later, on other machines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration import CalibrationError, ScaleTable, from_json, to_json
from edgeseg import quantize
from edgeseg.bundle import FP32, Bundle
from edgeseg.errors import BundleError
from edgeseg.measure.machine import machine
from edgeseg.pipeline.engines import REWRITTEN
from edgeseg.quantize import fitted as stored
from edgeseg.quantize.edges import outputs_of
from edgeseg.quantize.fitted import Fitted
from edgeseg.trials.candidates import dialect_of
from edgeseg.types import OnnxModel

SCALES = "scales.json"
_AGAIN = "Build the bundle again."


@dataclass(frozen=True, slots=True)
class Network:
    """`table`: what was seen of its tensors; None without INT8.

    `fitted`: by name of a dialect, or of `shared` for all dialects that have no fit of their own.
    """

    fp32: OnnxModel
    table: ScaleTable | None = None
    fitted: Mapping[str, Fitted] = field(default_factory=dict)

    def int8(self, dialect: quantize.Dialect, kept: frozenset[str] = frozenset()) -> OnnxModel:
        """The graph in INT8. `kept`: names of convolutions that stay in float; the others are as they would be anyway.

        Raises what `quantize` raises.
        """
        assert self.table is not None, "a network without scales has no INT8"
        own = self.fits(dialect) or Fitted()
        model = self.fp32 if own.learned is None else replace(self.fp32, graph=own.learned)
        placement = quantize.place(quantize.Graph(model.graph), dialect, keep_float=kept)
        return quantize.quantize(
            model, self.table, dialect, placement=placement, bias=own.biases, rounding=own.integers
        )

    def fits(self, dialect: quantize.Dialect) -> Fitted | None:
        """What was fitted for a dialect; None if nothing was."""
        return self.fitted.get(dialect.name) or self.fitted.get(shared(dialect.weight_bits))

    def on(self, backends: Sequence[str], kept: frozenset[str] = frozenset()) -> dict[str, OnnxModel]:
        """The graph in INT8 for each of the backends named, in its dialect."""
        return {name: self.int8(dialect_for(name), kept) for name in backends}


def shared(bits: int) -> str:
    """The name of what was fitted for all dialects whose weights have so many bits."""
    return f"weights-{bits}"


def dialect_for(backend: str) -> quantize.Dialect:
    """The INT8 dialect of a backend on this machine."""
    return quantize.DIALECTS[dialect_of(backend, frozenset(machine()["isa"]))]


def files_of(network: Network, prefix: str = "") -> dict[str, bytes]:
    """The files of a bundle that keep a network. `prefix`: empty for the original, a folder for another one."""
    files = {f"{prefix}{FP32}": network.fp32.graph}
    if network.table is not None:
        files[f"{prefix}{SCALES}"] = to_json(network.table).encode()
    for name, fitted in network.fitted.items():
        files[f"{prefix}int8/{name}.json"] = stored.to_json(fitted).encode()
        if fitted.learned is not None:
            files[f"{prefix}int8/{name}.onnx"] = fitted.learned
    return files


def networks_in(bundle: Bundle) -> Iterator[Network]:
    """The original network and the rewritten one, as far as the bundle keeps them."""
    for prefix in ("", f"{REWRITTEN}/"):
        if (found := network_in(bundle, prefix)) is not None:
            yield found


def network_in(bundle: Bundle, prefix: str = "") -> Network | None:
    """The network that `files_of` kept; None if there is none. Raises BundleError for one that is damaged."""
    if f"{prefix}{FP32}" not in bundle.files:
        return None
    fp32 = OnnxModel(bundle.files[f"{prefix}{FP32}"], bundle.spec)
    if f"{prefix}{SCALES}" not in bundle.files:
        return Network(fp32)
    try:
        table = from_json(bundle.files[f"{prefix}{SCALES}"].decode())
    except (CalibrationError, UnicodeDecodeError) as error:
        raise BundleError(f"{prefix}{SCALES} in the bundle cannot be read: {error}. {_AGAIN}") from error
    fitted: dict[str, Fitted] = {}
    bits = {dialect.weight_bits for dialect in quantize.DIALECTS.values()}
    for name in (*quantize.DIALECTS, *sorted(map(shared, bits))):
        file = f"{prefix}int8/{name}.json"
        if file in bundle.files:
            learned = bundle.files.get(f"{prefix}int8/{name}.onnx")
            try:
                fitted[name] = stored.from_json(bundle.files[file].decode(), learned)
                _check(fitted[name], fp32.graph)
            except ValueError as error:
                raise BundleError(f"{file} in the bundle cannot be used: {error}. {_AGAIN}") from error
    return Network(fp32, table, fitted)


def _check(fitted: Fitted, graph: bytes) -> None:
    """Raise ValueError unless the numbers are of convolutions of the graph."""
    whole = quantize.Graph(fitted.learned or graph)
    nodes = {node.name: node for node in whole.nodes}
    numbers: list[tuple[str, NDArray[Any]]] = [*fitted.integers.items(), *fitted.biases.items()]
    for name, value in numbers:
        weights = whole.constant(nodes[name].input[1]) if name in nodes and len(nodes[name].input) > 1 else None
        if weights is None:
            raise ValueError(f"the network has no convolution '{name}'")
        wanted = weights.shape if value.dtype == np.int8 else (outputs_of(nodes[name], weights.shape),)
        if value.shape != wanted:
            raise ValueError(f"'{name}' has {value.dtype} numbers of shape {value.shape}, {wanted} was expected")
