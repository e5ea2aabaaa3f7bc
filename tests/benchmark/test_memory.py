"""Size and memory of a bundle's engine, as bench tells them."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from edgeseg.benchmark import bench
from edgeseg.benchmark.memory import memory_mb
from edgeseg.bundle import read_bundle
from edgeseg.compare.values import values
from edgeseg.documents import checked
from edgeseg.measure.machine import peak_rss_mb
from edgeseg.pipeline import build
from edgeseg.report.bench import bench_table
from edgeseg.segmenter import engine_of
from tests.quantize import making

needs_peak = pytest.mark.skipif(peak_rss_mb() is None, reason="this system does not tell a process's peak memory")


@needs_peak
def test_bench_tells_size_and_memory(built: Path) -> None:
    (document,) = bench(built, seconds=0.1, samples=3, limit=1.0, threads=1)
    bundle = read_bundle(built)
    files = engine_of(bundle, bundle.variant(bundle.chosen)).files
    assert document["size_mb"] == sum(map(len, files.values())) / 1e6
    assert 1 < document["memory_mb"] < 1000  # the runtime's code at least
    assert values(document)["memory"] == document["memory_mb"]
    assert values(document)["size"] == document["size_mb"]
    assert f"{document['memory_mb']:.0f} MB of memory" in bench_table([document])
    checked(document, built)
    old = copy.deepcopy(document)
    del old["size_mb"], old["memory_mb"]
    assert not {"size", "memory"} & set(values(checked(old, built)))
    assert "of memory" not in bench_table([old])


@needs_peak
def test_larger_frames_take_more(built: Path, tmp_path: Path) -> None:
    small = memory_mb(built, read_bundle(built).chosen, 1)
    (tmp_path / "net.onnx").write_bytes(making.plain_network((384, 512)))
    (tmp_path / "net.toml").write_text(making.PLAIN_SPEC.replace("[48, 64]", "[384, 512]"), encoding="utf-8")
    large = build(
        tmp_path / "net.onnx",
        spec=tmp_path / "net.toml",
        backend="onnxruntime",
        quick=True,
        out=tmp_path / "large.edgeseg",
    )
    assert large.path is not None
    found = memory_mb(large.path, large.bundle.chosen, 1)
    assert small is not None
    assert found is not None
    assert found > small + 384 * 512 * 3 * 4 / 2**20  # its input in float, at the least


def test_a_process_that_fails_tells_nothing(built: Path, tmp_path: Path) -> None:
    assert memory_mb(built, "no such engine", 1) is None
    assert memory_mb(tmp_path / "absent.edgeseg", "fp32", 1) is None
