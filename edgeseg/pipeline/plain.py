"""`edgeseg export`: plain files from a bundle, for tools and devices that do not run edgeseg.

    tensorrt      a graph and the `trtexec` command line that builds the engine on the device, as on JetPack 5
    onnxruntime   a graph for plain ONNX Runtime, with a short program that runs it
    triton        a model repository for NVIDIA's Triton Inference Server, on its backend for ONNX Runtime

A folder is written file by file, each whole or not at all; `export.json` in it lists them, so that a later export may
take their place and nothing else is ever touched.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from calibration import CalibrationError, ScaleTable
from edgeseg import quantize
from edgeseg.backends.tensorrt.options import Options, Shape, options_from
from edgeseg.backends.tensorrt.pairs import paired
from edgeseg.backends.tensorrt.trtexec import check_command, command, refusal, strongly_typed, version_from
from edgeseg.bundle import Bundle, Variant, read_bundle
from edgeseg.bundle_io import encode_png
from edgeseg.console import Console
from edgeseg.errors import BadInput, BundleError
from edgeseg.files import write_whole
from edgeseg.palette import palette_of
from edgeseg.pipeline import plain_text as text
from edgeseg.pipeline.engines import REWRITTEN
from edgeseg.pipeline.frames import QUICK, Effort
from edgeseg.pipeline.network import Network, dialect_for, network_in
from edgeseg.pipeline.prepare import fitted_to
from edgeseg.types import FRAME, LOGITS, MASK, OnnxModel, Precision

if TYPE_CHECKING:
    import onnx

Dialect = Literal["tensorrt", "onnxruntime", "triton"]
SCHEMA = "edgeseg.export/1"
LIST = "export.json"
MOST_FRAMES = 8  # that Triton puts into one batch, of a graph that takes any number
# What the scripts of an export leave beside it on the device.
LEFT = ("model.engine", "timing.cache", "output.json", "mask.png")


@dataclass(frozen=True, slots=True)
class _Source:
    """The float graph of the network that the bundle chose, and what its scales are known from."""

    network: Network
    rewritten: bool

    @property
    def model(self) -> OnnxModel:
        return self.network.fp32

    @property
    def table(self) -> ScaleTable | None:
        return self.network.table


def plain_files(
    bundle: str | Path,
    dialect: Dialect,
    out: str | Path,
    *,
    precision: Precision | None = None,
    tensorrt: str = "10.3",
    trt: Mapping[str, object] | None = None,
) -> list[Path]:
    """Write the files of a dialect into the folder `out` and return their paths.

    `precision`: by default that of the bundle's chosen variant, as far as the dialect has it. `tensorrt`: the version
    on the device. `trt`: settings of a TensorRT build, as `Options` has them; those of a TensorRT variant in the bundle
    hold where it says nothing.

    Raises BadInput for a folder with other files in it, for INT8 of a bundle without scales, for a version that is not
    known or cannot do what is asked, BundleError for a bundle that cannot be read.
    """
    if dialect not in get_args(Dialect):
        raise BadInput(f"there is no dialect '{dialect}'; there are: {', '.join(get_args(Dialect))}")
    if trt and dialect != "tensorrt":
        raise BadInput(f"--trt is for --dialect tensorrt, not for {dialect}. Leave it out.")
    folder = Path(out)
    earlier = _earlier(folder)
    content = read_bundle(Path(bundle))
    if dialect == "tensorrt":
        entries = _tensorrt(content, precision, tensorrt, dict(trt or {}))
    else:
        entries = _onnxruntime(content, precision, triton=dialect == "triton")
    return _written(folder, dialect, entries, earlier)


def _tensorrt(bundle: Bundle, asked: Precision | None, version_text: str, told: dict[str, object]) -> dict[str, bytes]:
    version = version_from(version_text)
    precision = asked or _plain(bundle.variant().precision)
    ours = next((v for v in bundle.variants if v.backend == "tensorrt" and v.precision == precision), None)
    settings = {"arithmetic": "f16" if precision == "int8" else "f32", **(ours.settings if ours else {}), **told}
    options = options_from(settings)
    refused = refusal(options, version, precision)
    if refused:  # before the work
        raise BadInput(refused)
    source = _source(bundle)
    dynamic = _open_lengths(source.model)
    size: Shape = (1, *bundle.spec.input.size)
    graph, float_layers = _graph_for(source, bundle, precision, options, typed=strongly_typed(options, version))
    build = command(
        options,
        version,
        onnx="model.onnx",
        engine="model.engine",
        precision=precision,
        dynamic=size if dynamic else None,
        float_layers=float_layers,
        timing_cache="timing.cache",
        program="$TRTEXEC",
    )
    check = None
    if bundle.references and _within(size, options.shapes):
        check = check_command(
            options,
            version,
            engine="model.engine",
            frame="frame.bin",
            output="output.json",
            dynamic=size if dynamic else None,
            program="$TRTEXEC",
        )
    entries = {"model.onnx": graph, "build.sh": text.script(build, text.BUILDING)}
    entries |= _described(bundle, precision, "tensorrt", dynamic)
    if check is not None:
        first = bundle.references[0]
        entries["check.sh"] = text.script(check, text.CHECKING, "python3 check.py")
        entries["check.py"] = text.CHECK_PY.encode()
        entries |= {"frame.bin": first.frame.tobytes(), "mask.bin": first.mask.tobytes()}
    about = text.Tensors(FRAME, MASK, None if dynamic else size, bundle.spec)
    entries["README.md"] = text.tensorrt_readme(about, precision, version, build, check).encode()
    return entries


def _graph_for(
    source: _Source, bundle: Bundle, precision: Precision, options: Options, *, typed: bool
) -> tuple[bytes, tuple[str, ...]]:
    """The graph that TensorRT is given, and the nodes that must stay FP32 where it decides on types itself."""
    from edgeseg.backends.tensorrt.graph import for_tensorrt

    model = source.model
    if precision == "int8":
        model = _quantized(source, bundle, quantize.TENSORRT)
        if not typed:
            return for_tensorrt(paired(model.graph)), ()
    if precision == "fp32" or (precision == "int8" and options.arithmetic == "f32"):
        return for_tensorrt(model.graph), ()
    from edgeseg.quantize.half import half

    halved = half(model, largest=_largest(source, bundle))
    if typed:
        return for_tensorrt(halved.model.graph), ()
    return for_tensorrt(model.graph), tuple(halved.floats)


def _onnxruntime(bundle: Bundle, asked: Precision | None, *, triton: bool) -> dict[str, bytes]:
    dialect: Dialect = "triton" if triton else "onnxruntime"
    if asked in ("fp16", "bf16"):
        raise BadInput(
            f"--dialect {dialect} writes FP32 or INT8: ONNX Runtime computes an FP32 graph in half precision where it "
            "can. Say --precision fp32 or int8, or --dialect tensorrt."
        )
    precision = asked or ("int8" if bundle.variant().precision == "int8" else "fp32")
    source = _source(bundle)
    measured = next((v for v in _same_network(bundle) if (v.backend, v.precision) == ("onnxruntime", precision)), None)
    if precision == "fp32":
        graph = source.model.graph
    elif measured is not None:  # what was measured is what is handed over
        graph = _whole(bundle.graph(measured), source.model.graph)
    else:
        graph = _quantized(source, bundle, dialect_for("onnxruntime")).graph
    dynamic = _open_lengths(source.model)
    described = _described(bundle, precision, dialect, dynamic)
    about = text.Tensors(FRAME, MASK, None if dynamic else (1, *bundle.spec.input.size), bundle.spec)
    if not triton:
        readme = text.onnxruntime_readme(about, precision).encode()
        return {"model.onnx": graph, "run.py": text.run_py(about).encode(), "README.md": readme, **described}
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", bundle.spec.name).strip("._-") or "network"
    config = text.triton_config(name, about, MOST_FRAMES if dynamic else 0)
    # Every folder beside a model's would be taken for a model; those in it are ignored unless they are numbers.
    return {
        f"{name}/config.pbtxt": config.encode(),
        f"{name}/1/model.onnx": graph,
        "README.md": text.triton_readme(name, about, precision).encode(),
        **{f"{name}/{file}": content for file, content in described.items()},
    }


def _described(bundle: Bundle, precision: Precision, dialect: str, dynamic: bool) -> dict[str, bytes]:
    """What every dialect gets: the classes, what frames and masks are, and frames with the masks expected."""
    spec = bundle.spec
    height, width = spec.input.size
    classes = list(spec.output.classes)
    if not classes:  # nobody named them
        classes = [f"class {index}" for index in range(len(palette_of(bundle)))]
    batch = [-1, -1, -1] if dynamic else [1, height, width]
    document = {
        "schema": SCHEMA,
        "name": spec.name,
        "dialect": dialect,
        "precision": precision,
        "input": {
            "name": FRAME,
            "dtype": "uint8",
            "layout": "NHWC",
            "shape": [*batch, 3],
            "size": [height, width],
            "order": spec.input.frame,
            "resize": spec.input.resize,
        },
        "output": {"name": MASK, "dtype": "uint8", "layout": "NHW", "shape": batch, "classes": classes},
        "palette_rgb": [list(colour) for colour in palette_of(bundle)],
    }
    entries = {
        "labels.txt": "".join(f"{name}\n" for name in classes).encode(),
        "spec.json": (json.dumps(document, indent=1) + "\n").encode(),
    }
    for index, reference in enumerate(bundle.references):
        bgr = reference.frame if spec.input.frame == "bgr" else reference.frame[..., ::-1]
        entries[f"reference/{index:04d}.frame.png"] = encode_png(np.ascontiguousarray(bgr))
        entries[f"reference/{index:04d}.mask.png"] = encode_png(reference.mask)
    return entries


def _source(bundle: Bundle) -> _Source:
    """The network of the engine that the bundle chose: the original, or the rewritten one."""
    rewritten = bundle.variant().name.startswith(f"{REWRITTEN}-")
    try:
        network = network_in(bundle, f"{REWRITTEN}/" if rewritten else "")
    except BundleError as error:
        raise BadInput(str(error)) from error
    if network is None:
        raise BadInput("the bundle has no FP32 graph, from which everything else is made: build it again.")
    if network.table is not None and network.table.model != network.fp32.digest:
        network = Network(network.fp32)
    return _Source(network, rewritten)


def _same_network(bundle: Bundle) -> list[Variant]:
    """The variants of the network that was chosen: the original, or the rewritten one."""
    rewritten = bundle.variant().name.startswith(f"{REWRITTEN}-")
    return [v for v in bundle.variants if v.name.startswith(f"{REWRITTEN}-") == rewritten]


def _quantized(source: _Source, bundle: Bundle, dialect: quantize.Dialect) -> OnnxModel:
    """The network in INT8 as it was fitted for this dialect; else with biases corrected on the reference frames."""
    if source.table is None:
        raise BadInput(
            "INT8 was asked for, and the bundle has no scales of this network: build it with --int8 (and --data), or "
            "say --precision fp32"
        )
    frames = [reference.frame[None] for reference in bundle.references]
    effort = replace(QUICK if bundle.verdict.get("quick") else Effort(), fit=0)
    try:
        network, _ = fitted_to(source.network, frames, [dialect], effort, use_cache=False, console=Console())
        return network.int8(dialect)
    except CalibrationError as error:
        raise BadInput(f"the bundle's scales do not fit its graph: {error}. Build it again.") from error


def _largest(source: _Source, bundle: Bundle) -> dict[str, float]:
    """The largest magnitude of each tensor: on the reference frames, and where it was calibrated on those frames."""
    from edgeseg.backends.onnxruntime import probe
    from edgeseg.quantize.half_ranges import largest_seen

    frames = [reference.frame[None] for reference in bundle.references]
    largest = largest_seen(source.model, probe, frames) if frames else {}
    for name, seen in source.table.tensors.items() if source.table is not None else ():
        largest[name] = max(largest.get(name, 0.0), abs(seen.minimum), abs(seen.maximum))
    return largest


def _whole(graph: bytes, other: bytes) -> bytes:
    """A graph that may end at the scores, with the decision between the classes that `other` makes of them."""
    import onnx

    model, decided = onnx.load_from_string(graph), onnx.load_from_string(other)
    if any(output.name == MASK for output in model.graph.output):
        return graph
    readers: list[onnx.NodeProto] = []
    found = {LOGITS}
    for node in decided.graph.node:  # in topological order
        if found & set(node.input):
            readers.append(node)
            found.update(node.output)
    needed = {name for node in readers for name in node.input} - found
    constants = [node for node in decided.graph.node if node.op_type == "Constant" and needed & set(node.output)]
    there = {tensor.name for tensor in model.graph.initializer}
    model.graph.initializer.extend(t for t in decided.graph.initializer if t.name in needed and t.name not in there)
    model.graph.node.extend([*constants, *readers])
    del model.graph.output[:]
    model.graph.output.extend(output for output in decided.graph.output if output.name == MASK)
    onnx.checker.check_model(model)
    serialized: bytes = model.SerializeToString()
    return serialized


def _open_lengths(model: OnnxModel) -> bool:
    import onnx

    (frame,) = (value for value in onnx.load_from_string(model.graph).graph.input if value.name == FRAME)
    return any(not length.HasField("dim_value") for length in frame.type.tensor_type.shape.dim)


def _within(size: Shape, shapes: tuple[Shape, Shape, Shape] | None) -> bool:
    if shapes is None:
        return True
    least, _, most = shapes
    return all(low <= length <= high for low, length, high in zip(least, size, most, strict=True))


def _plain(precision: Precision) -> Precision:
    return "fp16" if precision == "bf16" else precision  # a CPU's half precision is not a GPU's


def _earlier(folder: Path) -> tuple[str, ...]:
    """The files of an earlier export in the folder. Raises BadInput if there is anything else in it."""
    if not folder.exists() and not folder.is_symlink():
        return ()
    if not folder.is_dir():
        raise BadInput(f"{folder} is not a folder. Choose another place for the export.")
    there = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_symlink() or not p.is_dir())
    if not there:
        return ()
    try:
        listed = json.loads((folder / LIST).read_bytes())
        known = [str(name) for name in listed["files"]] if listed["schema"] == SCHEMA else []
    except (OSError, ValueError, KeyError, TypeError):
        known = []
    strangers = [name for name in there if name not in {*known, *LEFT, LIST}]
    if not known or strangers:
        raise BadInput(
            f"{folder} holds something else than an earlier export ({(strangers or there)[0]}), and nothing in it is "
            "overwritten. Choose an empty folder, or a new one."
        )
    return tuple(name for name in known if name in there)


def _written(folder: Path, dialect: str, entries: Mapping[str, bytes], earlier: Sequence[str]) -> list[Path]:
    """Write the entries, and take away what only the earlier export had. The list comes first and last, so that a
    folder whose writing was interrupted is still known to be ours.
    """

    def listed(names: Sequence[str]) -> bytes:
        document: dict[str, Any] = {"schema": SCHEMA, "dialect": dialect, "files": sorted(names)}
        return (json.dumps(document, indent=1) + "\n").encode()

    write_whole(folder / LIST, listed([*{*entries, *earlier}]))
    written = []
    for name, content in entries.items():
        path = write_whole(folder / name, content)
        if name.endswith(".sh"):
            path.chmod(0o755)
        written.append(path)
    for name in set(earlier) - set(entries):
        (folder / name).unlink(missing_ok=True)
        parent = (folder / name).parent
        while parent != folder and not any(parent.iterdir()):
            parent.rmdir()
            parent = parent.parent
    written.append(write_whole(folder / LIST, listed(list(entries))))
    return written
