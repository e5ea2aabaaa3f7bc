"""From a network to its plain ONNX graph: float32 (1, 3, H, W) in, scores out, nothing else in it."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeseg.errors import ModelError
from edgeseg.export import graph as g
from edgeseg.export.foreign import settle
from edgeseg.export.graph import opset_of
from edgeseg.export.lrn import normalized
from edgeseg.export.operators import symbolics, translations
from edgeseg.export.opset import DEFAULT, lowered
from edgeseg.export.outputs import pick
from edgeseg.export.simplify import simplified
from edgeseg.export.sizes import Size, advice
from edgeseg.export.unpool import unpooled
from edgeseg.types import ModelSpec, Onnx, Torch

if TYPE_CHECKING:
    import onnx
    import torch

INPUT = "input"
NATIVE = 18  # the opset that torch's exporter writes by itself


@dataclass(frozen=True, slots=True)
class Exported:
    """A plain network graph, and what had to be decided on the way."""

    graph: bytes  # a serialized onnx.ModelProto: input float (N, 3, H, W), one output
    opset: int
    notes: tuple[str, ...] = ()  # for people: guesses, fallbacks


def to_onnx(
    model: Torch, spec: ModelSpec, *, opset: int | None = None, dynamic: bool = False, quick: bool = False
) -> Exported:
    """Export a torch network at the spec's input size, batch 1 (`dynamic`: any batch and size that it takes).

    The graph has the input "input", float32 (1, 3, H, W), and one output: the scores that `spec.output.index` picks.
    What only the other outputs need is not in it. Batch norm is folded where a convolution stands before it.
    Exported by torch.export, TorchScript by tracing; a network that torch.export refuses is traced too, with a note.
    `quick` traces first: some seconds less, of which most is torch loading its compiler.
    The opset is 17 (see edgeseg.export.opset) unless `opset` asks for another, or the graph needs 18, with a note.

    Raises ModelError if the network does not take that size (saying which it takes), or cannot be exported.
    """
    if opset is not None and opset < DEFAULT:
        raise ModelError(f"opset {opset} was asked for; the oldest that edgeseg writes is {DEFAULT}")
    notes: list[str] = []
    sample = np.random.default_rng(0).standard_normal((1, 3, *spec.input.size), dtype=np.float32)
    wrap = _check_run(model, spec, sample, notes)
    with quiet():
        proto = _export(model, spec, sample, notes, wrap=wrap, opset=opset, dynamic=dynamic, quick=quick)
    g.strip_metadata(proto)
    return _finish(proto, spec, notes, opset=opset, dynamic=dynamic)


def from_onnx(model: Onnx, spec: ModelSpec, *, dynamic: bool = False) -> Exported:
    """The same for a graph that someone else exported: size fixed (or freed), one output, simplified.

    It may take float32, float16 or float64, (N, 3, H, W) or (N, H, W, 3), and may return a class map.
    Raises ModelError for one that takes something else, or that does not run at the spec's size.
    """
    notes: list[str] = []
    proto = settle(g.parse(model.graph), spec, dynamic=dynamic, notes=notes)
    g.strip_metadata(proto)
    return _finish(proto, spec, notes, opset=opset_of(proto), dynamic=dynamic)


def _finish(proto: onnx.ModelProto, spec: ModelSpec, notes: list[str], *, opset: int | None, dynamic: bool) -> Exported:
    import onnx

    proto = settle(proto, spec, dynamic=dynamic, notes=notes)
    g.refuse_training(proto)
    shape, kind = g.shape_of(proto.graph.input[0]) or [], proto.graph.input[0].type.tensor_type.elem_type
    fixed = [size if isinstance(size, int) else 1 for size in shape]
    if dynamic:
        spatial = (1, 2) if fixed[-1] == 3 and fixed[1] != 3 else (2, 3)
        for axis, size in zip(spatial, spec.input.size, strict=True):
            fixed[axis] = size
    sample = np.random.default_rng(1).standard_normal(fixed).astype(onnx.helper.tensor_dtype_to_np_dtype(kind))
    proto, note = simplified(proto, sample)
    notes += [note] if note else []
    if opset_of(proto) > (opset or DEFAULT):
        proto, note = lowered(proto, opset or DEFAULT)
        if note and opset:
            raise ModelError(f"opset {opset} was asked for, but {note}")
        notes += [note] if note else []
    proto, kept = unpooled(normalized(proto))
    notes += kept
    proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    if g.shape_of(proto.graph.output[0]) is None:  # the checker wants at least their count
        (scores,) = g.run(proto, sample).values()
        g.set_dims(proto.graph.output[0], [None] * scores.ndim if dynamic else scores.shape)
    onnx.checker.check_model(proto)
    return Exported(proto.SerializeToString(), opset_of(proto), tuple(dict.fromkeys(notes)))


def _check_run(model: Torch, spec: ModelSpec, sample: Any, notes: list[str]) -> bool:
    """Run the network once as it is. True if what it returns is more than the tensor of scores."""
    import torch

    height, width = spec.input.size
    try:
        with torch.no_grad():
            returned = model.module(torch.from_numpy(sample))
    except Exception as error:  # user code can raise anything
        raise ModelError(_refused(model, (height, width), error)) from error
    scores, note = pick(returned, spec.output.index)
    notes += [note] if note else []
    if not isinstance(scores, torch.Tensor) or scores.dim() not in (3, 4):
        raise ModelError(
            f"wanted scores (1, classes, h, w) from the network, came {tuple(getattr(scores, 'shape', ()))}: "
            "choose the output with output.index in the spec"
        )
    return not isinstance(returned, torch.Tensor)


def _refused(model: Torch, size: Size, error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    said = (lines[-1] if "TorchScript interpreter" in lines[0] else lines[0]).rstrip(".")
    message = f"the network does not take an input of {size[0]}x{size[1]} (height x width): {said}."
    if model.exported is not None:
        wanted = [
            node.meta["val"].shape
            for node in model.exported.graph.nodes
            if node.op == "placeholder" and node.name in model.exported.graph_signature.user_inputs
        ]
        return f"{message} It was exported for {' x '.join(map(str, wanted[0]))}: set input.size, or export it again"
    with quiet():
        return f"{message} {advice(size, _accepts(model))}. Set input.size in the spec"


def _accepts(model: Torch) -> Callable[[Size], bool]:
    """Whether the network runs at a size, without computing where that is possible."""
    import torch
    from torch._subclasses import FakeTensorMode

    scripted = isinstance(model.module, torch.jit.ScriptModule)  # cannot run without computing

    def accepts(size: Size) -> bool:
        try:
            with torch.no_grad(), contextlib.nullcontext() if scripted else FakeTensorMode(allow_non_fake_inputs=True):
                model.module(torch.zeros(1, 3, *size))
        except Exception:  # the answer is no, whatever the network says
            return False
        return True

    return accepts


def _export(
    model: Torch,
    spec: ModelSpec,
    sample: Any,
    notes: list[str],
    *,
    wrap: bool,
    opset: int | None,
    dynamic: bool,
    quick: bool,
) -> onnx.ModelProto:
    """By the exporters in their order, the first that works."""
    module = model.module if not wrap or model.exported else scores_only(model.module, spec.output.index)
    ways: list[tuple[str, Callable[[], onnx.ModelProto]]] = [
        ("torch.export", lambda: captured(model, module, sample, opset=opset, dynamic=dynamic)[0]),
        ("tracing", lambda: traced(module, sample, opset=opset, dynamic=dynamic)),
    ]
    if model.form == "torchscript":
        ways = ways[1:]
    elif model.form == "exported":
        ways = ways[:1]
    elif quick:
        ways = ways[::-1]
    failures = []
    for name, way in ways:
        try:
            proto = way()
        except Exception as error:  # exporters let through whatever their passes and the network raise
            said = (str(error).strip().splitlines() or [""])[0][:300]
            failures.append(f"{name} failed ({type(error).__name__}: {said})")
            continue
        notes += failures
        if name == "tracing":
            notes.append("exported by tracing: branches that depend on the image are fixed as they were for one")
        _plain_names(proto, wrap)
        if model.form == "exported" and wrap:
            g.keep_output(proto, _flat_output(model, spec, sample, proto))
        return proto
    raise ModelError(
        f"the network cannot be exported to ONNX: {'; '.join(failures)}. Rewrite what it names, or export it yourself "
        "and give edgeseg the .onnx"
    )


def captured(
    model: Torch, module: torch.nn.Module, sample: Any, *, opset: int | None, dynamic: bool
) -> tuple[onnx.ModelProto, Any]:
    """Export through torch.export; the graph and the program whose node names its tensors carry."""
    import torch

    program = model.exported
    if program is None:
        free = torch.export.Dim.AUTO
        # A batch of 1 would be taken for a constant, so a dynamic one is shown 2.
        image = torch.from_numpy(np.repeat(sample, 2, axis=0) if dynamic else sample)
        program = torch.export.export(
            module, (image,), strict=False, dynamic_shapes=({0: free, 2: free, 3: free},) if dynamic else None
        )
    written = torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        optimize=True,
        opset_version=max(opset or NATIVE, NATIVE),
        custom_translation_table=translations(dynamic),
    )
    assert written is not None
    return written.model_proto, written.exported_program


def traced(module: torch.nn.Module, sample: Any, *, opset: int | None, dynamic: bool) -> onnx.ModelProto:
    """Export by tracing (the older exporter): the way for TorchScript, which torch.export does not take."""
    import onnx
    import torch

    image, file = torch.from_numpy(sample), io.BytesIO()
    if not isinstance(module, torch.jit.ScriptModule) and any(
        isinstance(part, torch.jit.ScriptModule) for part in module.children()
    ):
        module = torch.jit.trace(module, image)  # type: ignore[no-untyped-call]
    with torch.no_grad(), symbolics(), contextlib.redirect_stdout(io.StringIO()):  # it prints its graph when it fails
        torch.onnx.export(
            module,
            (image,),
            file,  # type: ignore[arg-type]
            dynamo=False,
            input_names=[INPUT],
            dynamic_axes={INPUT: {0: "batch", 2: "height", 3: "width"}} if dynamic else None,
            opset_version=min(opset or DEFAULT, 20),
        )
    return onnx.load_model_from_string(file.getvalue())


def scores_only(network: torch.nn.Module, index: int | str) -> torch.nn.Module:
    """A module around `network` that returns its scores alone."""
    import torch

    class ScoresOnly(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.training = False  # as the network is; eval() would walk into it, which not every network bears

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            scores: torch.Tensor = pick(self.network(image), index)[0]
            return scores

    return ScoresOnly()


def _plain_names(proto: onnx.ModelProto, wrapped: bool) -> None:
    names = {proto.graph.input[0].name: INPUT}
    if wrapped:
        names |= {
            tensor.name: tensor.name.removeprefix("network.")
            for tensor in proto.graph.initializer
            if tensor.name.startswith("network.")
        }
    g.rename(proto, names)


def _flat_output(model: Torch, spec: ModelSpec, sample: Any, proto: onnx.ModelProto) -> str:
    """The name of the graph output that is the scores: ONNX has the tensors of a nested value in a row."""
    import torch
    from torch.utils import _pytree

    with torch.no_grad():
        returned = model.module(torch.from_numpy(sample))
    scores, _ = pick(returned, spec.output.index)
    leaves = [leaf for leaf in _pytree.tree_leaves(returned) if isinstance(leaf, torch.Tensor)]
    return str(proto.graph.output[next(i for i, leaf in enumerate(leaves) if leaf is scores)].name)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Exporters warn about packages that are not installed and about their own deprecated parts."""
    names = ("torch.onnx", "torch.export", "torch._export", "torch._subclasses.fake_tensor", "onnxscript", "onnx_ir")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)  # what fails is raised as well
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
