"""Which video a frame belongs to, from its name: neighbours in a video are alike, and are not independent samples."""

from __future__ import annotations

import re
from collections.abc import Sequence

from edgeseg.errors import DatasetError

# The last run of digits that no letter follows is the frame's number: not the 8 of "_leftImg8bit". Letters that only
# mark it (Seq05VD_f00930, frame12, img_7) belong to it.
_LAST = re.compile(r"\d+(?![0-9A-Za-z])")
_MARK = re.compile(r"(?:(?<![A-Za-z0-9])(?:frame|image|img|f))?[_\-. ]*$", re.IGNORECASE)


def sequences(names: Sequence[str], pattern: str = "") -> tuple[str, ...]:
    """The sequence of every frame, by its name in the split (a path below the split's folder, without the suffix).

    What stands before the frame's number, with the folder: 0001TP for 0001TP_006690, Seq05VD for Seq05VD_f00000,
    aachen/aachen_000000 for aachen/aachen_000000_000019_leftImg8bit; the folder alone, or "", where nothing does.
    With `pattern`, a regular expression, group 1 of its first match is the sequence (the whole match without a
    group). Raises DatasetError for a name that it does not match.
    """
    if not pattern:
        return tuple(_split(name)[0] for name in names)
    expression = re.compile(pattern)
    found = []
    for name in names:
        match = expression.search(name)
        if match is None:
            raise DatasetError(f"sequence = '{pattern}' does not match the frame '{name}'; mend the pattern.")
        found.append((match.group(1) if expression.groups else match.group()) or "")
    return tuple(found)


def in_order(names: Sequence[str], of: Sequence[str]) -> list[int]:
    """The frames' indices with each sequence (`of`) in one piece, by frame number: 9 before 10 where nothing is padded.

    Sequences come in the order of their first frames.
    """
    first: dict[str, int] = {}
    for sequence in of:
        first.setdefault(sequence, len(first))
    numbers = [_split(name)[1] for name in names]
    return sorted(range(len(names)), key=lambda k: (first[of[k]], numbers[k], k))


def _split(name: str) -> tuple[str, int]:
    folder, _, stem = name.rpartition("/")
    last = None
    for match in _LAST.finditer(stem):
        last = match
    if last is None:
        return folder, 0
    before = _MARK.sub("", stem[: last.start()]).rstrip("_-. ")
    return "/".join(part for part in (folder, before) if part), int(last.group())
