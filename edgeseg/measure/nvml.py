"""One NVIDIA GPU through NVML, the library that nvidia-smi asks: https://docs.nvidia.com/deploy/nvml-api.

By the package nvidia-ml-py (module pynvml), where it is installed. Without it, without a driver or without a GPU there
is nothing to say, and nothing is said.
"""

from __future__ import annotations

import importlib
from typing import Any

from edgeseg.measure.sensors import MachineSample

# nvmlClocksThrottleReasons. Left out, as nothing that slows down a GPU under load: idle (0x1), clocks that somebody set
# (0x2, 0x100), and waiting for another GPU (0x10).
REASONS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "thermal slowdown by software",
    0x40: "thermal slowdown by hardware",
    0x80: "power brake",
}


class Nvml:
    """GPU number `index`, in the order of the PCI bus. `module` is what stands in for pynvml in a test."""

    def __init__(self, index: int = 0, module: Any = None) -> None:
        self._nvml: Any = module
        self._gpu: Any = None
        if module is None:
            try:
                self._nvml = importlib.import_module("pynvml")
            except ImportError:
                return
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError:
            return  # no driver here
        try:
            self._gpu = self._nvml.nvmlDeviceGetHandleByIndex(index)
        except self._nvml.NVMLError:
            self._nvml.nvmlShutdown()

    def sample(self) -> MachineSample:
        """Nones for what this GPU does not support, or cannot tell now. Nones only, without NVML and after close()."""
        if self._gpu is None:
            return MachineSample()
        use, memory = self._ask("UtilizationRates"), self._ask("MemoryInfo")
        heat = self._ask("Temperature", self._nvml.NVML_TEMPERATURE_GPU)
        power, bits = self._ask("PowerUsage"), self._ask("CurrentClocksThrottleReasons")
        clock, most = (self._ask(name, self._nvml.NVML_CLOCK_GRAPHICS) for name in ("ClockInfo", "MaxClockInfo"))
        reasons = tuple(name for bit, name in REASONS.items() if bits is not None and bits & bit)
        known = any(x is not None for x in (use, memory, heat, power, clock))
        return MachineSample(
            temperature_c=None if heat is None else float(heat),
            gpu_percent=None if use is None else float(use.gpu),
            gpu_clock_mhz=None if clock is None else float(clock),
            gpu_clock_max_mhz=None if most is None else float(most),
            gpu_memory_mb=None if memory is None else memory.used / 2**20,
            gpu_temperature_c=None if heat is None else float(heat),
            power_w=None if power is None else power / 1000,
            throttled=None if bits is None else bool(reasons),
            throttle_reasons=reasons,
            source="nvml" if known else None,
        )

    def close(self) -> None:
        if self._gpu is not None:
            self._gpu = None
            self._nvml.nvmlShutdown()

    def _ask(self, what: str, *arguments: int) -> Any:
        try:
            return getattr(self._nvml, f"nvmlDeviceGet{what}")(self._gpu, *arguments)
        except self._nvml.NVMLError:
            return None  # not supported by this GPU, or it fell off the bus
