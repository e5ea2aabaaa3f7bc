"""Second moments of a layer's inputs and targets: all that a linear rewrite must know about the frames, in one matrix.

For patches x (D) of the layer's input and targets y (Co) at the same positions, over all frames seen:

    gram = E[(x - mean_x)(x - mean_x)^T]   cross = E[(y - mean_y)(x - mean_x)^T]   power = E[(y - mean_y)^2]

A structured kernel W (Co, D) then leaves the variance `power - 2 <W, cross> + <W gram, W>` unexplained, whatever the
number of frames was, and its best bias is `mean_y - W mean_x`. The memory needed depends on D alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LARGE = 500  # of D
DEEPEST = 9216  # of D, 3x3 of 1024 channels: 4.5 GB and some minutes for its fits; see edgeseg.rewrite.view for more
BLOCKS = 4  # a side: so many columns of blocks


@dataclass(frozen=True, slots=True)
class Moments:
    """All float64: mean_x (D), mean_y (Co), gram (D, D), cross (Co, D), power (Co). `rows`: patches seen (0: none).

    `ridge`: how far a fit is drawn to the layer's own weights, relative to the mean of gram's diagonal.
    """

    rows: int
    mean_x: Tensor
    mean_y: Tensor
    gram: Tensor
    cross: Tensor
    power: Tensor
    ridge: float = 1e-2

    def bias(self, effective: Tensor) -> Tensor:
        """The best bias (Co) for a kernel (Co, D)."""
        return self.mean_y - effective @ self.mean_x

    def residual(self, effective: Tensor) -> Tensor:
        """Variance of each output (Co) that the kernel (Co, D), with its best bias, leaves unexplained."""
        # Of large matrices the product is taken in float32: its error is far below what is asked for, and it is slow.
        kind = torch.float32 if len(self.gram) > LARGE else torch.float64
        seen = (effective.to(kind) @ self.gram.to(kind)).double()
        left = self.power - 2 * (effective * self.cross).sum(1) + (seen * effective).sum(1)
        return left.clamp_min(0.0)

    def unexplained(self, effective: Tensor) -> float:
        """The same as a fraction of the targets' variance, over all outputs: 0 is perfect."""
        return float(self.residual(effective).sum() / self.power.sum().clamp_min(1e-30))

    def scaled(self, factor: Tensor) -> Moments:
        """The moments of targets whose outputs are multiplied by `factor` (Co)."""
        return Moments(
            self.rows,
            self.mean_x,
            self.mean_y * factor,
            self.gram,
            self.cross * factor[:, None],
            self.power * factor.square(),
            self.ridge,
        )


def of_weights(weight: Tensor, bias: Tensor | None) -> Moments:
    """Without data: inputs as white noise. What fits these moments best is nearest to the weights themselves."""
    flat = weight.detach().double().flatten(1)
    offset = torch.zeros(len(flat), dtype=torch.float64) if bias is None else bias.detach().double()
    nothing = torch.zeros(flat.shape[1], dtype=torch.float64)
    return Moments(
        0, nothing, offset, torch.eye(flat.shape[1], dtype=torch.float64), flat.clone(), flat.square().sum(1)
    )


BUFFER = 1 << 22  # elements of patches that wait to be multiplied: one large product is faster than many small ones


class Summing:
    """Adds up rows until `moments()`. Products are taken in float32 around a first estimate of the means, sums in
    float64."""

    def __init__(self) -> None:
        self._rows = 0
        self._origin: tuple[Tensor, Tensor] | None = None
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def add(self, x: Tensor, y: Tensor) -> None:
        """Patches float32 (n, D) and their targets float32 (n, Co)."""
        if self._origin is None:
            self._origin = (x.mean(0), y.mean(0))
            depth, outputs = x.shape[1], y.shape[1]
            self._sum_x, self._sum_y = x.new_zeros(depth).double(), x.new_zeros(outputs).double()
            self._gram, self._cross = x.new_zeros(depth, depth).double(), x.new_zeros(outputs, depth).double()
            self._power = x.new_zeros(outputs).double()
        self._waiting.append((x, y))
        if sum(len(x) for x, _ in self._waiting) * x.shape[1] >= BUFFER:
            self._multiply()

    def add_inputs(self, x: Tensor) -> None:
        """Patches float32 (n, D) of which only the moments among themselves are asked for."""
        self.add(x, x[:, :0])

    def _multiply(self) -> None:
        if not self._waiting or self._origin is None:
            return
        x = torch.cat([x for x, _ in self._waiting]) - self._origin[0]
        y = torch.cat([y for _, y in self._waiting]) - self._origin[1]
        self._waiting.clear()
        self._rows += len(x)
        self._sum_x += x.sum(0)
        self._sum_y += y.sum(0)
        _add_gram(self._gram, x)
        self._cross += y.T @ x
        self._power += y.square().sum(0)

    def moments(self) -> Moments:
        self._multiply()
        assert self._origin is not None, "no rows were added"
        shift_x, shift_y = self._sum_x / self._rows, self._sum_y / self._rows
        return Moments(
            self._rows,
            self._origin[0].double() + shift_x,
            self._origin[1].double() + shift_y,
            self._gram / self._rows - torch.outer(shift_x, shift_x),
            self._cross / self._rows - torch.outer(shift_y, shift_x),
            self._power / self._rows - shift_y.square(),
        )


def _add_gram(gram: Tensor, x: Tensor) -> None:
    """gram += x^T x, of which for large matrices only the upper blocks are computed."""
    if len(gram) <= LARGE:
        gram += x.T @ x
        return
    width = -(-len(gram) // BLOCKS)
    starts = range(0, len(gram), width)
    for first in starts:
        for second in starts[first // width :]:
            rows, columns = slice(first, first + width), slice(second, second + width)
            part = x[:, rows].T @ x[:, columns]
            gram[rows, columns] += part
            if first != second:
                gram[columns, rows] += part.T
