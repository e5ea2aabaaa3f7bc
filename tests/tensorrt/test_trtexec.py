"""Command lines of trtexec: what each version of TensorRT takes, and what it refuses and why."""

from __future__ import annotations

import re
from typing import Any

import pytest

from edgeseg.backends.tensorrt.options import Options
from edgeseg.backends.tensorrt.trtexec import check_command, command, refusal, strongly_typed, version_from
from edgeseg.errors import BadInput

# Flags by the versions whose option parser knows them: first, and first without (NVIDIA/TensorRT, sampleOptions.cpp).
FLAGS: dict[str, tuple[tuple[int, int], tuple[int, int]]] = {
    "--onnx": ((8, 5), (99, 0)),
    "--saveEngine": ((8, 5), (99, 0)),
    "--int8": ((8, 5), (11, 0)),
    "--fp16": ((8, 5), (11, 0)),
    "--precisionConstraints": ((8, 5), (11, 0)),
    "--layerPrecisions": ((8, 5), (11, 0)),
    "--stronglyTyped": ((10, 0), (11, 0)),
    "--memPoolSize": ((8, 5), (99, 0)),
    "--builderOptimizationLevel": ((8, 6), (99, 0)),
    "--noTF32": ((8, 5), (99, 0)),
    "--sparsity": ((8, 5), (99, 0)),
    "--tacticSources": ((8, 5), (11, 0)),
    "--versionCompatible": ((8, 6), (99, 0)),
    "--hardwareCompatibilityLevel": ((8, 6), (99, 0)),
    "--useDLACore": ((8, 5), (99, 0)),
    "--allowGPUFallback": ((8, 5), (99, 0)),
    "--minShapes": ((8, 5), (99, 0)),
    "--optShapes": ((8, 5), (99, 0)),
    "--maxShapes": ((8, 5), (99, 0)),
    "--timingCacheFile": ((8, 5), (99, 0)),
    "--profilingVerbosity": ((8, 5), (99, 0)),
    "--skipInference": ((8, 6), (99, 0)),
    "--buildOnly": ((8, 5), (10, 0)),
}
VERSIONS = ("8.5", "8.6", "10.0", "10.3", "10.9", "10.13", "11.0", "11.4.1")


def words(options: Options | None = None, version: str = "10.3", precision: Any = "fp16", **more: Any) -> list[str]:
    given = {"onnx": "m.onnx", "engine": "m.engine", **more}
    return command(options or Options(), version_from(version), precision=precision, **given)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_only_flags_that_the_version_knows(version: str, precision: Any) -> None:
    rich = Options(
        workspace_mb=2048,
        tf32=False,
        arithmetic="f16",
        sparse=True,
        no_external_tactics=True,
        version_compatible=version != "8.5",
        hardware="none" if version == "8.5" else "ampere+",
        level=3 if version == "8.5" else 5,
        shapes=((1, 180, 240), (1, 360, 480), (4, 720, 960)),
    )
    dynamic = (1, 360, 480)
    for options in (Options(shapes=rich.shapes), rich):
        found = words(options, version, precision, dynamic=dynamic, float_layers=("/exp/Exp",), timing_cache="t.cache")
        assert found[0] == "trtexec"
        for word in found[1:]:
            first, gone = FLAGS[word.partition("=")[0]]
            assert first <= version_from(version)[:2] < gone, word
        assert ("--skipInference" in found) != ("--buildOnly" in found)
        assert "--profilingVerbosity=detailed" in found


def test_defaults_in_full() -> None:
    assert words() == [
        "trtexec",
        "--onnx=m.onnx",
        "--saveEngine=m.engine",
        "--stronglyTyped",
        "--builderOptimizationLevel=3",
        "--profilingVerbosity=detailed",
        "--skipInference",
    ]
    assert words(version="8.5", precision="fp32") == [
        "trtexec",
        "--onnx=m.onnx",
        "--saveEngine=m.engine",
        "--profilingVerbosity=detailed",
        "--buildOnly",
    ]


def test_every_option_has_its_flag() -> None:
    options = Options(
        workspace_mb=512, level=0, tf32=False, version_compatible=True, hardware="same-capability", sparse=True
    )
    found = words(options, "10.9", timing_cache="t.cache")
    assert {
        "--memPoolSize=workspace:512",
        "--builderOptimizationLevel=0",
        "--noTF32",
        "--versionCompatible",
        "--hardwareCompatibilityLevel=sameComputeCapability",
        "--sparsity=enable",
        "--timingCacheFile=t.cache",
    } <= set(found)
    assert "--hardwareCompatibilityLevel=ampere+" in words(Options(hardware="ampere+"), "8.6")


def test_precision_by_flags_and_by_types() -> None:
    half = Options(arithmetic="f16")
    assert {"--int8", "--fp16"} <= set(words(half, "8.5", "int8"))
    assert "--fp16" not in words(Options(), "8.5", "int8")
    assert "--fp16" in words(Options(), "8.6", "fp16")
    assert not {"--int8", "--fp16"} & set(words(half, "10.0", "int8"))
    assert not {"--int8", "--fp16", "--stronglyTyped"} & set(words(half, "11", "int8"))
    held = words(Options(), "8.6", "fp16", float_layers=("/a/Exp", "odd,name", "b:0", "/c/Sum"))
    assert "--layerPrecisions=/a/Exp:fp32,/c/Sum:fp32" in held
    assert not any("Precisions" in word for word in words(Options(), "8.6", "fp32", float_layers=("/a/Exp",)))


def test_dla() -> None:
    on_dla = Options(dla=1)
    found = words(on_dla, "8.5", "fp16")
    assert {"--useDLACore=1", "--allowGPUFallback", "--fp16"} <= set(found)
    assert "--stronglyTyped" not in words(on_dla, "10.3", "fp16")  # flags: no DLA takes strong typing before 11
    assert "--fp16" in words(on_dla, "10.3", "fp16")
    assert not strongly_typed(on_dla, (10, 3))
    assert strongly_typed(on_dla, (11, 4, 1))
    for version in ("8.5", "10.7", "11.4.1", "11.5"):
        assert "--useDLACore=1" in words(on_dla, version, "fp16")


@pytest.mark.parametrize(
    ("options", "version", "precision", "said"),
    [
        (Options(version_compatible=True), "8.5", "fp16", "8.6"),
        (Options(hardware="ampere+"), "8.5.2", "fp16", "8.6"),
        (Options(hardware="same-capability"), "10.8", "fp16", "10.9"),
        (Options(hardware="same-capability"), "8.6", "fp16", "10.9"),
        (Options(level=5), "8.5", "fp16", "8.6"),
        (Options(), "8.6", "bf16", "10.0"),
        (Options(dla=0), "10.8", "fp16", "10.7"),
        (Options(dla=0), "10.13", "fp16", "11.4.1"),
        (Options(dla=0), "11", "fp16", "11.4.1"),
        (Options(dla=0), "11.3", "fp16", "11.4.1"),
        (Options(dla=0), "11.4.0", "fp16", "11.4.1"),
        (Options(dla=0), "8.5", "int8", "TensorRT 11"),
        (Options(dla=0), "8.5", "fp32", "FP16 or INT8"),
        (Options(dla=0, version_compatible=True), "8.6", "fp16", "just that device"),
    ],
)
def test_refusals_name_the_version_that_can(options: Options, version: str, precision: Any, said: str) -> None:
    with pytest.raises(BadInput, match=re.escape(said)):
        words(options, version, precision)


def test_shapes() -> None:
    fixed = words(dynamic=(1, 180, 240))
    assert {f"--{end}Shapes=frame:1x180x240x3" for end in ("min", "opt", "max")} <= set(fixed)
    options = Options(shapes=((1, 180, 240), (2, 360, 480), (4, 720, 960)))
    assert "--optShapes=frame:2x360x480x3" in words(options, dynamic=(1, 180, 240))
    with pytest.raises(BadInput, match="--dynamic"):
        words(options)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("8.5", (8, 5)),
        ("8.5.2.2", (8, 5, 2, 2)),
        ("10", (10, 0)),
        ("10.16", (10, 16)),
        ("11", (11, 0)),
        (" 8.6 ", (8, 6)),
    ],
)
def test_versions(text: str, version: tuple[int, ...]) -> None:
    assert version_from(text) == version


@pytest.mark.parametrize(
    "text", ["", "8", "8.4", "8.7", "9.3", "7.2", "12.0", "ten", "10.", "v10", "10.3-rc", "8.5\n8.6"]
)
def test_versions_that_are_not_known(text: str) -> None:
    with pytest.raises(BadInput, match="--tensorrt"):
        version_from(text)


def test_checking() -> None:
    found = check_command(
        Options(version_compatible=True), (10, 3), engine="m.engine", frame="f.bin", output="o.json", dynamic=(1, 6, 8)
    )
    assert found[:4] == ["trtexec", "--loadEngine=m.engine", "--loadInputs=frame:f.bin", "--exportOutput=o.json"]
    assert {"--shapes=frame:1x6x8x3", "--versionCompatible"} <= set(found)
    assert "--useDLACore=0" in check_command(Options(dla=0), (8, 5), engine="e", frame="f", output="o")
    assert refusal(Options(), (8, 5), "int8") is None
