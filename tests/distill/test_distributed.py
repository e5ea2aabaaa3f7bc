"""Two processes that learn together, as torchrun starts them, on the CPU."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from edgeseg.distill.distributed import Ranks, agree, average, from_first, joined

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import os, signal, sys
from dataclasses import asdict
from pathlib import Path
import torch
from torch import distributed as dist
from edgeseg.distill import Distillation, distill
from tests.distill.making import damaged, frames, prepare, teacher

torch.set_num_threads(1)
folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
original = teacher()


def run(checkpoint, interrupted):
    seen = []

    def see(progress):
        seen.append(progress.step)
        if interrupted and progress.step == 5:
            os.kill(os.getpid(), signal.SIGINT)  # of one process only

    found = distill(
        original, damaged(original), frames(16), Distillation(steps=12, batch=2, learning_rate=3e-3, norm="updating"),
        prepare=prepare, held_out=frames(4, seed=9), on_progress=see, device=torch.device("cpu"), checkpoint=checkpoint,
    )
    return {
        "weights": found.student.state_dict(), "kept": found.kept, "stopped": found.stopped, "steps": found.steps,
        "before": asdict(found.before), "after": asdict(found.after), "seen": seen, "notes": list(found.notes),
    }


first = run(folder / "run.pt", False)
assert not dist.is_initialized()  # what it began it ended
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
again, interrupted = run(folder / "run.pt", False), run(None, True)
assert dist.is_initialized()  # and what it found it left
dist.destroy_process_group()
torch.save([first, again, interrupted], folder / f"{rank}.pt")
"""


def launch(folder: Path) -> tuple[Any, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "script.py").write_text(SCRIPT, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, str(folder / "script.py"), str(folder)]
    started = [
        subprocess.Popen(command, env=environment | {"RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for process in started:
        _, said = process.communicate(timeout=240)
        assert process.returncode == 0, said[-2000:]
    one, other = (torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2))
    return one, other


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.skipif(sys.platform != "linux", reason="the name of the loopback interface is Linux's")
def test_both_processes_end_with_the_same_student(tmp_path: Path) -> None:
    results = launch(tmp_path)
    for one, other in zip(*results, strict=True):
        assert same(one["weights"], other["weights"])
        for key in ("kept", "stopped", "steps", "before", "after"):
            assert one[key] == other[key], key
        assert other["seen"] == []  # one reports
    first, again, interrupted = results[0]
    assert (first["kept"], first["stopped"]) == ("after", "finished")
    assert first["after"]["agreement"] > first["before"]["agreement"]
    assert first["seen"] == list(range(1, 13))
    # that run was over: from its file both go on and find nothing to do
    assert [result[1]["notes"][0][:23] for result in results] == ["continued after step 12"] * 2
    assert again["seen"] == []
    assert same(again["weights"], first["weights"])
    assert (interrupted["stopped"], interrupted["steps"]) == ("interrupted", 5)


def test_alone_nothing_is_exchanged() -> None:
    with joined(torch.device("cpu")) as ranks:
        assert (ranks.rank, ranks.world, ranks.first) == (0, 1, True)
        assert agree(0.25, True, ranks) == (0.25, True)
        value = torch.ones(2)
        average([value], ranks)
        assert value.tolist() == [1, 1]
        assert from_first(value, ranks) is value
    assert not Ranks(1, 2, torch.device("cpu")).first
