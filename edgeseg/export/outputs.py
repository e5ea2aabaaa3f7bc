"""Which of the values that a network returns are the scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeseg.errors import ModelError

MAIN = ("out", "logits")  # the keys that segmentation networks give their main output


def pick(returned: Any, index: int | str) -> tuple[Any, str | None]:
    """The tensor of scores in what a network returned, and a note if that was a guess.

    `index` is a position or a key; a path into nested values is written with dots ("out.0"). The default, 0, also
    means the key "out" (or "logits") of a dict. Raises ModelError that names what there is.
    """
    if hasattr(returned, "dim"):
        if index not in (0, "0", "out"):
            raise ModelError(f"output.index = {index!r} in the spec, but the network returns one tensor: leave it out")
        return returned, None
    value, note = returned, None
    for step in [index] if isinstance(index, int) or _has(returned, index) else index.split("."):
        value = _step(value, step, whole=returned)
    if index == 0 and (names := _names(returned)) and len(names) > 1:
        main = next((name for name in MAIN if name in names), None)
        if main is not None:
            value = _step(returned, main, whole=returned)
        note = (
            f"of the outputs {', '.join(names)}, {main or names[0]} is taken (output.index in the spec says otherwise)"
        )
    if not hasattr(value, "dim"):  # a list of scores at several scales: its first is the finest by custom
        inner, _ = pick(value, 0)
        return inner, note or f"the first tensor in output {index!r} is taken"
    return value, note


def _names(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [str(key) for key in value]
    if isinstance(value, (list, tuple)):
        return [str(position) for position in range(len(value))]
    return []


def _has(value: Any, key: str) -> bool:
    return (isinstance(value, Mapping) and key in value) or hasattr(value, key)


def _step(value: Any, step: int | str, *, whole: Any) -> Any:
    if isinstance(value, Mapping):
        if step in value:
            return value[step]
        if str(step).isdecimal() and int(step) < len(value):
            return list(value.values())[int(step)]
    elif isinstance(value, (list, tuple)) and str(step).isdecimal() and int(step) < len(value):
        return value[int(step)]
    elif isinstance(step, str) and hasattr(value, step):
        return getattr(value, step)
    found = ", ".join(_names(whole)) or f"a {type(whole).__qualname__}"
    raise ModelError(f"output.index in the spec is {step!r}, but the network returns {found}: choose one of these")
