"""What a user may ask of a TensorRT build, as values. They travel as flat settings in the bundle; see `--trt`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from edgeseg.errors import BadInput

Hardware = Literal["none", "ampere+", "same-capability"]
Shape = tuple[int, int, int]  # frames, height, width


@dataclass(frozen=True, slots=True)
class Options:
    """How an engine is built and run. Defaults are what a static engine on one GPU wants."""

    workspace_mb: int = 0  # memory that tactics may use while they run; 0: TensorRT's own limit, all there is
    level: int = 3  # builder_optimization_level 0 (fast build) to 5 (tries everything); from TensorRT 8.6
    tf32: bool = True  # FP32 matrix products with 10-bit mantissas on Ampere and later, TensorRT's default
    arithmetic: Literal["f32", "f16"] = "f32"  # of what is not INT8: needed where precision is not the graph's own
    version_compatible: bool = False  # the engine also opens in later versions of TensorRT; from 8.6
    hardware: Hardware = "none"  # also on other GPUs: "ampere+" from 8.6, "same-capability" from 10.9
    sparse: bool = False  # tactics for weights with 2:4 structured sparsity
    no_external_tactics: bool = False  # none from cuBLAS and cuDNN, which need not be installed then; up to 10.x
    dla: int = -1  # a Jetson's deep-learning accelerator, by its number; what it cannot run stays on the GPU
    shapes: tuple[Shape, Shape, Shape] | None = None  # of a dynamic graph: least, best, most
    cuda_graph: bool = True  # launch the whole engine as one captured graph, where its shape is static
    fallback: bool = False  # accept an engine that lacks the precision it was asked for

    def to_settings(self) -> dict[str, str | int | float | bool]:
        """As flat settings: only what is not the default."""
        told: dict[str, str | int | float | bool] = {}
        for key in OPTION_NAMES:
            value = getattr(self, key)
            if value != getattr(DEFAULTS, key):
                told[key] = shapes_text(value) if key == "shapes" else value
        return told


OPTION_NAMES = tuple(Options.__dataclass_fields__)
DEFAULTS = Options()
_LIMITS = {"workspace_mb": (0, 1 << 20), "level": (0, 5), "dla": (-1, 15)}
_CHOICES = {"hardware": get_args(Hardware), "arithmetic": ("f32", "f16")}


def options_from(settings: Mapping[str, object]) -> Options:
    """The options among an engine's settings; other keys are not ours. Raises BadInput for a value that none has."""
    found: dict[str, object] = {}
    for key in OPTION_NAMES:
        if key in settings:
            value = settings[key]
            if not _sound(key, value):
                raise BadInput(
                    f"the setting {key} = {value!r} is not one that a TensorRT engine can have. {_WANTED[key]}"
                )
            found[key] = shapes_from(str(value)) if key == "shapes" else value
    return Options(**found)  # type: ignore[arg-type]


def option_from(text: str) -> tuple[str, str | int | bool]:
    """One `--trt NAME` or `--trt NAME=VALUE`, as a setting. Raises BadInput naming what there is."""
    name, given, value = text.partition("=")
    key = name.strip().lower().replace("-", "_")
    if key in ("workspace", "workspace_mb"):
        return "workspace_mb", _megabytes(value)
    if key not in OPTION_NAMES or key == "arithmetic":
        known = ", ".join(k.replace("_", "-").removesuffix("-mb") for k in OPTION_NAMES if k != "arithmetic")
        raise BadInput(f"--trt {text}: there is no option '{name}'; there are: {known}")
    default = getattr(DEFAULTS, key)
    word = value.strip().lower()
    parsed: str | int | bool
    if isinstance(default, bool):
        if given and word not in _SWITCH:
            raise BadInput(f"--trt {text}: wanted on or off. {_WANTED[key]}")
        parsed = _SWITCH[word] if given else True
    elif isinstance(default, int):
        if not re.fullmatch(r"-?\d{1,7}", word):
            raise BadInput(f"--trt {text}: wanted a number. {_WANTED[key]}")
        parsed = int(word)
    else:
        parsed = word
    if key == "shapes":
        shapes_from(word)  # says what is wrong with them
    elif not _sound(key, parsed):
        raise BadInput(f"--trt {text}: {_WANTED[key]}")
    return key, parsed


def shapes_from(text: str) -> tuple[Shape, Shape, Shape]:
    """`1x180x240:1x360x480:4x720x960` as least, best and most of (frames, height, width). Raises BadInput."""
    parts = [tuple(map(int, part)) for part in re.findall(r"(?:^|:)(\d{1,4})x(\d{1,5})x(\d{1,5})(?=:|$)", text)]
    if len(parts) != 3 or text.count(":") != 2:
        raise BadInput(f"shapes = {text!r}: {_WANTED['shapes']}")
    least, best, most = parts
    if not all(1 <= a <= b <= c for a, b, c in zip(least, best, most, strict=True)):
        raise BadInput(f"shapes = {text!r}: wanted least <= best <= most in each length. {_WANTED['shapes']}")
    return (least, best, most)  # type: ignore[return-value]  # three of three each, by the pattern


def shapes_text(shapes: tuple[Shape, Shape, Shape]) -> str:
    return ":".join("x".join(map(str, shape)) for shape in shapes)


def _megabytes(text: str) -> int:
    found = re.fullmatch(r"(\d{1,7})\s*(m|mb|mib|g|gb|gib)?", text.strip().lower())
    size = 0 if found is None else int(found[1]) * (1024 if (found[2] or "m").startswith("g") else 1)
    if not 1 <= size <= _LIMITS["workspace_mb"][1]:
        raise BadInput(f"--trt workspace={text}: wanted megabytes, as workspace=2048 or workspace=2GB")
    return size


def _sound(key: str, value: object) -> bool:
    default = getattr(DEFAULTS, key)
    if key == "shapes":
        try:
            return isinstance(value, str) and bool(shapes_from(value))
        except BadInput:
            return False
    if isinstance(default, bool):
        return type(value) is bool
    if isinstance(default, int):
        low, high = _LIMITS[key]
        return type(value) is int and low <= value <= high
    return value in _CHOICES[key]


_SWITCH = {"on": True, "true": True, "1": True, "yes": True, "off": False, "false": False, "0": False, "no": False}
_WANTED = {
    "workspace_mb": "Wanted megabytes: workspace=2048 or workspace=2GB.",
    "level": "Wanted level=0 (builds fast) to level=5 (tries everything).",
    "tf32": "Wanted tf32=on or tf32=off.",
    "arithmetic": "Wanted f32 or f16.",
    "version_compatible": "Wanted version-compatible, on or off.",
    "hardware": f"Wanted hardware={'|'.join(get_args(Hardware))}.",
    "sparse": "Wanted sparse, on or off.",
    "no_external_tactics": "Wanted no-external-tactics, on or off.",
    "dla": "Wanted the number of a core: dla=0.",
    "shapes": "Wanted LEAST:BEST:MOST, each as FRAMESxHEIGHTxWIDTH: shapes=1x180x240:1x360x480:4x720x960.",
    "cuda_graph": "Wanted cuda-graph=on or cuda-graph=off.",
    "fallback": "Wanted fallback, on or off.",
}
