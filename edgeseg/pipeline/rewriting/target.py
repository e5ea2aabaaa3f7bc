"""What a network is rewritten for: the original's fastest engine here, and engines like it of other networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgeseg.backends import Engine
from edgeseg.console import Console
from edgeseg.measure.latency import summarize
from edgeseg.pipeline.ingest import exported_student
from edgeseg.pipeline.rewriting.budgets import Shape
from edgeseg.pipeline.rewriting.journal import Journal
from edgeseg.pipeline.rewriting.layer_times import layer_times, network_times
from edgeseg.rewrite.network import Network
from edgeseg.trials.candidates import candidates
from edgeseg.trials.race import race
from edgeseg.types import ModelSpec, OnnxModel, Pixels, Precision, Torch

ROUNDS = 11  # of the race that finds the target


@dataclass(frozen=True, slots=True)
class Target:
    """What the network is rewritten for: the original's fastest engine, and how a graph becomes one like it."""

    engine: Engine
    original: OnnxModel  # in the precision and dialect of the engine
    spec: ModelSpec
    look: Sequence[Pixels]
    lower: Callable[[OnnxModel], OnnxModel]  # an FP32 graph in that precision and dialect
    console: Console
    use_cache: bool
    journal: Journal = field(default_factory=Journal)

    def times(self, shapes: Sequence[Shape]) -> dict[Shape, float]:
        """Milliseconds of layers and of what may stand in their place."""
        return layer_times(
            [(conv, size, [pieces]) for conv, size, pieces in shapes],
            self.engine.backend,
            self.engine.precision,
            settings=self.engine.settings,
            console=self.console,
            use_cache=self.use_cache,
        )

    def together(self, models: Sequence[OnnxModel]) -> list[float]:
        """Milliseconds of whole networks, in turns."""
        engine = self.engine
        return self.journal.together(
            models, lambda: network_times(models, engine.backend, engine.precision, settings=engine.settings)
        )

    def graph(self, network: Network) -> OnnxModel:
        return self.lower(self.fp32(network))

    def fp32(self, network: Network) -> OnnxModel:
        return exported_student(Torch(network, "pickle"), self.spec, self.look)

    def like(self, model: OnnxModel, name: str) -> Engine:
        """An engine of the graph with the target's settings."""
        made = candidates(model, self.engine.backend, self.engine.precision)
        same = [other for other in made if other.settings["decision"] == self.engine.settings["decision"]]
        first = (same or made)[0]
        return replace(first, name=name, settings={**first.settings, **self.engine.settings})


def target_of(
    engines: Sequence[Engine],
    fp32: OnnxModel,
    int8: Mapping[str, OnnxModel],
    precision: Precision,
    look: Sequence[Pixels],
    lower: Callable[[OnnxModel, str], OnnxModel],
    console: Console,
    use_cache: bool,
    checkpoint: Path | None = None,
) -> Target:
    """The fastest of the original's engines in the precision asked for, else the fastest.

    `int8`: the original's quantized graphs by backend; `lower(fp32, backend)`: how they were made. With a `checkpoint`
    of a recovery to go on with it is the engine that was chosen then.
    """
    halves = ("fp16", "bf16")
    able = [e for e in engines if e.precision == precision or (precision in halves and e.precision in halves)]
    able = able or list(engines)
    times = race(able, [frame[None] for frame in look], rounds=ROUNDS)
    medians = {name: summarize(samples).p50 or float("inf") for name, samples in times.items()}
    best = min(able, key=lambda engine: medians[engine.name])
    journal = Journal.beside(checkpoint)
    for engine in able:
        if journal.engine.get("name") == engine.name:
            best = replace(engine, settings={**engine.settings, **journal.engine["settings"]})
    journal.engine = {"name": best.name, "settings": dict(best.settings)}
    quantizes = best.precision == "int8"
    return Target(
        best,
        int8[best.backend] if quantizes else fp32,
        fp32.spec,
        look,
        (lambda model: lower(model, best.backend)) if quantizes else (lambda model: model),
        console,
        use_cache,
        journal,
    )
