"""`edgeseg export`: folders of plain files that work without edgeseg."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from edgeseg.backends.onnxruntime import inference_session
from edgeseg.bundle import FP32, Bundle, Reference, Variant, read_bundle, write_bundle
from edgeseg.cli import main
from edgeseg.data.street import CLASSES
from edgeseg.errors import BadInput
from edgeseg.pipeline.plain import plain_files
from edgeseg.types import MASK, InputSpec
from tests.quantize import making

cv2 = pytest.importorskip("cv2")
Element = onnx.TensorProto


def exported(bundle: Path, out: Path, dialect: Any = "tensorrt", **options: Any) -> Path:
    paths = plain_files(bundle, dialect, out, **options)
    assert {path.relative_to(out).as_posix() for path in paths} == files(out)
    return out


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def graph(path: Path) -> onnx.ModelProto:
    model = onnx.load(str(path))
    onnx.checker.check_model(model)
    return model


def operators(model: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in model.graph.node}


def masks_of(path: Path, frames: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    session = inference_session(path.read_bytes())
    return np.stack([session.run([MASK], {"frame": frame[None]})[0][0] for frame in frames])


def remade(bundle: Bundle, path: Path, **changes: Any) -> Path:
    return write_bundle(replace(bundle, **changes), path)


def build_words(folder: Path) -> str:
    return (folder / "build.sh").read_text(encoding="utf-8")


def test_tensorrt(built: Path, tmp_path: Path) -> None:
    out = exported(built, tmp_path / "t", precision="int8", tensorrt="8.5")
    bundle = read_bundle(built)
    assert {"model.onnx", "labels.txt", "spec.json", "build.sh", "check.sh", "check.py", "README.md"} <= files(out)
    assert (out / "labels.txt").read_text(encoding="utf-8").splitlines() == list(CLASSES)
    spec = json.loads((out / "spec.json").read_text(encoding="utf-8"))
    assert spec["input"]["shape"] == [1, *bundle.spec.input.size, 3]
    assert spec["input"]["order"] == "bgr"
    assert spec["output"]["classes"] == list(CLASSES)
    assert len(spec["palette_rgb"]) == len(CLASSES)
    model = graph(out / "model.onnx")
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators(model)
    zeros = {node.input[2] for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")}
    integers = [t for t in model.graph.initializer if t.name in zeros]
    assert integers
    assert all(t.data_type == Element.INT8 and not onnx.numpy_helper.to_array(t).any() for t in integers)
    assert not any(t.data_type == Element.FLOAT16 for t in model.graph.initializer)  # flags allow half precision
    assert {t.name for t in model.graph.initializer if t.data_type == Element.INT8} <= zeros  # no weights of int8
    frames = np.stack([reference.frame for reference in bundle.references])
    expected = np.stack([reference.mask for reference in bundle.references])
    assert np.mean(masks_of(out / "model.onnx", frames) == expected) > 0.9
    assert (out / "frame.bin").read_bytes() == bundle.references[0].frame.tobytes()
    assert (out / "mask.bin").read_bytes() == bundle.references[0].mask.tobytes()
    for index, reference in enumerate(bundle.references):
        assert np.array_equal(cv2.imread(str(out / f"reference/{index:04d}.frame.png")), reference.frame)
        stored = cv2.imread(str(out / f"reference/{index:04d}.mask.png"), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(stored, reference.mask)
    assert "--int8" in build_words(out)
    assert "--buildOnly" in build_words(out)
    readme = (out / "README.md").read_text(encoding="utf-8")
    assert "TensorRT 8.5" in readme
    assert "1x48x64x3" in readme


def test_strongly_typed_graphs_have_their_types(built: Path, tmp_path: Path) -> None:
    for precision, kinds in (("fp32", {Element.FLOAT}), ("fp16", {Element.FLOAT16}), ("int8", {Element.FLOAT16})):
        out = exported(built, tmp_path / precision, precision=precision, tensorrt="10.3")
        model = onnx.shape_inference.infer_shapes(graph(out / "model.onnx"))
        types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
        convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
        assert convolutions
        assert {types[node.output[0]] for node in convolutions} == kinds, precision
        assert ("QuantizeLinear" in operators(model)) == (precision == "int8")
        assert "--stronglyTyped" in build_words(out)
        later = exported(built, tmp_path / f"{precision}-11", precision=precision, tensorrt="11")
        assert "--stronglyTyped" not in build_words(later)
        assert (later / "model.onnx").read_bytes() == (out / "model.onnx").read_bytes()


def test_what_8_and_a_dla_are_given_in_fp16(built: Path, tmp_path: Path) -> None:
    for name, options in (("8.6", {"tensorrt": "8.6"}), ("dla", {"tensorrt": "10.3", "trt": {"dla": 0}})):
        out = exported(built, tmp_path / name, precision="fp16", **options)
        assert not any(t.data_type == Element.FLOAT16 for t in graph(out / "model.onnx").graph.initializer)
        assert "--fp16" in build_words(out)
        assert ":fp32" in build_words(out)  # what is held in FP32: at least the preprocessing


def test_options_and_refusals(built: Path, tmp_path: Path) -> None:
    out = exported(built, tmp_path / "o", precision="fp32", trt={"workspace_mb": 512, "tf32": False})
    assert "--memPoolSize=workspace:512" in build_words(out)
    assert "--noTF32" in build_words(out)
    for options, said in (
        ({"tensorrt": "7.2"}, "7.2"),
        ({"tensorrt": "8.5", "trt": {"version_compatible": True}}, "8.6"),
        ({"trt": {"shapes": "1x24x32:1x48x64:2x96x128"}}, "--dynamic"),
        ({"dialect": "triton", "trt": {"sparse": True}}, "--dialect tensorrt"),
        ({"dialect": "onnxruntime", "precision": "fp16"}, "FP32 or INT8"),
        ({"dialect": "abacus"}, "abacus"),
    ):
        with pytest.raises(BadInput, match=said):
            exported(built, tmp_path / "refused", **{"precision": "fp32", **options})
        assert not (tmp_path / "refused").exists()


def test_a_tensorrt_variant_says_how_it_was_built(built: Path, tmp_path: Path) -> None:
    bundle = read_bundle(built)
    ours = Variant("tensorrt-fp16", "tensorrt", "fp16", (FP32,), {"arithmetic": "f16", "level": 5, "decision": "graph"})
    path = remade(bundle, tmp_path / "b.edgeseg", variants=(*bundle.variants, ours), chosen=ours.name)
    out = exported(path, tmp_path / "t")
    assert "--builderOptimizationLevel=5" in build_words(out)
    assert json.loads((out / "spec.json").read_text(encoding="utf-8"))["precision"] == "fp16"
    told = exported(path, tmp_path / "t", trt={"level": 1})
    assert "--builderOptimizationLevel=1" in build_words(told)


def test_int8_without_scales(built: Path, tmp_path: Path) -> None:
    bundle = read_bundle(built)
    bare = {name: content for name, content in bundle.files.items() if name != "scales.json"}
    path = remade(bundle, tmp_path / "b.edgeseg", files=bare)
    with pytest.raises(BadInput, match="build it with --int8"):
        exported(path, tmp_path / "out", precision="int8")
    stale = {**bundle.files, FP32: making.unet().graph}
    path = remade(bundle, tmp_path / "c.edgeseg", files=stale)
    with pytest.raises(BadInput, match="no scales of this network"):
        exported(path, tmp_path / "out", precision="int8")
    broken = {**bundle.files, "scales.json": b"{}"}
    path = remade(bundle, tmp_path / "d.edgeseg", files=broken)
    with pytest.raises(BadInput, match="cannot be read"):
        exported(path, tmp_path / "out", precision="int8")


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_onnxruntime_runs_without_edgeseg(precision: Any, built: Path, tmp_path: Path) -> None:
    out = exported(built, tmp_path / "o", "onnxruntime", precision=precision)
    assert ("DequantizeLinear" in operators(graph(out / "model.onnx"))) == (precision == "int8")
    program = (out / "run.py").read_text(encoding="utf-8")
    assert "edgeseg" not in program
    frame = out / "reference" / "0000.frame.png"
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}
    subprocess.run(
        [sys.executable, "-I", str(out / "run.py"), str(frame), str(tmp_path / "mask.png")], check=True, env=environment
    )
    mask = cv2.imread(str(tmp_path / "mask.png"), cv2.IMREAD_UNCHANGED)
    bundle = read_bundle(built)
    wanted = bundle.references[0].masks[f"onnxruntime-{precision}"]  # what was measured is what is handed over
    assert np.mean(mask == wanted) > 0.999


def test_frames_in_rgb(built: Path, tmp_path: Path) -> None:
    bundle = read_bundle(built)
    spec = replace(bundle.spec, input=replace(bundle.spec.input, frame="rgb"))
    path = remade(bundle, tmp_path / "b.edgeseg", spec=spec)
    out = exported(path, tmp_path / "o", "onnxruntime", precision="fp32")
    assert "[..., ::-1]" in (out / "run.py").read_text(encoding="utf-8")
    shown = cv2.imread(str(out / "reference" / "0000.frame.png"))
    assert np.array_equal(shown[..., ::-1], bundle.references[0].frame)


def test_int8_of_a_bundle_without_that_engine(built: Path, tmp_path: Path) -> None:
    bundle = read_bundle(built)
    only = tuple(variant for variant in bundle.variants if variant.precision == "fp32")
    references = tuple(replace(reference, masks={}) for reference in bundle.references)
    path = remade(bundle, tmp_path / "b.edgeseg", variants=only, chosen=only[0].name, references=references, verdict={})
    out = exported(path, tmp_path / "o", "onnxruntime", precision="int8")  # quantized anew, biases corrected
    frames = np.stack([reference.frame for reference in references])
    expected = np.stack([reference.mask for reference in references])
    assert "QuantizeLinear" in operators(graph(out / "model.onnx"))
    assert np.mean(masks_of(out / "model.onnx", frames) == expected) > 0.9


def fields(text: str) -> Mapping[str, str]:
    pairs = (line.split(":", 1) for line in text.replace("{", "\n").splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def test_triton(built: Path, tmp_path: Path) -> None:
    out = exported(built, tmp_path / "repository", "triton", precision="int8")
    folders = [path.name for path in out.iterdir() if path.is_dir()]
    assert folders == ["tiny"]  # every folder is a model
    config = (out / "tiny" / "config.pbtxt").read_text(encoding="utf-8")
    assert config.splitlines()[0] == 'name: "tiny"'
    assert fields(config)["backend"] == '"onnxruntime"'
    assert fields(config)["max_batch_size"] == "0"
    assert config.count("TYPE_UINT8") == 2
    assert "dims: [ 1, 48, 64, 3 ]" in config
    assert "dims: [ 1, 48, 64 ]" in config
    assert "dynamic_batching" not in config
    assert config.count("{") == config.count("}")
    assert config.count("[") == config.count("]")
    labels = out / "tiny" / fields(config)["label_filename"].strip('"')
    assert labels.read_text(encoding="utf-8").splitlines() == list(CLASSES)
    shape = graph(out / "tiny" / "1" / "model.onnx").graph.input[0].type.tensor_type.shape
    assert [length.dim_value for length in shape.dim] == [1, 48, 64, 3]


def opened(graph: bytes) -> bytes:
    """The graph with open lengths, as a build with --dynamic has them."""
    model = onnx.load_from_string(graph)
    for value in (*model.graph.input, *model.graph.output):
        for length, name in zip(value.type.tensor_type.shape.dim, "nhw", strict=False):
            length.dim_param = name
    del model.graph.value_info[:]
    serialized: bytes = model.SerializeToString()
    return serialized


def dynamic_bundle(built: Path, path: Path) -> Path:
    bundle = read_bundle(built)
    whole = {FP32: opened(bundle.files[FP32])}
    variant = Variant("onnxruntime-fp32", "onnxruntime", "fp32", (FP32,), {"decision": "graph"})
    references = tuple(Reference(r.name, r.frame, r.mask) for r in bundle.references)
    return remade(
        bundle, path, files=whole, variants=(variant,), chosen=variant.name, references=references, verdict={}
    )


def test_dynamic_graphs(built: Path, tmp_path: Path) -> None:
    path = dynamic_bundle(built, tmp_path / "d.edgeseg")
    out = exported(path, tmp_path / "triton", "triton")
    config = (out / "tiny" / "config.pbtxt").read_text(encoding="utf-8")
    assert fields(config)["max_batch_size"] == "8"
    assert "dims: [ -1, -1, 3 ]" in config
    assert "dims: [ -1, -1 ]" in config
    assert "dynamic_batching { }" in config
    out = exported(path, tmp_path / "trt")
    assert "--optShapes=frame:1x48x64x3" in build_words(out)
    assert "--shapes=frame:1x48x64x3" in (out / "check.sh").read_text(encoding="utf-8")
    out = exported(path, tmp_path / "trt", trt={"shapes": "1x96x128:1x96x128:2x192x256"})
    assert "--maxShapes=frame:2x192x256x3" in build_words(out)
    assert not {"check.sh", "check.py", "frame.bin"} & files(out)  # the engine does not take the reference frames
    spec = json.loads((out / "spec.json").read_text(encoding="utf-8"))
    assert spec["input"]["shape"] == [-1, -1, -1, 3]


def test_a_rewritten_network_is_the_one_that_is_exported(built: Path, tmp_path: Path) -> None:
    bundle = read_bundle(built)
    whole = onnx.load_from_string(bundle.files[FP32])
    for tensor in whole.graph.initializer:  # another network of the same shape: its head prefers another class
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.ndim == 4 and array.shape[0] == len(CLASSES):
            tensor.CopyFrom(onnx.numpy_helper.from_array(-array, tensor.name))
    other = whole.SerializeToString()
    variant = Variant(
        "rewritten-onnxruntime-fp32", "onnxruntime", "fp32", ("rewritten/fp32.onnx",), {"decision": "graph"}
    )
    path = remade(
        bundle,
        tmp_path / "r.edgeseg",
        files={**bundle.files, "rewritten/fp32.onnx": other},
        variants=(*bundle.variants, variant),
        chosen=variant.name,
    )
    out = exported(path, tmp_path / "o", "onnxruntime")
    (tmp_path / "other.onnx").write_bytes(other)
    frames = np.stack([reference.frame for reference in bundle.references])
    found = masks_of(out / "model.onnx", frames)
    assert np.array_equal(found, masks_of(tmp_path / "other.onnx", frames))
    assert not np.array_equal(found, np.stack([reference.mask for reference in bundle.references]))
    assert "Conv" in operators(graph(exported(path, tmp_path / "t") / "model.onnx"))
    with pytest.raises(BadInput, match="no scales of this network"):
        exported(path, tmp_path / "i", precision="int8")
    lost = replace(variant, files=("fp32.onnx",))
    path = remade(bundle, tmp_path / "u.edgeseg", variants=(*bundle.variants, lost), chosen=lost.name)
    with pytest.raises(BadInput, match="no FP32 graph"):
        exported(path, tmp_path / "n")


def test_folders_are_replaced_only_if_they_are_ours(built: Path, tmp_path: Path) -> None:
    out = exported(built, tmp_path / "o", "triton", precision="fp32")
    exported(built, out, precision="fp32")  # another dialect: nothing of the first stays
    assert not (out / "tiny").exists()
    (out / "model.engine").write_bytes(b"built")  # what build.sh makes
    plain_files(built, "tensorrt", out, precision="fp32")
    assert (out / "model.engine").read_bytes() == b"built"
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    before = files(out)
    with pytest.raises(BadInput, match=r"notes\.txt"):
        plain_files(built, "onnxruntime", out, precision="fp32")
    assert files(out) == before
    mine = tmp_path / "mine"
    mine.mkdir()
    exported(built, mine, "onnxruntime", precision="fp32")  # an empty folder is as good as none
    for content in ("{}", "no json", '{"schema": "edgeseg.export/1", "files": []}'):
        other = tmp_path / f"other{len(content)}"
        other.mkdir()
        (other / "export.json").write_text(content, encoding="utf-8")
        with pytest.raises(BadInput, match="something else"):
            plain_files(built, "onnxruntime", other, precision="fp32")
    with pytest.raises(BadInput, match="not a folder"):
        plain_files(built, "onnxruntime", mine / "model.onnx")


def test_a_list_cannot_lead_out_of_the_folder(built: Path, tmp_path: Path) -> None:
    out = exported(built, tmp_path / "o", "onnxruntime", precision="fp32")
    (tmp_path / "precious.txt").write_text("mine", encoding="utf-8")
    listed = json.loads((out / "export.json").read_text(encoding="utf-8"))
    listed["files"] += ["../precious.txt", str(tmp_path / "precious.txt")]
    (out / "export.json").write_text(json.dumps(listed), encoding="utf-8")
    exported(built, out, precision="fp32")
    assert (tmp_path / "precious.txt").read_text(encoding="utf-8") == "mine"


@pytest.mark.skipif(os.name != "posix", reason="the scripts are for a POSIX shell")
def test_the_scripts_run(built: Path, tmp_path: Path) -> None:
    """With a trtexec that notes its arguments, and answers as NVIDIA's does."""
    out = exported(built, tmp_path / "a folder", precision="fp32", tensorrt="8.6")
    bundle = read_bundle(built)
    mask = bundle.references[0].mask
    program = tmp_path / "trtexec"

    def answer(values: Any) -> None:
        output = json.dumps([{"name": "mask", "dimensions": "1x48x64", "values": [int(v) for v in values]}])
        (tmp_path / "answer.json").write_text(output, encoding="utf-8")

    answer(mask.ravel())
    program.write_text(
        "#!/bin/sh\n"
        f'for word in "$@"; do echo "$word" >> "{tmp_path}/words"; done\n'
        f'case "$*" in *--exportOutput=output.json*) cp "{tmp_path}/answer.json" output.json;; esac\n',
        encoding="utf-8",
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    environment = {**os.environ, "TRTEXEC": str(program)}
    subprocess.run([str(out / "build.sh")], check=True, env=environment, cwd=tmp_path)
    words = (tmp_path / "words").read_text(encoding="utf-8").splitlines()
    assert words[:2] == ["--onnx=model.onnx", "--saveEngine=model.engine"]
    assert words[-1] == "--skipInference"
    done = subprocess.run([str(out / "check.sh")], check=True, env=environment, capture_output=True, text=True)
    assert "100.00 %" in done.stdout
    answer((mask.ravel() + 1) % len(CLASSES))
    done = subprocess.run([str(out / "check.sh")], check=False, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "0.00 %" in done.stdout
    answer([0])
    assert subprocess.run([str(out / "check.sh")], check=False, env=environment, capture_output=True).returncode == 1


def test_names_become_names_of_folders(built: Path, tmp_path: Path) -> None:
    bundle = read_bundle(built)
    spec = replace(bundle.spec, name="My net (v2)…", output=replace(bundle.spec.output))
    path = remade(bundle, tmp_path / "b.edgeseg", spec=spec)
    out = exported(path, tmp_path / "o", "triton", precision="fp32")
    assert (out / "My_net_v2" / "config.pbtxt").is_file()
    assert InputSpec(size=spec.input.size).size == (48, 64)


def test_the_command(built: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    arguments = ["export", str(built), "--dialect", "tensorrt", "-o", str(out), "--precision", "fp16"]
    result = CliRunner().invoke(main, [*arguments, "--tensorrt", "8.6", "--trt", "workspace=1GB", "--trt", "level=2"])
    assert result.exit_code == 0, result.output
    assert {str(path) for path in out.rglob("*") if path.is_file()} == set(result.stdout.split())
    assert "--memPoolSize=workspace:1024" in build_words(out)
    for more, said in (
        (["--trt", "abacus=1"], "abacus"),
        (["--tensorrt", "8.5", "--trt", "level=5"], "8.6"),
        (["--precision", "fp8"], "fp8"),
    ):
        result = CliRunner().invoke(main, [*arguments, *more])
        assert result.exit_code == 2
        assert said in result.output
    assert CliRunner().invoke(main, ["export", str(built), "-o", str(out)]).exit_code == 2  # which dialect?
