"""What a machine says about itself right now: load, memory, clocks, temperatures, throttling, from /proc and /sys.

The paths are looked for once, at the start; a sample only reads them, and keeps none open. What a machine does not tell
is None. For the formats: proc(5); Documentation/ABI/testing/sysfs-class-thermal, hwmon/sysfs-interface and
admin-guide/pm/cpufreq in the Linux kernel's documentation.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from edgeseg.measure.machine import read_text

T = TypeVar("T")

MOST = 32  # zones, rails, counters: a server has hundreds, and a sample must stay cheap
PLAUSIBLE_C = (-40.0, 150.0)  # sensors that are switched off give -256 and the like
# Not where the work is done. A Jetson's PMIC says 100 °C always.
_ELSEWHERE = re.compile(r"pmic|wifi|wlan|batt|charg|nvme|board|tdiode", re.I)
# Cooling by slowing down; a fan is no throttling, and "TCC Offset" is a setting that is never 0.
_SLOWING = re.compile(r"cpu|gpu|devfreq|processor|powerclamp|throttle|balanced|heavy|gv11b|ga10b|gp10b", re.I)
_CPU_CHIPS = {"coretemp", "k10temp", "zenpower", "cpu_thermal"}


@dataclass(frozen=True, slots=True)
class MachineSample:
    """The machine at one moment; None, or left out of a mapping, what it does not tell."""

    cpu_percent: float | None = None  # busy since the sample before, of all cores: 0 to 100
    cpu_percent_self: float | None = None  # this process, of all cores too
    cpu_clock_mhz: float | None = None  # mean over the cores
    rss_mb: float | None = None  # physical memory of this process, MiB
    memory_percent: float | None = None  # of the machine, in use
    temperature_c: float | None = None  # the hottest of the processors and what is near them
    temperatures: Mapping[str, float] = field(default_factory=dict)  # zone -> °C
    gpu_percent: float | None = None
    gpu_clock_mhz: float | None = None
    gpu_clock_max_mhz: float | None = None
    gpu_memory_mb: float | None = None  # in use, MiB
    gpu_temperature_c: float | None = None
    power_w: float | None = None  # of the GPU by NVML, of the whole module on a Jetson
    rails: Mapping[str, float] = field(default_factory=dict)  # power rail -> W
    throttled: bool | None = None  # since the sample before
    throttle_reasons: tuple[str, ...] = ()
    source: str | None = None  # where the GPU's part is from: "nvml", "sysfs" or "tegrastats"

    def numbers(self) -> dict[str, float]:
        """All numbers that are known, flat: zones as "temperature_c:NAME", rails as "power_w:NAME"."""
        found = {name: value for name in _NUMBERS if (value := getattr(self, name)) is not None}
        found.update((f"temperature_c:{zone}", value) for zone, value in self.temperatures.items())
        found.update((f"power_w:{rail}", value) for rail, value in self.rails.items())
        return found


_NUMBERS = (
    *("cpu_percent", "cpu_percent_self", "cpu_clock_mhz", "rss_mb", "memory_percent", "temperature_c"),
    *("gpu_percent", "gpu_clock_mhz", "gpu_clock_max_mhz", "gpu_memory_mb", "gpu_temperature_c", "power_w"),
)


def combine(*samples: MachineSample) -> MachineSample:
    """One sample of several: the first that knows a number states it; the hottest zone and any throttling win."""
    merged: dict[str, Any] = {name: first(getattr(s, name) for s in samples) for name in (*_NUMBERS, "source")}
    heats = [s.temperature_c for s in samples if s.temperature_c is not None]
    flags = [s.throttled for s in samples if s.throttled is not None]
    merged["temperature_c"] = max(heats, default=None)
    merged["temperatures"] = {zone: value for s in reversed(samples) for zone, value in s.temperatures.items()}
    merged["rails"] = {rail: value for s in reversed(samples) for rail, value in s.rails.items()}
    merged["throttled"] = any(flags) if flags else None
    merged["throttle_reasons"] = tuple(dict.fromkeys(reason for s in samples for reason in s.throttle_reasons))
    return MachineSample(**merged)


class Host:
    """The processors of a machine with Linux's /proc and /sys below `root`. Without them, samples of Nones."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._zones = dict(_zones(root))
        self._clocks = some(root, "sys/devices/system/cpu/cpufreq/policy*/scaling_cur_freq") or some(
            root, "sys/devices/system/cpu/cpu*/cpufreq/scaling_cur_freq"
        )
        self._cooling = {
            path.with_name("cur_state"): f"cooling by {kind}"
            for path in some(root, "sys/class/thermal/cooling_device*/type", most=4 * MOST)
            if _SLOWING.search(kind := read_text(path) or "")
        }
        # Events since boot: only more of them than a sample ago say something about now.
        self._counters = {path: f"over-current {path.name[:-10]}" for path in some(root, _OVER_CURRENT)} | {
            path: f"CPU too hot ({path.name.partition('_')[0]})" for path in some(root, _TOO_HOT)
        }
        self._counted = {path: number(path) for path in self._counters}
        self._ticks = self._read_ticks()

    def sample(self) -> MachineSample:
        heats = {zone: heat for zone, path in self._zones.items() if (heat := celsius(number(path))) is not None}
        clocks = [khz / 1000 for path in self._clocks if (khz := number(path))]
        throttled, reasons = self._throttling()
        busy, own = self._load()
        return MachineSample(
            cpu_percent=busy,
            cpu_percent_self=own,
            cpu_clock_mhz=sum(clocks) / len(clocks) if clocks else None,
            rss_mb=self._rss(),
            memory_percent=self._memory(),
            temperature_c=hottest(heats),
            temperatures=heats,
            gpu_temperature_c=max((heat for zone, heat in heats.items() if "gpu" in zone.lower()), default=None),
            throttled=throttled,
            throttle_reasons=reasons,
        )

    def _throttling(self) -> tuple[bool | None, tuple[str, ...]]:
        reasons = [reason for path, reason in self._cooling.items() if (number(path) or 0) > 0]
        for path, reason in self._counters.items():
            before, now = self._counted[path], number(path)
            self._counted[path] = now
            if before is not None and now is not None and now > before:
                reasons.append(reason)
        known = bool(self._cooling or self._counters)
        return (bool(reasons) if known else None), tuple(dict.fromkeys(reasons))

    def _load(self) -> tuple[float | None, float | None]:
        """Busy, and this process's part of it, in per cent of all cores since the sample before."""
        before, self._ticks = self._ticks, self._read_ticks()
        if before is None or self._ticks is None:
            return None, None
        total, idle, own = (now - then for now, then in zip(self._ticks, before, strict=True))
        if total <= 0:  # asked twice within a tick, which is 10 ms
            return None, None
        return tuple(100.0 * min(max(part / total, 0.0), 1.0) for part in (total - idle, own))  # type: ignore[return-value]

    def _read_ticks(self) -> tuple[int, int, int] | None:
        """All cores' ticks since boot, those that they idled, and those of this process."""
        everybody = re.match(r"cpu +([\d ]+)", read_text(self._root / "proc/stat") or "")
        own = (read_text(self._root / "proc/self/stat") or "").rpartition(")")[2].split()  # a name may hold blanks
        if not everybody or len(own) < 13:
            return None
        ticks = [int(x) for x in everybody[1].split()][:8]  # guests' ticks, the last two, are in user's already
        return sum(ticks), sum(ticks[3:5]), int(own[11]) + int(own[12])

    def _rss(self) -> float | None:
        pages = (read_text(self._root / "proc/self/statm") or "").split()
        return int(pages[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20 if len(pages) > 1 else None

    def _memory(self) -> float | None:
        text = read_text(self._root / "proc/meminfo") or ""
        total, free = (re.search(rf"{key}:\s+(\d+) kB", text) for key in ("MemTotal", "MemAvailable"))
        return 100.0 * (1.0 - int(free[1]) / int(total[1])) if total and free and int(total[1]) else None


_OVER_CURRENT = "sys/class/hwmon/hwmon*/oc*_event_cnt"  # Jetson Orin
_TOO_HOT = "sys/devices/system/cpu/cpu*/thermal_throttle/*_throttle_count"  # x86, by core and by package


def _zones(root: Path) -> Iterable[tuple[str, Path]]:
    """Temperature sensors: name -> file in thousandths of a °C."""
    seen: dict[str, int] = {}
    named = [(read_text(path), path.with_name("temp")) for path in some(root, "sys/class/thermal/thermal_zone*/type")]
    for path in some(root, "sys/class/hwmon/hwmon*/name"):
        chip = read_text(path)
        if chip in _CPU_CHIPS:  # the first sensor is the package; one for each core would be many
            named.append((chip, path.with_name("temp1_input")))
    for name, path in named[:MOST]:
        if (
            name and path.exists()
        ):  # reading it may fail now and work later: a GPU that is switched off has no temperature
            seen[name] = seen.get(name, 0) + 1
            yield (name if seen[name] == 1 else f"{name}-{seen[name]}"), path


def hottest(heats: Mapping[str, float]) -> float | None:
    """The highest temperature in °C of those that say how hot the work makes the machine."""
    return max((heat for zone, heat in heats.items() if not _ELSEWHERE.search(zone)), default=None)


def celsius(thousandths: int | None) -> float | None:
    """A temperature, None where it cannot be one."""
    found = None if thousandths is None else thousandths / 1000
    return found if found is not None and PLAUSIBLE_C[0] < found < PLAUSIBLE_C[1] else None


def number(path: Path) -> int | None:
    """The whole number in a file; None where there is none."""
    text = read_text(path)
    try:
        return int(text) if text else None
    except ValueError:
        return None  # "disabled", "N/A": some drivers write words


def some(root: Path, pattern: str, most: int = MOST) -> list[Path]:
    """The first files of that pattern, in the order of the numbers in their names."""
    return sorted(root.glob(pattern), key=_numbered)[:most]


def _numbered(path: Path) -> list[tuple[int, str]]:
    return [(int(digits or 0), text) for text, digits in re.findall(r"([^\d]+)(\d*)", str(path))]


def first(values: Iterable[T | None]) -> T | None:
    return next((value for value in values if value is not None), None)
