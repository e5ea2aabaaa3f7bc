"""The scale table: what was seen of every tensor, and of which model, data and recipe.

It holds statistics and not scales. Every engine wants other integers (symmetric or not, signed or not), and derives
its own from the same table; so may another recipe, without another calibration run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches

import numpy as np
from numpy.typing import NDArray

from calibration.errors import BadActivations, BadScaleTable, StaleScaleTable, UnknownTensor
from calibration.ranges import quantizer
from calibration.recipe import Recipe
from calibration.scheme import Quantizer, Scheme
from calibration.seen import Seen, merge, update

SCHEMA = "edgeseg.scales/2"


@dataclass(frozen=True, slots=True)
class ScaleTable:
    """The result of a calibration. `to_json` and `from_json` (calibration/files.py) write and read it."""

    model: str  # hash of the graph that gave the activations
    data: str  # hash of the frames, in the order and the preprocessing they were given
    recipe: Recipe
    frames: int
    tensors: Mapping[str, Seen]
    schema: str = field(default=SCHEMA)

    def quantizer(self, name: str, scheme: Scheme) -> Quantizer:
        """One tensor's scale and zero point, by this table's recipe. Raises UnknownTensor.

        Raises BadScaleTable, naming the tensor, where the recipe needs what an older table does not hold.
        """
        seen = self.seen(name)
        try:
            return quantizer(seen, self.recipe.method, scheme, self.recipe.parameters)
        except BadScaleTable as error:
            raise BadScaleTable(f"tensor '{name}': {error}") from error

    def seen(self, name: str) -> Seen:
        """What was seen of one tensor. Raises UnknownTensor."""
        try:
            return self.tensors[name]
        except KeyError:
            near = get_close_matches(name, self.tensors, 3)
            hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
            raise UnknownTensor(
                f"tensor '{name}' was not seen in calibration; the table has {len(self.tensors)} tensors.{hint} "
                "If the graph has changed since, calibrate again."
            ) from None

    def with_recipe(self, recipe: Recipe) -> ScaleTable:
        """The same statistics, to be read by another recipe."""
        return replace(self, recipe=recipe)


def calibrate(
    batches: Iterable[Mapping[str, NDArray[np.float32]]],
    recipe: Recipe,
    *,
    model: str,
    data: str,
    watch: Callable[[int, Mapping[str, Seen]], object] | None = None,
) -> ScaleTable:
    """See every tensor of every frame, once, one frame at a time.

    `batches` yields {tensor name: float32 activations of any shape} for one frame after another, every time with the
    same names; nothing of a frame is kept. `model` and `data` are hashes that say what the table belongs to. `watch` is
    called after every frame with the number of frames and what was seen so far: a mapping of its own, of values that
    never change, so it may be kept.
    Raises BadActivations: no frames, a missing or surplus tensor, NaN or Inf (with the tensor and the frame named).
    """
    tensors: dict[str, Seen] = {}
    frames = 0
    for frames, batch in enumerate(batches, start=1):
        where = f"frame {frames - 1}"
        if frames > 1 and batch.keys() != tensors.keys():
            missing, surplus = sorted(tensors.keys() - batch.keys()), sorted(batch.keys() - tensors.keys())
            raise BadActivations(
                f"{where}: the same tensors were expected as in the frames before; missing: "
                f"{', '.join(missing[:5]) or 'none'}; new: {', '.join(surplus[:5]) or 'none'}."
            )
        for name, values in batch.items():
            tensors[name] = update(tensors.get(name), values, f"tensor '{name}', {where}")
        if watch is not None:
            watch(frames, dict(tensors))
    if not frames:
        raise BadActivations("frames to calibrate on were expected, got none. Scales are never taken from random data.")
    return ScaleTable(model, data, recipe, frames, tensors)


def check(table: ScaleTable, *, model: str, data: str, recipe: Recipe) -> None:
    """Raise StaleScaleTable unless the table is of just this model, these frames and this recipe."""
    pairs = (
        ("model", table.model, model, "the network or its export has changed"),
        ("data", table.data, data, "other frames, or another preprocessing"),
        ("recipe", table.recipe.digest, recipe.digest, f"'{table.recipe.name}' then, '{recipe.name}' now"),
    )
    differing = [
        f"{what} ({was[:12]} in the table, {now[:12]} now: {why})" for what, was, now, why in pairs if was != now
    ]
    if not differing:
        return
    only_recipe = (table.model, table.data) == (model, data)
    advice = (
        "The frames need not be run again: what was seen does not depend on the recipe, use table.with_recipe(recipe)."
        if only_recipe
        else "Calibrate again, or delete the stale file."
    )
    raise StaleScaleTable(f"the scale table belongs to something else: {'; '.join(differing)}. {advice}")


def merge_tables(one: ScaleTable, other: ScaleTable, *, data: str | None = None) -> ScaleTable:
    """The table of the frames of `one` and then of `other`, as one process would have made it, bin for bin.

    Only what "moving-average" reads depends on which is first, and equals one process's but for rounding. Both must be
    of the same model, recipe and tensors; and of the same `data` too, unless the hash of the whole is given. Raises
    StaleScaleTable.
    """
    if data is None:
        check(other, model=one.model, data=one.data, recipe=one.recipe)
    else:
        check(other, model=one.model, data=other.data, recipe=one.recipe)
    if one.tensors.keys() != other.tensors.keys():
        differing = sorted(one.tensors.keys() ^ other.tensors.keys())
        raise StaleScaleTable(
            f"the two tables hold different tensors ({len(differing)} are in one only, such as '{differing[0]}'). "
            "Calibrate both parts with the same list of tensors."
        )
    tensors = {name: merge(seen, other.tensors[name]) for name, seen in one.tensors.items()}
    return replace(one, data=data or one.data, frames=one.frames + other.frames, tensors=tensors)
