"""The recorded surfaces: what edgeseg believes of each release is what its bindings have, and the recorder is right."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

from tests.tensorrt.double import recorded
from tests.tensorrt.double.surface import FOLDER, Surface, load

TOOL = Path(__file__).resolve().parents[2] / "tools" / "record_tensorrt"
RELEASES = ("8.5.3.1", "8.6.1", "10.0.1", "10.3.0", "10.7.0", "10.13.3.9", "10.16.1.11", "11.1.0.106", "11.4.0.106")
# A column for each of these, then one for TensorRT-RTX 1.7.1.
BELIEVED = """
BuilderFlag.FP16                                 x x x x x x x - - -
BuilderFlag.INT8                                 x x x x x x x - - -
BuilderFlag.OBEY_PRECISION_CONSTRAINTS           x x x x x x x - - -
BuilderFlag.FP8                                  - x x x x x x - - -
BuilderFlag.BF16                                 - - x x x x x - - -
BuilderFlag.TF32                                 x x x x x x x x x x
BuilderFlag.GPU_FALLBACK                         x x x x x x x x x x
BuilderFlag.SPARSE_WEIGHTS                       x x x x x x x x x x
BuilderFlag.VERSION_COMPATIBLE                   - x x x x x x x x x
BuilderFlag.EDITABLE_TIMING_CACHE                - - - - - x x x x x
BuilderFlag.STRIP_PLAN                           - - x x x x x x x x
BuilderFlag.STRICT_TYPES                         x x - - - - - - - -
BuilderFlag.DIRECT_IO                            x x x x x x x x x x
IInt8EntropyCalibrator2                          x x x x x x x - - -
IBuilderConfig.int8_calibrator                   x x x x x x x - - -
IBuilderConfig.set_calibration_profile           x x x x x x x - - -
IBuilderConfig.algorithm_selector                x x x x x x x - - -
ITensor.set_dynamic_range                        x x x x x x x - - -
ILayer.precision                                 x x x x x x x - - -
ILayer.set_output_type                           x x x x x x x - - -
ILayer.metadata                                  - x x x x x x x x x
Builder.platform_has_fast_int8                   x x x x x x x - - -
TacticSource.CUDNN                               x x x x x x x - - -
NetworkDefinitionCreationFlag.EXPLICIT_BATCH     x x x x x x x - - -
NetworkDefinitionCreationFlag.STRONGLY_TYPED     - - x x x x x x x x
NetworkDefinitionCreationFlag.EXPLICIT_PRECISION x x - - - - - - - -
IBuilderConfig.max_workspace_size                x x - - - - - - - -
Builder.build_engine                             x x - - - - - - - -
IBuilderConfig.set_memory_pool_limit             x x x x x x x x x x
MemoryPoolType.WORKSPACE                         x x x x x x x x x x
Builder.build_serialized_network                 x x x x x x x x x x
Builder.build_serialized_network_to_stream       - - - - - x x x x x
ICudaEngine.num_bindings                         x x - - - - - - - -
ICudaEngine.get_binding_shape                    x x - - - - - - - -
IExecutionContext.set_binding_shape              x x - - - - - - - -
IExecutionContext.execute_async_v2               x x - - - - - - - -
ICudaEngine.num_io_tensors                       x x x x x x x x x x
ICudaEngine.get_tensor_name                      x x x x x x x x x x
ICudaEngine.get_tensor_mode                      x x x x x x x x x x
ICudaEngine.get_tensor_shape                     x x x x x x x x x x
ICudaEngine.get_tensor_dtype                     x x x x x x x x x x
ICudaEngine.get_tensor_profile_shape             x x x x x x x x x x
ICudaEngine.create_engine_inspector              x x x x x x x x x x
ICudaEngine.create_runtime_config                - - - - - x x x x x
ICudaEngine.device_memory_size                   x x x x x x x - - -
ICudaEngine.device_memory_size_v2                - - - x x x x x x x
ICudaEngine.get_engine_stat                      - - - - - - x x x x
IExecutionContext.set_input_shape                x x x x x x x x x x
IExecutionContext.set_tensor_address             x x x x x x x x x x
IExecutionContext.execute_async_v3               x x x x x x x x x x
IExecutionContext.execute_v2                     x x x x x x x x x x
IExecutionContext.enqueue_emits_profile          x x x x x x x x x x
IBuilderConfig.create_timing_cache               x x x x x x x x x x
IBuilderConfig.hardware_compatibility_level      - x x x x x x x x x
IBuilderConfig.builder_optimization_level        - x x x x x x x x x
IBuilderConfig.max_aux_streams                   - x x x x x x x x x
IBuilderConfig.progress_monitor                  - - x x x x x x x x
IBuilderConfig.runtime_platform                  - - - x x x x x x x
IBuilderConfig.tiling_optimization_level         - - - - - x x x x x
IBuilderConfig.build_route                       - - - - - - - x x x
IBuilderConfig.all_build_routes                  - - - - - - - x x x
IBuilderConfig.DLA_core                          x x x x x x x x x x
IBuilderConfig.set_compute_capability            - - - - - - - - - x
INetworkDefinition.mark_debug                    - - x x x x x x x x
INetworkDefinition.mark_unfused_tensors_as_debug_tensors - - - - - x x x x x
HardwareCompatibilityLevel.AMPERE_PLUS           - x x x x x x x x x
HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY - - - - - x x x x x
OnnxParserFlag.NATIVE_INSTANCENORM               - x x x x x x x x x
OnnxParserFlag.REPORT_CAPABILITY_DLA             - - - - - - x x x x
OnnxParserFlag.ADJUST_FOR_DLA                    - - - - - - x x x x
ParserError.node_name                            - - x x x x x x x x
ParserError.desc                                 x x x x x x x x x x
Runtime.engine_host_code_allowed                 - x x x x x x x x x
DataType.UINT8                                   x x x x x x x x x x
DataType.INT64                                   - - x x x x x x x x
LayerType.CAST                                   - x x x x x x x x x
IProgressMonitor                                 - - x x x x x x x x
CudaGraphStrategy                                - - - - - - - - - x
"""


def has(surface: Surface, path: str) -> bool:
    name, _, member = path.partition(".")
    entry = surface.classes.get(name)
    if entry is None:
        return not member and name in surface.other
    return not member or member in (entry.enum or {}) or member in entry.methods or member in entry.properties


@pytest.mark.parametrize("line", BELIEVED.strip().splitlines(), ids=lambda line: line.split()[0])
def test_members_come_and_go_when_edgeseg_believes(line: str) -> None:
    path, *believed = line.split()
    found = ["x" if has(load(version), path) else "-" for version in (*RELEASES, "rtx-1.7.1")]
    assert found == believed


def test_strong_typing_is_another_bit_in_every_generation() -> None:
    bits = {v: (load(v).classes["NetworkDefinitionCreationFlag"].enum or {}).get("STRONGLY_TYPED") for v in recorded()}
    assert {v: bit for v, bit in bits.items() if v.startswith("8")} == {"8.5.3.1": None, "8.6.1": None}
    assert {bit for v, bit in bits.items() if v.startswith("10")} == {1}
    assert {bit for v, bit in bits.items() if v.startswith(("11", "rtx"))} == {0}  # where EXPLICIT_BATCH was


@pytest.mark.parametrize("version", recorded())
def test_files_are_small_and_tell_nothing_of_where_they_were_made(version: str) -> None:
    surface = load(version)
    path = FOLDER / f"{surface.module}-{surface.version}.json"
    text = path.read_text(encoding="utf-8")
    assert len(text) < 200_000
    assert not any(word in text for word in ("/tmp", "/home", "/work", "0x", "site-packages"))
    assert {"Builder", "IBuilderConfig", "OnnxParser", "Runtime", "ICudaEngine", "IExecutionContext"} <= set(
        surface.classes
    )
    without = [
        f"{name}.{method}"
        for name, entry in surface.classes.items()
        for method, signatures in entry.methods.items()
        if not signatures and method not in ("__enter__", "__exit__", "add_scale_nd", "execute", "execute_async")
    ]
    assert without == []  # those are Python functions around the bindings


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    loader = SourceFileLoader("record_tensorrt", str(TOOL))
    spec = importlib.util.spec_from_loader("record_tensorrt", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("docstring", "recorded"),
    [
        (
            "m(self: tensorrt.tensorrt.Builder, flags: int = 0) -> tensorrt.tensorrt.INetworkDefinition\n\n  Text.",
            ["m(self, flags: int=0) -> INetworkDefinition"],
        ),
        (
            "m(self: a.tensorrt_rtx.T, model: typing_extensions.Buffer, path: str = None) -> bool",
            ["m(self, model: Buffer, path: str=None) -> bool"],
        ),
        (
            "m(self: tensorrt.tensorrt.E, s: tensorrt.tensorrt.S = <S.STATIC: 0>) -> None",
            ["m(self, s: S=S.STATIC) -> None"],
        ),
        (
            "m(*args, **kwargs)\nOverloaded function.\n\n1. m(self: x.tensorrt.R, a: int) -> bool\n\n   One.\n\n"
            "2. m(self: x.tensorrt.R, b: List[float]) -> str",
            ["m(self, a: int) -> bool", "m(self, b: List[float]) -> str"],
        ),
        ("m(arg0: x.tensorrt.R, arg1: typing.SupportsInt) -> int", ["m(self, arg1: int, /) -> int"]),
        ("m(self: x.tensorrt.E, r: nvinfer1::v_1_0::IErrorRecorder) -> None", ["m(self, r: IErrorRecorder) -> None"]),
        ("No signature here.", []),
    ],
)
def test_the_recorder_reads_signatures_of_pybind11(tool: ModuleType, docstring: str, recorded: list[str]) -> None:
    def m() -> None: ...

    m.__doc__ = docstring
    assert tool.signatures("m", m) == recorded


def test_a_wheel_is_read_though_its_libraries_are_not_there(tmp_path: Path) -> None:
    """An extension that needs libnvinfer.so.99 and a function of it, as real bindings do."""
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if shutil.which("gcc") is None or shutil.which("nm") is None or not header.exists():
        pytest.skip("needs gcc, binutils and Python's headers")
    package = tmp_path / "tensorrt_bindings"
    package.mkdir()
    (tmp_path / "library.c").write_text("int createInferBuilder_INTERNAL(void) { return 1; }\n")
    (tmp_path / "module.c").write_text(
        "#include <Python.h>\nint createInferBuilder_INTERNAL(void);\n"
        'static struct PyModuleDef def = {PyModuleDef_HEAD_INIT, .m_name = "tensorrt", .m_size = -1};\n'
        "PyMODINIT_FUNC PyInit_tensorrt(void) {\n  PyObject *m = PyModule_Create(&def);\n"
        '  PyModule_AddIntConstant(m, "told", createInferBuilder_INTERNAL());\n  return m;\n}\n'
    )
    library = tmp_path / "libnvinfer.so.99"
    shared = ["gcc", "-shared", "-fPIC"]
    subprocess.run([*shared, f"-Wl,-soname,{library.name}", tmp_path / "library.c", "-o", library], check=True)
    extension = package / "tensorrt.so"
    include = f"-I{header.parent}"
    subprocess.run([*shared, include, tmp_path / "module.c", library, "-o", extension], check=True)
    (package / "__init__.py").write_text(
        "from .tensorrt import told\n__version__ = '99.0.1'\n"
        "class Builder:\n    'Text.'\n    def reset(self):\n"
        "        'reset(self: tensorrt_bindings.tensorrt.Builder) -> None'\n"
    )
    wheel = tmp_path / f"tensorrt_bindings-99.0.1-cp{sys.version_info[0]}{sys.version_info[1]}-none-linux.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(extension, "tensorrt_bindings/tensorrt.so")
        archive.write(package / "__init__.py", "tensorrt_bindings/__init__.py")
    library.unlink()
    subprocess.run(
        [sys.executable, TOOL, wheel, "-o", tmp_path / "out"], check=True, env={**os.environ, "PYTHONPATH": ""}
    )
    found = json.loads((tmp_path / "out" / "tensorrt-99.0.1.json").read_text(encoding="utf-8"))
    assert found["classes"]["Builder"]["methods"] == {"reset": ["reset(self) -> None"]}


def test_the_installed_tensorrt_rtx_is_recorded_as_the_file_has_it(tmp_path: Path) -> None:
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed: pip install tensorrt-rtx-cu13")
    subprocess.run([sys.executable, TOOL, "--module", "tensorrt_rtx", "-o", tmp_path], check=True)
    (made,) = tmp_path.glob("*.json")
    kept = FOLDER / made.name
    if not kept.exists():
        pytest.skip(f"another version is installed than recorded: {made.stem}")
    assert made.read_text(encoding="utf-8") == kept.read_text(encoding="utf-8")
