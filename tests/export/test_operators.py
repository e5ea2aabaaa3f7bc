"""Operations that torch's exporters refuse or write badly, against torch itself."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeseg.export.graph import run
from edgeseg.export.operators import means, symbolics, translations


class Pooled(nn.Module):
    def __init__(self, size: Any) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, self.size)


class Unpooled(nn.Module):
    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        small, places = F.max_pool2d(x, 2, return_indices=True)
        return torch.ops.aten.max_unpool2d(small * 2, places, list(self.size))  # type: ignore[no-any-return]


def traced(module: nn.Module, image: Tensor) -> onnx.ModelProto:
    file = io.BytesIO()
    with symbolics():
        torch.onnx.export(module, (image,), file, dynamo=False, input_names=["x"], opset_version=17)  # type: ignore[arg-type]
    return onnx.load_model_from_string(file.getvalue())


def captured(module: nn.Module, image: Tensor) -> onnx.ModelProto:
    program = torch.export.export(module, (image,), strict=False)
    written = torch.onnx.export(program, dynamo=True, verbose=False, custom_translation_table=translations(False))
    assert written is not None
    return written.model_proto


def check(proto: onnx.ModelProto, module: nn.Module, image: Tensor) -> None:
    (given,) = run(proto, image.numpy()).values()
    np.testing.assert_allclose(given, module(image).numpy(), atol=1e-6)


@pytest.mark.parametrize(("length", "bins"), [(9, 2), (11, 3), (9, 6), (6, 6), (5, 7), (12, 4), (1, 3)])
def test_means_are_adaptive_pooling(length: int, bins: int) -> None:
    matrix = means(length, bins)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)
    x = torch.rand(1, 1, length)
    np.testing.assert_allclose(matrix @ x[0, 0].numpy(), F.adaptive_avg_pool1d(x, bins)[0, 0].numpy(), atol=1e-6)


@pytest.mark.parametrize("way", [traced, captured])
@pytest.mark.parametrize("size", [1, 2, 3, 6, (3, 11), (9, 2), (10, 12)])
def test_adaptive_pooling(way: Any, size: Any) -> None:
    module, image = Pooled(size), torch.rand(2, 3, 9, 11)
    proto = way(module, image)
    check(proto, module, image)
    assert len(proto.graph.node) <= 6
    assert "Gather" not in {node.op_type for node in proto.graph.node}


@pytest.mark.parametrize("size", [(6, 8), (7, 9)])
def test_unpooling_is_traced(size: tuple[int, int]) -> None:
    image = torch.rand(2, 3, *size)
    image[:, :, :2, :2] = 0.5  # the first of equals
    module = Unpooled(size)
    check(traced(module, image), module, image)


def test_channel_shuffle_is_traced() -> None:
    module, image = nn.ChannelShuffle(4), torch.rand(1, 8, 5, 6)
    check(traced(module, image), module, image)


def test_the_exporter_is_as_before_afterwards() -> None:
    with symbolics():
        pass
    with pytest.raises(Exception, match="adaptive_avg_pool2d"):
        torch.onnx.export(Pooled(2), (torch.rand(1, 3, 9, 11),), io.BytesIO(), dynamo=False)  # type: ignore[arg-type]


def test_free_sizes_are_left_to_torch() -> None:
    assert translations(True) == {}
