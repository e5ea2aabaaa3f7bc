"""The machine beside the stream: a sample every second from a thread of its own, for whoever joins it to a record.

    with Monitor(timeline.machine) as monitor:
        monitor.start()

Imported by its own name, not from edgeseg.measure: it needs the backends' seam, which itself needs edgeseg.measure.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeseg.backends.base import Closing
from edgeseg.measure.jetson import JetsonGpu
from edgeseg.measure.nvml import Nvml
from edgeseg.measure.sensors import Host, MachineSample, combine
from edgeseg.measure.tegrastats import Tegrastats

__all__ = ["MachineSample", "Monitor"]

_PATIENCE_S = 5.0  # how long close() waits for a sample under way; the thread is a daemon, should a driver hang


class Monitor(Closing):
    """Samples this machine: /proc and /sys, NVML, a Jetson's sysfs, `tegrastats` where none of them knows a GPU's load.

    After start(), a thread calls callback(clock(), sample) at once and then every `interval_s` seconds until close();
    what that raises ends the thread, as in any. `clock` should be the stream's; `gpu` is NVML's number of the GPU.
    For tests: `root` is where /proc and /sys lie, `nvml` stands in for the module pynvml, and `tegrastats` is the
    program to start, None for none.
    """

    def __init__(
        self,
        callback: Callable[[int, MachineSample], object] | None = None,
        *,
        interval_s: float = 1.0,
        clock: Callable[[], int] = time.perf_counter_ns,
        root: Path = Path("/"),
        gpu: int = 0,
        nvml: Any = None,
        tegrastats: str | None = "tegrastats",
    ) -> None:
        if interval_s <= 0:
            raise ValueError(f"the time between two samples is more than 0 s, got {interval_s}")
        self._interval_s, self._clock, self._callback = interval_s, clock, callback
        self._lock = threading.Lock()  # samples know the one before: one at a time
        self._host = Host(root)
        self._gpus: list[Nvml | JetsonGpu | Tegrastats] = [Nvml(gpu, nvml), JetsonGpu(root)]
        if tegrastats is not None and all(source.sample().gpu_percent is None for source in self._gpus):
            self._gpus.append(Tegrastats(tegrastats, interval_s=interval_s))
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to sample every interval. Once; ValueError without a callback."""
        if self._callback is None or self._thread is not None:
            raise ValueError("a monitor is started once, and has a callback to hand its samples to")
        self._thread = threading.Thread(target=self._run, args=(self._callback,), name="edgeseg-monitor", daemon=True)
        self._thread.start()

    def sample(self) -> MachineSample:
        """The machine now; loads and throttling are those since the sample before."""
        with self._lock:
            return combine(*(source.sample() for source in self._gpus), self._host.sample())

    def close(self) -> None:
        """End the thread and all that was opened. More than once does nothing."""
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_PATIENCE_S)
        if self._lock.acquire(timeout=_PATIENCE_S):
            try:
                for source in self._gpus:
                    if not isinstance(source, JetsonGpu):
                        source.close()
            finally:
                self._lock.release()

    def _run(self, callback: Callable[[int, MachineSample], object]) -> None:
        while not self._stop.is_set():
            sample = self.sample()
            callback(self._clock(), sample)
            self._stop.wait(self._interval_s)
