"""Reference architectures by name, for a state dict whose spec says `factory = "edgeseg.zoo:unet"`.

Importing this package does not import torch; the first use of a factory does. (The module of an architecture is not
called as the architecture is: importing it would put the module in the place of the factory here.)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from edgeseg.errors import need

if TYPE_CHECKING:
    from edgeseg.zoo.deeplab import deeplabv3, deeplabv3plus
    from edgeseg.zoo.fcn import fcn8s, fcn16s, fcn32s, fcn_alexnet
    from edgeseg.zoo.inception import googlenet, inception_v2, inception_v3, minigooglenet
    from edgeseg.zoo.lraspp import lraspp_mobilenet_v3_large
    from edgeseg.zoo.mmseg import mmseg_deeplabv3, mmseg_fcn, mmseg_pspnet
    from edgeseg.zoo.patch import patch_network
    from edgeseg.zoo.psp_net import pspnet
    from edgeseg.zoo.resnet import fcn_resnet, resnext
    from edgeseg.zoo.seg_net import segnet
    from edgeseg.zoo.smp import smp_deeplabv3plus, smp_fpn, smp_unet
    from edgeseg.zoo.u_net import unet, unet_paper
    from edgeseg.zoo.upsampling import upsampler
    from edgeseg.zoo.vision import deeplabv3_resnet50, deeplabv3_resnet101, fcn_resnet50, fcn_resnet101

__all__ = [
    "deeplabv3",
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
    "deeplabv3plus",
    "fcn8s",
    "fcn16s",
    "fcn32s",
    "fcn_alexnet",
    "fcn_resnet",
    "fcn_resnet50",
    "fcn_resnet101",
    "googlenet",
    "inception_v2",
    "inception_v3",
    "lraspp_mobilenet_v3_large",
    "minigooglenet",
    "mmseg_deeplabv3",
    "mmseg_fcn",
    "mmseg_pspnet",
    "patch_network",
    "pspnet",
    "resnext",
    "segnet",
    "smp_deeplabv3plus",
    "smp_fpn",
    "smp_unet",
    "unet",
    "unet_paper",
    "upsampler",
]

_FILES = {
    "deeplab": ("deeplabv3", "deeplabv3plus"),
    "fcn": ("fcn8s", "fcn16s", "fcn32s", "fcn_alexnet"),
    "inception": ("googlenet", "inception_v2", "inception_v3", "minigooglenet"),
    "lraspp": ("lraspp_mobilenet_v3_large",),
    "mmseg": ("mmseg_deeplabv3", "mmseg_fcn", "mmseg_pspnet"),
    "patch": ("patch_network",),
    "psp_net": ("pspnet",),
    "resnet": ("fcn_resnet", "resnext"),
    "seg_net": ("segnet",),
    "smp": ("smp_deeplabv3plus", "smp_fpn", "smp_unet"),
    "u_net": ("unet", "unet_paper"),
    "upsampling": ("upsampler",),
    "vision": ("deeplabv3_resnet50", "deeplabv3_resnet101", "fcn_resnet50", "fcn_resnet101"),
}
_MODULES = {name: f"edgeseg.zoo.{file}" for file, names in _FILES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"edgeseg.zoo has no architecture '{name}'; it has: {', '.join(sorted(_MODULES))}")
    need("torch", extra="torch", why=f"The architecture '{name}'")
    return getattr(importlib.import_module(_MODULES[name]), name)
