"""ResNets (He et al. 2016) on either family of layers: for ImageNet, and for small images (Section 4.1).

A network is a sequence of named parts, in the order in which the data pass them. Those for ImageNet are named as in
torchvision, so that the state dictionaries of conventional ones load into its networks and the other way round.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import cast

from torch import nn

from offset_equivariant.nn.families import Conventional, LayerFamily
from offset_equivariant.nn.shifted import FeatureMaps

#: Makes the shortcut of a block, given the family, the channels of input and output, and the stride.
Shortcut = Callable[[LayerFamily, int, int, int], nn.Module]


def parameter_free(family: LayerFamily, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """The identity, or where size or channels change He et al.'s option A."""
    return family.shortcut(in_channels, out_channels, stride)


def projected(family: LayerFamily, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """The identity, or where size or channels change He et al.'s option B, a 1x1 convolution and normalisation."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(
        family.conv2d(in_channels, out_channels, 1, stride, bias=False), family.batch_norm(out_channels)
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: ``(N, in, H, W)`` to ``(N, width, ⌈H/stride⌉, ⌈W/stride⌉)``.

    ``border`` is the padding of the convolution that follows, 0 if none does.
    """

    #: Channels of the output, in units of ``width``.
    expansion = 1
    #: Padding of the first convolution.
    padding = 1

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        family: LayerFamily,
        border: int = 1,
        bias: bool = True,
        shortcut: Shortcut = parameter_free,
    ) -> None:
        super().__init__()
        self.conv1 = family.conv2d(in_channels, width, 3, stride, padding=1, bias=bias)
        self.bn1 = family.batch_norm_relu(width, border=1)
        self.conv2 = family.conv2d(width, width, 3, padding=1, bias=bias)
        self.bn2 = family.batch_norm_relu(width, border=border)
        self.downsample = shortcut(family, in_channels, width, stride)

    @property
    def last_norm(self) -> nn.Module:
        """The normalisation before the merge."""
        return self.bn2

    def forward(self, x: FeatureMaps) -> FeatureMaps:
        branch = self.conv2(self.bn1(self.conv1(x)))
        return cast(FeatureMaps, self.bn2(branch, self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut: ``(N, in, H, W)`` to ``(N, 4 width, ⌈H/stride⌉, ⌈W/stride⌉)``.

    The stride is that of the 3x3 convolution, as in torchvision; He et al. have it in the first one. ``border`` is
    the padding of the convolution that follows.
    """

    expansion = 4
    padding = 0

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        family: LayerFamily,
        border: int = 0,
        bias: bool = False,
        shortcut: Shortcut = projected,
    ) -> None:
        super().__init__()
        out_channels = self.expansion * width
        self.conv1 = family.conv2d(in_channels, width, 1, bias=bias)
        self.bn1 = family.batch_norm_relu(width, border=1)
        self.conv2 = family.conv2d(width, width, 3, stride, padding=1, bias=bias)
        self.bn2 = family.batch_norm_relu(width)
        self.conv3 = family.conv2d(width, out_channels, 1, bias=bias)
        self.bn3 = family.batch_norm_relu(out_channels, border=border)
        self.downsample = shortcut(family, in_channels, out_channels, stride)

    @property
    def last_norm(self) -> nn.Module:
        """The normalisation before the merge."""
        return self.bn3

    def forward(self, x: FeatureMaps) -> FeatureMaps:
        branch = self.conv3(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        return cast(FeatureMaps, self.bn3(branch, self.downsample(x)))


Block = type[BasicBlock] | type[Bottleneck]


def _stages(
    block: Block,
    counts: Sequence[int],
    widths: Sequence[int],
    in_channels: int,
    family: LayerFamily,
    bias: bool,
    shortcut: Shortcut,
) -> list[nn.Sequential]:
    """Stages of so many blocks of these widths, the family's own; all but the first halve the image."""
    stages: list[nn.Sequential] = []
    for width, count in zip(widths, counts, strict=True):
        blocks: list[nn.Module] = []
        for position in range(count):
            stride = 2 if stages and not position else 1
            followed = len(stages) < len(widths) - 1 or position < count - 1
            border = block.padding if followed else 0
            blocks.append(block(in_channels, width, stride, family, border, bias, shortcut))
            in_channels = block.expansion * width
        stages.append(nn.Sequential(*blocks))
    return stages


class _ResNet(nn.Sequential):
    """What every ResNet has before, between and behind its stem and stages: ``(N, C, H, W)`` to ``(N, classes)``."""

    def __init__(
        self,
        family: LayerFamily,
        stem: Mapping[str, nn.Module],
        stages: Mapping[str, nn.Module],
        features: int,
        classes: int,
    ) -> None:
        parts: OrderedDict[str, nn.Module] = OrderedDict(
            entrance=family.entrance(),
            **stem,
            **stages,
            pool=family.global_average_pool(),
            fc=family.linear(features, family.score_features(classes)),
            scores=family.scores(),
        )
        super().__init__(parts)
        family.initialise_(self)


class ResNet(_ResNet):
    """ResNet for ImageNet, with projected shortcuts and without biases in its convolutions.

    Input ``(N, in_channels, H, W)``, output ``(N, classes)`` scores. A 7x7 convolution and max pooling quarter the
    image, and every stage but the first halves it and doubles the channels. The family rounds the channels of the first
    stage alone, 64 to 63 with three offset groups, and the others are doubles: so ResNet-50, ``ResNet(Bottleneck,
    (3, 4, 6, 3))``, has 25,557,032 parameters in conventional layers, and in offset equivariant ones the 28.8 million
    of Table 2, 28,831,107. Rounding every stage would give 29.7 million.

    Args:
        block: ``BasicBlock`` or ``Bottleneck``.
        counts: number of blocks of each stage.
        classes: number of classes.
        family: the layers to build it of.
        in_channels: channels of the input.
        width: factor on the 64 conventional channels of the first stage, and so on all.
        zero_init_last: start with γ = 0 in the last normalisation of every block, so that each block is its shortcut
            and a rectifier at first (Goyal et al. 2017); He et al. do not.

    Raises:
        ValueError: if ``counts`` is empty or not of positive numbers, or ``width`` leaves no channel.
    """

    def __init__(
        self,
        block: Block,
        counts: Sequence[int],
        classes: int = 1000,
        family: LayerFamily | None = None,
        in_channels: int = 3,
        width: float = 1.0,
        zero_init_last: bool = False,
    ) -> None:
        if not counts or min(counts) < 1:
            raise ValueError(f"counts = {tuple(counts)} must be one positive number of blocks a stage")
        if not round(64 * width) > 0:
            raise ValueError(f"width = {width} leaves no channel of the 64 of the first stage; give at least 1/64")
        family = family or Conventional()
        base = family.width(round(64 * width))
        widths = [base * 2**index for index in range(len(counts))]
        stem = {
            "conv1": family.conv2d(in_channels, base, 7, stride=2, padding=3, bias=False),
            "bn1": family.batch_norm_relu(base),
            "maxpool": family.max_pool2d(3, stride=2, padding=1),
        }
        stages = _stages(block, counts, widths, base, family, bias=False, shortcut=projected)
        named = {f"layer{number}": stage for number, stage in enumerate(stages, 1)}
        super().__init__(family, stem, named, block.expansion * widths[-1], classes)
        if zero_init_last:
            for module in self.modules():
                if isinstance(module, BasicBlock | Bottleneck):
                    nn.init.zeros_(cast(nn.Parameter, module.last_norm.weight))


class CifarResNet(_ResNet):
    """ResNet for small images, of depth 6n + 2 with three stages, option-A shortcuts and biases in its convolutions.

    Input ``(N, in_channels, H, W)``, output ``(N, classes)`` scores. ResNet-20 has 270,410 parameters in conventional
    layers and 267,294 in offset equivariant ones with three groups (Table 1).

    Args:
        depth: 20, 32, 44, 56, 110 or any other 6n + 2.
        classes: number of classes.
        family: the layers to build it of.
        in_channels: channels of the input.
        widths: conventional channels of the stages, each rounded by the family.

    Raises:
        ValueError: if ``depth`` is not 6n + 2.
    """

    def __init__(
        self,
        depth: int = 20,
        classes: int = 10,
        family: LayerFamily | None = None,
        in_channels: int = 3,
        widths: Sequence[int] = (16, 32, 64),
    ) -> None:
        family = family or Conventional()
        blocks_per_stage, remainder = divmod(depth - 2, 6)
        if remainder or blocks_per_stage < 1:
            raise ValueError(f"depth = {depth} is not 6n + 2; choose 20, 32, 44, 56 or 110")
        rounded = [family.width(channels) for channels in widths]
        stem = {
            "conv1": family.conv2d(in_channels, rounded[0], 3, padding=1),
            "bn1": family.batch_norm_relu(rounded[0], border=1),
        }
        counts = [blocks_per_stage] * len(rounded)
        stages = _stages(BasicBlock, counts, rounded, rounded[0], family, bias=True, shortcut=parameter_free)
        super().__init__(family, stem, {"stages": nn.Sequential(*stages)}, rounded[-1], classes)


#: Every ResNet by its name, to be called with ``classes``, ``family`` and the options of its class.
RESNETS: dict[str, partial[CifarResNet] | partial[ResNet]] = {
    **{f"resnet{depth}": partial(CifarResNet, depth) for depth in (8, 20, 32, 44, 56, 110)},
    "resnet18": partial(ResNet, BasicBlock, (2, 2, 2, 2)),
    "resnet34": partial(ResNet, BasicBlock, (3, 4, 6, 3)),
    "resnet50": partial(ResNet, Bottleneck, (3, 4, 6, 3)),
    "resnet101": partial(ResNet, Bottleneck, (3, 4, 23, 3)),
    "resnet152": partial(ResNet, Bottleneck, (3, 8, 36, 3)),
}
