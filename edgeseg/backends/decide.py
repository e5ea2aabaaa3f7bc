"""From scores to class indices on the host: for the runtimes that do this step slowly inside the graph.

Compared and stored class by class over blocks of rows that stay in the cache, which is several times faster than
numpy.argmax over a leading axis. Equal scores go to the lower class, as in ONNX ArgMax.
"""

from __future__ import annotations

import numpy as np

from edgeseg.types import Floats, Masks

_BLOCK = 1 << 15  # values of one class per block: 128 KiB of float32


def decide(scores: Floats, threshold: float = 0.0, out: Masks | None = None) -> Masks:
    """Masks uint8 (N, H, W) from scores float32 (N, C, H, W): the highest class, or score >= threshold for C = 1.

    With `out` they are written there.
    """
    count, classes, height, width = scores.shape
    masks = np.empty((count, height, width), np.uint8) if out is None else out
    if classes == 1:
        np.greater_equal(scores[:, 0], threshold, out=masks.view(np.bool_))
        return masks
    masks.fill(0)
    rows = max(1, min(height, _BLOCK // width))
    best = np.empty((rows, width), np.float32)
    higher = np.empty((rows, width), np.bool_)
    for image, mask in zip(scores, masks, strict=True):
        for top in range(0, height, rows):
            block = image[:, top : top + rows]
            used = block.shape[1]
            np.copyto(best[:used], block[0])
            for index in range(1, classes):
                np.greater(block[index], best[:used], out=higher[:used])
                np.putmask(mask[top : top + used], higher[:used], index)
                np.maximum(best[:used], block[index], out=best[:used])
    return masks
