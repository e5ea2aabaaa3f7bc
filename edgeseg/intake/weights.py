"""Weights as found in checkpoints of many habits, put into a network, or a table of what does not fit."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from edgeseg.errors import ModelError
from edgeseg.intake.names import BESIDE, HEADS, Library, libraries

NESTS = (  # where checkpoints keep their weights; averaged ones, which are rarer, are taken where there are no others
    "state_dict", "model", "model_state_dict", "net", "network", "ema", "module", "weights", "ema_state_dict",
    "state_dict_ema", "model_ema",
)  # fmt: skip
ROWS = 8  # of each kind in the table of mismatches


def find_weights(content: object, depth: int = 3) -> dict[str, torch.Tensor] | None:
    """The state dict in what torch.load returned: itself, or below one of NESTS; None if there is none."""
    if not isinstance(content, Mapping):
        return None
    if content and all(
        isinstance(key, str) and (isinstance(value, torch.Tensor) or key.endswith("_extra_state"))
        for key, value in content.items()
    ):
        return dict(content)
    if depth == 0:
        return None
    for nest in NESTS:
        found = find_weights(content[nest], depth - 1) if nest in content else None
        if found is not None:
            return found
    return None


def find_module(content: object) -> nn.Module | None:
    """The whole module in what torch.load returned: itself, or below one of NESTS; None if there is none."""
    if isinstance(content, nn.Module):
        return content
    if isinstance(content, Mapping):
        return next((content[nest] for nest in NESTS if isinstance(content.get(nest), nn.Module)), None)
    return None


def find_classes(content: object) -> tuple[str, ...]:
    """The names of the classes that a checkpoint of MMSegmentation says it knows, in order; () if it says nothing."""
    meta = content.get("meta") if isinstance(content, Mapping) else None
    for holder in (meta, meta.get("dataset_meta") if isinstance(meta, Mapping) else None):
        for key in ("classes", "CLASSES"):
            names = holder.get(key) if isinstance(holder, Mapping) else None
            if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
                return tuple(names)
    return ()


def put(weights: Mapping[str, Any], module: nn.Module, *, file: str, factory: str, classes: Sequence[str] = ()) -> None:
    """Load `weights` into `module`, strictly: each name, each shape. Only BatchNorm's counters may be missing.

    Wrappers' prefixes ("module." of DataParallel, "_orig_mod." of torch.compile, the attribute that a training
    framework keeps the network in) are taken off, other libraries' names translated (see `edgeseg.intake.names`). Left
    out is what inference does not need: heads and losses of training that the network does not have. Raises ModelError
    with a table of what does not fit. `classes`: their names, if the file says them, for that message.
    """
    wanted = module.state_dict()
    given, library = _fitting(weights, wanted)
    given = {name: value for name, value in given.items() if name in wanted or not name.startswith(HEADS)}
    missing = [name for name in wanted if name not in given and not _uncounted(name)]
    unexpected = [name for name in given if name not in wanted and not _uncounted(name)]
    reshaped = [name for name in wanted if name in given and _shape(wanted[name]) != _shape(given[name])]
    if missing or unexpected or reshaped:
        raise ModelError(
            f"the weights in {file} are not those of {factory} "
            f"({len(missing)} missing, {len(unexpected)} unexpected, {len(reshaped)} of another shape):\n"
            + "\n".join(_table(missing, unexpected, reshaped, wanted, given))
            + "".join(f"\n{line}" for line in _advice(missing, reshaped, wanted, given, library, classes))
            + "\nIs it the right factory, with the right factory_args?"
        )
    module.load_state_dict({name: given[name] for name in wanted if name in given}, strict=False)


def _fitting(weights: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[dict[str, Any], Library | None]:
    """The weights by the names that fit best: as they are, with one or more common first parts taken off, or
    translated from those of a library, which is then given too."""
    given = {name.replace("_orig_mod.", ""): value for name, value in weights.items()}
    given = {name: value for name, value in given.items() if name in wanted or not BESIDE.search(name)}
    best, most, of = given, len(given.keys() & wanted.keys()), None
    spoken = libraries(given)
    while given:
        for library in (None, *spoken):
            named = {library.translated(name): value for name, value in given.items()} if library else given
            fitting = len(named.keys() & wanted.keys())
            if fitting > most and len(named) == len(given):
                best, most, of = named, fitting, library
        first = next(iter(given)).partition(".")[0] + "."
        if not all(name.startswith(first) and len(name) > len(first) for name in given):
            break
        given = {name[len(first) :]: value for name, value in given.items()}
    return best, of


def _advice(
    missing: Sequence[str], reshaped: Sequence[str], wanted: Mapping[str, Any], given: Mapping[str, Any],
    library: Library | None, classes: Sequence[str],
) -> list[str]:  # fmt: skip
    """What is likely wrong, in lines."""
    lines = []
    for spoken in [library] if library is not None else libraries(given):
        lines.append(f"The names are like {spoken.name}'s. Networks for them: {spoken.factories}.")
    if library is not None:
        lines.append("They were translated; above they stand as translated.")
    if missing and all(name.startswith(HEADS) for name in missing):
        lines.append("It was saved without its auxiliary head: auxiliary = false in [factory_args].")
    shapes = [(_shape(wanted[name]) or (0,), _shape(given[name]) or (0,)) for name in reshaped]
    counts = {theirs[0] for _, theirs in shapes}
    # layers that differ in their outputs alone, and all in one way, are those that give scores
    if len(counts) == 1 and all(ours[1:] == theirs[1:] for ours, theirs in shapes):
        named = f" ({', '.join(classes[:3])}, …)" if classes else ""
        count = counts.pop()
        lines.append(f"The file has {count} classes{named}: classes = {count} in [factory_args].")
    return lines


def _uncounted(name: str) -> bool:
    # Older checkpoints lack it, and inference does not read it.
    return name.rpartition(".")[2] == "num_batches_tracked"


def _shape(value: object) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


def _table(
    missing: list[str], unexpected: list[str], reshaped: list[str], wanted: Mapping[str, Any], given: Mapping[str, Any]
) -> list[str]:
    rows = []
    for label, names, have, others in (
        ("missing", missing, wanted, unexpected),
        ("unexpected", unexpected, given, missing),
    ):
        for name in names[:ROWS]:
            near = difflib.get_close_matches(name, others, n=1, cutoff=0.5)
            hint = f"   closest: {near[0]}" if near else ""
            rows.append(f"  {label:11s}{name} {list(_shape(have[name]) or ())}{hint}")
        if len(names) > ROWS:
            rows.append(f"  {label:11s}… and {len(names) - ROWS} more")
    for name in reshaped[:ROWS]:
        sizes = f"file {list(_shape(given[name]) or ())}, network {list(_shape(wanted[name]) or ())}"
        rows.append(f"  {'shape':11s}{name}: {sizes}")
    if len(reshaped) > ROWS:
        rows.append(f"  {'shape':11s}… and {len(reshaped) - ROWS} more")
    return rows
