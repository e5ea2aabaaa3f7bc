"""SPEC.toml: what must be known about a network besides its weights. Read and checked once, here, at the edge.

Everything past this file may rely on a ModelSpec being sound. Bundles carry the same content as JSON, through
`spec_to_dict` and `spec_from_dict`. Errors are SpecError and name the file, the key, what came and what is wanted.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

from edgeseg.errors import SpecError
from edgeseg.types import Color, InputSpec, Interpolation, ModelSpec, OutputSpec

if sys.version_info >= (3, 11):
    import tomllib
else:  # the same parser under the name it had before it joined the standard library
    import tomli as tomllib

MAX_SIDE = 8192  # pixels
MAX_CLASSES = 256  # the mask is uint8
MAX_BYTES = 1 << 20  # of a SPEC.toml; a real one has under a kilobyte
MAX_DEPTH = 20  # of nested factory arguments


def spec_for(model_path: str | Path, spec_path: str | Path | None = None) -> ModelSpec:
    """The spec of a model: the file named, or else the one beside the model.

    Raises SpecError when there is none, with a template and the path to save it at.
    """
    path = Path(spec_path) if spec_path is not None else find_spec(model_path)
    if path is None:
        raise _no_spec(_beside(model_path), f"{model_path} has no SPEC.toml beside it.")
    return read_spec(path)


def find_spec(model_path: str | Path) -> Path | None:
    """The file beside the model with its exact stem and the suffix .toml, or None. Nothing is guessed."""
    path = _beside(model_path)
    return path if path.is_file() else None


def read_spec(path: str | Path) -> ModelSpec:
    """Read and check a SPEC.toml. Raises SpecError; for a file that is not there, with a template to begin from."""
    path = Path(path)
    if not path.exists():
        raise _no_spec(path, f"{path} does not exist.")
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SpecError(
            f"{path}: cannot be read as a SPEC.toml ({error}). Give the path of a readable file."
        ) from error
    if len(raw) > MAX_BYTES:
        raise SpecError(f"{path}: larger than {MAX_BYTES} bytes, so this is no SPEC.toml. Give the path of the spec.")
    try:
        data = tomllib.loads(raw.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise SpecError(
            f"{path}: not valid TOML ({error}). Mend that place, or begin from:\n\n{template(path)}"
        ) from error
    return spec_from_dict(data, str(path))


def spec_from_dict(data: Mapping[str, Any], where: str) -> ModelSpec:
    """A checked ModelSpec from the content of SPEC.toml, or of the same as JSON.

    `where` is the file that the errors name; without a `name` in the data its stem is the network's name.
    Raises SpecError for the first thing that is missing, unknown, or of the wrong type or range.
    """
    if not isinstance(data, Mapping):
        raise _wrong(where, "the spec", "a table with [input] and [output]", data)
    _known(data, ("name", "factory", "factory_args", "input", "output"), where, "the top level")
    if "input" not in data:
        raise SpecError(
            f"{where}: wanted a table [input] with the size that the network takes, and there is none. Add:\n"
            f"[input]\nsize = [360, 480]  # height, width"
        )
    factory = None if data.get("factory") is None else _factory(data["factory"], where)
    factory_args = _arguments(data.get("factory_args", {}), where, "factory_args", 0)
    if not isinstance(factory_args, dict):
        raise _wrong(where, "factory_args", "a table of the factory's keyword arguments", data["factory_args"])
    name = data.get("name", Path(where).stem)
    if not isinstance(name, str) or not 0 < len(name) <= 100 or not name.isprintable() or set(name) & set("/\\"):
        raise _wrong(where, "name", "a text of 1 to 100 printable characters without slashes", name)
    return ModelSpec(
        name=name,
        input=_input(data["input"], where),
        output=_output(data.get("output", {}), where),
        factory=factory,
        factory_args=factory_args,
    )


def spec_to_dict(spec: ModelSpec) -> dict[str, Any]:
    """The spec as plain TOML and JSON types; `spec_from_dict` gives back an equal spec. No key holds None."""
    data: dict[str, Any] = {"name": spec.name}
    if spec.factory is not None:
        data["factory"] = spec.factory
    if spec.factory_args:
        data["factory_args"] = _arguments(spec.factory_args, spec.name, "factory_args", 0)
    data["input"] = {
        "size": list(spec.input.size),
        "color": spec.input.color,
        "frame": spec.input.frame,
        "scale": spec.input.scale,
        "mean": list(spec.input.mean),
        "std": list(spec.input.std),
        "resize": spec.input.resize,
    }
    data["output"] = {
        "index": spec.output.index,
        "classes": list(spec.output.classes),
        "activation": spec.output.activation,
        "threshold": spec.output.threshold,
        "align_corners": spec.output.align_corners,
    }
    return data


def template(model_path: str | Path) -> str:
    """A SPEC.toml to edit, for this model: valid as it stands, each key explained, optional ones at their default."""
    name = "".join(c for c in Path(model_path).stem if c.isprintable() and c not in '"\\')[:100] or "network"
    return f"""\
name = "{name}"
# factory = "my_module:my_network"  # only for a state dict: what makes the network; its arguments go in [factory_args]

[input]
size = [360, 480]            # height, width that the network runs at: EDIT
color = "rgb"                # the channel order the network was trained with: "rgb" or "bgr"
frame = "bgr"                # the channel order that frames come in; OpenCV gives "bgr"
scale = 255.0                # pixels are divided by this, then normalised
mean = [0.485, 0.456, 0.406] # what training subtracted, in the order of `color`: EDIT (these are ImageNet's)
std = [0.229, 0.224, 0.225]  # what training divided by: EDIT
resize = "bilinear"          # how a frame of another size is resized: bilinear, nearest, area, bicubic

[output]
index = 0                    # which output holds the scores, if there are several; or its key, such as "out"
classes = []                 # names in the order of the channels, such as ["road", "car"]; or taken from the data set
activation = "logits"        # one channel only: "logits", or "probabilities" if a sigmoid is already in the network
threshold = 0.5              # one channel only: the probability from which a pixel is class 1
align_corners = false        # how smaller scores are upsampled to the frame
"""


def _beside(model_path: str | Path) -> Path:
    path = Path(model_path)
    return path.parent / f"{path.stem}.toml"


def _input(table: Any, where: str) -> InputSpec:
    table = _table(table, where, "input", ("size", "color", "frame", "scale", "mean", "std", "resize"))
    if "size" not in table:
        raise SpecError(
            f"{where}: [input] has no size. Add the height and width that the network runs at: size = [360, 480]"
        )
    default = InputSpec(size=(1, 1))
    return InputSpec(
        size=_size(table["size"], where),
        color=_one_of(table.get("color", default.color), get_args(Color), where, "input.color"),
        frame=_one_of(table.get("frame", default.frame), get_args(Color), where, "input.frame"),
        scale=_positive(table.get("scale", default.scale), where, "input.scale"),
        mean=_three(table.get("mean", default.mean), where, "input.mean", positive=False),
        std=_three(table.get("std", default.std), where, "input.std", positive=True),
        resize=_one_of(table.get("resize", default.resize), get_args(Interpolation), where, "input.resize"),
    )


def _output(table: Any, where: str) -> OutputSpec:
    table = _table(table, where, "output", ("index", "classes", "activation", "threshold", "align_corners"))
    default = OutputSpec()
    index = table.get("index", default.index)
    if isinstance(index, bool) or not isinstance(index, int | str) or index == "":
        raise _wrong(
            where, "output.index", 'the position of the output (0 is the first) or its key, such as "out"', index
        )
    threshold = table.get("threshold", default.threshold)
    if not 0.0 < _number(threshold, where, "output.threshold", "a probability above 0 and below 1") < 1.0:
        raise _wrong(where, "output.threshold", "a probability above 0 and below 1", threshold)
    align_corners = table.get("align_corners", default.align_corners)
    if not isinstance(align_corners, bool):
        raise _wrong(where, "output.align_corners", "true or false", align_corners)
    activation = table.get("activation", default.activation)
    return OutputSpec(
        index=index,
        classes=_classes(table.get("classes", ()), where),
        activation=_one_of(activation, ("logits", "probabilities"), where, "output.activation"),
        threshold=float(threshold),
        align_corners=align_corners,
    )


def _size(value: Any, where: str) -> tuple[int, int]:
    wanted = f"[height, width], two whole numbers from 1 to {MAX_SIDE}"
    if not _is_list(value) or len(value) != 2:
        raise _wrong(where, "input.size", wanted, value)
    if not all(type(side) is int and 1 <= side <= MAX_SIDE for side in value):
        raise _wrong(where, "input.size", wanted, value)
    return (value[0], value[1])


def _classes(value: Any, where: str) -> tuple[str, ...]:
    if not _is_list(value):
        raise _wrong(where, "output.classes", 'a list of names, such as ["road", "car"]', value)
    if len(value) > MAX_CLASSES:
        raise _wrong(where, "output.classes", f"at most {MAX_CLASSES} names (a mask has 8 bits)", f"{len(value)} names")
    for name in value:
        if not isinstance(name, str) or not name.strip() or not name.isprintable() or len(name) > 200:
            raise _wrong(where, "output.classes", "names of 1 to 200 printable characters", name)
    twice = sorted({name for name in value if value.count(name) > 1})
    if twice:
        raise _wrong(where, "output.classes", "a different name for each class", f"{twice[0]!r} more than once")
    return tuple(value)


def _factory(value: Any, where: str) -> str:
    if isinstance(value, str):
        module, colon, function = value.partition(":")
        parts = [*module.split("."), *function.split(".")]
        if colon and all(part.isidentifier() for part in parts):
            return value
    raise _wrong(where, "factory", '"module:function", such as "edgeseg.zoo:unet"', value)


def _arguments(value: Any, where: str, key: str, depth: int) -> Any:
    """A copy in which lists are lists and tables are dicts; refuses what JSON cannot hold (dates, infinities)."""
    if depth > MAX_DEPTH:
        raise _wrong(where, key, f"arguments nested at most {MAX_DEPTH} deep", "deeper ones")
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise _wrong(where, key, "names as keys", value)
        return {name: _arguments(item, where, f"{key}.{name}", depth + 1) for name, item in value.items()}
    if _is_list(value):
        return [_arguments(item, where, f"{key}[{i}]", depth + 1) for i, item in enumerate(value)]
    if isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise _wrong(where, key, "a text, a finite number, true, false, a list or a table", value)


def _three(value: Any, where: str, key: str, *, positive: bool) -> tuple[float, float, float]:
    if not _is_list(value) or len(value) != 3:
        raise _wrong(where, key, "three numbers, one for each channel", value)
    check = _positive if positive else _number
    first, second, third = (check(item, where, key) for item in value)
    return (first, second, third)


def _positive(value: Any, where: str, key: str) -> float:
    number = _number(value, where, key, "a number above 0")
    if number <= 0.0:
        raise _wrong(where, key, "a number above 0", value)
    return number


def _number(value: Any, where: str, key: str, wanted: str = "a number") -> float:
    # Within float32's range, because that is what the graph computes in.
    if isinstance(value, bool) or not isinstance(value, int | float) or not -3e38 < value < 3e38:
        raise _wrong(where, key, wanted, value)
    if value != 0 and abs(value) < 1e-30:
        raise _wrong(where, key, f"{wanted}, not smaller than float32 can divide by", value)
    return float(value)


def _one_of(value: Any, choices: tuple[Any, ...], where: str, key: str) -> Any:
    if not isinstance(value, str) or value not in choices:
        raise _wrong(where, key, " or ".join(f'"{choice}"' for choice in choices), value)
    return value


def _table(value: Any, where: str, key: str, known: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _wrong(where, f"[{key}]", "a table", value)
    _known(value, known, where, f"[{key}]")
    return value


def _known(table: Mapping[str, Any], known: tuple[str, ...], where: str, place: str) -> None:
    for key in table:
        if key not in known:
            close = get_close_matches(str(key)[:100], known, n=1, cutoff=0.0)
            raise SpecError(
                f"{where}: {place} has the unknown key {str(key)[:100]!r}. Did you mean '{close[0]}'? "
                f"Known there: {', '.join(known)}."
            )


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _wrong(where: str, key: str, wanted: str, came: Any) -> SpecError:
    shown = came if isinstance(came, str) and " " in came else repr(came)
    return SpecError(f"{where}: {key}: wanted {wanted}, found {shown[:120]}. Change it in that file.")


def _no_spec(path: Path, why: str) -> SpecError:
    return SpecError(
        f"{why} The network's size, colours and normalisation cannot be read from its weights.\n"
        f"Save this as {path}, edit the lines marked EDIT, and run again:\n\n{template(path)}"
    )
