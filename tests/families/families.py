"""One tiny network for each row of the notes: its factory and arguments."""

from __future__ import annotations

from typing import Any

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "patch": ("patch_network", {"width": 8, "kernels": (4, 5), "hidden": 16}),
    "fcn32s": ("fcn32s", {"width": 4}),
    "fcn16s": ("fcn16s", {"width": 4}),
    "fcn8s": ("fcn8s", {"width": 4}),
    "fcn8s, caffe": ("fcn8s", {"width": 2, "padding": "caffe"}),
    "alexnet": ("fcn_alexnet", {"width": 12}),
    "alexnet, normalized": ("fcn_alexnet", {"width": 12, "lrn": True}),
    "segnet": ("segnet", {"width": 8, "depths": (2, 2, 2)}),
    "u-net, cropped": ("unet_paper", {"width": 6, "depth": 2}),
    "u-net, padded": ("unet_paper", {"width": 6, "depth": 4, "skips": "padded"}),
    "u-net, binary": ("unet_paper", {"classes": 1, "width": 6, "depth": 2}),
    "deeplabv3, stride 8": ("deeplabv3", {"depth": 50, "width": 4}),
    "deeplabv3, stride 16": ("deeplabv3", {"depth": 18, "width": 8, "output_stride": 16}),
    "deeplabv3+": ("deeplabv3plus", {"width": 8, "depth": 2}),
    "deeplabv3+, stride 8": ("deeplabv3plus", {"width": 4, "depth": 1, "output_stride": 8}),
    "pspnet": ("pspnet", {"depth": 18, "width": 8}),
    "googlenet": ("googlenet", {"width": 16, "decoder": 16}),
    "inception v2": ("inception_v2", {"width": 6, "decoder": 12}),
    "inception v3": ("inception_v3", {"width": 6, "decoder": 12}),
    "minigooglenet": ("minigooglenet", {"width": 24, "decoder": 12}),
    "fcn, resnet": ("fcn_resnet", {"depth": 18, "width": 8}),
    "resnext": ("resnext", {"width": 8, "groups": 4, "width_per_group": 32}),
    "resnext, shuffled": ("resnext", {"width": 8, "groups": 4, "width_per_group": 32, "shuffle": True}),
}

SHARE = 0.85  # of the operations, that rewriting leaves
INT8 = {"segnet": 0.5, "fcn8s, caffe": 0.6, "deeplabv3+": 0.65, "deeplabv3+, stride 8": 0.65, "u-net, padded": 0.7}
"""Agreement with FP32 that INT8 keeps with weights by chance. Of SegNet's switches many are decided by rounding."""
NARROW = ("deeplabv3+", "deeplabv3+, stride 8")  # depthwise separable already: their 1 x 1 convolutions get narrower
DEEP = ("fcn32s", "fcn16s", "deeplabv3, stride 16", "inception v2", "deeplabv3+, stride 8", "resnext, shuffled")
"""Rewriting these takes seconds and shows nothing that their neighbours do not."""
