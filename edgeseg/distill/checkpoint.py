"""A run on disk, to be continued: tensors and plain numbers, read without running anything from the file."""

from __future__ import annotations

import hashlib
import io
import math
import pickle
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from edgeseg.distill.values import Distillation, Progress, Score
from edgeseg.errors import BadInput
from edgeseg.files import write_whole
from edgeseg.types import Pixels

VERSION = 1
Tensors = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class State:
    """All that a run is after some steps; tensors on the CPU, by the names of the network's weights."""

    step: int
    seconds: float
    halvings: int  # of the learning rate
    begun: float  # fraction of the run before the first step
    weights: Tensors
    averaged: Tensors
    moments: dict[str, Tensors]  # of AdamW, by name: step, exp_avg, exp_avg_sq; empty before the first step
    best: Tensors  # empty: nothing was judged yet
    best_score: Score
    history: tuple[Progress, ...] = ()


def fingerprint(
    teacher: nn.Module, student: nn.Module, options: Distillation, frames: int, held_out: Sequence[Pixels]
) -> str:
    """What a run must share with another to be its continuation: networks, options, held-out frames, their number."""
    digest = hashlib.sha256(repr((VERSION, options, frames, len(held_out))).encode())
    for network in (teacher, student):
        digest.update(str(network.code).encode() if isinstance(network, fx.GraphModule) else b"")
        for name, value in network.state_dict().items():
            digest.update(name.encode())
            if isinstance(value, Tensor):
                digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    for frame in held_out:
        digest.update(frame.tobytes())
    return digest.hexdigest()


def save(path: Path, state: State, print_: str) -> None:
    """Write the file in one step: what stood there stays until the new one is whole. Raises BadInput."""
    content = {"edgeseg_distill": VERSION, "fingerprint": print_, **_plain(state)}
    data = io.BytesIO()
    torch.save(content, data)
    write_whole(path, data.getvalue())


def load(path: Path, print_: str) -> State | None:
    """The run that the file holds, None if there is no file.

    Raises BadInput if it is none, is damaged, or is of another run: other networks, options or held-out frames.
    """
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        version, theirs = content["edgeseg_distill"], content["fingerprint"]
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise BadInput(
            f"{path} is no checkpoint of a distillation, or a damaged one ({_first_line(error)}). Delete it to "
            "begin anew"
        ) from error
    if version != VERSION or theirs != print_:
        raise BadInput(
            f"{path} is of another run: the teacher, the student, the options or the frames were others. Delete it to "
            "begin anew, or give another file"
        )
    return _state(content)


def _plain(state: State) -> dict[str, Any]:
    content = {name: getattr(state, name) for name in State.__dataclass_fields__}
    return content | {
        "best_score": asdict(state.best_score),
        "history": [asdict(progress) for progress in state.history],
    }


def _state(content: dict[str, Any]) -> State:
    history = []
    for entry in content["history"]:
        progress = Progress(**entry)
        history.append(replace(progress, score=Score(**entry["score"]) if entry["score"] else None))
    parts = {name: content[name] for name in State.__dataclass_fields__}
    return State(**parts | {"best_score": Score(**content["best_score"]), "history": tuple(history)})


def nothing_judged() -> Score:
    return Score(-math.inf, math.nan, math.nan)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
