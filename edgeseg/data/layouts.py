"""Folder layouts that need no DATASET.toml: Cityscapes, PASCAL VOC, CamVid (SegNet tutorial), ADE20K, a plain folder.

Each layout is a function from the root folder to a Dataset, or None where the folder does not look like it.
Class orders, ids and colours are those that the data sets publish.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

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

# trainId order; the raw id of "labelIds" files (cityscapesscripts, helpers/labels.py); RGB.
_CITYSCAPES: tuple[tuple[str, int, tuple[int, int, int]], ...] = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)
_CITYSCAPES_IDS = 34  # ids 0 to 33; those without a trainId are ignored

_VOC = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
)
_CAMVID = "sky building pole road pavement tree sign fence car pedestrian bicyclist"
_CAMVID_PALETTE: Palette = (
    *((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0)),
    *((192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)),
)
_ADE_CLASSES = 150


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
    by_train_id = label_rule(len(_CITYSCAPES), 255)
    raw_ids = dict.fromkeys(range(_CITYSCAPES_IDS), 255)
    raw_ids.update({raw: train for train, (_, raw, _) in enumerate(_CITYSCAPES)})
    by_id = label_rule(len(_CITYSCAPES), 255, raw_ids)
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
    names = [name for name, _, _ in _CITYSCAPES]
    return _dataset("cityscapes", names, tuple(colour for _, _, colour in _CITYSCAPES), 255, splits)


def _voc(root: Path) -> Dataset | None:
    images, lists, truth = root / "JPEGImages", root / "ImageSets" / "Segmentation", root / "SegmentationClass"
    if not (images.is_dir() and lists.is_dir()):
        return None
    names = _VOC.split()
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
    names = _CAMVID.split()
    rule = label_rule(len(names), 11, palette=_CAMVID_PALETTE)
    splits = [_pair(name, root / name, root / f"{name}annot", rule) for name in ("train", "val", "test")]
    return _dataset("camvid", names, _CAMVID_PALETTE, 11, splits)


def _ade20k(root: Path) -> Dataset | None:
    if not (root / "images" / "training").is_dir() or not (root / "annotations" / "training").is_dir():
        return None
    # Raw 0 is "other objects": ignored. Raw 1 to 150 are the classes.
    rule = label_rule(_ADE_CLASSES, 255, {0: 255} | {raw: raw - 1 for raw in range(1, _ADE_CLASSES + 1)})
    pairs = (("train", "training"), ("val", "validation"))
    splits = [_pair(name, root / "images" / f, root / "annotations" / f, rule) for name, f in pairs]
    return _dataset("ade20k", _ade_names(root / "objectInfo150.txt"), default_palette(_ADE_CLASSES), 255, splits)


def _ade_names(table: Path) -> list[str]:
    """Names from the table that the data set ships (tab-separated: index, ratio, train, val, name), else numbers."""
    if table.is_file():
        rows = [line.split("\t") for line in table.read_text(encoding="utf-8").splitlines()[1:]]
        names = [row[-1].split(",")[0].strip() for row in rows if len(row) >= 5]
        if len(names) == _ADE_CLASSES:
            # A few first synonyms occur twice ("screen"): numbered, because names are keys in reports.
            return [n if names.index(n) == i else f"{n} ({i + 1})" for i, n in enumerate(names)]
    return [f"class {index}" for index in range(1, _ADE_CLASSES + 1)]


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
