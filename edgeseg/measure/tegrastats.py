"""The lines that NVIDIA's `tegrastats` prints on a Jetson, and the program itself as a child.

For boards on which sysfs does not tell the GPU's load to everybody. The lines are described under "tegrastats Utility"
in the Jetson Linux Developer Guide; they changed with every generation:

    TX2, Nano, Xavier (JetPack 4)  GR3D_FREQ 45%@921 … GPU@34.5C … POM_5V_IN 2345/2345
    Xavier, Orin (JetPack 5)       GR3D_FREQ 45%@[918,918] … tj@47.5C VDD_GPU_SOC 2799mW/2799mW
    Orin (JetPack 6)               01-31-2024 10:00:00 RAM … GR3D_FREQ 45% … gpu@46.9C tj@50C VDD_IN 4957mW/4900mW
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable

from edgeseg.measure.jetson import total_power
from edgeseg.measure.sensors import MOST, MachineSample, celsius, hottest

_STALE_S = 5.0  # a line every second is what it is asked for
_RAM = re.compile(r"\bRAM (\d+)/(\d+)MB")
_CPU = re.compile(r"\bCPU \[([^\]]*)\]")
_CORE = re.compile(r"(\d+)%(?:@(\d+))?")
_GPU = re.compile(r"\bGR3D(?:_FREQ)? (\d+)%(?:@\[?([\d,]+)\]?)?")
_HEAT = re.compile(r"(?:^|\s)([\w-]+)@(-?[\d.]+)C(?=\s|$)")
_RAIL = re.compile(r"(?:^|\s)(\w+) (\d+)(?:mW)?/(\d+)(?:mW)?(?=\s|$)")  # now/mean; memory has its unit behind: "8/15MB"


def parse_tegrastats(line: str) -> MachineSample:
    """What one line says; None, or left out, what it does not. A line of something else gives a sample of Nones."""
    ram, cpu, gpu = _RAM.search(line), _CPU.search(line), _GPU.search(line)
    cores = cpu[1].split(",") if cpu else []
    running = [found for core in cores if (found := _CORE.match(core.strip()))]  # the others are "off"
    clocks = [int(core[2]) for core in running if core[2]]
    gpu_clocks = [int(mhz) for mhz in gpu[2].split(",") if mhz] if gpu and gpu[2] else []
    heats = {}
    for name, value in _HEAT.findall(line)[:MOST]:
        heat = celsius(round(float(value) * 1000))
        if heat is not None:
            heats[name] = heat
    rails = {name: int(now) / 1000 for name, now, _ in _RAIL.findall(line)[:MOST] if name != "NC"}
    return MachineSample(
        cpu_percent=sum(int(core[1]) for core in running) / len(cores) if cores else None,
        cpu_clock_mhz=sum(clocks) / len(clocks) if clocks else None,
        memory_percent=100.0 * int(ram[1]) / int(ram[2]) if ram and int(ram[2]) else None,
        temperature_c=hottest(heats),
        temperatures=heats,
        gpu_percent=float(gpu[1]) if gpu else None,
        gpu_clock_mhz=float(max(gpu_clocks)) if any(gpu_clocks) else None,  # one for each GPC; 0 while switched off
        gpu_temperature_c=max((heat for zone, heat in heats.items() if "gpu" in zone.lower()), default=None),
        power_w=total_power(rails),
        rails=rails,
        source="tegrastats" if gpu else None,
    )


class Tegrastats:
    """`tegrastats` as a child that prints a line every `interval_s`; close() ends it."""

    def __init__(
        self, program: str = "tegrastats", *, interval_s: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock, self._rest, self._read = clock, b"", clock()
        self._last = MachineSample()
        self._child: subprocess.Popen[bytes] | None = None
        path = shutil.which(program)
        if path is None:
            return
        command = [path, "--interval", str(max(1, round(interval_s * 1000)))]
        try:
            # A session of its own: Ctrl-C in the terminal is for us to handle.
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError:
            return  # it is there but cannot run: as if it were not
        assert self._child.stdout is not None
        os.set_blocking(self._child.stdout.fileno(), False)

    def sample(self) -> MachineSample:
        """What the newest line said; Nones before the first one, and when none has come for five seconds."""
        if self._child is None or self._child.stdout is None:
            return MachineSample()
        while True:
            try:
                new = os.read(self._child.stdout.fileno(), 65536)
            except BlockingIOError:
                break
            if not new:  # it ended
                self.close()
                return MachineSample()
            *lines, self._rest = (self._rest + new).split(b"\n")
            if lines:
                self._last, self._read = parse_tegrastats(lines[-1].decode(errors="replace")), self._clock()
        return self._last if self._clock() - self._read < _STALE_S else MachineSample()

    def close(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.terminate()
        try:
            child.wait(timeout=2)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        if child.stdout is not None:
            child.stdout.close()
