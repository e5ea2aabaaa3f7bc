"""From a file to a network: the one function of this stage that others call."""

from __future__ import annotations

from pathlib import Path

from edgeseg.errors import ModelError, need
from edgeseg.intake.forms import KNOWN, form_of
from edgeseg.types import ModelSpec, Onnx, Torch


def load(path: Path, spec: ModelSpec, *, trust_pickle: bool = False) -> Torch | Onnx:
    """Read the model file at `path`: a state dict, TorchScript, exported program, pickled module or ONNX graph.

    A state dict needs `spec.factory`, "module:function", which is imported (also from the folder of the model
    file) and called with `spec.factory_args`; the weights must fit it exactly, but for BatchNorm's counters.
    A whole pickled module runs code while it is read, so it is refused unless `trust_pickle`.
    Half precision weights become float32. A torch network comes back in eval mode on the CPU.

    Raises ModelError for a file that cannot be used, MissingOnMachine when torch or onnx is not installed.
    """
    path = Path(path)
    form = form_of(path)
    if form == "onnx":
        return _load_onnx(path)
    need("torch", extra="torch", why=f"Reading the torch model {path.name}")
    # Imported here: this module must load on a device without torch.
    from edgeseg.intake import torch_files

    if form == "torchscript":
        return torch_files.load_torchscript(path)
    if form == "exported":
        return torch_files.load_exported(path)
    return torch_files.load_saved(path, spec, trust_pickle=trust_pickle)


def _load_onnx(path: Path) -> Onnx:
    onnx = need("onnx", extra="build", why=f"Reading the ONNX model {path.name}")
    from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]

    try:
        proto = onnx.load_model(str(path), format="protobuf", load_external_data=False)
    except DecodeError as error:
        raise ModelError(f"{path} is not a model, or a damaged one. {KNOWN}") from error
    if not proto.graph.node or not proto.graph.output:
        raise ModelError(f"{path} holds no ONNX graph: it is damaged or something else. {KNOWN}")
    try:
        onnx.load_external_data_for_model(proto, str(path.parent))
        return Onnx(proto.SerializeToString())
    except (OSError, onnx.checker.ValidationError) as error:
        raise ModelError(
            f"the ONNX graph in {path} cannot be used: {error}. If its weights lie in a file of their own, "
            "that file must be beside it, complete, under the name it was exported with"
        ) from error
    except (EncodeError, ValueError) as error:
        raise ModelError(
            f"the ONNX graph in {path} with its weights is larger than 2 GiB or damaged: {error}"
        ) from error
