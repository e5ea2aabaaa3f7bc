"""The float graph with its scores: the appended bytes are what onnx would write, masks stay, confidence is exact."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from edgeseg.backends.onnxruntime import inference_session
from edgeseg.backends.scores import Scored, confidence, with_scores
from edgeseg.errors import ModelError
from edgeseg.types import FRAME, LOGITS, MASK, OnnxModel, OutputSpec
from tests.quantize import making


def one_channel(probabilities: bool = False) -> OnnxModel:
    net = making.Net(2)
    scores = net.conv(net.relu(net.conv(net.image(), "conv1", 6), "relu1"), "head", 1)
    return net.model(net.op("Sigmoid", [scores], "sigmoid") if probabilities else scores, threshold=0.7)


def slow(scores: NDArray[np.float32], probabilities: bool) -> float:
    """Pixel by pixel in Python floats."""
    found = []
    for values in scores.reshape(len(scores), -1).T.tolist():
        if len(values) == 1:
            p = values[0] if probabilities else 1 / (1 + math.exp(-values[0]))
            found.append(max(p, 1 - p))
        elif probabilities:
            found.append(max(values))
        else:
            found.append(max(math.exp(v) for v in values) / sum(math.exp(v) for v in values))
    return sum(found) / len(found)


@pytest.mark.parametrize(
    "model", [making.unet(), making.everything(), one_channel()], ids=["unet", "everything", "one"]
)
def test_the_scores_come_as_a_second_output_and_the_mask_stays(model: OnnxModel) -> None:
    graph = with_scores(model.graph)
    expected = onnx.load_from_string(model.graph)
    expected.graph.output.append(onnx.helper.make_tensor_value_info(LOGITS, onnx.TensorProto.FLOAT, None))
    assert onnx.load_from_string(graph) == expected
    session = inference_session(graph, threads=1)
    assert [output.name for output in session.get_outputs()] == [MASK, LOGITS]
    plain = inference_session(model.graph, threads=1)
    for frame in making.frames(3):
        mask, scores = session.run(None, {FRAME: frame[None]})
        np.testing.assert_array_equal(mask, plain.run(None, {FRAME: frame[None]})[0])
        assert scores.dtype == np.float32
        np.testing.assert_allclose(
            scores, making.tensors_of(model.graph, [LOGITS], frame[None])[LOGITS], rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("classes", [1, 2, 7])
@pytest.mark.parametrize("size", [(3, 5), (40, 1000), (1, 40000)])  # one block, several with a rest, one row each
def test_confidence_as_computed_pixel_by_pixel(classes: int, probabilities: bool, size: tuple[int, int]) -> None:
    scores = np.random.default_rng(classes).normal(0, 4, (classes, *size)).astype(np.float32)
    if probabilities:
        scores = np.exp(scores) / (np.exp(scores).sum(axis=0) if classes > 1 else 1 + np.exp(scores))
    assert confidence(scores, probabilities=probabilities) == pytest.approx(slow(scores, probabilities), abs=1e-5)


def test_huge_and_broken_scores() -> None:
    scores = np.zeros((3, 1, 4), np.float32)
    scores[1, 0, 0] = 1e30  # exp would overflow
    scores[:, 0, 1] = -1e30
    scores[0, 0, 2] = np.nan
    scores[2, 0, 3] = np.inf
    assert confidence(scores) == pytest.approx((1 + 1 / 3 + 0 + 0) / 4)
    assert confidence(np.full((1, 1, 2), -1e30, np.float32)) == 1.0


@pytest.mark.parametrize("probabilities", [False, True])
def test_a_running_network(probabilities: bool) -> None:
    model = one_channel(probabilities)
    output = OutputSpec(activation="probabilities" if probabilities else "logits", threshold=0.7)
    frame = making.frames(1)
    inside = making.tensors_of(model.graph, [MASK, LOGITS], frame)
    with Scored(model.graph, output, threads=1) as network:
        mask, sure = network.run(frame)
    np.testing.assert_array_equal(mask, inside[MASK][0])
    assert sure is not None
    assert sure == pytest.approx(slow(inside[LOGITS][0], probabilities), abs=1e-5)
    assert 0.5 < sure < 1


def test_a_network_without_scores_has_no_confidence() -> None:
    net = making.Net(2)
    net.op("ArgMax", [net.conv(net.image(), "head", 3)], "best", axis=1, keepdims=0)
    model = net.model(mask_of="best")
    frame = making.frames(1)
    with Scored(model.graph, model.spec.output, threads=1) as network:
        mask, sure = network.run(frame)
    np.testing.assert_array_equal(mask, making.tensors_of(model.graph, [MASK], frame)[MASK][0])
    assert sure is None


def test_no_graph_is_refused() -> None:
    with pytest.raises(ModelError, match="refuses the graph"):
        Scored(b"not a graph", OutputSpec())
