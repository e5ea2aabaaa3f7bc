"""Graphs by chance: whatever stands between convolutions, the written graph is sound and computes nearly the same."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from edgeseg.quantize import DIALECTS, quantize
from edgeseg.types import LOGITS, OnnxModel
from tests.quantize import making


def by_chance(seed: int) -> OnnxModel:
    """A dozen ops on tensors of full and half size, each drawn from those before it."""
    net = making.Net(seed)
    chance = np.random.default_rng(seed)
    full, half = [net.relu(net.conv(net.image(), "stem", 8), "stem_relu")], []
    half.append(net.halved(full[0], "stem_pool"))
    zero, six = net.weight("zero", np.array(0, np.float32)), net.weight("six", np.array(6, np.float32))
    for index in range(12):
        pool = full if chance.random() < 0.5 else half
        one, other = (pool[int(chance.integers(len(pool)))] for _ in range(2))
        name = f"n{index}"
        kind = chance.choice(["conv", "relu", "capped", "depthwise", "concat", "add", "move", "resize", "float"])
        if kind in ("conv", "relu", "capped"):
            made = net.conv(one, name, 8, int(chance.choice([1, 3])), bias=bool(chance.random() < 0.7))
            if kind == "relu":
                made = net.relu(made, f"{name}r")
            elif kind == "capped":
                made = net.op("Clip", [made, zero, six], f"{name}c")
        elif kind == "depthwise":
            made = net.conv(one, name, net.channels[one], group=net.channels[one])
        elif kind == "concat":
            made = net.op("Concat", [one, other], name, net.channels[one] + net.channels[other], axis=1)
        elif kind == "add" and net.channels[one] == net.channels[other]:
            made = net.op("Add", [one, other], name)
        elif kind == "move":
            shape = {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1, 1, 1, 1]}
            made = net.op("MaxPool", [one], name, **shape)  # type: ignore[arg-type]
        elif kind == "resize":
            if pool is half:
                made, pool = net.nearest(one, name), full
            else:
                made, pool = net.halved(one, name), half
        else:
            made = net.op("HardSwish", [one], name)
        pool.append(made)
    last = [net.nearest(half[-1], "last_up"), full[-1]]
    joined = net.op("Concat", last, "joined", net.channels[half[-1]] + net.channels[full[-1]], axis=1)
    return net.model(net.conv(net.relu(net.conv(joined, "body", 8), "body_relu"), "head", 4, 1))


@pytest.mark.parametrize("seed", range(20))
def test_any_graph_in_any_dialect(seed: int) -> None:
    model = by_chance(seed)
    table = making.table_of(model, count=4)
    frame = making.frames(1, seed=99)
    exact = making.tensors_of(model.graph, [LOGITS], frame)[LOGITS]
    for dialect in DIALECTS.values():
        made = quantize(model, table, dialect)
        graph = making.parsed(made.graph).graph
        read = {name for node in graph.node for name in node.input} | {"mask"}
        assert {tensor.name for tensor in graph.initializer} <= read
        kept = {node.name for node in making.parsed(model.graph).graph.node}
        assert [n.name for n in graph.node if n.name not in kept and not set(n.output) & read] == []
        if dialect.fake:
            continue
        onnx.checker.check_model(making.parsed(made.graph), full_check=True)
        plain = making.tensors_of(made.graph, [LOGITS], frame)[LOGITS]
        fused = making.tensors_of(made.graph, [LOGITS], frame, "all")[LOGITS]
        assert making.snr_db(exact, plain) > 14, dialect.name
        assert making.snr_db(plain, fused) > 20, dialect.name
