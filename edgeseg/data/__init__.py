"""Data sets: where frames and labels lie (`splits`, `dataset`, `layouts`), reading (`reader`), resizing (`prepare`).

Used by every stage that needs frames. `street` renders labelled street scenes for machines that have no data set.
"""

from __future__ import annotations

from edgeseg.data.dataset import load_dataset
from edgeseg.data.prepare import fit, to_size
from edgeseg.data.reader import Reading, Skipped, read
from edgeseg.data.splits import Dataset, LabelRule, Palette, Split, Street, pick

__all__ = [
    "Dataset",
    "LabelRule",
    "Palette",
    "Reading",
    "Skipped",
    "Split",
    "Street",
    "fit",
    "load_dataset",
    "pick",
    "read",
    "to_size",
]
