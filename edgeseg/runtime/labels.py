"""Labels for the frames of a stream: a folder of label PNGs, found by a frame's name or, for a video, by its number.

Decoding and what the values mean is `edgeseg.data`'s: the same rules as for `edgeseg eval`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from edgeseg.data.reader import read_label
from edgeseg.data.splits import Dataset, LabelRule, Split, label_rule
from edgeseg.errors import DatasetError
from edgeseg.types import Mask

IGNORE = 255  # the label value that is not scored, where no data set says otherwise

_NUMBER = re.compile(r"([0-9]{1,18})$")


class Labels:
    """The label files of one folder. Looking up is cheap and may be done by several threads.

    A frame called `street7` has the label `street7.png` (or whichever file a data set gives to it). Frame number 12 of
    a video, which is called `000012`, has the file whose name ends in that number: `12.png`, `frame_000012.png`.
    Frames are counted from 0. Raises DatasetError for a folder that does not exist or holds no PNG.
    """

    def __init__(self, folder: Path, rule: LabelRule, by_name: dict[str, Path] | None = None) -> None:
        self.folder, self.rule = folder, rule
        if not folder.is_dir():
            raise DatasetError(f"The folder of labels {folder.absolute()} does not exist.")
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".png" and path.name[0] != ".")
        if not files and not by_name:
            raise DatasetError(f"The folder {folder.absolute()} holds no label PNG.")
        self._by_name = {path.stem: path for path in files} | (by_name or {})
        self._by_number: dict[int, Path] = {}
        self._ambiguous: str | None = None  # matters only if numbers are asked for
        for path in files:
            if not (match := _NUMBER.search(path.stem)):
                continue
            if (other := self._by_number.setdefault(int(match[1]), path)) is not path:
                self._ambiguous = (
                    f"{other.name} and {path.name} in {folder.absolute()} both end in the number {int(match[1])}, so "
                    "the label of that frame of the video could be either. Keep those of this video only."
                )
        self._asked = self._found = 0
        self._by_number_used = False

    def path(self, name: str, position: int) -> Path | None:
        """The label file of a frame by its name and its number in the source, None where there is none.

        Raises DatasetError when a video is to be labelled by numbers that two files end in: at its first frame.
        """
        found = self._by_name.get(name)
        if found is None and name == f"{position:06d}":  # a name that is a number only, so the number is what counts
            if self._ambiguous is not None:
                raise DatasetError(self._ambiguous)
            found = self._by_number.get(position)
            self._by_number_used |= found is not None
        self._asked += 1
        self._found += found is not None
        return found

    def loader(self, name: str, position: int) -> Callable[[], Mask] | None:
        """What decodes the frame's label when it is called, or None: for those who must not wait for the disk."""
        found = self.path(name, position)
        return None if found is None else partial(read_label, found, self.rule)

    def find(self, name: str, position: int) -> Mask | None:
        """The label uint8 (h, w) of class indices at its own size, None where there is none.

        Raises DatasetError for a file that cannot be used.
        """
        load = self.loader(name, position)
        return None if load is None else load()

    @property
    def warning(self) -> str | None:
        """What is odd about the labels after the frames so far, None where nothing is."""
        if not self._asked:
            return None
        if not self._found:
            return (
                f"none of the {self._asked} frames so far has a label in {self.folder}: "
                f"{len(self._by_name)} are there, such as {next(iter(self._by_name))}.png. A label has the name of its "
                "frame; for a video it ends in the frame's number, from 0."
            )
        if self._by_number_used and self._by_number.keys() == set(range(1, len(self._by_number) + 1)):
            return (
                f"the labels in {self.folder} are numbered from 1 and frames are counted from 0: if the first label "
                "belongs to the first frame, every label is compared with the wrong one. Number them from 0."
            )
        return None


def labels_from(folder: Path, *, classes: int, dataset: Dataset | None = None) -> Labels:
    """The labels in `folder`: class indices below `classes` and 255 for what is not scored, unless `dataset` says more.

    A data set tells the value that is not scored, what raw values mean, and, for the frames that it lists, which file
    in the folder is whose label. Raises DatasetError, also for a data set of another number of classes.
    """
    if dataset is None:
        return Labels(folder, label_rule(classes, IGNORE))
    if dataset.classes and len(dataset.classes) != classes:
        raise DatasetError(
            f"The data set '{dataset.name}' has {len(dataset.classes)} classes and the model {classes}; "
            "give the data set that the model was built with."
        )
    own = folder.resolve()
    labelled = [split for split in dataset.splits.values() if split.labels]
    for split in labelled:
        if by_name := _inside(split, own):
            return Labels(folder, split.rule, by_name)
    rule = labelled[0].rule if labelled else label_rule(classes, dataset.ignore_index)
    return Labels(folder, rule)


def _inside(split: Split, folder: Path) -> dict[str, Path]:
    """The labels of a split that lie in the folder, by the names of their frames' files."""
    pairs = zip(split.frames, split.labels or (), strict=True)
    inside = ((frame, label) for frame, label in pairs if label.parent.resolve() == folder)
    return {frame.stem: label for frame, label in inside if label.is_file()}
