"""TensorRT and TensorRT-RTX, as two backends over one code path.

library.py says what each version has; build.py and worker.py make an engine, engines.py keeps it, inspection.py reads
back what it is made of, session.py runs it over cuda.py; options.py is what a user may ask of a build, graph.py what is
changed in a graph for the parser, repair.py what is given up where a builder refuses a node.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial

from edgeseg.backends.base import Decision, Engine, Session, Settings, Value
from edgeseg.backends.tensorrt.build import out_of_memory
from edgeseg.backends.tensorrt.cuda import Gpu, open_device
from edgeseg.backends.tensorrt.driver import gpu
from edgeseg.backends.tensorrt.engines import Stored, engine_for, note_checked, place_of
from edgeseg.backends.tensorrt.library import TENSORRT, TENSORRT_RTX, Library, strongly_typed
from edgeseg.backends.tensorrt.options import options_from
from edgeseg.errors import MissingOnMachine
from edgeseg.types import Precision


@dataclass(frozen=True, slots=True)
class TensorRT:
    """One of the two libraries as a backend; see edgeseg.backends.base.Backend."""

    library: Library
    isolate: bool = False  # what may crash, the build, runs in a child process already
    built_here: bool = True
    decisions: tuple[Decision, ...] = ("graph",)  # scores are many times a mask, and would have to be copied

    @property
    def name(self) -> str:
        return self.library.name

    def version(self) -> str:
        """Of the library. Raises MissingOnMachine where it, a driver or a GPU is missing."""
        trt = self.library.load()
        try:
            _require_cuda()
        except MissingOnMachine as error:
            raise MissingOnMachine(f"the backend '{self.name}' cannot run here: {error}") from error
        return str(trt.__version__)

    def place(self) -> dict[str, Value]:
        return {**place_of(self.library, self.version(), self._gpu())}

    def settings(self, precision: Precision) -> tuple[Settings, ...]:
        if precision == "int8":  # what stands between the INT8 convolutions may run in half precision
            return ({"arithmetic": "f16"}, {"arithmetic": "f32"})
        return ({"arithmetic": "f16" if precision == "fp16" else "f32"},)

    def halves(self) -> tuple[Precision, ...]:
        return ("fp16",)

    def half_graphs(self, precision: Precision) -> bool:
        """FP16 is always written into the graph: what would overflow stays FP32 there. Between INT8 convolutions it
        needs scales in FP16, which came with opset 19 and strong typing; before, a flag allows it.
        """
        return precision == "fp16" or strongly_typed(self.library.load())

    def convert(self, graph: bytes) -> dict[str, bytes]:
        from edgeseg.backends.tensorrt.graph import for_tensorrt
        from edgeseg.backends.tensorrt.pairs import paired

        ready = for_tensorrt(graph)
        return {"graph.onnx": ready if strongly_typed(self.library.load()) else paired(ready)}

    def open(self, engine: Engine) -> Session:
        from edgeseg.backends.tensorrt.session import EngineRefused

        stored = self.stored(engine)
        try:
            return self._session(engine, stored)
        except EngineRefused as error:
            if stored.built or out_of_memory(str(error)):
                raise
            return self._session(engine, self.stored(engine, refused=f"the one in the cache is refused: {error}"))

    def _session(self, engine: Engine, stored: Stored) -> Session:
        from edgeseg.backends.tensorrt.session import TensorRTSession

        session = TensorRTSession(
            self.library.load(),
            stored.engine,
            options_from(engine.settings),
            stored.entry,
            partial(note_checked, stored.entry, stored.digest),
        )
        session.fresh = not stored.checked
        return session

    def stored(self, engine: Engine, refused: str = "") -> Stored:
        """The built engine for this device, with what its inspector told; built now if there is none.

        `refused`: why the one that is stored does not do.
        """
        return engine_for(
            self.library,
            self.version(),
            self._gpu(),
            engine.files[engine.graph],
            engine.precision,
            options_from(engine.settings),
            engine.name,
            refused,
        )

    def _gpu(self) -> Gpu:
        return gpu()


@cache
def _require_cuda() -> None:
    """Raise MissingOnMachine unless a GPU can be used from here: a driver, a device, a package, room for a context."""
    with open_device():
        pass


BACKENDS = {library.name: TensorRT(library) for library in (TENSORRT, TENSORRT_RTX)}
