"""How other libraries name the parameters of a network, in the names of edgeseg.zoo.

torchvision's fcn_resnet50, fcn_resnet101, deeplabv3_resnet50, deeplabv3_resnet101 and lraspp_mobilenet_v3_large need
no translation: the networks of edgeseg.zoo name theirs alike. Others are told by what only they call so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_PAIRS = [  # a convolution with its norm, which MMCV calls ConvModule and edgeseg.zoo ConvNorm
    (r"\.conv\.(weight|bias)$", r".0.\1"),
    (r"\.bn\.(\w+)$", r".1.\1"),
]


@dataclass(frozen=True, slots=True)
class Library:
    """Names of one library: those that hold `told` by it are changed by each of `rules` in turn, (pattern, text)."""

    name: str
    told: str
    rules: tuple[tuple[str, str], ...]
    factories: str  # that build its networks

    def translated(self, name: str) -> str:
        for pattern, text in self.rules:
            name = re.sub(pattern, text, name)
        return name


MMSEGMENTATION = Library(
    "mmsegmentation",
    r"(^|\.)decode_head\.",
    (
        (r"^backbone\.stem\.([01])\.", r"backbone.conv1.0.\1."),
        (r"^backbone\.stem\.3\.", "backbone.conv1.1.0."),
        (r"^backbone\.stem\.4\.", "backbone.conv1.1.1."),
        (r"^backbone\.stem\.6\.", "backbone.conv1.2."),
        (r"^backbone\.stem\.7\.", "backbone.bn1."),
        (r"^auxiliary_head\.convs\.0\.conv\.", "aux_classifier.0."),
        (r"^auxiliary_head\.convs\.0\.bn\.", "aux_classifier.1."),
        (r"^auxiliary_head\.conv_seg\.", "aux_classifier.4."),
        (r"^decode_head\.", "classifier."),
        *((r"^(classifier\..*)" + pattern, r"\g<1>" + text.replace(r"\1", r"\2")) for pattern, text in _PAIRS),
    ),
    "edgeseg.zoo:mmseg_fcn, mmseg_deeplabv3 and mmseg_pspnet",
)
SMP = Library(
    "segmentation_models_pytorch",
    r"(^|\.)segmentation_head\.",
    (
        (r"^encoder\.", "backbone."),
        (r"^decoder\.", "classifier."),
        (r"^segmentation_head\.0\.", "classifier.score."),
    ),
    "edgeseg.zoo:smp_unet, smp_fpn and smp_deeplabv3plus",
)
LIBRARIES = (MMSEGMENTATION, SMP)

# Not of the network that is deployed: heads that training alone needs, and what training frameworks keep beside it.
HEADS = ("aux_classifier.", "auxiliary_head.", "classification_head.")
BESIDE = re.compile(
    r"^(n_averaged$|(criterion|criteria|loss|losses|loss_fn|loss_func|metrics?)\."
    r"|(train|val|valid|validation|test)_\w+\.)"
)


def libraries(names: Iterable[str]) -> list[Library]:
    """Those whose networks are named so."""
    listed = list(names)
    return [library for library in LIBRARIES if any(re.search(library.told, name) for name in listed)]
