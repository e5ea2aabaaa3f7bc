"""How the code hangs together, read from its imports: stages share values and not code, and heavy packages wait."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STAGES = {"intake", "rewrite", "distill", "export", "quantize", "recover", "trials", "runtime", "report"}
HEAVY = {"torch", "onnx", "cv2", "onnxruntime", "openvino", "onnxslim", "onnxscript", "tensorrt"}
# Nothing in these makes sense without torch: networks are classes of its nn.Module. Who needs them imports them late.
TORCH_ONLY = (
    "edgeseg.intake.torch_files",
    "edgeseg.intake.weights",
    "edgeseg.zoo.",
    "edgeseg.rewrite",
    "edgeseg.distill",
    "edgeseg.pipeline.rewriting",
    "edgeseg.recover",
    "edgeseg.pipeline.recover",
    "edgeseg.pipeline.relearn",
)
COMPOSERS = {"pipeline", "cli", "__init__"}  # the last names the functions of the API, and imports them late
MODULES = sorted((ROOT / "edgeseg").rglob("*.py"))
CALIBRATION = sorted((ROOT / "calibration").rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(tree: ast.AST, package: str = "", *, top: bool = False) -> Iterator[str]:
    """Every module that is imported, and every name taken from one; with `top` only what an import of it runs."""
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if top and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
            if not top:
                pending += node.body
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"a relative import in {package}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        pending += ast.iter_child_nodes(node)


def part_of(module: str) -> str | None:
    """The stage that an imported name belongs to."""
    pieces = module.split(".")
    return pieces[1] if pieces[0] == "edgeseg" and len(pieces) > 1 and pieces[1] in STAGES else None


def crossings(own: str, source: str) -> set[str]:
    """Stages that a module imports and may not: a stage only its own, a composer any, everybody else none."""
    if own in COMPOSERS:
        return set()
    return {stage for module in imports(ast.parse(source)) if (stage := part_of(module)) not in (None, own)}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_stages_import_no_other_stage(path: Path) -> None:
    own = path.relative_to(ROOT / "edgeseg").with_suffix("").parts[0]
    assert crossings(own, path.read_text(encoding="utf-8")) == set()


def test_a_crossing_is_found() -> None:
    assert crossings("quantize", "from edgeseg.export import fuse") == {"export"}
    assert crossings("quantize", "def f():\n    from edgeseg import report, types") == {"report"}
    assert crossings("bundle", "import edgeseg.trials.race") == {"trials"}
    assert crossings("quantize", "from edgeseg.quantize.write import quantize\nfrom edgeseg.types import Mask") == set()
    assert crossings("cli", "from edgeseg.report.text import table") == set()


@pytest.mark.parametrize("path", CALIBRATION, ids=name_of)
def test_calibration_stands_alone(path: Path) -> None:
    allowed = {"numpy", "calibration", "tomli", *sys.stdlib_module_names}
    found = {module.split(".")[0] for module in imports(ast.parse(path.read_text(encoding="utf-8")))}
    assert found <= allowed


@pytest.mark.parametrize("path", [*MODULES, *CALIBRATION], ids=name_of)
def test_heavy_packages_are_imported_where_they_are_used(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = {module.split(".")[0] for module in imports(tree, top=True)}
    module = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    torch_only = module.startswith(TORCH_ONLY)
    assert found & HEAVY <= ({"torch"} if torch_only else set())
    # and they themselves are imported late by everybody else
    assert torch_only or not {m for m in imports(tree, top=True) if m.startswith(TORCH_ONLY)}


def test_a_heavy_import_is_found() -> None:
    def found(source: str) -> set[str]:
        return {module.split(".")[0] for module in imports(ast.parse(source), top=True)} & HEAVY

    assert found("import torch.nn as nn") == {"torch"}
    assert found("try:\n    import cv2\nexcept ImportError:\n    cv2 = None") == {"cv2"}
    assert found("class A:\n    from onnx import helper") == {"onnx"}
    assert found("if TYPE_CHECKING:\n    import torch\ndef f():\n    import onnx") == set()


@pytest.mark.parametrize("path", [*MODULES, *CALIBRATION], ids=name_of)
def test_a_module_opens_with_its_place_in_the_system(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(source)), "a module opens with a docstring"


MACHINES = re.compile(r"""["'\s(=](/work/|/tmp/|/home/|/root/|/Users/|[A-Z]:\\)""")
WRITTEN = {".py", ".toml", ".md", ".css", ".html", ".json", ".txt", ".yml", ""}


def test_no_file_knows_a_machine() -> None:
    found = []
    for folder in ("edgeseg", "calibration", "tests", "tools", "examples"):
        for path in sorted((ROOT / folder).rglob("*")):
            if (
                not path.is_file()
                or path.suffix not in WRITTEN
                or "__pycache__" in path.parts
                or path == Path(__file__)
            ):
                continue
            for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
                if MACHINES.search(line):
                    found.append(f"{name_of(path)}:{number}: {line.strip()[:80]}")
    assert found == []


def test_a_machine_is_found() -> None:
    assert MACHINES.search('open("/home/somebody/x")')
    assert MACHINES.search("path = /tmp/x")
    assert not MACHINES.search("https://example.org/tmp/x and a/work/b")


def modules_after(code: str) -> set[str]:
    """What a fresh interpreter has imported after running `code`."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint('\\n' + ' '.join(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return set(done.stdout.splitlines()[-1].split())


def test_help_imports_nothing_heavy() -> None:
    code = (
        "sys.argv = ['edgeseg', '--help']\nfrom edgeseg.cli import main\ntry:\n    main()\nexcept SystemExit:\n    pass"
    )
    loaded = modules_after(code)
    assert "click" in loaded
    assert loaded & HEAVY == set()
    assert loaded & {"edgeseg.pipeline", "edgeseg.bundle", "edgeseg.backends", "edgeseg.report"} == set()


def test_importing_edgeseg_imports_nothing_heavy() -> None:
    loaded = modules_after("import edgeseg, calibration")
    assert loaded & HEAVY == set()
    assert "numpy" in loaded  # of calibration; edgeseg itself does without
    assert "numpy" not in modules_after("import edgeseg")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are counted by Linux's /proc")
def test_onnx_runtime_keeps_no_record_to_send() -> None:
    """From 1.29 on it holds a database of telemetry open, in the user's cache folder."""
    code = "import os\nfrom edgeseg.errors import need\nneed('onnxruntime', extra='run', why='a test')\n"
    code += "print([p for p in map(os.path.realpath, os.scandir('/proc/self/fd')) if 'Microsoft' in p])"
    environment = {key: value for key, value in os.environ.items() if key not in ("ORT_DISABLE_TELEMETRY", "CI")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"


def test_opening_a_bundle_needs_no_torch_and_no_onnx(built: Path) -> None:
    loaded = modules_after(f"import edgeseg\nedgeseg.open({str(built)!r}).close()")
    assert "onnxruntime" in loaded
    assert loaded & {"torch", "onnx", "openvino"} == set()
