"""Folder layouts that need no DATASET.toml: Cityscapes, PASCAL VOC, CamVid (SegNet tutorial), ADE20K, a plain folder.

Each layout is a function from the root folder to a Dataset, or None where the folder does not look like it.
Class orders, ids and colours are those that the data sets publish.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from edgeseg.data.label_sets import ADE20K, CAMVID, CAMVID_PALETTE, CITYSCAPES, VOC
from edgeseg.data.splits import (
    Dataset,
    LabelRule,
    Palette,
    Split,
    default_palette,
    file_split,
    images_in,
    label_rule,
    same_stem,
)
from edgeseg.errors import DatasetError

_CITYSCAPES_IDS = 34  # ids 0 to 33; those without a trainId are ignored


def detect(root: Path) -> Dataset:
    """The data set in `root`, by its layout; DatasetError, saying what was looked for, if there is none."""
    for layout in (_cityscapes, _voc, _camvid, _ade20k, _plain):
        dataset = layout(root)
        if dataset is not None:
            return dataset
    raise DatasetError(
        f"{root} holds no dataset.toml, no images, and no known layout: Cityscapes (leftImg8bit/), PASCAL VOC "
        "(JPEGImages/ with ImageSets/Segmentation/), CamVid (train/ with trainannot/), ADE20K (images/training/ with "
        "annotations/training/). Write a dataset.toml, or point at the folder that holds one of these."
    )


def _cityscapes(root: Path) -> Dataset | None:
    top = root / "leftImg8bit"
    if not top.is_dir():
        return None
    by_train_id = label_rule(len(CITYSCAPES), 255)
    raw_ids = dict.fromkeys(range(_CITYSCAPES_IDS), 255)
    raw_ids.update({raw: train for train, (_, raw, _) in enumerate(CITYSCAPES)})
    by_id = label_rule(len(CITYSCAPES), 255, raw_ids)
    splits = []
    for folder in _folders(top):
        frames = [image for city in _folders(folder) for image in images_in(city)]
        truth = root / "gtFine" / folder.name
        rule, labels = by_train_id, None
        for suffix, candidate in (("labelTrainIds", by_train_id), ("labelIds", by_id)):
            if any(truth.glob(f"*/*_{suffix}.png")):
                rule = candidate
                stems = ((f.parent.name, f.stem.removesuffix("_leftImg8bit")) for f in frames)
                labels = [truth / city / f"{stem}_gtFine_{suffix}.png" for city, stem in stems]
                break
        splits.append(file_split(folder.name, folder, frames, rule, labels))
    names = [name for name, _, _ in CITYSCAPES]
    return _dataset("cityscapes", names, tuple(colour for _, _, colour in CITYSCAPES), 255, splits)


def _voc(root: Path) -> Dataset | None:
    images, lists, truth = root / "JPEGImages", root / "ImageSets" / "Segmentation", root / "SegmentationClass"
    if not (images.is_dir() and lists.is_dir()):
        return None
    names = VOC
    rule = label_rule(len(names), 255)
    splits = []
    for listing in sorted(lists.glob("*.txt")):
        frames = [images / f"{line.strip()}.jpg" for line in listing.read_text().splitlines() if line.strip()]
        # The public test list has no labels; a list of which some labels are missing is the reader's to report.
        labels = same_stem(frames, truth)
        labelled = any(label.is_file() for label in labels)
        splits.append(file_split(listing.stem, images, frames, rule, labels if labelled else None))
    return _dataset("voc", names, default_palette(len(names)), 255, splits)


def _camvid(root: Path) -> Dataset | None:
    if not (root / "train").is_dir() or not (root / "trainannot").is_dir():
        return None
    names = CAMVID
    rule = label_rule(len(names), 11, palette=CAMVID_PALETTE)
    splits = [_pair(name, root / name, root / f"{name}annot", rule) for name in ("train", "val", "test")]
    return _dataset("camvid", names, CAMVID_PALETTE, 11, splits)


def _ade20k(root: Path) -> Dataset | None:
    if not (root / "images" / "training").is_dir() or not (root / "annotations" / "training").is_dir():
        return None
    # Raw 0 is "other objects": ignored. Raw 1 to 150 are the classes.
    rule = label_rule(len(ADE20K), 255, {0: 255} | {raw: raw - 1 for raw in range(1, len(ADE20K) + 1)})
    pairs = (("train", "training"), ("val", "validation"))
    splits = [_pair(name, root / "images" / f, root / "annotations" / f, rule) for name, f in pairs]
    return _dataset("ade20k", _ade_names(root / "objectInfo150.txt"), default_palette(len(ADE20K)), 255, splits)


def _ade_names(table: Path) -> list[str]:
    """Names from the table in the data set (tab-separated: index, ratio, train, val, name), else those built in."""
    if table.is_file():
        rows = [line.split("\t") for line in table.read_text(encoding="utf-8").splitlines()[1:]]
        names = [row[-1].split(",")[0].strip() for row in rows if len(row) >= 5]
        if len(names) == len(ADE20K):
            # A few first synonyms occur twice ("screen"): numbered, because names are keys in reports.
            return [n if names.index(n) == i else f"{n} ({i + 1})" for i, n in enumerate(names)]
    return list(ADE20K)


def _plain(root: Path) -> Dataset | None:
    frames = images_in(root)
    if not frames:
        return None
    return _dataset(root.name, [], (), None, [file_split("all", root, frames, label_rule(0, None))])


def _pair(name: str, images: Path, truth: Path, rule: LabelRule) -> Split | None:
    if not images.is_dir():
        return None
    frames = images_in(images)
    return file_split(name, images, frames, rule, same_stem(frames, truth) if truth.is_dir() else None)


def _dataset(
    name: str, classes: Iterable[str], palette: Palette, ignore: int | None, splits: Iterable[Split | None]
) -> Dataset:
    return Dataset(name, tuple(classes), palette, ignore, {split.name: split for split in splits if split is not None})


def _folders(parent: Path) -> list[Path]:
    return sorted(p for p in parent.iterdir() if p.is_dir() and not p.name.startswith("."))
