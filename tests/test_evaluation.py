"""The accuracy document: scores, intervals, sequences, bands; workers that count the same; models of other classes."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeseg
from edgeseg.bundle import read_bundle, write_bundle
from edgeseg.data import load_dataset, read, to_size
from edgeseg.data.street import CLASSES
from edgeseg.errors import BadInput, CannotTell, DatasetError, ModelError
from edgeseg.evaluation import class_names, evaluate, matching
from edgeseg.evaluation.processes import over_processes
from edgeseg.evaluation.work import Work, chunks
from edgeseg.measure.bootstrap import blocks, draws, iou
from edgeseg.types import InputSpec, ModelSpec, OutputSpec
from tests.data import files

VIDEO = "[splits.val]\nstreet = { seed = 100, drives = 3, frames = 6, size = [48, 64] }\n"
SAME = ("per_frame", "confusion", "boundary", "intervals", "sequences", "worst_frames", "miou", "iou", "unassigned")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "dataset.toml"
    path.write_text(VIDEO)
    return path


@pytest.fixture(scope="module")
def document(built: Path, video: Path) -> dict[str, Any]:
    return evaluate(built, video, threads=1)


def work_of(built: Path, video: Path) -> Work:
    bundle, dataset = read_bundle(built), load_dataset(video)
    return Work(bundle, bundle.chosen, dataset.split("val"), matching(bundle.spec, dataset), dataset.ignore_index, 1)


def test_the_frames_add_up_to_the_scores(document: dict[str, Any]) -> None:
    tp, fp, fn = (np.array(document["per_frame"][name]) for name in ("tp", "fp", "fn"))
    assert tp.shape == (18, len(CLASSES))
    each = iou(tp.sum(axis=0), fp.sum(axis=0), fn.sum(axis=0))
    assert list(document["iou"].values()) == pytest.approx([None if np.isnan(v) else v for v in each])
    assert document["pixel_accuracy"] == tp.sum() / (tp + fn).sum()
    matrix = np.array(document["confusion"])
    assert (np.diagonal(matrix) == tp.sum(axis=0)).all()
    assert (matrix.sum(axis=0) == (tp + fp).sum(axis=0)).all()
    assert document["unassigned"] == [0] * len(CLASSES)
    assert document["schema"] == "edgeseg.eval/2"
    json.dumps(document, allow_nan=False)


def test_sequences_and_worst_frames(document: dict[str, Any]) -> None:
    names = document["per_frame"]["names"]
    assert [row["name"] for row in document["sequences"]] == ["drive0100", "drive0101", "drive0102"]
    assert document["per_frame"]["sequences"] == [name.split("-")[0] for name in names]
    tp, fp, fn = (np.array(document["per_frame"][name]) for name in ("tp", "fp", "fn"))
    for k, row in enumerate(document["sequences"]):
        part = slice(6 * k, 6 * k + 6)
        assert row["frames"] == 6
        expected = np.nanmean(iou(tp[part].sum(axis=0), fp[part].sum(axis=0), fn[part].sum(axis=0)))
        assert row["miou"] == pytest.approx(expected)
    miou = {name: float(np.nanmean(iou(tp[k], fp[k], fn[k]))) for k, name in enumerate(names)}
    worst = document["worst_frames"]
    assert len(worst) == 10
    assert [row["miou"] for row in worst] == pytest.approx(sorted(miou.values())[:10])
    assert all(row["miou"] == pytest.approx(miou[row["name"]]) for row in worst)


def test_bands_widen_to_the_whole(document: dict[str, Any]) -> None:
    pixels = [document["boundary"][width]["pixels"] for width in ("1", "3", "5")]
    assert 0 < pixels[0] < pixels[1] < pixels[2] < np.sum(document["confusion"])
    assert all(list(band["iou"]) == list(CLASSES) for band in document["boundary"].values())


def test_intervals_near_boundaries_are_those_of_each_frame_s_counts_there(built: Path, video: Path) -> None:
    found = evaluate(built, video, block=2, threads=1)
    frames = found["per_frame"]
    weights = draws(blocks(frames["sequences"], 2), found["intervals"]["resamples"])
    for width, band in found["boundary"].items():
        counts = [np.array(frames["boundary"][width][key]) for key in ("tp", "fp", "fn")]
        whole = iou(*(array.sum(axis=0) for array in counts))
        assert list(band["iou"].values()) == pytest.approx([None if np.isnan(v) else v for v in whole])
        resampled = np.sort([np.nanmean(iou(*(w @ array for array in counts))) for w in weights])
        low, high = band["interval"]
        assert low < band["miou"] < high
        # Percentiles further out than these, as the blocks are few.
        assert resampled[0] <= low <= resampled[int(0.025 * len(resampled))]
        assert resampled[int(0.975 * len(resampled)) - 1] <= high <= resampled[-1]
    one = evaluate(built, video, block=1000, threads=1)  # a block a sequence
    assert one["boundary"]["1"]["interval"] != found["boundary"]["1"]["interval"]


def test_too_many_counts_near_boundaries_are_left_out(
    built: Path, video: Path, document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeseg.evaluation.document.MOST_NEAR", 18 * len(CLASSES) * 9 - 1)
    found = evaluate(built, video, threads=1)
    assert found["per_frame"]["boundary"] is None
    assert found["boundary"] == document["boundary"]  # with its intervals all the same


def test_intervals_are_those_of_the_counts_of_each_frame(built: Path, video: Path) -> None:
    found = evaluate(built, video, threads=1, block=2)
    counts = found["per_frame"]
    weights = draws(blocks(counts["sequences"], 2), found["intervals"]["resamples"])
    each = iou(*(weights @ np.array(counts[name]) for name in ("tp", "fp", "fn")))
    miou = np.nanmean(each, axis=1)
    low, high = found["intervals"]["miou"]
    assert found["intervals"]["blocks"] == 9
    assert found["intervals"]["block_from"] == "given"
    # Nine blocks: expanded percentiles, beyond those of 95 % and within those of all.
    assert miou.min() <= low <= np.quantile(miou, 0.025)
    assert np.quantile(miou, 0.975) <= high <= miou.max()
    assert low < found["miou"] < high
    for name, ends in found["intervals"]["iou"].items():
        assert (ends is None) == (found["iou"][name] is None)
    with pytest.raises(BadInput, match="at least 1 frame"):
        evaluate(built, video, block=0)


def test_one_block_gives_no_interval_and_says_so(built: Path, tmp_path: Path) -> None:
    (tmp_path / "d.toml").write_text(VIDEO.replace("drives = 3", "drives = 1"))
    found = evaluate(built, tmp_path / "d.toml", threads=1, block=6)
    assert found["intervals"]["miou"] is None
    assert any("no interval" in note for note in found["notes"])


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_count_the_same_bit_for_bit(built: Path, video: Path, document: dict[str, Any], workers: int) -> None:
    found = evaluate(built, video, threads=workers, workers=workers)
    for name in SAME:
        assert found[name] == document[name], name
    assert found["workers"] == {**document["workers"], "count": workers}
    assert multiprocessing.active_children() == []


def test_more_workers_than_frames(built: Path, tmp_path: Path) -> None:
    (tmp_path / "d.toml").write_text(VIDEO.replace("drives = 3, frames = 6", "drives = 1, frames = 1"))
    assert evaluate(built, tmp_path / "d.toml", workers=5)["workers"]["count"] == 1


def test_chunks_hold_every_frame_once() -> None:
    for count in (1, 7, 100, 5000):
        for workers in (1, 3, 64):
            parts = chunks(count, workers)
            assert [k for part in parts for k in part] == list(range(count))
            assert max(map(len, parts)) <= 32


def killed(parts: Iterator[Any]) -> None:
    next(parts)
    os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
    list(parts)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_worker_that_dies_is_an_error_and_nobody_stays(built: Path, video: Path) -> None:
    with pytest.raises(CannotTell, match=r"killed by SIGKILL.*fewer --workers"):
        killed(over_processes(work_of(built, video), [[0, 1, 2]] * 2000, 2))
    assert multiprocessing.active_children() == []


def test_stopping_early_leaves_nobody(built: Path, video: Path) -> None:
    with closing(over_processes(work_of(built, video), [[0, 1, 2]] * 2000, 2)) as parts:
        assert next(parts).frames == 3
        assert len(multiprocessing.active_children()) == 2
    assert multiprocessing.active_children() == []


def test_an_error_in_a_worker_is_the_error(built: Path, video: Path) -> None:
    work = work_of(built, video)
    few = replace(work, matching=replace(work.matching, names=CLASSES[:2]))
    with pytest.raises(ModelError, match="predicts class"):
        list(over_processes(few, [[0]], 2))


def runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
def test_ctrl_c_ends_all_of_them_in_words(built: Path, tmp_path: Path) -> None:
    (tmp_path / "d.toml").write_text(VIDEO.replace("drives = 3", "drives = 3000"))
    command = [sys.executable, "-m", "edgeseg", "eval", str(built), "--data", str(tmp_path / "d.toml")]
    started = subprocess.Popen(
        [*command, "--workers", "2"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )

    def children() -> list[str]:
        return Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()

    until = time.monotonic() + 30
    while len(children()) < 3 and time.monotonic() < until:  # two workers and Python's resource tracker
        time.sleep(0.05)
    time.sleep(0.3)
    born = children()
    assert len(born) >= 3
    os.killpg(started.pid, signal.SIGINT)  # as a terminal does: to everybody
    out, errors = started.communicate(timeout=30)
    assert started.returncode == 130
    assert errors == "edgeseg: stopped\n"
    assert out == ""
    until = time.monotonic() + 10
    while any(map(runs, born)) and time.monotonic() < until:  # Python's tracker ends when it sees that nobody is there
        time.sleep(0.05)
    assert not [pid for pid in born if runs(pid)]


def renamed(built: Path, names: tuple[str, ...], folder: Path) -> Path:
    bundle = read_bundle(built)
    output = replace(bundle.spec.output, classes=names)
    return write_bundle(replace(bundle, spec=replace(bundle.spec, output=output)), folder / "renamed.edgeseg")


def test_a_model_of_other_classes_is_scored_by_name(built: Path, tmp_path: Path, video: Path) -> None:
    """The model's class k is called mk; two go to one class, one to none. Against masks mapped by hand."""
    names = tuple(f"m{k}" for k in range(len(CLASSES)))
    target = {name: CLASSES[k] for k, name in enumerate(names)}
    target["m3"], target["m0"] = CLASSES[2], "none"
    lines = "".join(f'{name} = "{to}"\n' for name, to in target.items())
    (tmp_path / "d.toml").write_text(f'[class_map]\n{lines}spare = "{CLASSES[0]}"\n{VIDEO}')
    found = evaluate(renamed(built, names, tmp_path), tmp_path / "d.toml", threads=1)
    table = np.arange(len(CLASSES))
    table[3], table[0] = 2, len(CLASSES)
    matrix = np.zeros((len(CLASSES), len(CLASSES) + 1), np.int64)
    with edgeseg.open(built, threads=1) as segment:
        for sample in read(load_dataset(video).split("val")):
            assert sample.label is not None
            mask = table[to_size(segment.native(sample.pixels), (48, 64))]
            np.add.at(matrix, (sample.label, mask), 1)
    assert found["confusion"] == matrix[:, :-1].tolist()
    assert found["unassigned"] == matrix[:, -1].tolist()
    right = int(np.trace(matrix))
    assert found["pixel_accuracy"] == right / matrix.sum()
    assert found["class_map"]["m0"] is None
    assert found["class_map"]["m3"] == CLASSES[2]
    assert any(f"no class of the model is {CLASSES[0]}, {CLASSES[3]}" in note for note in found["notes"])


def test_the_same_names_in_another_order_need_a_class_map(built: Path, tmp_path: Path, video: Path) -> None:
    turned = renamed(built, CLASSES[::-1], tmp_path)
    with pytest.raises(DatasetError, match=r"not those of the data set.*\[class_map\]"):
        evaluate(turned, video)
    (tmp_path / "d.toml").write_text(f"[class_map]\n{VIDEO}")
    found = evaluate(turned, tmp_path / "d.toml", threads=1)
    plain = evaluate(built, video, threads=1)
    # Class k is now scored as class 9 - k: columns turn round.
    assert np.array_equal(np.array(found["confusion"])[:, ::-1], plain["confusion"])


def test_a_class_that_nobody_maps_is_named() -> None:
    spec = ModelSpec("m", InputSpec((48, 64)), OutputSpec(classes=("road", "vegetation", "sky")))
    dataset = replace(
        load_dataset(Path(edgeseg.__file__).parents[1] / "examples/street/dataset.toml"),
        classes=("road", "tree"),
        class_map={"vegetatoin": "tree"},
    )
    with pytest.raises(DatasetError, match=r"'vegetation', 'sky'.*Is 'vegetatoin' there 'vegetation'\?") as caught:
        matching(spec, dataset)
    assert '"vegetation" = "road"' in str(caught.value)
    with pytest.raises(DatasetError):
        class_names(spec, dataset)  # builds and streams stay strict


def test_labels_of_another_size_and_of_colours(built: Path, tmp_path: Path, video: Path) -> None:
    """The same labels at twice the size, as colours: every count is four times as large."""
    palette = [(k + 1, 2 * k, 255 - k) for k in range(len(CLASSES))]
    for sample in read(load_dataset(video).split("val")):
        assert sample.label is not None
        files.write(tmp_path / "images" / f"{sample.name}.png", sample.pixels)
        large = np.array(palette, np.uint8)[sample.label.repeat(2, axis=0).repeat(2, axis=1)]
        files.write_png(tmp_path / "labels" / f"{sample.name}.png", large, kind=2)
    names = ", ".join(f'"{name}"' for name in CLASSES)
    (tmp_path / "dataset.toml").write_text(
        f"classes = [{names}]\npalette = {[list(colour) for colour in palette]}\n"
        '[splits.val]\nimages = "images"\nlabels = "labels"\n'
    )
    found, plain = (evaluate(built, data, threads=1) for data in (tmp_path, video))
    assert (np.array(found["confusion"]) == 4 * np.array(plain["confusion"])).all()
    assert found["per_frame"]["sequences"] == plain["per_frame"]["sequences"]
    assert found["iou"] == plain["iou"]


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_frames_are_named_whoever_reads_them(built: Path, tmp_path: Path, workers: int) -> None:
    for k in range(20):
        files.write(tmp_path / "images" / f"f{k:02d}.png", files.frame(k, (48, 64)))
        files.write(tmp_path / "labels" / f"f{k:02d}.png", files.label(k, (48, 64), 10))
    names = ", ".join(f'"{name}"' for name in CLASSES)
    text = f'classes = [{names}]\n[splits.val]\nimages = "images"\nlabels = "labels"\n'
    (tmp_path / "dataset.toml").write_text(text)
    files.write(tmp_path / "labels/f07.png", np.full((48, 64), 77, np.uint8))
    found = evaluate(built, tmp_path, workers=workers)
    assert found["frames"] == 19
    assert [row["name"] for row in found["skipped"]] == ["f07"]
    assert any("skipped f07" in note and "77" in note for note in found["notes"])
    for k in (1, 2, 3):
        (tmp_path / f"labels/f{k:02d}.png").unlink()
    with pytest.raises(DatasetError, match=r"more than a tenth"):
        evaluate(built, tmp_path, workers=workers)
    assert multiprocessing.active_children() == []
