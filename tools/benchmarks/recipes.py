"""The recipes that are compared: each turns one FP32 graph and calibration frames into files. Runs in a child process.

    python -m benchmarks.recipes FOLDER      FOLDER/job.json in, FOLDER/result.json and the recipe's files out

A recipe writes graph.onnx, or graph.xml with graph.bin (and host.xml, host.bin: the same cut at the scores). Ours
writes a bundle. Packages are imported inside the recipes, so that memory is that of the recipe's own packages.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg.measure.machine import peak_rss_mb
from edgeseg.types import FRAME, LOGITS, Frames

BUNDLE = "out.edgeseg"
NOT_QUANTIZING = ("export", "candidates", "evaluate", "race")  # steps of a build of ours


@dataclass(frozen=True, slots=True)
class Job:
    """What a child is told. Paths are absolute; of peers only `graph` and `frames` are used."""

    recipe: str
    folder: str
    graph: str = ""  # the FP32 graph: frame in, mask out
    frames: str = ""  # .npy of uint8 (N, H, W, 3), of the network's size and colour order
    count: int = 0  # how many of them
    limit_gb: float | None = None  # of address space
    build: dict[str, Any] = field(default_factory=dict)  # for ours: the arguments of edgeseg.pipeline.build
    indices: tuple[
        int, ...
    ] = ()  # for ours: the calibration frames in their split, in order, where not the build's own


@dataclass(frozen=True, slots=True)
class Recipe:
    """One way to INT8. `needs`: the packages without which it is left out."""

    title: str
    backend: str
    needs: tuple[str, ...]
    run: Callable[[Job], dict[str, Any]]
    ours: bool = False


@dataclass(frozen=True, slots=True)
class Batches:
    """One frame after the other as a batch, as often as it is asked; none is kept in memory here."""

    job: Job

    def __iter__(self) -> Iterator[Frames]:
        for index in range(self.job.count):  # mapped anew each time: pages that stay mapped count as memory
            yield np.array(np.load(self.job.frames, mmap_mode="r")[index : index + 1])


def _edgeseg(job: Job) -> dict[str, Any]:
    """The whole build for one backend. `other_s`: its seconds for what no peer does, such as measuring and choosing."""
    from calibration import from_json
    from edgeseg import backends, pipeline, quantize
    from edgeseg.console import Console
    from edgeseg.measure.machine import machine
    from edgeseg.trials.candidates import dialect_of
    from edgeseg.types import OnnxModel

    console, start = Console(), time.perf_counter()
    out = Path(job.folder) / BUNDLE
    built = pipeline.build(**job.build, out=out, console=console)
    whole = time.perf_counter() - start
    other = whole - sum(s for step, s in console.seconds.items() if step not in NOT_QUANTIZING)
    backend, files = job.build["backend"], built.bundle.files
    if job.build["precision"] == "int8":
        # `candidates` writes the INT8 graph and times settings; the writing is done once more, to count it alone.
        dialect = quantize.DIALECTS[dialect_of(backend, frozenset(machine()["isa"]))]
        model = OnnxModel(files["fp32.onnx"], built.bundle.spec)
        int8 = quantize.quantize(model, from_json(files["scales.json"].decode()), dialect)
        backends.get(backend).convert(int8.graph)
    return {"build_s": whole, "other_s": other, "steps": console.seconds, "chosen": built.bundle.chosen}


def _edgeseg_calibrate(job: Job) -> dict[str, Any]:
    """Calibration alone, over the tensors that any dialect quantizes."""
    from calibration import calibrate, load_recipe, to_json
    from edgeseg import quantize
    from edgeseg.backends.onnxruntime import probe

    graph = Path(job.graph).read_bytes()
    view = quantize.Graph(graph)
    tensors = sorted(set().union(*(quantize.place(view, d).observed for d in quantize.DIALECTS.values())))
    table = calibrate(probe(graph, tensors, Batches(job)), load_recipe("mse"), model="graph", data="frames")
    (Path(job.folder) / "scales.json").write_text(to_json(table), encoding="utf-8")
    return {"frames": table.frames}


def _edgeseg_int8(runtime: str) -> Callable[[Job], dict[str, Any]]:
    """From frames to the INT8 file, with the defaults of a build and nothing of what a build measures.

    Unlike the peers, it reads the frames from the data set, as a build does: decoding and resizing are in its time.
    """

    def run(job: Job) -> dict[str, Any]:
        from edgeseg import backends
        from edgeseg.console import Console
        from edgeseg.data import load_dataset, read
        from edgeseg.pipeline.calibrate import recipe_named
        from edgeseg.pipeline.frames import Effort
        from edgeseg.pipeline.network import dialect_for
        from edgeseg.pipeline.prepare import ready
        from edgeseg.spec import spec_for
        from edgeseg.types import OnnxModel

        told, console, dialect = job.build, Console(), dialect_for(runtime)
        spec = spec_for(Path(told["model"]), Path(told["spec"]) if told["spec"] else None)
        split = load_dataset(Path(told["data"])).split(told["split"])
        reading = read(split, job.indices[: job.count], color=spec.input.frame, labels=False)
        fp32 = OnnxModel(Path(job.graph).read_bytes(), spec)
        # Nothing was cached: the cache is this process's own.
        done = ready(fp32, reading, recipe_named("mse"), (dialect,), Effort(), use_cache=True, console=console)
        int8 = done.network.int8(dialect)
        files = {"graph.onnx": int8.graph} if runtime == "tensorrt" else backends.get(runtime).convert(int8.graph)
        for name, content in files.items():
            (Path(job.folder) / name).write_bytes(content)
        return {"frames": len(reading), "steps": console.seconds, "done": done.row}

    return run


def _ort(method: str, *, symmetric: bool = False, **options: Any) -> Callable[[Job], dict[str, Any]]:
    """quantize_static as its documentation advises for x86 with VNNI: pre-processed, U8S8, per channel.

    `symmetric`: what TensorRT takes instead, S8S8 with all zero points 0 and biases left in float.
    """

    def run(job: Job) -> dict[str, Any]:
        quantization = importlib.import_module("onnxruntime.quantization")
        shapes = importlib.import_module("onnxruntime.quantization.shape_inference")
        batches = iter(Batches(job))

        class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
            def get_next(self) -> dict[str, Frames] | None:
                frame = next(batches, None)
                return None if frame is None else {FRAME: frame}

        prepared = str(Path(job.folder) / "prepared.onnx")
        shapes.quant_pre_process(job.graph, prepared)
        quantization.quantize_static(
            prepared,
            str(Path(job.folder) / "graph.onnx"),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QInt8 if symmetric else quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=getattr(quantization.CalibrationMethod, method),
            extra_options={"ActivationSymmetric": True, "QuantizeBias": False} if symmetric else {},
            **options,
        )
        return {}

    return run


def _nncf_onnx(job: Job) -> dict[str, Any]:
    nncf, onnx = importlib.import_module("nncf"), importlib.import_module("onnx")
    dataset = nncf.Dataset(Batches(job), lambda frame: {FRAME: frame})
    int8 = nncf.quantize(onnx.load(job.graph), dataset, subset_size=job.count)
    onnx.save(int8, str(Path(job.folder) / "graph.onnx"))
    return {}


def _nncf_openvino(preset: str) -> Callable[[Job], dict[str, Any]]:
    def run(job: Job) -> dict[str, Any]:
        nncf, openvino = importlib.import_module("nncf"), importlib.import_module("openvino")
        dataset = nncf.Dataset(Batches(job), lambda frame: {FRAME: frame})
        model = openvino.Core().read_model(job.graph)
        int8 = nncf.quantize(model, dataset, subset_size=job.count, preset=nncf.QuantizationPreset(preset))
        folder = Path(job.folder)
        openvino.save_model(int8, folder / "graph.xml", compress_to_fp16=False)
        scores = [out for op in int8.get_ops() for out in op.outputs() if LOGITS in out.get_names()]
        if scores and LOGITS not in int8.output(0).get_names():
            cut = openvino.Model([scores[0]], int8.get_parameters(), "cut")
            openvino.save_model(cut, folder / "host.xml", compress_to_fp16=False)
        return {}

    return run


def _modelopt(method: str) -> Callable[[Job], dict[str, Any]]:
    """nvidia-modelopt's ONNX quantizer as its guide shows it. It takes its calibration frames as one array."""

    def run(job: Job) -> dict[str, Any]:
        quantization = importlib.import_module("modelopt.onnx.quantization")
        quantization.quantize(
            job.graph,
            quantize_mode="int8",
            calibration_data={FRAME: np.load(job.frames)[: job.count]},
            calibration_method=method,
            calibration_eps=["cpu"],
            output_path=str(Path(job.folder) / "graph.onnx"),
        )
        return {}

    return run


_ONNX, _OV, _TRT = "onnxruntime", "openvino", "tensorrt"
RECIPES: dict[str, Recipe] = {
    "edgeseg-onnxruntime": Recipe("edgeseg", _ONNX, ("onnxruntime",), _edgeseg, ours=True),
    "edgeseg-openvino": Recipe("edgeseg", _OV, ("openvino",), _edgeseg, ours=True),
    "ort-minmax": Recipe("quantize_static, min-max", _ONNX, ("onnxruntime",), _ort("MinMax")),
    "ort-entropy": Recipe("quantize_static, entropy", _ONNX, ("onnxruntime",), _ort("Entropy")),
    "ort-percentile": Recipe("quantize_static, percentile", _ONNX, ("onnxruntime",), _ort("Percentile")),
    "ort-conv": Recipe(
        "quantize_static, min-max, Conv only", _ONNX, ("onnxruntime",), _ort("MinMax", op_types_to_quantize=["Conv"])
    ),
    "nncf-onnx": Recipe("NNCF, ONNX", _ONNX, ("nncf",), _nncf_onnx),
    "nncf-openvino": Recipe("NNCF, performance", _OV, ("nncf", "openvino"), _nncf_openvino("performance")),
    "nncf-openvino-mixed": Recipe("NNCF, mixed", _OV, ("nncf", "openvino"), _nncf_openvino("mixed")),
}
# Graphs that TensorRT takes. Without a GPU they are known by running their nodes as they are written.
TENSORRT: dict[str, Recipe] = {
    "edgeseg-tensorrt": Recipe("edgeseg", _TRT, ("onnxruntime",), _edgeseg_int8(_TRT), ours=True),
    "ort-symmetric-minmax": Recipe("quantize_static, min-max", _TRT, ("onnxruntime",), _ort("MinMax", symmetric=True)),
    "ort-symmetric-entropy": Recipe(
        "quantize_static, entropy", _TRT, ("onnxruntime",), _ort("Entropy", symmetric=True)
    ),
    "ort-symmetric-percentile": Recipe(
        "quantize_static, percentile", _TRT, ("onnxruntime",), _ort("Percentile", symmetric=True)
    ),
    "modelopt-entropy": Recipe("nvidia-modelopt, entropy", _TRT, ("modelopt",), _modelopt("entropy")),
    "modelopt-max": Recipe("nvidia-modelopt, max", _TRT, ("modelopt",), _modelopt("max")),
}
# Ours from frames to the file, as the peers' are, to count time and memory alone.
INT8: dict[str, Recipe] = {
    f"edgeseg-int8-{runtime}": Recipe("edgeseg", runtime, (runtime,), _edgeseg_int8(runtime), ours=True)
    for runtime in (_ONNX, _OV)
}
CALIBRATION = Recipe("edgeseg", _ONNX, ("onnxruntime",), _edgeseg_calibrate, ours=True)
EVERY = {**RECIPES, **TENSORRT, **INT8, "edgeseg-calibrate": CALIBRATION}


def main(folder: Path) -> None:
    job = Job(**json.loads((folder / "job.json").read_text(encoding="utf-8")))
    if job.limit_gb is not None:
        resource = importlib.import_module("resource")
        resource.setrlimit(resource.RLIMIT_AS, (int(job.limit_gb * 1e9),) * 2)
    recipe = EVERY[job.recipe]
    for name in recipe.needs:
        importlib.import_module(name)
    start = time.perf_counter()
    said = recipe.run(job)
    run_s = time.perf_counter() - start
    done = {"job": asdict(job), "peak_rss_mb": peak_rss_mb(), "run_s": run_s, **said}
    (folder / "result.json").write_text(json.dumps(done), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
