"""ResNet for small images (He et al. 2016, Section 4.2), on either family of layers (Section 4.1.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from offset_equivariant.nn.families import Conventional, LayerFamily
from offset_equivariant.nn.shifted import FeatureMaps


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: ``(N, in, H, W)`` to ``(N, out, ⌈H/stride⌉, ⌈W/stride⌉)``.

    ``border`` is the padding of the convolution that follows, 0 if none does.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, family: LayerFamily, border: int = 1) -> None:
        super().__init__()
        self.conv1 = family.conv2d(in_channels, out_channels, 3, stride, padding=1)
        self.bn1 = family.batch_norm_relu(out_channels, border=1)
        self.conv2 = family.conv2d(out_channels, out_channels, 3, padding=1)
        self.bn2 = family.batch_norm_relu(out_channels, border=border)
        self.shortcut = family.shortcut(in_channels, out_channels, stride)

    def forward(self, x: FeatureMaps) -> FeatureMaps:
        branch = self.conv2(self.bn1(self.conv1(x)))
        return cast(FeatureMaps, self.bn2(branch, self.shortcut(x)))


class CifarResNet(nn.Module):
    """ResNet of depth 6n + 2 with three stages, option-A shortcuts and biases in its convolutions.

    Input ``(N, in_channels, H, W)``, output ``(N, classes)`` scores. ResNet-20 has 270,410 parameters in conventional
    layers and 267,294 in offset equivariant ones with three groups (Table 1).

    Args:
        depth: 20, 32, 44, 56, 110 or any other 6n + 2.
        classes: number of classes.
        family: the layers to build it of.
        in_channels: channels of the input.
        widths: conventional channels of the stages, rounded by the family.

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
        super().__init__()
        family = family or Conventional()
        blocks_per_stage, remainder = divmod(depth - 2, 6)
        if remainder or blocks_per_stage < 1:
            raise ValueError(f"depth = {depth} is not 6n + 2; choose 20, 32, 44, 56 or 110")
        channels = family.width(widths[0])
        self.entrance = family.entrance()
        self.conv1 = family.conv2d(in_channels, channels, 3, padding=1)
        self.bn1 = family.batch_norm_relu(channels, border=1)
        stages = []
        for index, width in enumerate(map(family.width, widths)):
            blocks = []
            for block in range(blocks_per_stage):
                last = index == len(widths) - 1 and block == blocks_per_stage - 1
                stride = 2 if index and not block else 1
                blocks.append(BasicBlock(channels, width, stride, family, border=0 if last else 1))
                channels = width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.pool = family.global_average_pool()
        self.fc = family.linear(channels, family.score_features(classes))
        self.scores = family.scores()
        family.initialise_(self)

    def forward(self, x: Tensor) -> Tensor:
        features = self.stages(self.bn1(self.conv1(self.entrance(x))))
        return cast(Tensor, self.scores(self.fc(self.pool(features))))
