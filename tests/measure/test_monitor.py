from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgeseg.measure import MachineSample, Timeline
from edgeseg.measure.jetson import JetsonGpu
from edgeseg.measure.monitor import Monitor
from edgeseg.measure.nvml import Nvml
from edgeseg.measure.sensors import Host, combine
from edgeseg.measure.tegrastats import Tegrastats, parse_tegrastats

STAT = "cpu  {user} 0 {system} {idle} {wait} 0 0 0 99 0\ncpu0 1 2 3 4 5 6 7 8 9 0\nintr 5\n"
OWN = "4321 (my (odd) name) S 1 4321 4321 0 -1 4194560 900 0 0 0 {user} {system} 7 7 20 0 9 0 100 1000000 500\n"


def tree(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def ticks(root: Path, *, user: int, system: int, idle: int, wait: int, own: int) -> None:
    stat = STAT.format(user=user, system=system, idle=idle, wait=wait)
    tree(root, {"proc/stat": stat, "proc/self/stat": OWN.format(user=own, system=0)})


PC = {
    "proc/meminfo": "MemTotal:       16000 kB\nMemFree:  1 kB\nMemAvailable:    4000 kB",
    "proc/self/statm": "99999 2560 300 1 0 400 0",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": 3_000_000,
    "sys/devices/system/cpu/cpufreq/policy10/scaling_cur_freq": 2_000_000,
    "sys/class/thermal/thermal_zone0/type": "acpitz",
    "sys/class/thermal/thermal_zone0/temp": 27800,
    "sys/class/thermal/thermal_zone1/type": "acpitz",
    "sys/class/thermal/thermal_zone1/temp": 29800,
    "sys/class/thermal/thermal_zone2/type": "iwlwifi_1",
    "sys/class/thermal/thermal_zone2/temp": 90000,
    "sys/class/thermal/thermal_zone3/type": "broken",
    "sys/class/hwmon/hwmon0/name": "nvme",
    "sys/class/hwmon/hwmon0/temp1_input": 80000,
    "sys/class/hwmon/hwmon1/name": "coretemp",
    "sys/class/hwmon/hwmon1/temp1_input": 61000,
    "sys/class/thermal/cooling_device0/type": "Processor",
    "sys/class/thermal/cooling_device0/cur_state": 0,
    "sys/class/thermal/cooling_device1/type": "Fan",
    "sys/class/thermal/cooling_device1/cur_state": 3,
    "sys/class/thermal/cooling_device2/type": "TCC Offset",
    "sys/class/thermal/cooling_device2/cur_state": 5,
    "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count": 17,
    "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": 4,
}


def test_a_pc(tmp_path: Path) -> None:
    root = tree(tmp_path, PC)
    ticks(root, user=1000, system=500, idle=8000, wait=500, own=100)
    host = Host(root)
    ticks(root, user=1250, system=550, idle=8600, wait=600, own=250)
    found = host.sample()
    assert found.cpu_percent == pytest.approx(30.0)  # 300 of 1000; waiting for a disk is no work
    assert found.cpu_percent_self == pytest.approx(15.0)
    assert found.cpu_clock_mhz == 2500.0
    assert found.rss_mb == 2560 * os.sysconf("SC_PAGE_SIZE") / 2**20
    assert found.memory_percent == 75.0
    assert found.temperatures == {"acpitz": 27.8, "acpitz-2": 29.8, "iwlwifi_1": 90.0, "coretemp": 61.0}
    assert found.temperature_c == 61.0  # the radio is hotter, and none of our business
    assert (found.throttled, found.throttle_reasons) == (False, ())  # counts since boot, a fan and an offset
    assert (found.gpu_percent, found.power_w, found.source) == (None, None, None)
    assert found.numbers()["temperature_c:acpitz-2"] == 29.8
    assert host.sample().cpu_percent is None  # no tick has passed


def test_throttling_of_a_pc(tmp_path: Path) -> None:
    root = tree(tmp_path, PC)
    host = Host(root)
    assert host.sample().throttled is False
    tree(root, {"sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count": 18})
    assert host.sample().throttle_reasons == ("CPU too hot (package)",)
    assert host.sample().throttled is False  # it is over
    tree(root, {"sys/class/thermal/cooling_device0/cur_state": 2})
    assert host.sample().throttle_reasons == ("cooling by Processor",)


def test_a_bare_machine_says_nothing(tmp_path: Path) -> None:
    assert Host(tmp_path).sample() == MachineSample()
    assert JetsonGpu(tmp_path).sample() == MachineSample()
    assert MachineSample().numbers() == {}


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the live /proc is Linux's")
def test_this_machine() -> None:
    with Monitor(tegrastats=None) as monitor:
        start = time.process_time()
        while time.process_time() - start < 0.05:  # some ticks of work
            sum(range(1000))
        found = monitor.sample()
    assert found.cpu_percent is not None
    assert found.cpu_percent_self is not None
    assert 0 < found.cpu_percent_self <= 100
    assert found.rss_mb is not None
    assert found.rss_mb > 5
    assert found.memory_percent is not None
    assert 0 < found.memory_percent < 100


ORIN = {
    "sys/devices/platform/bus@0/17000000.gpu/load": 457,
    "sys/class/devfreq/17000000.gpu/cur_freq": 918_000_000,
    "sys/class/devfreq/17000000.gpu/max_freq": 1_020_000_000,
    "sys/class/devfreq/15340000.vic/cur_freq": 1,
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": 50125,
    "sys/class/thermal/thermal_zone1/type": "gpu-thermal",
    "sys/class/thermal/thermal_zone1/temp": 47000,
    "sys/class/thermal/thermal_zone2/type": "cv0-thermal",
    "sys/class/thermal/thermal_zone2/temp": -256000,
    "sys/class/thermal/thermal_zone8/type": "tj-thermal",
    "sys/class/thermal/thermal_zone8/temp": 50500,
    "sys/class/thermal/cooling_device0/type": "cpu-throttle-alert",
    "sys/class/thermal/cooling_device0/cur_state": 0,
    "sys/class/thermal/cooling_device1/type": "devfreq-17000000.gpu",
    "sys/class/thermal/cooling_device1/cur_state": 2,
    "sys/class/thermal/cooling_device2/type": "pwm-fan",
    "sys/class/thermal/cooling_device2/cur_state": 1,
    "sys/class/hwmon/hwmon5/oc3_event_cnt": 7,
}
ORIN_RAILS = {
    "in1_label": "VDD_IN",
    "in1_input": 5040,
    "curr1_input": 1200,
    "in2_label": "VDD_CPU_GPU_CV",
    "in2_input": 5000,
    "curr2_input": 400,
    "in3_label": "NC",
    "in3_input": 5000,
    "curr3_input": 0,
    "in7_label": "sum of shunt voltages",
    "in7_input": 90,
}


def test_an_orin(tmp_path: Path) -> None:
    root = tree(tmp_path, ORIN)
    tree(root, {f"sys/devices/i2c-1/1-0040/hwmon/hwmon3/{name}": text for name, text in ORIN_RAILS.items()})
    driver = root / "sys/bus/i2c/drivers/ina3221"
    driver.mkdir(parents=True)
    (driver / "1-0040").symlink_to(root / "sys/devices/i2c-1/1-0040")  # as the kernel does
    with Monitor(root=root, nvml=fake_nvml(driver=False), tegrastats="not-on-this-machine") as monitor:
        found = monitor.sample()
        assert (found.gpu_percent, found.gpu_clock_mhz, found.gpu_clock_max_mhz) == (45.7, 918.0, 1020.0)
        assert (found.temperature_c, found.gpu_temperature_c) == (50.5, 47.0)
        assert set(found.temperatures) == {"cpu-thermal", "gpu-thermal", "tj-thermal"}
        assert found.rails == {"VDD_IN": pytest.approx(6.048), "VDD_CPU_GPU_CV": pytest.approx(2.0)}
        assert found.power_w == pytest.approx(6.048)
        assert found.throttle_reasons == ("cooling by devfreq-17000000.gpu",)
        assert found.source == "sysfs"
        tree(root, {"sys/class/hwmon/hwmon5/oc3_event_cnt": 9, "sys/class/thermal/cooling_device1/cur_state": 0})
        assert monitor.sample().throttle_reasons == ("over-current oc3",)
        assert monitor.sample().throttled is False
        tree(root, {"sys/class/thermal/thermal_zone2/temp": 41000})
        assert monitor.sample().temperatures["cv0-thermal"] == 41.0  # it was switched on


def test_a_xavier_of_jetpack_4(tmp_path: Path) -> None:
    chip = "sys/bus/i2c/drivers/ina3221x/1-0040/iio:device0"
    rails = {f"{chip}/rail_name_{i}": name for i, name in enumerate(("GPU", "CPU", "SOC"))}
    powers = {f"{chip}/in_power{i}_input": power for i, power in enumerate((3000, 1500, 900))}
    root = tree(tmp_path, {**rails, **powers, "sys/devices/gpu.0/load": 1000})
    tree(root, {"sys/class/devfreq/17000000.gv11b/cur_freq": 0, "sys/class/devfreq/17000000.gv11b/max_freq": "N/A"})
    found = JetsonGpu(root).sample()
    assert (found.gpu_percent, found.gpu_clock_mhz, found.gpu_clock_max_mhz) == (100.0, None, None)
    assert found.rails == {"GPU": 3.0, "CPU": 1.5, "SOC": 0.9}
    assert found.power_w == pytest.approx(5.4)  # no rail feeds the module alone


NANO = (
    "RAM 2448/3964MB (lfb 2x4MB) SWAP 12/1982MB (cached 0MB) IRAM 0/252kB(lfb 252kB) CPU [12%@1428,8%@1428,off,off] "
    "EMC_FREQ 6%@1600 GR3D_FREQ 45%@921 APE 25 PLL@33.5C CPU@36C PMIC@100C GPU@34.5C AO@43C thermal@35C "
    "POM_5V_IN 2345/2300 POM_5V_GPU 123/120 POM_5V_CPU 400/390"
)
TX2 = (
    "RAM 1903/7846MB (lfb 1x2MB) SWAP 0/3923MB (cached 0MB) CPU [10%@2035,off,off,20%@2035,30%@2035,40%@2033] "
    "EMC_FREQ 4%@1866 GR3D_FREQ 0%@114 APE 150 MTS fg 0% bg 1% PLL@43.5C MCPU@43.5C PMIC@100C Tboard@40C GPU@42C "
    "BCPU@43.5C thermal@42.9C Tdiode@61.25C VDD_SYS_GPU 152/152 VDD_SYS_SOC 687/687 VDD_4V0_WIFI 0/0 VDD_IN 3056/3056 "
    "VDD_SYS_CPU 152/152 VDD_SYS_DDR 883/883"
)
XAVIER = (
    "RAM 3233/15692MB (lfb 2769x4MB) SWAP 0/7846MB (cached 0MB) CPU [1%@1190,0%@1190] EMC_FREQ 0% GR3D_FREQ 99% "
    "AO@36.5C GPU@37.5C Tdiode@41.25C PMIC@100C AUX@36C CPU@38C thermal@37C Tboard@38C "
    "GPU 1500/1400 CPU 311/311 SOC 933/933 CV 0/0 VDDRQ 155/155 SYS5V 1560/1560"
)
AGX_ORIN = (
    "RAM 4722/30588MB (lfb 5754x4MB) SWAP 0/15294MB (cached 0MB) CPU [2%@729,0%@729,off,off] EMC_FREQ 0%@2133 "
    "GR3D_FREQ 73%@[1300,1293] VIC_FREQ 729 APE 174 CV0@-256C CPU@47.5C Tboard@36C SOC2@43.9C Tdiode@36.5C "
    "SOC0@44.2C CV1@-256C GPU@-256C tj@47.5C SOC1@43.6C CV2@-256C VDD_GPU_SOC 2799mW/2700mW VDD_CPU_CV 400mW/400mW "
    "VIN_SYS_5V0 3540mW/3540mW NC 0mW/0mW VDDQ_VDD2_1V8AO 703mW/703mW NC 0mW/0mW"
)
ORIN_NANO = (
    "01-31-2024 10:20:30 RAM 3171/7620MB (lfb 4x4MB) SWAP 0/3810MB (cached 0MB) CPU [5%@1510,3%@1510,0%@729,8%@729] "
    "GR3D_FREQ 31%@[624] cpu@50.156C soc2@48.968C soc0@49.5C gpu@51.281C tj@51.281C soc1@49.812C "
    "VDD_IN 4957mW/4900mW VDD_CPU_GPU_CV 770mW/760mW VDD_SOC 1424mW/1400mW"
)


@pytest.mark.parametrize(
    ("line", "gpu", "clock", "gpu_heat", "heat", "power", "rails", "cpu", "cpu_clock", "memory"),
    [
        (NANO, 45, 921, 34.5, 43.0, 2.345, 3, 5.0, 1428, 100 * 2448 / 3964),
        (TX2, 0, 114, 42.0, 43.5, 3.056, 6, 100 / 6, 2034.5, 100 * 1903 / 7846),
        (XAVIER, 99, None, 37.5, 38.0, 4.459, 6, 0.5, 1190, 100 * 3233 / 15692),
        (AGX_ORIN, 73, 1300, None, 47.5, 7.442, 4, 0.5, 729, 100 * 4722 / 30588),
        (ORIN_NANO, 31, 624, 51.281, 51.281, 4.957, 3, 4.0, 1119.5, 100 * 3171 / 7620),
    ],
    ids=["nano", "tx2", "xavier", "agx-orin", "orin-nano"],
)
def test_lines_of_tegrastats(
    line: str,
    gpu: float,
    clock: float | None,
    gpu_heat: float | None,
    heat: float,
    power: float,
    rails: int,
    cpu: float,
    cpu_clock: float,
    memory: float,
) -> None:
    found = parse_tegrastats(line + "\n")
    assert (found.gpu_percent, found.gpu_clock_mhz, found.gpu_temperature_c) == (gpu, clock, gpu_heat)
    assert found.temperature_c == heat  # neither the PMIC's 100 nor the board's
    assert found.power_w == pytest.approx(power)
    assert len(found.rails) == rails
    assert found.cpu_percent == pytest.approx(cpu)
    assert found.cpu_clock_mhz == pytest.approx(cpu_clock)
    assert found.memory_percent == pytest.approx(memory)
    assert found.source == "tegrastats"


@pytest.mark.parametrize("line", ["", "tegrastats: permission denied", "RAM 0/0MB CPU [] GR3D_FREQ", "\x00 5/5MB 7@C"])
def test_other_lines_say_nothing(line: str) -> None:
    found = parse_tegrastats(line)
    assert (found.gpu_percent, found.power_w, found.temperature_c, found.memory_percent) == (None, None, None, None)
    assert found.source is None


def program(folder: Path, body: str) -> str:
    path = folder / "tegrastats"
    path.write_text(f"#!{sys.executable}\nimport sys, time\n{body}\n")
    path.chmod(0o755)
    return str(path)


def wait_for(what: object, seconds: float = 20.0) -> None:
    assert callable(what)
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.01)


def test_tegrastats_as_a_child(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    body = (
        f"import os; open({str(note)!r}, 'w').write(f'{{os.getpid()}} {{sys.argv[1:]}}')\n"
        f"print({NANO!r}); print({XAVIER!r}); print('RAM 1/2MB half a li', end='', flush=True)\ntime.sleep(600)"
    )
    with Monitor(root=tmp_path, nvml=fake_nvml(driver=False), tegrastats=program(tmp_path, body)) as monitor:
        wait_for(lambda: monitor.sample().gpu_percent is not None)
        found = monitor.sample()
        assert (found.gpu_percent, found.source, found.rails["GPU"]) == (99.0, "tegrastats", 1.5)  # the newest line
    process, arguments = note.read_text().split(" ", 1)
    assert arguments == "['--interval', '1000']"
    with pytest.raises(ProcessLookupError):
        os.kill(int(process), 0)
    assert monitor.sample().gpu_percent is None
    monitor.close()


def test_tegrastats_that_falls_silent_ends_or_is_not_there(tmp_path: Path) -> None:
    now = [0.0]
    child = Tegrastats(program(tmp_path, f"print({NANO!r}, flush=True)\ntime.sleep(600)"), clock=lambda: now[0])
    wait_for(lambda: child.sample().gpu_percent == 45.0)
    now[0] = 4.9
    assert child.sample().gpu_percent == 45.0
    now[0] = 5.1
    assert child.sample() == MachineSample()
    child.close()
    assert child.sample() == MachineSample()

    ends = Tegrastats(program(tmp_path, f"print({NANO!r}, flush=True)"))
    wait_for(lambda: ends.sample() == MachineSample() and ends._child is None)
    assert ends.sample() == MachineSample()

    deaf = Tegrastats(program(tmp_path, "print('here', flush=True)\ntime.sleep(600)"))
    deaf.close()
    assert Tegrastats(str(tmp_path / "nowhere")).sample() == MachineSample()
    (tmp_path / "tegrastats").write_text("neither script nor program")
    broken = Tegrastats(str(tmp_path / "tegrastats"))
    assert broken.sample() == MachineSample()


class NVMLError(Exception):
    """As in pynvml, whose functions all raise it."""


def fake_nvml(
    *, driver: bool = True, gpus: int = 1, missing: tuple[str, ...] = (), reasons: int = 0
) -> SimpleNamespace:
    """A stand-in for the module pynvml of nvidia-ml-py 12 and 13: these functions, with these arguments and units."""
    opened: list[int] = []

    def initialise() -> None:
        if not driver:
            raise NVMLError("NVML Shared Library Not Found")
        opened.append(1)

    def handle(index: int) -> str:
        if index >= gpus:
            raise NVMLError("Invalid Argument")
        return f"gpu{index}"

    def answer(name: str, value: object, *wanted: int) -> object:
        def ask(gpu: str, *arguments: int) -> object:
            assert opened, "asked after nvmlShutdown"
            assert (gpu, arguments) == ("gpu0", wanted)
            if name in missing:
                raise NVMLError("Not Supported")
            return value

        return ask

    values: dict[str, tuple[object, ...]] = {
        "UtilizationRates": (SimpleNamespace(gpu=87, memory=40),),
        "MemoryInfo": (SimpleNamespace(total=8 << 30, free=6 << 30, used=2 << 30),),
        "Temperature": (71, 0),
        "PowerUsage": (123_456,),  # mW
        "ClockInfo": (1410, 0),  # MHz
        "MaxClockInfo": (1980, 0),
        "CurrentClocksThrottleReasons": (reasons,),
    }
    return SimpleNamespace(
        NVMLError=NVMLError,
        NVML_TEMPERATURE_GPU=0,
        NVML_CLOCK_GRAPHICS=0,
        nvmlInit=initialise,
        nvmlShutdown=opened.pop,
        nvmlDeviceGetHandleByIndex=handle,
        opened=opened,
        **{f"nvmlDeviceGet{name}": answer(name, *value) for name, value in values.items()},  # type: ignore[arg-type]
    )


def test_a_gpu_by_nvml(tmp_path: Path) -> None:
    module = fake_nvml(reasons=0x1 | 0x4 | 0x40)
    root = tree(tmp_path, {**PC, "sys/devices/gpu.0/load": 10})
    with Monitor(root=root, nvml=module, tegrastats=program(tmp_path, "raise SystemExit('not needed')")) as monitor:
        found = monitor.sample()
    assert (found.gpu_percent, found.gpu_clock_mhz, found.gpu_clock_max_mhz) == (87.0, 1410.0, 1980.0)
    assert (found.gpu_memory_mb, found.gpu_temperature_c, found.power_w) == (2048.0, 71.0, 123.456)
    assert (found.temperature_c, found.cpu_clock_mhz) == (71.0, 2500.0)  # hotter than the CPU
    assert (found.throttled, found.source) == (True, "nvml")
    assert found.throttle_reasons == ("power cap", "thermal slowdown by hardware")
    assert module.opened == []


@pytest.mark.parametrize(("reasons", "throttled"), [(0, False), (0x1, False), (0x2 | 0x10, False), (0x20, True)])
def test_idle_is_no_throttling(reasons: int, throttled: bool) -> None:
    assert Nvml(0, fake_nvml(reasons=reasons)).sample().throttled is throttled


def test_nvml_that_knows_little() -> None:
    missing = ("UtilizationRates", "PowerUsage", "CurrentClocksThrottleReasons", "MemoryInfo")
    found = Nvml(0, fake_nvml(missing=missing)).sample()
    assert (found.gpu_percent, found.power_w, found.throttled, found.gpu_clock_mhz) == (None, None, None, 1410.0)


def test_nvml_that_is_not_there(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    for gpu in (Nvml(), Nvml(0, fake_nvml(driver=False))):
        assert gpu.sample() == MachineSample()
        gpu.close()
    none = fake_nvml(gpus=0)
    assert Nvml(0, none).sample() == MachineSample()
    assert none.opened == []  # what was opened to find that out is closed
    assert capfd.readouterr() == ("", "")


def test_the_first_that_knows_wins() -> None:
    a = MachineSample(
        gpu_percent=5.0, temperature_c=50.0, temperatures={"x": 1.0}, throttle_reasons=("a",), source="nvml"
    )
    b = MachineSample(
        gpu_percent=7.0, temperature_c=60.0, temperatures={"x": 2.0, "y": 3.0}, throttled=False, power_w=0.0
    )
    found = combine(a, b)
    assert (found.gpu_percent, found.power_w, found.temperature_c, found.source) == (5.0, 0.0, 60.0, "nvml")
    assert found.temperatures == {"x": 1.0, "y": 3.0}
    assert (found.throttled, found.throttle_reasons) == (False, ("a",))
    assert combine(MachineSample(), MachineSample()) == MachineSample()


def test_a_thread_hands_samples_to_a_timeline(tmp_path: Path) -> None:
    timeline, seen, now = Timeline(["infer"]), threading.Semaphore(0), iter(range(10**9, 10**13, 10**9))

    def take(now_ns: int, sample: MachineSample) -> None:
        timeline.machine(now_ns, sample)
        seen.release()

    root = tree(tmp_path, PC)
    monitor = Monitor(take, interval_s=0.01, clock=lambda: next(now), root=root, nvml=fake_nvml(), tegrastats=None)
    assert not seen.acquire(timeout=0.05)  # not before it is told to
    with monitor:
        monitor.start()
        for _ in range(5):
            assert seen.acquire(timeout=20)
        with pytest.raises(ValueError, match="once"):
            monitor.start()
    rows = timeline.rows()
    assert len(rows) >= 5
    assert rows[2]["machine"]["gpu_clock_mhz"] == 1410.0
    assert "edgeseg-monitor" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(ValueError, match="callback"):
        Monitor(root=root, tegrastats=None).start()
    with pytest.raises(ValueError, match="more than 0 s"):
        Monitor(interval_s=0)


def test_close_does_not_wait_for_the_interval(tmp_path: Path) -> None:
    seen = threading.Event()
    monitor = Monitor(lambda now, sample: seen.set(), interval_s=3600, root=tmp_path, tegrastats=None)
    monitor.start()
    assert seen.wait(20)
    monitor.close()
    assert "edgeseg-monitor" not in {thread.name for thread in threading.enumerate()}


def test_a_callback_may_close(tmp_path: Path) -> None:
    closed = threading.Event()

    def take(now_ns: int, sample: MachineSample) -> None:
        monitor.close()
        closed.set()

    monitor = Monitor(take, interval_s=0.001, root=tmp_path, tegrastats=None)
    monitor.start()
    assert closed.wait(20)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts handles in /proc")
def test_no_handle_stays_open(tmp_path: Path) -> None:
    root = tree(tmp_path, {**PC, **ORIN})
    with Monitor(root=root, nvml=fake_nvml(), tegrastats=None) as monitor:
        monitor.sample()
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(50):
            monitor.sample()
        assert len(list(Path("/proc/self/fd").iterdir())) == before
