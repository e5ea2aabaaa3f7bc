"""The backend contract on a real GPU, for TensorRT and for TensorRT-RTX: each runs where it can."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgeseg.backends import Engine, get
from edgeseg.backends.tensorrt import TensorRT
from edgeseg.errors import BadInput
from tests.gpu.conftest import why_not
from tests.quantize import making
from tests.tensorrt import device_contract
from tests.tensorrt.device_contract import engine_of, own_cache

__all__ = ["backend", "own_cache"]  # fixtures
globals().update({name: test for name, test in vars(device_contract).items() if name.startswith("test_")})


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt-rtx"], autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[TensorRT]:
    """Stands for theirs: both libraries, one after the other."""
    reason = why_not(request.param)
    if reason:
        pytest.skip(reason)
    found = get(request.param)
    assert isinstance(found, TensorRT)
    if found.library.builds_without_gpu:
        try:
            found.stored(_tiny(request.param, found))
        except BadInput as error:  # a GPU that this library knows nothing of
            pytest.skip(str(error))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_contract, "NAME", request.param)
        yield found


def _tiny(name: str, backend: TensorRT) -> Engine:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_contract, "NAME", name)
        return engine_of(backend, making.unet())
