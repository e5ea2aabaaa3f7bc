"""The stand-in for the CUDA driver, for every test of this folder that runs something in a child process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tensorrt import cuda


@pytest.fixture(scope="session")
def standin_cuda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled library; for tests.tensorrt.cuda.environment. Skips without a compiler."""
    return cuda.standin(tmp_path_factory.getbasetemp())
