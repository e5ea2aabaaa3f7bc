"""What needs a real GPU: the same contracts as on the doubles, skipped with the reason where there is none.

Nothing here, nor what it imports, needs torch: TensorRT 8.6 runs in a Python 3.10 of its own. Run them with

    python -m pytest tests/gpu -rs

EDGESEG_GPU_TRT holds options for every build, separated by commas and spelled as after --trt: `no-external-tactics`
where cuBLAS and cuDNN are not installed.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping

import pytest

import edgeseg.backends.tensorrt as package
from edgeseg.backends import get
from edgeseg.backends.tensorrt.options import Options, option_from, options_from
from edgeseg.errors import MissingOnMachine

pytest.register_assert_rewrite("tests.tensorrt.device_contract", "tests.tensorrt.contract")


def why_not(name: str) -> str:
    """Why that backend cannot run here, in its own words; "" where it can."""
    try:
        get(name).version()
    except MissingOnMachine as error:
        return str(error)
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if importlib.util.find_spec("onnxslim") is None:
        reason = "begins with a model file, and simplifying that needs onnxslim: pip install 'edgeseg[build]'"
        for item in items:
            if item.name.startswith("test_a_bundle_travels") and "/gpu/" in item.nodeid:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", autouse=True)
def asked_for() -> Iterator[Options]:
    """The options of EDGESEG_GPU_TRT, which every build in this process has then, too."""
    texts = [text for text in os.environ.get("EDGESEG_GPU_TRT", "").split(",") if text.strip()]
    asked = dict(option_from(text.strip()) for text in texts)

    def read(settings: Mapping[str, object]) -> Options:
        return options_from({**asked, **settings})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(package, "options_from", read)
        yield options_from(asked)
