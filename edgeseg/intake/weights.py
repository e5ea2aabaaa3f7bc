"""Weights as found in checkpoints of many habits, put into a network, or a table of what does not fit."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from edgeseg.errors import ModelError

NESTS = ("state_dict", "model", "model_state_dict", "net", "ema", "module")  # where checkpoints keep their weights
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


def put(weights: Mapping[str, Any], module: nn.Module, *, file: str, factory: str) -> None:
    """Load `weights` into `module`, strictly: each name, each shape. Only BatchNorm's counters may be missing.

    Wrappers' prefixes ("module." of DataParallel, "_orig_mod." of torch.compile, the attribute that a training
    framework keeps the network in) are taken off. Raises ModelError with a table of what does not fit.
    """
    wanted = module.state_dict()
    given = _unwrap(weights, wanted)
    missing = [name for name in wanted if name not in given and not _uncounted(name)]
    unexpected = [name for name in given if name not in wanted and not _uncounted(name)]
    reshaped = [name for name in wanted if name in given and _shape(wanted[name]) != _shape(given[name])]
    if missing or unexpected or reshaped:
        raise ModelError(
            f"the weights in {file} are not those of {factory} "
            f"({len(missing)} missing, {len(unexpected)} unexpected, {len(reshaped)} of another shape):\n"
            + "\n".join(_table(missing, unexpected, reshaped, wanted, given))
            + "\nIs it the right factory, with the right factory_args?"
        )
    module.load_state_dict({name: given[name] for name in wanted if name in given}, strict=False)


def _unwrap(weights: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The weights by the names that fit best: as they are, or with one or more common first parts taken off."""
    given = {name.replace("_orig_mod.", ""): value for name, value in weights.items()}
    best, most = given, len(given.keys() & wanted.keys())
    while given:
        first = next(iter(given)).partition(".")[0] + "."
        if not all(name.startswith(first) and len(name) > len(first) for name in given):
            break
        given = {name[len(first) :]: value for name, value in given.items()}
        fitting = len(given.keys() & wanted.keys())
        if fitting > most:
            best, most = given, fitting
    return best


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
