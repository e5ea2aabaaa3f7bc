"""The documentation cannot drift: README blocks and doctests run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

import calibration
import edgeseg
from edgeseg.cli import main
from edgeseg.data import load_dataset
from edgeseg.spec import read_spec

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="the example is a state dict")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    assert blocks("python")
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})
    assert (tmp_path / "street.edgeseg").is_file()


def test_toml_blocks_are_valid(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    spec, dataset, labels, _ = blocks("toml")  # the last is a budget: test_ci_recipe.py
    (tmp_path / "model.toml").write_text(spec, encoding="utf-8")
    assert read_spec(tmp_path / "model.toml").input.size == (360, 480)
    for split in ("train", "val"):
        for kind, shape in (("images", (8, 8, 3)), ("labels", (8, 8))):
            (tmp_path / split / kind).mkdir(parents=True)
            cv2.imwrite(str(tmp_path / split / kind / "a.png"), np.zeros(shape, np.uint8))
    (tmp_path / "dataset.toml").write_text(dataset, encoding="utf-8")
    assert set(load_dataset(tmp_path / "dataset.toml").splits) == {"train", "val"}
    splits = dataset[dataset.index("[splits") :]
    known = f'name = "known"\nclasses = ["road", "car", "tree"]\nignore_index = 255\n{labels}\n{splits}'
    (tmp_path / "known.toml").write_text(known, encoding="utf-8")
    found = load_dataset(tmp_path / "known.toml")
    rule = found.split("val").rule
    assert [rule.table[value] for value in (7, 26, 29, 9)] == [0, 1, 1, 255]  # road, car, caravan, parking


def commands() -> list[str]:
    lines = [line for block in blocks("console") for line in block.splitlines()]
    return [line.split("#")[0].removeprefix("$ ").strip() for line in lines if line.startswith("$ edgeseg ")]


@pytest.mark.parametrize("command", commands())
def test_commands_take_these_arguments(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (
        "model.pt",
        "dataset.toml",
        "model.edgeseg",
        "eval.json",
        "bench.json",
        "stream.json",
        "rewrite.json",
        "small.pt2",
        "segnet.pt",
    ):
        (tmp_path / name).touch()
    (tmp_path / "labels").mkdir()
    _, name, *arguments = shlex.split(command)
    main.commands[name].make_context(name, arguments)  # raises UsageError for what the command does not know


def test_tools_in_the_readme_exist() -> None:
    for tool in set(re.findall(r"tools/\w+", README)):
        assert (ROOT / tool).is_file(), tool


def modules() -> list[str]:
    names = []
    for package in (calibration, edgeseg):
        names += [found.name for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
        names.append(package.__name__)
    return sorted(name for name in names if not name.endswith("__main__"))


def test_doctests() -> None:
    tried = 0
    for name in modules():
        result = doctest.testmod(importlib.import_module(name))
        assert result.failed == 0, name
        tried += result.attempted
    assert tried >= 10
