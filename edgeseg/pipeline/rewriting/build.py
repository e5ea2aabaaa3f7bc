"""The rewritten network in a build: made between the original's engines and the race that decides over all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeseg.backends import Engine
from edgeseg.console import Console
from edgeseg.data import Dataset, Reading
from edgeseg.distill.distributed import started
from edgeseg.errors import BadInput
from edgeseg.measure.evaluate import Accuracy
from edgeseg.measure.latency import Latency
from edgeseg.pipeline.engines import REWRITTEN, Tried
from edgeseg.pipeline.rewriting import document
from edgeseg.pipeline.rewriting.budgets import dense, shape
from edgeseg.pipeline.rewriting.recovery import forget, recovered
from edgeseg.pipeline.rewriting.run import shrunk
from edgeseg.pipeline.rewriting.students import Student, Work
from edgeseg.pipeline.rewriting.target import Target, target_of
from edgeseg.pipeline.rewriting.wish import Wish
from edgeseg.rewrite.network import Network
from edgeseg.rewrite.rules import RULES
from edgeseg.types import ModelSpec, OnnxModel, Pixels, Precision

Quantize = Callable[[OnnxModel, Sequence[str]], Mapping[str, OnnxModel]]


@dataclass(frozen=True, slots=True)
class Shrunk:
    """The rewritten network as one FP32 graph, and all that its document needs."""

    graph: OnnxModel
    network: Network
    work: Work
    student: Student
    target: Target
    wish: Wish
    recovery: Mapping[str, Any] | None

    def forget(self) -> None:
        """When the bundle has been written: remove what a recovery that came to its end has left."""
        forget(self.wish, self.recovery)

    def to_json(
        self,
        engines: Sequence[Engine],
        latency: Mapping[str, Latency],
        accuracy: Mapping[str, Accuracy],
        names: Sequence[str],
        split: str,
        seconds: Mapping[str, float],
    ) -> dict[str, Any] | None:
        """The document edgeseg.rewrite/1 of this build; None if the target's rewritten engine did not come so far."""
        mine = f"{REWRITTEN}-{self.target.engine.name}"
        if mine not in latency or mine not in accuracy or self.target.engine.name not in latency:
            return None
        wanted = [s for option in self.student.chosen.options.values() for s in (dense(option.layer), shape(option))]
        return document.report(
            self.work,
            self.student,
            self.network,
            self.target.engine,
            {"original": latency[self.target.engine.name], "rewritten": latency[mine]},
            {"original": accuracy[self.target.engine.name], "rewritten": accuracy[mine]},
            {},
            names=names,
            budget=self.wish.budget,
            rules=self.wish.rules or tuple(RULES),
            recovery=self.recovery,
            times=self.target.times(wanted) if self.wish.timed else {},
            split=split,
            seconds=seconds,
        )


def shrunk_for(
    model: Path,
    spec: ModelSpec,
    dataset: Dataset,
    split: str,
    wish: Wish,
    tried: Tried,
    fp32: OnnxModel,
    int8: Mapping[str, OnnxModel],
    precision: Precision,
    look: Sequence[Pixels],
    quantize: Quantize,
    *,
    verdict: Reading | None,
    trust_pickle: bool,
    use_cache: bool,
    console: Console,
) -> Shrunk:
    """Rewrite for the fastest of the original's engines, and recover if the wish has minutes for it.

    Raises BadInput in one of several processes: they would build the same bundle.
    """
    if started()[1] > 1:
        raise BadInput("several processes learn together in `edgeseg rewrite`; build what it has written in one")
    target = target_of(
        tried.engines,
        fp32,
        int8,
        precision,
        look,
        lambda graph, name: quantize(graph, [name])[name],
        console,
        use_cache,
        wish.checkpoint,
    )
    work, student = shrunk(model, spec, dataset, split, wish, target, trust_pickle, console, verdict)
    network, recovery = student.network, None
    if wish.minutes > 0:
        target.journal.write()
        network, recovery = recovered(work, network, dataset, split, wish, console)
    return Shrunk(target.fp32(network), network, work, student, target, wish, recovery)
