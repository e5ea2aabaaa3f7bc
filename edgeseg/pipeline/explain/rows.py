"""Layers as rows of a document, worst first, each with the likeliest reason in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from edgeseg.measure.layers import MOST_DB, Difference, WeightLoss, weight_loss
from edgeseg.pipeline.explain.copies import Quantizer
from edgeseg.pipeline.explain.damage import Damage, Outputs
from edgeseg.pipeline.explain.names import source_module
from edgeseg.pipeline.explain.transplant import Deployed, Layer

MUCH_CLIPPED = 0.01  # of a tensor, from where it is a reason
WRONG_GAIN = 1.2  # of a channel's weights, and its reciprocal, beyond which no rounding goes
# Decibels that another scale would save: beyond, it is a mistake. Of two networks, four recipes and four dialects the
# worst sound scale could save 11.9 (entropy, which clips much); one that is wrong by a factor of 20 costs about 25.
WRONG_DB = 15.0


def layer_rows(
    deployed: Deployed,
    seen: Outputs,
    own: Mapping[str, Damage],
    parts: Mapping[str, Damage],
    without: Mapping[str, Damage],
) -> list[dict[str, Any]]:
    """A row for each layer that is quantized, worst first: by what it does alone, where that is known.

    Before all others come layers with a fault, which can be mended: a scale that its values cannot explain. In a layer
    that hardly matters a fault may do less than mere rounding does in another.
    """
    losses = {layer.node: _weight_loss(deployed, layer) for layer in deployed.layers}
    total = sum(found.rank for found in own.values() if math.isfinite(found.rank))
    rows = []
    for layer in deployed.layers:
        damage = own.get(layer.node)
        rows.append(
            {
                "node": layer.node,
                "module": source_module(layer.node, deployed.weight_name(layer.node)),
                **output_cells(seen.layers.get(layer.node)),
                "own": _end(damage),
                "share": damage.rank / total if damage and total and math.isfinite(damage.rank) else None,
                "weights_alone": _end(parts.get(f"{layer.node}/weights")),
                "inputs_alone": _end(parts.get(f"{layer.node}/inputs")),
                "without": _end(without.get(layer.node)),
                "weights": _weights(losses[layer.node]),
                "inputs": [_input(deployed, quantizer, seen) for quantizer in layer.quantizers],
            }
        )
        rows[-1] |= {"fault": is_fault(rows[-1]), "why": why(rows[-1])}
    return sorted(rows, key=lambda row: _order(row, own))


def placed_rows(rows: Sequence[dict[str, Any]], placement: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The rows with `precision`, "int8" or "float", and the `reason` for it: both None where that is not known.

    A layer in float is among them if what it gives is quantized.
    """
    known = {} if placement is None else {row["node"]: row for row in placement["convolutions"]}
    return [{**row, **{key: known.get(row["node"], {}).get(key) for key in ("precision", "reason")}} for row in rows]


def output_rows(deployed: Deployed, seen: Outputs) -> list[dict[str, Any]]:
    """For a graph without quantizers, such as one in half precision: how far each convolution's output is off."""
    rows = [
        {
            "node": node,
            "module": source_module(node, deployed.weight_name(node)),
            **output_cells(seen.layers.get(node)),
            **dict.fromkeys(("own", "share", "weights_alone", "inputs_alone", "without", "weights")),
            "inputs": [],
            "fault": False,
            "why": "",
        }
        for node in deployed.outputs
    ]
    for row in rows:
        row |= {"fault": is_fault(row), "why": why(row)}
    return sorted(rows, key=lambda row: _order(row, {}))


def output_cells(found: Difference | None) -> dict[str, Any]:
    """Of a layer's output, with all that was lost before it. `snr_db` is None where nothing is lost, or not known."""
    if found is None:
        return dict.fromkeys(("snr_db", "cosine", "largest_error", "broken"))
    return {
        "snr_db": found.snr_db,
        "cosine": found.cosine,
        "largest_error": found.largest,
        "broken": found.broken,
    }


def is_fault(row: Mapping[str, Any]) -> bool:
    """Whether something is wrong with the layer that rounding to eight bits does not explain."""
    wrong_scale = any(read["avoidable_db"] > WRONG_DB for read in row["inputs"] if read["avoidable_db"] is not None)
    return bool(row["broken"]) or wrong_scale or _wrong_gain(row["weights"])


def _wrong_gain(weights: Mapping[str, Any] | None) -> bool:
    return weights is not None and not 1 / WRONG_GAIN < weights["gain"] < WRONG_GAIN


def rescaled(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether so many layers have other weights than in FP32 that somebody must have meant it."""
    known = [row for row in rows if row["weights"]]
    return len(known) > 2 and 2 * sum(_wrong_gain(row["weights"]) for row in known) > len(known)


def why(row: Mapping[str, Any]) -> str:
    """The likeliest reason for a layer's damage, in words; empty where it is mere rounding and nobody looked closer."""
    found = []
    if row["broken"]:
        found.append(f"{row['broken']} values of its output are NaN or infinite")
    if _wrong_gain(weights := row["weights"]):
        channel = f"channel {weights['channel']} of its weights"
        found.append(f"{channel} comes back {weights['gain']:.3g} times as large: a wrong scale")
    for read in row["inputs"]:
        if read["seen"] is None:
            continue
        name = f"'{read['tensor']}' (of {read['from']})"
        one, two = ("{:.3g} to {:.3g}".format(*ends) for ends in ((read["low"], read["high"]), read["seen"]))
        if read["clipped"] > MUCH_CLIPPED:
            share = 100 * read["clipped"]
            found.append(
                f"{share:.1f} % of '{read['tensor']}' is cut off: integers reach from {one}, values from {two}"
            )
        elif read["avoidable_db"] > WRONG_DB:
            found.append(
                f"steps of {read['scale']:.3g} at {name} are about {1 / read['best_factor']:.3g} times too "
                f"coarse: integers reach from {one}, values from {two}"
            )
        elif read["shared_db"] > WRONG_DB:
            found.append(f"{name} shares a scale with larger tensors, which costs it {read['shared_db']:.0f} dB")
    if not found and row["weights_alone"] and row["inputs_alone"]:
        weights_db, inputs_db = (_db(row[key]) for key in ("weights_alone", "inputs_alone"))
        if abs(weights_db - inputs_db) > 3:
            worse = "the rounding of its weights" if weights_db < inputs_db else "the rounding of what it reads"
            found.append(f"mostly {worse}")
        else:
            found.append("the rounding of its weights and of what it reads alike")
    return "; ".join(found)


def _db(end: Mapping[str, Any]) -> float:
    return MOST_DB if end["snr_db"] is None else float(end["snr_db"])


def _order(row: Mapping[str, Any], own: Mapping[str, Damage]) -> tuple[bool, bool, float, float]:
    damage = own.get(row["node"])
    snr = MOST_DB if row["snr_db"] is None else row["snr_db"]
    rank = 0.0 if damage is None else -damage.rank
    return not row["fault"], damage is None, rank, -MOST_DB if row["broken"] else snr


def _weight_loss(deployed: Deployed, layer: Layer) -> WeightLoss | None:
    before = deployed.weight_of(layer.node)
    return None if before is None or layer.weights is None else weight_loss(before, layer.weights, layer.axis)


def _weights(found: WeightLoss | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "snr_db": found.snr_db,
        "channel": found.channel,
        "channel_snr_db": found.channel_snr_db,
        "gain": found.gain,
    }


def _input(deployed: Deployed, quantizer: Quantizer, outputs: Outputs) -> dict[str, Any]:
    """`avoidable_db`: what the best scale saves, for all tensors that share it; `shared_db`: for it alone, beyond."""
    found, alone = outputs.quantizers.get(quantizer.node), outputs.rounding.get(quantizer.node)
    together = outputs.together.get(quantizer.node)
    known = found is not None and math.isfinite(found.low) and math.isfinite(found.high)
    saved = together.avoidable_db if together else None
    return {
        "tensor": quantizer.tensor,
        "from": deployed.source(quantizer.tensor),
        "scale": quantizer.scale,
        "zero_point": quantizer.zero_point,
        "low": quantizer.low,
        "high": quantizer.high,
        "seen": [found.low, found.high] if known and found else None,
        "clipped": found.share if found else None,
        "avoidable_db": saved,
        "best_factor": together.factor if together else None,
        "shared_db": max(0.0, alone.avoidable_db - saved) if alone and saved is not None else None,
    }


def _end(damage: Damage | None) -> dict[str, Any] | None:
    """Of the scores and the labels at the network's end; `snr_db` is None where the scores are exact, or none."""
    if damage is None:
        return None
    scores = damage.scores
    return {
        "snr_db": scores.snr_db if scores else None,
        "agreement": damage.agreement,
        "broken": scores.broken if scores else 0,
    }


end_cells = _end


def sentences(document: Mapping[str, Any]) -> list[str]:
    """The result in a few plain sentences."""
    said = [f"{100 * document['agreement']['overall']:.2f} % of the labels are those of the FP32 graph"]
    if (miou := document["miou"]) is not None:
        change = 100 * (miou["after"] - miou["before"])
        said[0] += f"; mIoU {100 * miou['before']:.2f} to {100 * miou['after']:.2f} % ({change:+.2f} points)"
        losses = [
            (100 * (row["after"] - row["before"]), name)
            for name, row in miou["iou"].items()
            if row["before"] is not None and row["after"] is not None
        ]
        if losses and min(losses)[0] < -0.05:
            loss, name = min(losses)
            said.append(f"the class that lost most is {name}: {loss:+.2f} points of IoU")
    rows = document["layers"]
    if rows and rows[0]["own"] is not None:
        first = rows[0]
        name = first["node"] + (f" (module {first['module']})" if first["module"] else "")
        share = "" if first["share"] is None else f", {100 * first['share']:.0f} % of what all layers do alone"
        what = "a fault is in" if first["fault"] else "the worst layer is"
        said.append(f"{what} {name}{share}" + (f": {first['why']}" if first["why"] else ""))
    elif rows:
        said.append(f"furthest off is the output of {rows[0]['node']}")
    agreement = document["agreement"]
    if document["agreement"]["overall"] < 1 and (near := agreement["bands"].get("2")) is not None:
        said.append(f"within 2 pixels of a class boundary {100 * near:.2f} % agree")
    if (found := document["flicker"]) and found["changed"] and found["changed"]["fp32"] is not None:
        one, two = (100 * found["changed"][name] for name in ("fp32", "deployed"))
        said.append(
            f"where a video stands still, {one:.2f} % of the pixels change class in FP32 and {two:.2f} % deployed"
        )
    return said


def worst_first(deployed: Deployed, seen: Outputs) -> list[str]:
    """The order in which layers are judged alone: those that look worst first, for the case that time runs out."""

    def looks(layer: Layer) -> float:
        loss = _weight_loss(deployed, layer)
        weights = MOST_DB if loss is None or loss.channel_snr_db is None else loss.channel_snr_db
        saved = [seen.together[q.node].avoidable_db for q in layer.quantizers if q.node in seen.together]
        return min(weights, -max(saved, default=0.0))

    return [layer.node for layer in sorted(deployed.layers, key=looks)]
