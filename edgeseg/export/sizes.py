"""Which input sizes a network takes, found by asking it."""

from __future__ import annotations

from collections.abc import Callable

MULTIPLES = (2, 4, 8, 16, 32, 64)

Size = tuple[int, int]  # height, width


def accepted_near(size: Size, accepts: Callable[[Size], bool]) -> tuple[int, Size | None, Size] | None:
    """For a size that is not accepted: (multiple, nearest accepted size below or None, above), or None if none is.

    The multiple is the smallest of MULTIPLES for which the sizes rounded down and up to it both are accepted.
    """
    for multiple in MULTIPLES:
        below = (size[0] // multiple * multiple, size[1] // multiple * multiple)
        above = (-(-size[0] // multiple) * multiple, -(-size[1] // multiple) * multiple)
        if above == size or not accepts(above):
            continue
        if min(below) == 0:
            return multiple, None, above
        if accepts(below):
            return multiple, below, above
    return None


def advice(size: Size, accepts: Callable[[Size], bool]) -> str:
    """One sentence for the error about a size that is not accepted."""
    found = accepted_near(size, accepts)
    if found is None:
        return f"No size near it, up to multiples of {MULTIPLES[-1]}, is accepted either"
    multiple, below, above = found
    choices = [f"{height}x{width}" for height, width in (below, above) if (height, width)] if below else []
    choices = choices or [f"{above[0]}x{above[1]}"]
    return f"It takes multiples of {multiple}: the nearest are {' and '.join(choices)} (height x width)"
