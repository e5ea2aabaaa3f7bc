"""What edgeseg.doctor knows about Jetsons: which JetPack this is and what belongs to it, power mode, clocks, DLA cores.

JetPack to Jetson Linux (L4T) after NVIDIA's JetPack archive, https://developer.nvidia.com/embedded/jetpack-archive;
power modes and clocks after "Platform Power and Performance" in the Jetson Linux Developer Guide; what TensorRT 11 runs
on after "Migrating TensorRT from 10.x to 11.x on Jetson/JetPack". Not tried on a board.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgeseg.doctor_host import PYTHONS, Finding, Host, release

EXPORT = "edgeseg export BUNDLE --dialect tensorrt -o DIR"  # for a machine where our Python cannot run TensorRT


@dataclass(frozen=True, slots=True)
class JetPack:
    """One JetPack: the first L4T (release, revision, sub-revision) that belongs to it, and what it carries."""

    l4t: tuple[int, int, int]
    name: str
    tensorrt: str
    python: tuple[int, int]  # that TensorRT's bindings are made for
    cuda: str


JETPACKS = (  # newest first
    JetPack((39, 2, 1), "7.2.1", "10.16", (3, 12), "13.2"),
    JetPack((39, 2, 0), "7.2", "10.16", (3, 12), "13.2"),
    JetPack((38, 4, 0), "7.1", "10.13", (3, 12), "13.0"),
    JetPack((38, 2, 0), "7.0", "10.13", (3, 12), "13.0"),
    JetPack((36, 5, 2), "6.2.3", "10.3", (3, 10), "12.6"),
    JetPack((36, 5, 0), "6.2.2", "10.3", (3, 10), "12.6"),
    JetPack((36, 4, 4), "6.2.1", "10.3", (3, 10), "12.6"),
    JetPack((36, 4, 3), "6.2", "10.3", (3, 10), "12.6"),
    JetPack((36, 4, 0), "6.1", "10.3", (3, 10), "12.6"),
    JetPack((36, 0, 0), "6.0", "8.6.2", (3, 10), "12.2"),
    JetPack((35, 2, 0), "5.1", "8.5.2", (3, 8), "11.4"),
    JetPack((35, 0, 0), "5.0", "8.4", (3, 8), "11.4"),
    JetPack((32, 7, 0), "4.6.1", "8.2.1", (3, 6), "10.2"),
)
_EXACT = {jetpack.l4t for jetpack in JETPACKS} | {(38, 2, 1), (36, 3, 0)}  # two L4T, one JetPack

_CLOCK = ("min_freq", "max_freq", "governor")  # in a folder of /sys/class/devfreq, in Hz

# DLA cores by module, as the device tree names it, and by chip. Orin NX and Nano share a board and a chip.
_DLA_MODULES = {"p3767-0000": 2, "p3767-0001": 1, "p3767-0003": 0, "p3767-0004": 0, "p3767-0005": 0}
_DLA_CHIPS = {"tegra264": 0, "tegra194": 2, "tegra186": 0, "tegra210": 0}


@dataclass(frozen=True, slots=True)
class Jetson:
    """A Jetson by its L4T; () where /etc/nv_tegra_release cannot be read. `jetpack` is None where none here is its."""

    l4t: tuple[int, ...]
    jetpack: JetPack | None
    dla: int | None  # cores; None where the device tree does not tell the module

    @property
    def carries(self) -> str:
        """The JetPack and its TensorRT, in words."""
        if self.jetpack is None:
            return f"L4T R{'.'.join(map(str, self.l4t))}" if self.l4t else "an L4T whose release cannot be read"
        later = "" if self.l4t in _EXACT else " or later"
        made_for = ".".join(map(str, self.jetpack.python))
        return (
            f"L4T R{'.'.join(map(str, self.l4t))}, JetPack {self.jetpack.name}{later}, "
            f"TensorRT {self.jetpack.tensorrt} for Python {made_for}"
        )


def find_jetson(host: Host) -> Jetson | None:
    """The Jetson that this is, by /etc/nv_tegra_release; None on other machines."""
    text = host.text("etc/nv_tegra_release")
    if text is None:
        return None
    found = re.search(r"R(\d+)\b.*?REVISION:\s*(\d+)(?:\.(\d+))?", text)
    l4t = tuple(int(part or 0) for part in found.groups()) if found else ()
    # A later revision of a family is taken for the last one known of it; of a later family nothing is known.
    family = [known for known in JETPACKS if l4t[:1] == known.l4t[:1] and l4t >= known.l4t]
    jetpack = family[0] if family and l4t <= JETPACKS[0].l4t else None
    return Jetson(l4t, jetpack, _dla(host))


def jetpack_finding(host: Host, jetson: Jetson) -> Finding:
    """Which JetPack this is, what it carries, and what apt has really installed."""
    installed = apt_version(host, "python3-libnvinfer")
    here = f"; apt has installed {installed}" if installed else ""
    if not jetson.l4t:
        text = (host.text("etc/nv_tegra_release") or "").strip()[:80]
        return Finding("jetson", "warning", f"an L4T release that cannot be read: {text!r}{here}")
    if jetson.jetpack is None:
        first, last = JETPACKS[-1], JETPACKS[0]
        age = f"newer than JetPack {last.name}" if jetson.l4t > last.l4t else f"older than JetPack {first.name}"
        if first.l4t < jetson.l4t < last.l4t:
            age = "a JetPack that edgeseg does not know"
        detail = f"{jetson.carries}, {age}: which TensorRT it carries is not known here{here}"
        if jetson.l4t > last.l4t:
            detail += "; JetPack 7.2.2 and later also take TensorRT 11.4.1 or later for Linux SBSA"
        return Finding("jetson", "warning", detail, "" if installed else "apt-cache policy python3-libnvinfer")
    detail = f"{jetson.carries}{here}"
    if jetson.jetpack.python >= PYTHONS[0]:
        return Finding("jetson", "ok", detail)
    return Finding("jetson", "warning", f"{detail}, which edgeseg does not run on: TensorRT's own trtexec can", EXPORT)


def too_new(jetson: Jetson, tensorrt: str) -> str:
    """Why this TensorRT is not for this JetPack; "" where nothing says so."""
    if release(tensorrt)[:1] < (11,) or not jetson.l4t or jetson.l4t > JETPACKS[0].l4t:
        return ""
    own = f", which must stay on TensorRT {jetson.jetpack.tensorrt.partition('.')[0]}.x" if jetson.jetpack else ""
    return f"TensorRT {tensorrt} is made for JetPack 7.2.2 and later, and this is {jetson.carries}{own}"


def apt_version(host: Host, package: str) -> str | None:
    """The version of an installed Debian package without its revision: 10.3.0.30 of 10.3.0.30-1+cuda12.5."""
    for entry in (host.text("var/lib/dpkg/status") or "").split("\n\n"):
        if entry.startswith(f"Package: {package}\n") and "\nStatus: install ok installed\n" in entry:
            found = re.search(r"^Version: ([^-\s]+)", entry, re.MULTILINE)
            return found[1] if found else None
    return None


def power_mode(host: Host) -> Finding:
    """What `nvpmodel` is set to, and whether the board has a faster mode: its number differs from board to board."""
    what = "power mode"
    said = host.output_of(["nvpmodel", "-q"]) or ""
    name = re.search(r"NV Power Mode:\s*(\S+)", said)
    mode = re.search(r"^\s*(\d+)\s*$", said, re.MULTILINE) or re.search(
        r"pmode:(\d+)", host.text("var/lib/nvpmodel/status") or ""
    )
    text = host.text("etc/nvpmodel.conf") or ""
    modes = {int(i): n for i, n in re.findall(r"^<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>", text, re.MULTILINE)}
    now = name[1] if name else modes.get(int(mode[1])) if mode else None
    if now is None:
        detail = (
            f"mode {int(mode[1])}, of which nothing tells the name" if mode else "cannot tell: nvpmodel says nothing"
        )
        return Finding(what, "warning", detail, "sudo nvpmodel -q")
    detail = now + (f", mode {int(mode[1])}" if mode else "")
    if now.upper().startswith("MAXN"):
        return Finding(what, "ok", detail)
    fastest = max((i for i, n in modes.items() if n.upper().startswith("MAXN")), key=lambda i: len(modes[i]), default=0)
    known = f" ({modes[fastest]}, mode {fastest})" if fastest in modes else ""
    return Finding(what, "warning", f"{detail}: not the fastest of this board{known}", f"sudo nvpmodel -m {fastest}")


def clocks(host: Host) -> Finding:
    """Whether the GPU's clock is locked, as `jetson_clocks` does by setting its least to its most."""
    what = "gpu clocks"
    # 17000000.gpu (Orin, JetPack 6), 17000000.ga10b (JetPack 5), 17000000.gv11b (Xavier), gpu-gpc-0 (Thor).
    folders = sorted(host.root.glob("sys/class/devfreq/*"))
    gpu = next((f for f in folders if re.search(r"\.(gpu|ga10b|gv11b|gp10b|gm20b|gb10b)$|^gpu-gpc-", f.name)), None)
    told = [(host.text(f"sys/class/devfreq/{gpu.name}/{key}") or "").strip() if gpu else "" for key in _CLOCK]
    least, most = (int(text) if text.isdigit() else 0 for text in told[:2])
    if not least or not most:
        return Finding(
            what, "warning", "cannot tell: the GPU is not in /sys/class/devfreq", "sudo jetson_clocks --show"
        )
    if least == most:
        return Finding(what, "ok", f"locked at {most / 1e6:.0f} MHz")
    by = f" by the governor {told[2]}" if told[2] else ""
    detail = f"{least / 1e6:.0f} to {most / 1e6:.0f} MHz{by}: they follow the load, and times vary with them"
    return Finding(what, "warning", detail, "sudo jetson_clocks")


def dla_finding(jetson: Jetson) -> Finding:
    """How many deep-learning accelerators this module has; information, as most networks run on the GPU."""
    if jetson.dla is None:
        return Finding("dla cores", "ok", "cannot tell: the device tree does not name a module that edgeseg knows")
    return Finding("dla cores", "ok", {0: "none on this module", 1: "1: --trt dla=0"}.get(jetson.dla, "2: --trt dla=0"))


def _dla(host: Host) -> int | None:
    names = re.split(r"[\0\n,]", host.text("proc/device-tree/compatible") or "")
    for name in names:
        for module, cores in _DLA_MODULES.items():
            if module in name:
                return cores
        if "p3701" in name:  # AGX Orin, each of them
            return 2
    chips = [_DLA_CHIPS[name] for name in names if name in _DLA_CHIPS]
    if chips:
        return chips[0]
    model = host.text("proc/device-tree/model") or ""
    return next(
        (n for word, n in (("Thor", 0), ("Orin Nano", 0), ("AGX Orin", 2), ("Xavier", 2)) if word in model), None
    )
