"""A tiny trained-ish network in a file, rendered streets, and runs over them in a line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeseg.console import Console
from edgeseg.data.street import CLASSES, render
from edgeseg.pipeline.rewriting.wish import Budget, Wish
from edgeseg.types import InputSpec, ModelSpec, OutputSpec
from tests import models
from tests.quantize import making

SIZE = (48, 64)
QUIET = Console(quiet=True)
SPEC = ModelSpec("tiny", InputSpec(SIZE, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)))
UNTIMED = Wish(Budget("macs", 0.5), samples=12, timed=False, align=4)


class Street(nn.Module):
    """One layer that can become much cheaper, two that can a little, and a head of as many classes as the street."""

    def __init__(self, classes: int = len(CLASSES), width: int = 16) -> None:
        super().__init__()
        self.first = models.Block(3, width, stride=2)
        self.deep = models.Block(width, 2 * width)
        self.wide = models.Block(2 * width, 2 * width)
        self.head = nn.Conv2d(2 * width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(self.wide(self.deep(self.first(x))))
        return F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)


def network(folder: Path, module: nn.Module | None = None, toml: str = making.PLAIN_SPEC) -> Path:
    """net.pt2 and net.toml in the folder; the path of the first."""
    made = models.seeded(Street) if module is None else module
    with torch.no_grad():
        program = torch.export.export(made.eval(), (torch.zeros(1, 3, *SIZE),), strict=False)
    folder.mkdir(parents=True, exist_ok=True)
    torch.export.save(program, folder / "net.pt2")
    (folder / "net.toml").write_text(toml, encoding="utf-8")
    return folder / "net.pt2"


def pictures(folder: Path, count: int) -> Path:
    """A folder of frames alone, without labels: a data set of one split."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        assert cv2.imwrite(str(folder / f"{index:03d}.png"), render(SIZE, 1 + index // 2, index)[0])
    return folder


def street(folder: Path, train: int = 14, val: int = 3) -> Path:
    """A labelled data set of rendered streets with a split for the verdict."""
    folder.mkdir(parents=True, exist_ok=True)
    text = 'name = "street"\nignore_index = 255\n'
    for split, seed, count in (("train", 1, train), ("val", 101, val)):
        text += f"[splits.{split}]\nstreet = {{ seed = {seed}, drives = {count}, frames = 1, size = [48, 64] }}\n"
    (folder / "dataset.toml").write_text(text, encoding="utf-8")
    return folder / "dataset.toml"


def named(spec: ModelSpec = SPEC, **output: object) -> ModelSpec:
    return replace(spec, output=replace(OutputSpec(classes=CLASSES), **output))  # type: ignore[arg-type]
