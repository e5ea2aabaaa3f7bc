"""Evaluation on a Ray cluster, here of this machine alone: the same counts, and errors in words."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeseg.bundle import read_bundle
from edgeseg.console import Console
from edgeseg.data import load_dataset
from edgeseg.data.street import CLASSES
from edgeseg.errors import BadInput, CannotTell, MissingOnMachine, ModelError
from edgeseg.evaluation import cluster, evaluate, matching
from edgeseg.evaluation.cluster import division, over_cluster
from edgeseg.evaluation.work import Part, Work

VIDEO = "[splits.val]\nstreet = { seed = 100, drives = 3, frames = 6, size = [48, 64] }\n"


def test_a_machine_without_ray_is_told_how_to_get_it(
    built: Path, street: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingOnMachine, match=r"pip install 'edgeseg\[ray\]'"):
        evaluate(built, street / "dataset.toml", ray="auto")


@pytest.mark.parametrize(
    ("machines", "workers", "expected"),
    [
        ([8], 0, (1, 8)),
        ([8, 8], 0, (2, 8)),
        ([8, 4], 0, (2, 4)),  # the smaller one must hold a worker of this size too
        ([8, 4], 3, (3, 4)),
        ([6, 2], 2, (2, 3)),
        ([1, 1, 1], 3, (3, 1)),
        ([5, 5], 7, (7, 1)),
    ],
)
def test_workers_fit_on_the_machines(machines: list[int], workers: int, expected: tuple[int, int]) -> None:
    assert division(machines, workers) == expected
    count, threads = expected
    assert sum(cores // threads for cores in machines) >= count


def test_more_workers_than_processors_are_refused() -> None:
    with pytest.raises(BadInput, match="3 workers were asked for; the cluster has 2 processors"):
        division([1, 1], 3)
    with pytest.raises(BadInput, match="0 processors"):
        division([], 1)


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    found = pytest.importorskip("ray", reason="Ray is not installed")
    found.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield found
    found.shutdown()


@pytest.fixture
def work(built: Path, tmp_path: Path) -> Work:
    (tmp_path / "d.toml").write_text(VIDEO)
    bundle, dataset = read_bundle(built), load_dataset(tmp_path / "d.toml")
    return Work(bundle, bundle.chosen, dataset.split("val"), matching(bundle.spec, dataset), dataset.ignore_index, 1)


def test_a_cluster_counts_the_same_bit_for_bit(ray: Any, built: Path, work: Work, tmp_path: Path) -> None:
    found = evaluate(built, tmp_path / "d.toml", ray="auto", workers=2)
    plain = evaluate(built, tmp_path / "d.toml", threads=1)
    for name in ("per_frame", "confusion", "boundary", "intervals", "worst_frames"):
        assert found[name] == plain[name], name
    assert found["workers"]["ray"] is True
    assert found["workers"]["threads"] == 1
    assert found["workers"]["count"] in (1, 2)  # who was quick may have done it all
    assert ray.is_initialized()  # who began it ends it


def test_an_error_of_a_worker_is_the_error(ray: Any, work: Work) -> None:
    few = replace(work, matching=replace(work.matching, names=CLASSES[:2]))
    with pytest.raises(ModelError, match="predicts class"):
        list(over_cluster(few, [[0]], "auto", 1, Console()))


def test_a_lost_worker_is_an_error(ray: Any, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    handles: list[Any] = []
    remote = ray.remote

    class Watched:
        """Makes actors as Ray does, and keeps their handles."""

        def __init__(self, actor: Any) -> None:
            self._make = remote(actor)

        def options(self, **chosen: Any) -> Watched:
            self._make = self._make.options(**chosen)
            return self

        def remote(self, *values: Any) -> Any:
            handles.append(self._make.remote(*values))
            return handles[-1]

    monkeypatch.setattr(ray, "remote", Watched)
    parts: Iterator[Part] = over_cluster(work, [[0]] * 3000, "auto", 1, Console())
    assert np.array_equal(next(parts).counts.frames, [0])
    ray.kill(handles[0])  # as when its machine goes down
    with pytest.raises(CannotTell, match="was lost"):
        list(parts)


def test_an_older_edgeseg_over_there_is_refused(ray: Any, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "__version__", "9.9")
    with pytest.raises(MissingOnMachine, match=r"has edgeseg .*, here it is 9\.9"):
        list(over_cluster(work, [[0]], "auto", 1, Console()))
