"""Networks of several outputs: the scores stay, what leads to the others alone goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgeseg.export.outputs import pick
from edgeseg.pipeline.rewriting.outputs import only_scores
from edgeseg.rewrite.network import Network, capture, layers, macs_of
from edgeseg.types import Torch

SIZE = (12, 16)


class Heads(nn.Module):
    def __init__(self, returned: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.body, self.main, self.aux = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1), nn.Conv2d(6, 4, 3)
        self.returned = returned

    def forward(self, x: Tensor) -> Any:
        body = self.body(x)
        return self.returned(self.main(body), self.aux(body))


def network(returned: Callable[[Tensor, Tensor], Any]) -> Network:
    torch.manual_seed(0)
    return capture(Torch(Heads(returned).eval(), "pickle"), SIZE).network


@pytest.mark.parametrize(
    ("index", "returned"),
    [
        (0, lambda main, aux: {"out": main, "aux": aux}),
        (0, lambda main, aux: {"aux": aux, "out": main}),
        ("out", lambda main, aux: {"aux": aux, "out": main}),
        (0, lambda main, aux: (main, aux)),
        ("0", lambda main, aux: [main, aux]),
        (1, lambda main, aux: (main.mean(), main, aux)),
        ("out.1", lambda main, aux: {"aux": [aux], "out": (main.mean(), main, aux)}),
        ("out", lambda main, aux: {"aux": aux, "out": [main, aux]}),
    ],
)
def test_an_auxiliary_head_goes(index: int | str, returned: Callable[[Tensor, Tensor], Any]) -> None:
    made = network(returned)
    image = torch.randn(1, 3, *SIZE)
    wanted, _ = pick(made(image), index)
    before = macs_of(made, SIZE)
    assert only_scores(made, index)
    given, _ = pick(made(image), index)
    assert torch.equal(given, wanted)
    assert [layer.name for layer in layers(made, SIZE)] == ["body", "main"]
    assert macs_of(made, SIZE) < before
    assert not only_scores(made, index)  # nothing is left to do


@pytest.mark.parametrize(
    ("index", "returned"),
    [
        (0, lambda main, aux: main + aux[:, :, :1, :1]),
        ("out", lambda main, aux: {"out": main + aux[:, :, :1, :1]}),
        (1, lambda main, aux: (aux, main)),  # the first must stay, so that the second is the second
        (1, lambda main, aux: {"aux": aux, "scores": main}),
        ("none", lambda main, aux: {"aux": aux, "out": main}),  # to be said elsewhere
    ],
)
def test_what_stays(index: int | str, returned: Callable[[Tensor, Tensor], Any]) -> None:
    made = network(returned)
    code = made.code
    assert not only_scores(made, index)
    assert made.code == code
    assert len(layers(made, SIZE)) == 3
