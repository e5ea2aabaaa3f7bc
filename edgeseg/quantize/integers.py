"""Integers for the rows of a matrix of weights that make the error of its products least, given what it multiplies.

For a row w and inputs x of second moments H, integers q err by uᵀHu with u = q - w, which nearest integers make least
only where H is diagonal. Two ways are tried. Rounding one weight after the other while those to come make up for the
error, in the fixed order of Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers" (2022), is Babai's nearest plane (Chen et al., "The Geometry of LLM Quantization: GPTQ as Babai's Nearest
Plane Algorithm", 2025), which needs a Cholesky factor of H where the paper has that of its inverse. Then single
integers move by one as long as that brings the objective of Nagel et al., "Up or Down? Adaptive Rounding for
Post-Training Quantization" (2020), down, always the one that brings it down most.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Integers = NDArray[np.int8]

DAMPING = 0.01  # of the mean of the moments' diagonal, added to it: patches are too few to trust small eigenvalues
MOVES = 20  # of a row, at most, for each of its integers: they take far fewer
_BLOCK = 64  # columns between which errors are passed on at once
_AT_ONCE = 2**18  # float32 numbers of the gradients that are moved together: they stay in a core's own cache


def adapt(exact: Array, moments: Array, groups: int, limit: int) -> Integers:
    """Integers int8 (K, C / groups, kh, kw) in -limit to limit for weights in units of their scales.

    `moments`: float64 (groups, D, D) of the patches, D = C / groups · kh · kw. A channel's integers are never worse,
    by these moments, than nearest ones; inputs that are always zero get the nearest.
    """
    goal = exact.reshape(groups, -1, moments.shape[-1])  # (G, K / G, D)
    damp = DAMPING * np.einsum("gdd->gd", moments).mean(1)
    damp[damp <= 0] = 1.0  # all inputs are zero: any integers do, nearest are taken
    damped = moments + damp[:, None, None] * np.eye(moments.shape[-1])
    nearest = np.clip(np.rint(goal), -limit, limit)
    best, least = nearest, squares(nearest - goal, damped)
    for start in (nearest, compensated(goal, damped, limit)):
        codes = descended(goal, start, damped, limit)
        errors = squares(codes - goal, damped)
        better = errors < least * (1 - 1e-9)
        best, least = np.where(better[:, :, None], codes, best), np.where(better, errors, least)
    return best.reshape(exact.shape).astype(np.int8)


def error(difference: Array, moments: Array, groups: int, scales: NDArray[np.float32]) -> float:
    """The mean square of what the output of a layer is off by, summed over its channels.

    `difference`: (K, C / groups, kh, kw) in units of `scales` (K,).
    """
    rows = (difference * scales.astype(np.float64).reshape(-1, 1, 1, 1)).reshape(groups, -1, moments.shape[-1])
    return float(squares(rows, moments).sum())


def squares(rows: Array, moments: Array) -> Array:
    """uᵀHu of rows (G, K, D): (G, K)."""
    found: Array = np.einsum("gkd,gkd->gk", np.matmul(rows, moments), rows)
    return found


def compensated(goal: Array, moments: Array, limit: int) -> Array:
    """One column rounded after the other, each making up for the errors of those before; largest moments first."""
    order = np.argsort(-np.einsum("gdd->gd", moments), axis=1, kind="stable")
    moments = np.take_along_axis(np.take_along_axis(moments, order[:, :, None], axis=1), order[:, None, :], axis=2)
    # H = M Mᵀ with M upper triangular: row i of Mᵀu holds the errors up to the i-th, so the i-th can bring it near 0.
    factor = np.linalg.cholesky(moments[:, ::-1, ::-1])[:, ::-1, ::-1]
    factor = factor / np.einsum("gdd->gd", factor)[:, None, :]
    wanted = np.take_along_axis(goal, order[:, None, :], axis=2)
    off = np.zeros_like(wanted)
    for begin in range(0, wanted.shape[2], _BLOCK):
        end = min(begin + _BLOCK, wanted.shape[2])
        carried = np.matmul(off[:, :, :begin], factor[:, :begin, begin:end])
        for column in range(begin, end):
            here = wanted[:, :, column]
            owed = carried[:, :, column - begin]
            if column > begin:
                owed = owed + np.matmul(off[:, :, begin:column], factor[:, begin:column, column, None])[:, :, 0]
            off[:, :, column] = np.clip(np.rint(here - owed), -limit, limit) - here
    codes = np.rint(wanted + off)
    return np.take_along_axis(codes, np.argsort(order, axis=1)[:, None, :], axis=2)


def descended(goal: Array, codes: Array, moments: Array, limit: int) -> Array:
    """The integer of a row whose move by one brings its error down most, again and again, until none does.

    Gradients are kept in float32: what that gets wrong is a move whose worth is within rounding of nothing.
    """
    diagonal = np.einsum("gdd->gd", moments)
    narrow = moments.astype(np.float32)
    found = codes.copy()
    size = goal.shape[2]
    gradients = np.matmul(codes - goal, moments).astype(np.float32).reshape(-1, size)
    group_of = np.repeat(np.arange(goal.shape[0]), goal.shape[1])
    flat = found.reshape(-1, size)
    each = max(1, _AT_ONCE // size)
    for begin in range(0, len(flat), each):
        rows = np.arange(begin, min(begin + each, len(flat)))
        _descend(flat, gradients, rows, group_of, narrow, diagonal.astype(np.float32), limit)
    return found


def _descend(
    codes: Array,
    gradients: NDArray[np.float32],
    rows: NDArray[np.int64],
    group_of: NDArray[np.int64],
    moments: NDArray[np.float32],
    diagonal: NDArray[np.float32],
    limit: int,
) -> None:
    """Moves integers of some rows, in place."""
    # A move by one against the gradient g is worth 2 |g| - h. A worth within rounding must not go back and forth.
    enough = diagonal * np.float32(1 + 1e-5)
    gradient, own, thresholds = gradients[rows], group_of[rows], enough[group_of[rows]]
    for _ in range(MOVES * codes.shape[1]):
        if not len(rows):
            return
        worth = np.abs(gradient)
        worth *= 2
        worth -= thresholds
        column = worth.argmax(1)
        at = np.arange(len(rows))
        step = -np.sign(gradient[at, column])
        for row in np.flatnonzero(np.abs(codes[rows, column] + step) > limit):  # at an end: the best of the others
            outward = np.abs(codes[rows[row]] - np.sign(gradient[row])) > limit
            worth[row, outward] = 0.0
            column[row] = worth[row].argmax()
            step[row] = -np.sign(gradient[row, column[row]])
        moving = worth[at, column] > 0
        if not moving.all():
            rows, own, column, step = rows[moving], own[moving], column[moving], step[moving]
            gradient, thresholds = gradient[moving], thresholds[moving]
        codes[rows, column] += step
        gradient += step[:, None] * moments[own, column]
