"""What this machine can do at most, measured in a few seconds: multiplications a second, bytes a second.

The peak of the arithmetic is that of a stack of dense 3x3 convolutions with 128 channels, run by the same runtime with
the same threads and settings as the bundle: paper figures are reached by nobody. In FP32 NumPy's matrix product is
tried beside it, and the better of both counts. Each is the best of some runs: others on the machine only make slower.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from edgeseg import backends
from edgeseg.backends import Engine
from edgeseg.backends.base import Value, threads_allowed
from edgeseg.benchmark.probe_graph import probe_graph
from edgeseg.measure.machine import read_text
from edgeseg.measure.profile import profile
from edgeseg.types import Precision

Clock = Callable[[], int]
SECONDS = 0.7  # of each probe, about
_ARITHMETIC = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
_LEAST, _MOST = 64 << 20, 512 << 20  # bytes of what is copied
_FREE = 4  # times the last-level cache


def best_ns(work: Callable[[], object], clock: Clock, seconds: float = SECONDS, least: int = 3) -> int:
    """The shortest of several runs, after one that does not count."""
    work()
    start, best, count = clock(), 0, 0
    while count < least or clock() - start < seconds * 1e9:
        before = clock()
        work()
        took = max(1, clock() - before)
        best = took if not best else min(best, took)
        count += 1
    return best


def convolution_peak(
    backend: str, precision: Precision, threads: int, settings: Mapping[str, Value], clock: Clock = time.perf_counter_ns
) -> float:
    """GMAC/s of the stack of convolutions on that runtime. Raises ModelError, MissingOnMachine."""
    graph = probe_graph(int8=precision == "int8")
    told = {key: value for key, value in settings.items() if key in ("arithmetic", "optimization")}
    if "arithmetic" in told and precision in _ARITHMETIC:
        told["arithmetic"] = _ARITHMETIC[precision]
    files = backends.get(backend).convert(graph)
    engine = Engine("probe", backend, precision, next(iter(files)), files, {**told, "threads": threads})
    frame = np.random.default_rng(0).integers(0, 256, (1, *_size(graph), 3), np.uint8)
    with backends.open_engine(engine) as session:
        return profile(graph).macs / best_ns(lambda: session.run(frame), clock)


def product_peak(clock: Clock = time.perf_counter_ns, size: int = 1024) -> float:
    """GMAC/s of NumPy's matrix product in FP32, with the threads that its BLAS takes."""
    one, two = np.random.default_rng(0).standard_normal((2, size, size), np.float32)
    out = np.empty_like(one)
    return size**3 / best_ns(lambda: np.matmul(one, two, out=out), clock)


def copy_peak(threads: int, clock: Clock = time.perf_counter_ns, size: int | None = None) -> float:
    """GB/s, bytes read plus bytes written, of a copy by so many threads of `size` bytes, more than a cache holds."""
    size = size or min(max(_FREE * (last_level_cache() or 0), _LEAST), _MOST)
    source, target = np.ones(size, np.uint8), np.zeros(size, np.uint8)
    parts = list(zip(np.array_split(source, threads), np.array_split(target, threads), strict=True))
    if threads == 1:
        return 2 * size / best_ns(lambda: np.copyto(target, source), clock)
    with ThreadPoolExecutor(threads) as pool:
        return 2 * size / best_ns(lambda: list(pool.map(lambda part: np.copyto(part[1], part[0]), parts)), clock)


def last_level_cache(root: Path = Path("/")) -> int | None:
    """Bytes of the largest cache that the first processor reaches; None where the system does not tell."""
    sizes = []
    for path in root.glob("sys/devices/system/cpu/cpu0/cache/index*/size"):
        text = read_text(path) or ""
        unit = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:], 1)
        digits = text.rstrip("KM")
        if digits.isdigit():
            sizes.append(int(digits) * unit)
    return max(sizes, default=None)


def blas_counts(threads: int) -> bool:
    """Whether NumPy's product may be compared with an engine of so many threads: its own number cannot be set here."""
    return threads >= threads_allowed()


def _size(graph: bytes) -> tuple[int, int]:
    import onnx

    shape = onnx.load_from_string(graph).graph.input[0].type.tensor_type.shape.dim
    return int(shape[1].dim_value), int(shape[2].dim_value)
