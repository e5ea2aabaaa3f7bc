"""Which kind of model a file holds, read from its first bytes and its table of contents. Needs no torch."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal

from edgeseg.errors import ModelError

Form = Literal["torch", "torchscript", "exported", "onnx"]

KNOWN = (
    "edgeseg reads what torch.save, torch.jit.save, torch.export.save (.pt2) and torch.onnx.export write: "
    "a state dict, a TorchScript, an exported program, an ONNX graph"
)
ZIP, PICKLE, HDF5 = b"PK\x03\x04", b"\x80", b"\x89HDF\r\n\x1a\n"


def form_of(path: Path) -> Form:
    """The form of the model in `path`. "torch" is anything torch.save wrote, in its zip or its older pickle layout.

    "onnx" is a guess by exclusion: the layout of protobuf has no signature, so the parser has the last word.
    Raises ModelError for a file that is missing, empty, cut short, or of a known other kind.
    """
    if not path.exists():
        raise ModelError(f"no model file at {path}")
    if path.is_dir():
        raise ModelError(f"{path} is a folder, wanted a model file. {KNOWN}")
    with path.open("rb") as file:
        head = file.read(16)
    if not head:
        raise ModelError(f"{path} is empty: copy or save the model again")
    if head.startswith(ZIP):
        return _zip_form(path)
    if head.startswith(PICKLE):
        return "torch"
    if head.startswith(HDF5):
        raise ModelError(f"{path} is an HDF5 file (Keras?). {KNOWN}; tf2onnx turns a Keras model into ONNX")
    if head[8:9] == b"{" and head[5:8] == b"\0\0\0":
        raise ModelError(
            f"{path} is a safetensors file. {KNOWN}; torch.save(safetensors.torch.load_file(FILE), 'model.pt') "
            "turns it into a state dict"
        )
    return "onnx"


def _zip_form(path: Path) -> Form:
    try:
        with zipfile.ZipFile(path) as archive:
            # Each writer puts its files below one folder of a free name; what counts is the path below it.
            inside = {name.partition("/")[2] or name for name in archive.namelist()} | set(archive.namelist())
    except (zipfile.BadZipFile, OSError, EOFError, ValueError) as error:
        raise ModelError(
            f"{path} begins like a model saved by torch but its table of contents is damaged ({error}): "
            "the file was cut short or changed; copy or save it again"
        ) from error
    if inside & {"models/model.json", "archive_format", "serialized_exported_program.json"}:
        return "exported"
    if "constants.pkl" in inside or any(name.startswith("code/") for name in inside):
        return "torchscript"
    if "data.pkl" in inside:
        return "torch"
    raise ModelError(f"{path} is a zip archive, but not one of torch's (it holds {sorted(inside)[:4]}). {KNOWN}")
