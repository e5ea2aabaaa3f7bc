"""A network made ready for INT8: normalisations folded, channels evened out, ranges taken, weights rounded to serve.

Integers are fitted to frames layer by layer, and kept where held-out frames confirm them (edgeseg.quantize.rounding).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from calibration import Recipe
from calibration import to_json as scales_json
from edgeseg import __version__, cache, quantize
from edgeseg.backends.onnxruntime import probe
from edgeseg.console import Console
from edgeseg.data import Reading
from edgeseg.measure.convergence import Convergence
from edgeseg.pipeline.calibrate import calibrated
from edgeseg.pipeline.evening import evened
from edgeseg.pipeline.frames import Effort, fitting_frames
from edgeseg.pipeline.network import Network, dialect_for, shared
from edgeseg.quantize import fitted as stored
from edgeseg.quantize.fitted import Fitted
from edgeseg.quantize.rounding import adapted
from edgeseg.types import Frames, OnnxModel

_FITTED = 16  # frames that weights are fitted to, at most: 32 did not change what rounding gains


@dataclass(frozen=True, slots=True)
class Ready:
    """`convergence`: whether the frames were enough for the ranges; None where they come from the cache.

    `row`: what was done, for the document.
    """

    network: Network
    convergence: Convergence | None
    row: dict[str, Any]


def dialects_of(backends: Sequence[str], *, travels: bool = False) -> tuple[quantize.Dialect, ...]:
    """The dialects of backends on this machine; of a bundle that `travels`, TensorRT's too."""
    found = [dialect_for(name) for name in backends] + ([quantize.TENSORRT] if travels else [])
    return tuple(dict.fromkeys(found))


def ready(
    fp32: OnnxModel,
    reading: Reading,
    recipe: Recipe,
    dialects: Sequence[quantize.Dialect],
    effort: Effort,
    *,
    use_cache: bool,
    console: Console,
) -> Ready:
    """The network with its ranges on the frames of `reading`, and with weights fitted for each of the dialects."""
    even, row = evened(fp32, reading, recipe, dialects, effort, use_cache=use_cache, console=console)
    table, convergence = calibrated(even, reading, recipe, use_cache, console)
    frames = fitting_frames(reading, even.spec, _FITTED) if effort.fit or effort.correct else []
    network, fits = fitted_to(Network(even, table), frames, dialects, effort, use_cache=use_cache, console=console)
    return Ready(network, convergence, {**row, "fitted": fits})


def fitted_to(
    network: Network,
    frames: Sequence[Frames],
    dialects: Sequence[quantize.Dialect],
    effort: Effort,
    *,
    use_cache: bool,
    console: Console,
) -> tuple[Network, dict[str, Any]]:
    """Integers for the weights, or corrected biases, for the dialects that have none yet; and a row for each fit.

    Integers are fitted to what TensorRT's convolutions read, and serve all dialects: on four networks the scores erred
    within 0.9 dB of what integers of their own gave, mostly within 0.2, where those gained up to 5.
    Both would be too much: after adaptive rounding, corrected biases changed the scores' error by -0.7 to +0.4 dB.
    """
    table = network.table
    missing = [dialect for dialect in dialects if network.fits(dialect) is None]
    if not missing or table is None or not (effort.fit or effort.correct) or not frames:
        return network, {}
    rounds = bool(effort.fit) and len(frames) > 1
    if rounds:
        wanted = {shared(d.weight_bits): replace(quantize.TENSORRT, weight_bits=d.weight_bits) for d in missing}
    else:
        wanted = {dialect.name: dialect for dialect in missing}
    some = frames[: effort.fit] if rounds else frames[: effort.correct]
    found, rows = dict(network.fitted), dict[str, Any]()
    reused = 0
    with console.step("weights") as step:
        for name, dialect in wanted.items():
            placement = quantize.place(quantize.Graph(network.fp32.graph), dialect)
            rules = (repr(dialect), placement.convolutions, sorted(placement.quantizers.items()), rounds)
            given = (network.fp32.digest, scales_json(table), *(frame.tobytes() for frame in some))
            key = cache.key("fitted", __version__, *rules, *given)
            if use_cache and (kept := cache.load("fitted", key)) is not None:
                document = json.loads(kept)
                found[name], rows[name] = stored.from_json(document["fitted"]), document["row"]
                reused += 1
                continue
            if rounds:
                rounding = adapted(network.fp32, table, dialect, probe, some)
                gains = list(rounding.gained.values())
                median = round(float(np.median(gains)), 2) if gains else None
                found[name] = Fitted(rounding.integers)
                rows[name] = {"rounded": len(gains), "median_gain_db": median, "left": rounding.left}
            else:
                found[name] = Fitted({}, quantize.corrected_biases(network.fp32, table, dialect, probe, some))
                rows[name] = {"biases": len(found[name].biases)}
            document = {"fitted": stored.to_json(found[name]), "row": rows[name]}
            cache.store("fitted", key, json.dumps(document).encode())
        said = "; ".join(_fit_said(name, row) for name, row in rows.items())
        step.note = f"{'reused: ' if reused == len(rows) else ''}{said}; on {len(some)} frames"
    return replace(network, fitted=found), rows


def _fit_said(name: str, row: Mapping[str, Any]) -> str:
    if "biases" in row:
        return f"biases of {row['biases']} convolutions corrected for {name}"
    gain = "" if row["median_gain_db"] is None else f", their outputs err {row['median_gain_db']:.1f} dB less (median)"
    return f"weights of {row['rounded']} convolutions rounded to serve{gain}"
