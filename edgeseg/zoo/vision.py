"""The segmentation networks of torchvision by its names for them, for checkpoints of it.

Take float32 (N, 3, H, W), return logits (N, classes, H, W). `auxiliary`: see edgeseg.zoo.blocks.Segmenter; a file that
has the auxiliary head is read into a network without it too.
"""

from __future__ import annotations

from torch import nn

from edgeseg.zoo.deeplab import deeplabv3
from edgeseg.zoo.resnet import fcn_resnet


def fcn_resnet50(classes: int = 21, auxiliary: bool = False) -> nn.Module:
    """`edgeseg.zoo.resnet.fcn_resnet` of depth 50."""
    return fcn_resnet(classes, 50, auxiliary=auxiliary)


def fcn_resnet101(classes: int = 21, auxiliary: bool = False) -> nn.Module:
    """`edgeseg.zoo.resnet.fcn_resnet` of depth 101."""
    return fcn_resnet(classes, 101, auxiliary=auxiliary)


def deeplabv3_resnet50(classes: int = 21, auxiliary: bool = False) -> nn.Module:
    """`edgeseg.zoo.deeplab.deeplabv3` of depth 50."""
    return deeplabv3(classes, 50, auxiliary=auxiliary)


def deeplabv3_resnet101(classes: int = 21, auxiliary: bool = False) -> nn.Module:
    """`edgeseg.zoo.deeplab.deeplabv3` of depth 101."""
    return deeplabv3(classes, 101, auxiliary=auxiliary)
