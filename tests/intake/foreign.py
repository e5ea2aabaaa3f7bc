"""Checkpoints as torchvision, segmentation_models_pytorch and mmsegmentation write them: names, shapes, and what a
network with these weights computes, by functions of torch alone.

`digest` of each layout was compared with that of the libraries' own networks (torchvision 0.29.2,
segmentation_models_pytorch 0.6.0, mmsegmentation 1.2.2), so a name or a shape that is wrong here is seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

Layout = dict[str, tuple[int, ...]]
Weights = Mapping[str, Tensor]
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
LARGE = [  # MobileNetV3-Large, Table 1: kernel, expansion, channels, squeeze, hard swish, stride
    (3, 16, 16, 0, 0, 1), (3, 64, 24, 0, 0, 2), (3, 72, 24, 0, 0, 1), (5, 72, 40, 24, 0, 2), (5, 120, 40, 32, 0, 1),
    (5, 120, 40, 32, 0, 1), (3, 240, 80, 0, 1, 2), (3, 200, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1),
    (3, 480, 112, 120, 1, 1), (3, 672, 112, 168, 1, 1), (5, 672, 160, 168, 1, 2), (5, 960, 160, 240, 1, 1),
    (5, 960, 160, 240, 1, 1),
]  # fmt: skip


def digest(layout: Mapping[str, Sequence[int]]) -> str:
    lines = sorted(f"{name} {','.join(map(str, shape))}" for name, shape in layout.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


# -- names and shapes --------------------------------------------------------------------------------------------------


def conv(name: str, outputs: int, inputs: int, kernel: int, bias: bool = False) -> Layout:
    return {f"{name}.weight": (outputs, inputs, kernel, kernel)} | ({f"{name}.bias": (outputs,)} if bias else {})


def norm(name: str, channels: int) -> Layout:
    parts = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{part}": (channels,) for part in parts} | {f"{name}.num_batches_tracked": ()}


def pair(name: str, outputs: int, inputs: int, kernel: int, names: tuple[str, str] = ("0", "1")) -> Layout:
    return conv(f"{name}.{names[0]}", outputs, inputs, kernel) | norm(f"{name}.{names[1]}", outputs)


def resnet(prefix: str, depth: int, deep_stem: bool = False) -> Layout:
    if deep_stem:
        found = pair(f"{prefix}stem", 32, 3, 3) | pair(f"{prefix}stem", 32, 32, 3, ("3", "4"))
        found |= pair(f"{prefix}stem", 64, 32, 3, ("6", "7"))
    else:
        found = conv(f"{prefix}conv1", 64, 3, 7) | norm(f"{prefix}bn1", 64)
    inputs, deep = 64, depth >= 50
    for stage, count in enumerate(BLOCKS[depth], 1):
        planes = 64 << (stage - 1)
        outputs = 4 * planes if deep else planes
        for block in range(count):
            name = f"{prefix}layer{stage}.{block}"
            kernels = [(planes, inputs, 1), (planes, planes, 3), (outputs, planes, 1)]
            for k, (o, i, size) in enumerate(kernels if deep else [(planes, inputs, 3), (planes, planes, 3)], 1):
                found |= conv(f"{name}.conv{k}", o, i, size) | norm(f"{name}.bn{k}", o)
            if inputs != outputs:
                found |= pair(f"{name}.downsample", outputs, inputs, 1)
            inputs = outputs
    return found


def torchvision(kind: str, depth: int, classes: int = 21) -> Layout:
    found = resnet("backbone.", depth)
    if kind == "fcn":
        found |= pair("classifier", 512, 2048, 3) | conv("classifier.4", classes, 512, 1, True)
    else:
        for k in range(4):
            found |= pair(f"classifier.0.convs.{k}", 256, 2048, 3 if k else 1)
        found |= pair("classifier.0.convs.4", 256, 2048, 1, ("1", "2")) | pair("classifier.0.project", 256, 1280, 1)
        found |= pair("classifier", 256, 256, 3, ("1", "2")) | conv("classifier.4", classes, 256, 1, True)
    return found | pair("aux_classifier", 256, 1024, 3) | conv("aux_classifier.4", classes, 256, 1, True)


def lraspp(classes: int = 21) -> Layout:
    found, inputs = pair("backbone.0", 16, 3, 3), 16
    for number, (kernel, wide, outputs, few, _, _) in enumerate(LARGE, 1):
        name, place = f"backbone.{number}.block", 0
        if wide != inputs:
            found |= pair(f"{name}.0", wide, inputs, 1)
            place = 1
        found |= pair(f"{name}.{place}", wide, 1, kernel)
        if few:
            found |= conv(f"{name}.{place + 1}.fc1", few, wide, 1, True)
            found |= conv(f"{name}.{place + 1}.fc2", wide, few, 1, True)
        found |= pair(f"{name}.{place + 1 + bool(few)}", outputs, wide, 1)
        inputs = outputs
    found |= pair("backbone.16", 960, 160, 1) | pair("classifier.cbr", 128, 960, 1)
    found |= conv("classifier.scale.1", 128, 960, 1) | conv("classifier.low_classifier", classes, 40, 1, True)
    return found | conv("classifier.high_classifier", classes, 128, 1, True)


def smp(kind: str, depth: int, classes: int = 11) -> Layout:
    found, wide = resnet("encoder.", depth), (4 if depth >= 50 else 1)
    maps = [64, *(64 * wide << k for k in range(4))]
    if kind == "Unet":
        inputs = maps[-1]
        for k, (skip, outputs) in enumerate(zip([*maps[-2::-1], 0], (256, 128, 64, 32, 16), strict=True)):
            found |= pair(f"decoder.blocks.{k}.conv1", outputs, inputs + skip, 3)
            found |= pair(f"decoder.blocks.{k}.conv2", outputs, outputs, 3)
            inputs = outputs
        return found | conv("segmentation_head.0", classes, 16, 3, True)
    if kind == "FPN":
        found |= conv("decoder.p5", 256, maps[4], 1, True)
        for k in (4, 3, 2):
            found |= conv(f"decoder.p{k}.skip_conv", 256, maps[k - 1], 1, True)
        for k, steps in enumerate((3, 2, 1, 1)):
            for step in range(steps):
                name = f"decoder.seg_blocks.{k}.block.{step}.block"
                found |= conv(f"{name}.0", 128, 128 if step else 256, 3)
                found |= {f"{name}.1.weight": (128,), f"{name}.1.bias": (128,)}
        return found | conv("segmentation_head.0", classes, 128, 1, True)
    found |= pair("decoder.aspp.0.convs.0", 256, maps[4], 1)
    for k in (1, 2, 3):
        found |= conv(f"decoder.aspp.0.convs.{k}.0.0", maps[4], 1, 3)
        found |= conv(f"decoder.aspp.0.convs.{k}.0.1", 256, maps[4], 1) | norm(f"decoder.aspp.0.convs.{k}.1", 256)
    found |= pair("decoder.aspp.0.convs.4", 256, maps[4], 1, ("1", "2")) | pair("decoder.aspp.0.project", 256, 1280, 1)
    found |= conv("decoder.aspp.1.0", 256, 1, 3) | conv("decoder.aspp.1.1", 256, 256, 1) | norm("decoder.aspp.2", 256)
    found |= pair("decoder.block1", 48, maps[1], 1) | conv("decoder.block2.0.0", 304, 1, 3)
    found |= conv("decoder.block2.0.1", 256, 304, 1) | norm("decoder.block2.1", 256)
    return found | conv("segmentation_head.0", classes, 256, 1, True)


def mmseg(kind: str, depth: int, classes: int = 19) -> Layout:
    found, both = resnet("backbone.", depth, deep_stem=True), ("conv", "bn")
    if kind == "fcn":
        found |= pair("decode_head.convs.0", 512, 2048, 3, both) | pair("decode_head.convs.1", 512, 512, 3, both)
        found |= pair("decode_head.conv_cat", 512, 2560, 3, both)
    elif kind == "deeplabv3":
        found |= pair("decode_head.image_pool.1", 512, 2048, 1, both)
        for k in range(4):
            found |= pair(f"decode_head.aspp_modules.{k}", 512, 2048, 3 if k else 1, both)
        found |= pair("decode_head.bottleneck", 512, 2560, 3, both)
    else:
        for k in range(4):
            found |= pair(f"decode_head.psp_modules.{k}.1", 512, 2048, 1, both)
        found |= pair("decode_head.bottleneck", 512, 4096, 3, both)
    found |= conv("decode_head.conv_seg", classes, 512, 1, True)
    found |= pair("auxiliary_head.convs.0", 256, 1024, 3, both)
    return found | conv("auxiliary_head.conv_seg", classes, 256, 1, True)


def filled(layout: Layout, seed: int = 0) -> dict[str, Tensor]:
    """Random weights of such a size that values neither vanish nor explode."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for name, shape in layout.items():
        if not shape:
            found[name] = torch.tensor(7)
        elif len(shape) == 4:
            found[name] = torch.randn(shape, generator=generator) * (1.5 / (shape[1] * shape[2] * shape[3])) ** 0.5
        elif name.endswith(("running_var", "weight")):
            found[name] = torch.rand(shape, generator=generator) + 0.5
        else:
            found[name] = torch.randn(shape, generator=generator) * 0.2
    return found


# -- what they compute -------------------------------------------------------------------------------------------------


def normed(w: Weights, x: Tensor, name: str, eps: float = 1e-5) -> Tensor:
    scale = w[f"{name}.weight"] / (w[f"{name}.running_var"] + eps).sqrt()
    shift = w[f"{name}.bias"] - w[f"{name}.running_mean"] * scale
    return x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


def convolved(w: Weights, x: Tensor, name: str, stride: int = 1, dilation: int = 1) -> Tensor:
    weight, bias = w[f"{name}.weight"], w.get(f"{name}.bias")
    groups = x.shape[1] // weight.shape[1]
    return functional.conv2d(x, weight, bias, stride, dilation * (weight.shape[2] // 2), dilation, groups)


def unit(
    w: Weights, x: Tensor, name: str, names: tuple[str, str] = ("0", "1"), stride: int = 1, dilation: int = 1
) -> Tensor:
    return normed(w, convolved(w, x, f"{name}.{names[0]}", stride, dilation), f"{name}.{names[1]}").relu()


def bilinear(x: Tensor, like: Tensor, aligned: bool = False) -> Tensor:
    return functional.interpolate(x, like.shape[2:], mode="bilinear", align_corners=aligned)


def maps(
    w: Weights, x: Tensor, prefix: str, depth: int, strides: Sequence[int], dilated: Sequence[tuple[int, int]]
) -> Iterator[Tensor]:
    """The map before the pooling, then one a stage. `dilated`: of a stage's first block and of the rest."""
    if f"{prefix}stem.0.weight" in w:
        for names, stride in ((("0", "1"), 2), (("3", "4"), 1), (("6", "7"), 1)):
            x = unit(w, x, f"{prefix}stem", names, stride)
    else:
        x = normed(w, convolved(w, x, f"{prefix}conv1", 2), f"{prefix}bn1").relu()
    yield x
    x = functional.max_pool2d(x, 3, 2, 1)
    for stage, (count, stride, dilation) in enumerate(zip(BLOCKS[depth], strides, dilated, strict=True), 1):
        for block in range(count):
            name, y = f"{prefix}layer{stage}.{block}", x
            step, gap = (stride, dilation[0]) if block == 0 else (1, dilation[1])
            last = 3 if depth >= 50 else 2
            strided = last - 1  # of a bottleneck the 3 x 3, of two 3 x 3 the first
            for k in range(1, last + 1):
                wide = w[f"{name}.conv{k}.weight"].shape[2] == 3
                y = convolved(w, y, f"{name}.conv{k}", step if k == strided else 1, gap if wide else 1)
                y = normed(w, y, f"{name}.bn{k}")
                y = y.relu() if k < last else y
            if f"{name}.downsample.0.weight" in w:
                x = normed(w, convolved(w, x, f"{name}.downsample.0", step), f"{name}.downsample.1")
            x = (x + y).relu()
        yield x


DILATED = (1, 2, 1, 1), ((1, 1), (1, 1), (1, 2), (2, 4))  # strides and dilations of output stride 8


def torchvision_deeplabv3(w: Weights, image: Tensor, depth: int) -> Tensor:
    *_, x = maps(w, image, "backbone.", depth, *DILATED)
    name = "classifier.0.convs"
    parts = [unit(w, x, f"{name}.{k}", dilation=rate) for k, rate in enumerate((1, 12, 24, 36))]
    mean = x.mean((2, 3), keepdim=True)
    parts.append(unit(w, mean, f"{name}.4", ("1", "2")).expand_as(parts[0]))
    x = unit(w, torch.cat(parts, 1), "classifier.0.project")
    return bilinear(convolved(w, unit(w, x, "classifier", ("1", "2")), "classifier.4"), image)


def torchvision_lraspp(w: Weights, image: Tensor) -> Tensor:
    def act(x: Tensor, hard: int) -> Tensor:
        return x * (x + 3).clamp(0, 6) / 6 if hard else x.relu()

    def step(x: Tensor, name: str, stride: int = 1, dilation: int = 1) -> Tensor:
        return normed(w, convolved(w, x, f"{name}.0", stride, dilation), f"{name}.1", 1e-3)

    x, low = act(step(image, "backbone.0", 2), 1), image
    for number, (_, wide, outputs, few, hard, stride) in enumerate(LARGE, 1):
        name, y, place = f"backbone.{number}.block", x, 0
        if wide != x.shape[1]:
            y, place = act(step(y, f"{name}.0"), hard), 1
        y = act(step(y, f"{name}.{place}", 1 if number >= 13 else stride, 2 if number >= 13 else 1), hard)
        if few:
            squeezed = convolved(w, y.mean((2, 3), keepdim=True), f"{name}.{place + 1}.fc1").relu()
            y = y * ((convolved(w, squeezed, f"{name}.{place + 1}.fc2") + 3).clamp(0, 6) / 6)
        y = step(y, f"{name}.{place + 1 + bool(few)}")
        x = x + y if stride == 1 and x.shape[1] == outputs else y
        low = x if number == 4 else low
    x = act(step(x, "backbone.16"), 1)
    scale = convolved(w, x.mean((2, 3), keepdim=True), "classifier.scale.1").sigmoid()
    high = bilinear(unit(w, x, "classifier.cbr") * scale, low)
    scores = convolved(w, low, "classifier.low_classifier") + convolved(w, high, "classifier.high_classifier")
    return bilinear(scores, image)


def smp_unet(w: Weights, image: Tensor, depth: int) -> Tensor:
    *skips, x = maps(w, image, "encoder.", depth, (1, 2, 2, 2), ((1, 1),) * 4)
    for k in range(5):
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        x = torch.cat([x, skips.pop()], 1) if skips else x
        x = unit(w, unit(w, x, f"decoder.blocks.{k}.conv1"), f"decoder.blocks.{k}.conv2")
    return convolved(w, x, "segmentation_head.0")


def smp_fpn(w: Weights, image: Tensor, depth: int) -> Tensor:
    _, *found = maps(w, image, "encoder.", depth, (1, 2, 2, 2), ((1, 1),) * 4)
    x, total = convolved(w, found[3], "decoder.p5"), torch.zeros(())
    for k in range(4):
        if k:
            x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
            x = x + convolved(w, found[3 - k], f"decoder.p{5 - k}.skip_conv")
        y = x
        for step in range(max(3 - k, 1)):
            name = f"decoder.seg_blocks.{k}.block.{step}.block"
            y = convolved(w, y, f"{name}.0")
            grouped = y.view(len(y), 32, -1)
            deviation = (grouped.var(2, unbiased=False, keepdim=True) + 1e-5).sqrt()
            y = ((grouped - grouped.mean(2, keepdim=True)) / deviation).view(y.shape)
            y = (y * w[f"{name}.1.weight"].view(1, -1, 1, 1) + w[f"{name}.1.bias"].view(1, -1, 1, 1)).relu()
            y = functional.interpolate(y, scale_factor=2.0, mode="bilinear", align_corners=True) if k < 3 else y
        total = total + y
    return bilinear(convolved(w, total, "segmentation_head.0"), image, True)


def smp_deeplabv3plus(w: Weights, image: Tensor, depth: int) -> Tensor:
    _, low, _, _, x = maps(w, image, "encoder.", depth, (1, 2, 2, 1), ((1, 1), (1, 1), (1, 1), (2, 2)))
    name = "decoder.aspp.0.convs"
    parts = [unit(w, x, f"{name}.0")]
    for k, rate in enumerate((12, 24, 36), 1):
        y = convolved(w, convolved(w, x, f"{name}.{k}.0.0", 1, rate), f"{name}.{k}.0.1")
        parts.append(normed(w, y, f"{name}.{k}.1").relu())
    parts.append(unit(w, x.mean((2, 3), keepdim=True), f"{name}.4", ("1", "2")).expand_as(parts[0]))
    x = unit(w, torch.cat(parts, 1), "decoder.aspp.0.project")
    x = normed(w, convolved(w, convolved(w, x, "decoder.aspp.1.0"), "decoder.aspp.1.1"), "decoder.aspp.2").relu()
    low = unit(w, low, "decoder.block1")
    x = torch.cat([bilinear(x, low, True), low], 1)
    x = normed(w, convolved(w, convolved(w, x, "decoder.block2.0.0"), "decoder.block2.0.1"), "decoder.block2.1").relu()
    return bilinear(convolved(w, x, "segmentation_head.0"), image, True)


def mmseg_head(w: Weights, image: Tensor, depth: int, kind: str) -> Tensor:
    *_, x = maps(w, image, "backbone.", depth, *DILATED)
    head, both = "decode_head", ("conv", "bn")
    if kind == "fcn":
        y = unit(w, unit(w, x, f"{head}.convs.0", both), f"{head}.convs.1", both)
        x = unit(w, torch.cat([x, y], 1), f"{head}.conv_cat", both)
    elif kind == "deeplabv3":
        wide = [unit(w, x, f"{head}.aspp_modules.{k}", both, 1, rate) for k, rate in enumerate((1, 12, 24, 36))]
        mean = unit(w, x.mean((2, 3), keepdim=True), f"{head}.image_pool.1", both).expand_as(wide[0])
        x = unit(w, torch.cat([mean, *wide], 1), f"{head}.bottleneck", both)
    else:
        grids = [functional.adaptive_avg_pool2d(x, bins) for bins in (1, 2, 3, 6)]
        parts = [bilinear(unit(w, g, f"{head}.psp_modules.{k}.1", both), x) for k, g in enumerate(grids)]
        x = unit(w, torch.cat([x, *parts], 1), f"{head}.bottleneck", both)
    return bilinear(convolved(w, x, f"{head}.conv_seg"), image)
