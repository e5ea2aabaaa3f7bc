"""The GPU and the power rails of a Jetson from sysfs: there is no nvidia-smi, and its NVML says little.

Paths after NVIDIA's Jetson Linux Developer Guide, "Platform Power and Performance" (rails: INA3221 by hwmon from
JetPack 5 on, by iio before) and the drivers' sysfs entries from the TX1 to Orin. Not tried on a board.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from edgeseg.measure.machine import read_text
from edgeseg.measure.sensors import MOST, MachineSample, first, number, some

_LOADS = (  # 0 to 1000
    "sys/devices/gpu.0/load",  # a link on most boards
    "sys/devices/platform/gpu.0/load",
    "sys/devices/platform/bus@0/*.gpu/load",  # Orin, JetPack 6
    "sys/devices/platform/*.gpu/load",
    "sys/devices/*.g*/load",  # 17000000.gv11b, 57000000.gpu
    "sys/class/devfreq/*.g*/device/load",
)
_GPU = re.compile(r"\.(gpu|gm20b|gp10b|gv11b|ga10b|gb10b)$|^gpu-gpc-0$")  # the last is Thor's
_WHOLE = ("VDD_IN", "POM_5V_IN")  # the rail that feeds the module, where there is one


class JetsonGpu:
    """The integrated GPU and the rails below `root`; on other machines samples of Nones, for the cost of nothing."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._load = first(path for pattern in _LOADS for path in some(root, pattern) if number(path) is not None)
        self._clock = first(path for path in some(root, "sys/class/devfreq/*") if _GPU.search(path.name))
        self._rails = dict(_rails(root))

    def sample(self) -> MachineSample:
        load = number(self._load) if self._load else None
        now, most = (number(self._clock / name) if self._clock else None for name in ("cur_freq", "max_freq"))
        rails = {name: watts for name, files in self._rails.items() if (watts := _watts(files)) is not None}
        return MachineSample(
            gpu_percent=None if load is None else min(load / 10, 100.0),
            gpu_clock_mhz=now / 1e6 if now else None,  # Hz; 0 while it is switched off
            gpu_clock_max_mhz=most / 1e6 if most else None,
            power_w=total_power(rails),
            rails=rails,
            source="sysfs" if load is not None or now is not None else None,
        )


def total_power(rails: Mapping[str, float]) -> float | None:
    """W of the whole module: its input rail, or the sum of all where that is not measured (AGX); None without."""
    whole = first(rails.get(name) for name in _WHOLE)
    return whole if whole is not None else sum(rails.values()) if rails else None


def _rails(root: Path) -> Iterable[tuple[str, tuple[Path, ...]]]:
    """Rails by name: the files of mV and mA, or that of mW."""
    chips = "sys/bus/i2c/drivers/ina3221*/*"
    for path in some(root, f"{chips}/hwmon/hwmon*/in[123]_label", MOST):  # in7 is the sum of the shunts' voltages
        channel, name = path.name[2], read_text(path)
        if name and name != "NC":  # not connected
            yield name, (path.with_name(f"in{channel}_input"), path.with_name(f"curr{channel}_input"))
    for path in some(root, f"{chips}/iio:device*/rail_name_*", MOST):
        channel, name = path.name.rpartition("_")[2], read_text(path)
        if name and name != "NC":
            yield name, (path.with_name(f"in_power{channel}_input"),)


def _watts(files: tuple[Path, ...]) -> float | None:
    found = [number(path) for path in files]
    if len(found) == 2 and found[0] is not None and found[1] is not None:
        return found[0] * found[1] / 1e6
    return found[0] / 1000 if len(found) == 1 and found[0] is not None else None
