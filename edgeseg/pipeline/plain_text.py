"""The texts of an export: scripts, a configuration for Triton, and a README for each dialect. See plain.py."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from edgeseg.types import ModelSpec, Precision

BUILDING = "Builds model.engine from model.onnx, on the device that will run it, with its own TensorRT."
CHECKING = "Runs model.engine on frame.bin and compares its mask with mask.bin. Build it first: ./build.sh"
_FILTERS = {
    "bilinear": "INTER_LINEAR",
    "area": "INTER_AREA",
    "bicubic": "INTER_CUBIC",
    "nearest": "INTER_NEAREST_EXACT",
}


@dataclass(frozen=True, slots=True)
class Tensors:
    """The graph's one input and one output, and the spec they are of."""

    frame: str
    mask: str
    size: tuple[int, int, int] | None  # frames, height, width; None where they are open
    spec: ModelSpec

    @property
    def lengths(self) -> tuple[str, str, str]:
        return ("N", "H", "W") if self.size is None else (str(self.size[0]), str(self.size[1]), str(self.size[2]))


def script(words: Sequence[str], about: str, after: str = "") -> bytes:
    """A shell script that runs one command in its own folder, a word a line. $TRTEXEC says which trtexec."""
    program, *rest = words
    assert program == "$TRTEXEC"
    lines = " \\\n  ".join(['"$TRTEXEC"', *map(shlex.quote, rest)])
    return (
        f"#!/bin/sh\n# {about}\nset -eu\n"
        'cd "$(dirname "$0")"\n'
        "# JetPack and the packages for Debian put it there; say TRTEXEC=… for another one.\n"
        'if [ -z "${TRTEXEC:-}" ]; then\n'
        "  TRTEXEC=$(command -v trtexec || echo /usr/src/tensorrt/bin/trtexec)\n"
        "fi\n"
        f"{lines}\n" + (f"{after}\n" if after else "")
    ).encode()


CHECK_PY = '''\
"""Compares the mask in output.json, which trtexec wrote, with the one expected. Any Python 3 will do."""
import json
import sys

with open("output.json") as file:
    (output,) = [tensor for tensor in json.load(file) if tensor["name"] == "mask"]
with open("mask.bin", "rb") as file:
    expected = file.read()
found = [int(value) for value in output["values"]]
if len(found) != len(expected):
    sys.exit("the engine gives %d pixels, %d were expected" % (len(found), len(expected)))
share = 100.0 * sum(a == b for a, b in zip(found, expected)) / len(expected)
print("%.2f %% of the labels are those of the FP32 network" % share)
if share < 95.0:
    sys.exit("that is too few: the engine does not compute what the network computes")
'''


def run_py(about: Tensors) -> str:
    """A program that segments one image with plain ONNX Runtime and OpenCV."""
    flag = _FILTERS[about.spec.input.resize]
    height, width = about.spec.input.size
    swapped = "" if about.spec.input.frame == "bgr" else "[..., ::-1]"
    return f'''\
"""python run.py IMAGE [MASK.png]: needs onnxruntime and opencv-python-headless."""
import os
import sys

import cv2
import numpy
import onnxruntime

model = os.path.join(os.path.dirname(os.path.abspath(__file__)), "model.onnx")
# That optimiser rounds weights that were kept in float on purpose.
session = onnxruntime.InferenceSession(
    model, providers=["CPUExecutionProvider"], disabled_optimizers=["WeightBiasQuantization"]
)
image = cv2.imread(sys.argv[1])
frame = cv2.resize(image, ({width}, {height}), interpolation=cv2.{flag}){swapped}
(mask,) = session.run(["{about.mask}"], {{"{about.frame}": numpy.ascontiguousarray(frame)[None]}})
mask = cv2.resize(mask[0], image.shape[1::-1], interpolation=cv2.INTER_NEAREST_EXACT)
cv2.imwrite(sys.argv[2] if len(sys.argv) > 2 else "mask.png", mask)
'''


def triton_config(name: str, about: Tensors, most_frames: int) -> str:
    """config.pbtxt, a ModelConfig: with batching (`most_frames` > 0) the lengths are those of one frame."""
    frames, height, width = ("-1", "-1", "-1") if about.size is None else map(str, about.size)
    lengths = [height, width] if most_frames else [frames, height, width]
    return (
        f'name: "{name}"\n'
        'backend: "onnxruntime"\n'
        f"max_batch_size: {most_frames}\n"
        "input [\n  {\n"
        f'    name: "{about.frame}"\n    data_type: TYPE_UINT8\n    dims: [ {", ".join([*lengths, "3"])} ]\n'
        "  }\n]\n"
        "output [\n  {\n"
        f'    name: "{about.mask}"\n    data_type: TYPE_UINT8\n    dims: [ {", ".join(lengths)} ]\n'
        '    label_filename: "labels.txt"\n'
        "  }\n]\n" + ("dynamic_batching { }\n" if most_frames else "")
    )


def tensorrt_readme(
    about: Tensors, precision: Precision, version: Sequence[int], build: Sequence[str], check: Sequence[str] | None
) -> str:
    number = ".".join(map(str, version))
    checked = (
        "Then `./check.sh` runs the engine once on `frame.bin` (`reference/0000.frame.png` as raw bytes) and tells how "
        "many\nlabels are those of the FP32 network. A few others are rounding; under 95 % it ends with 1."
        if check is not None
        else "The engine's shapes do not include the reference frames, so there is no `check.sh`."
    )
    listed = "| `check.sh`, `check.py`, `frame.bin`, `mask.bin` | the check |\n" if check is not None else ""
    return f"""\
# {about.spec.name}: {precision.upper()} for TensorRT {number}

On the device, which needs no Python for it:

    ./build.sh

writes `model.engine`. Engines are for one GPU and one version of TensorRT: build it where it will run. For another
version of TensorRT export again, as `edgeseg export BUNDLE --dialect tensorrt --tensorrt VERSION -o DIR`; on a Jetson
`dpkg -l | grep nvinfer` tells which one it has.

{checked}

| file | what it is |
|---|---|
| `model.onnx` | the network, from the camera's frame to the class map |
| `build.sh` | `{" ".join(("trtexec", *build[1:]))}` |
{listed}{_common(about)}"""


def onnxruntime_readme(about: Tensors, precision: Precision) -> str:
    kind = (
        "The INT8 graph is written for processors of the kind on which its bundle was built, x86 or Arm.\n\n"
        if precision == "int8"
        else ""
    )
    return f"""\
# {about.spec.name}: {precision.upper()} for ONNX Runtime

    pip install onnxruntime opencv-python-headless
    python run.py IMAGE mask.png

`mask.png` holds a class index for each pixel of the image.

{kind}| file | what it is |
|---|---|
| `model.onnx` | the network, from the camera's frame to the class map |
| `run.py` | a program that runs it, to begin from |
{_common(about)}"""


_TRITON_INT8 = """
Convolutions that were kept in float between others in INT8 may come out in INT8 all the same: ONNX Runtime has an
optimiser that rounds their weights, and Triton has no word to leave it out. Compare with the masks in `reference/`.
"""


def triton_readme(name: str, about: Tensors, precision: Precision) -> str:
    return f"""\
# {about.spec.name}: {precision.upper()} for Triton Inference Server

    tritonserver --model-repository=/path/to/this/folder

This folder is a model repository; `{name}/` can be put into another one as it is. Clients send `{about.frame}` and
receive `{about.mask}`. {_triton_batches(about)}
{_TRITON_INT8 if precision == "int8" else ""}
To serve a TensorRT engine instead: export with `--dialect tensorrt`, build it on the server's GPU with the TensorRT of
the server's release, put it at `{name}/1/model.plan`, remove `model.onnx`, and say `backend: "tensorrt"` in the
configuration.

| file | what it is |
|---|---|
| `{name}/config.pbtxt` | the model's configuration |
| `{name}/1/model.onnx` | the network, from the camera's frame to the class map |
{_common(about, f"{name}/")}"""


def _triton_batches(about: Tensors) -> str:
    if about.size is None:
        return "Frames of the same size that come together are put into one batch (`max_batch_size`)."
    return "The graph takes one frame at a time: a request holds a batch of one (`max_batch_size: 0`)."


def _common(about: Tensors, folder: str = "") -> str:
    frames, height, width = about.lengths
    size = about.spec.input.size
    resized = f"resize frames to {size[0]}x{size[1]} (height x width), {about.spec.input.resize}"
    if about.size is None:
        resized += ", or give them at another size"
    values = f"{about.spec.input.frame.upper()}, 0 to 255 as the camera gives them; {resized}"
    return f"""\
| `{folder}labels.txt` | the classes, a line each; line 1 is class 0 |
| `{folder}spec.json` | this page for programs, with a colour for each class |
| `{folder}reference/*.png` | frames, and the FP32 network's masks of them (of class indices, so they look black) |
| `export.json` | the list of files; with it, a later export may take this one's place |

| tensor | type | shape | |
|---|---|---|---|
| `{about.frame}` (in) | uint8 | {frames}x{height}x{width}x3 | {values} |
| `{about.mask}` (out) | uint8 | {frames}x{height}x{width} | the index of the class of each pixel |

Scaling, normalising, colour order and the decision between the classes happen inside the graph.
"""
