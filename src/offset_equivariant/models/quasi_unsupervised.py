"""The network of quasi-unsupervised colour constancy: how much each pixel tells of the light (Bianco and Cusano 2019).

It stands for the paper's "preprocessing" strategy (Section 4.1.1), is trained apart from the networks whose images it
balances, and is conventional in every layer.
"""

from __future__ import annotations

import itertools
from typing import cast

import torch
from torch import Tensor, nn

from offset_equivariant.color.equalisation import INPUT_CHANNELS, code_input

_SLOPE, _DROPOUT = 0.2, 0.5
#: The widest layers have this many times the channels of the first.
_WIDEST = 8
#: Transposed convolutions at least this many halvings below the image have dropout behind them.
_DROPOUT_BELOW = 5


class QuasiUnsupervised(nn.Module):
    """Linear images ``(N, 3, S, S)`` to the weights of their pixels, ``(N, 1, S, S)``, in (0, 1).

    A U-Net on the channels of :func:`~offset_equivariant.color.code_input`. ``levels`` convolutions of 4x4 with stride
    2 and leaky rectifiers halve the image each, to a single pixel where S is 2 to the number of levels; as many
    transposed ones with rectifiers lead back, each but the first on the convolution's output of its own size beside
    what comes from below. All but the outermost two are followed by batch normalisation. The channels double from
    ``width`` up to 8 times that. Three innermost transposed convolutions of the original's eight have channel dropout;
    with fewer levels the innermost ones are left out, and so is their dropout.

    With the defaults it is the original for 256x256 pixels, of 54,420,481 parameters.

    Args:
        levels: convolutions on the way down, at least 2.
        width: channels of the first one.

    Raises:
        ValueError: if ``levels`` is below 2, or ``width`` is not positive.
    """

    def __init__(self, levels: int = 8, width: int = 64) -> None:
        super().__init__()
        if levels < 2:
            raise ValueError(f"levels = {levels} must be at least 2")
        if width < 1:
            raise ValueError(f"width = {width} must be at least 1")
        self.levels = levels
        sizes = [width * min(2**level, _WIDEST) for level in range(levels)]
        self.down = nn.ModuleList([nn.Sequential(_halving(INPUT_CHANNELS, sizes[0]), nn.LeakyReLU(_SLOPE))])
        for before, after in itertools.pairwise(sizes):
            self.down.append(nn.Sequential(_halving(before, after), nn.BatchNorm2d(after), nn.LeakyReLU(_SLOPE)))
        self.up = nn.ModuleList()
        for level in range(levels - 1, 0, -1):
            beside = 1 if level == levels - 1 else 2
            layers: list[nn.Module] = [_doubling(beside * sizes[level], sizes[level - 1])]
            layers.append(nn.BatchNorm2d(sizes[level - 1]))
            if level >= _DROPOUT_BELOW:
                layers.append(nn.Dropout2d(_DROPOUT))
            self.up.append(nn.Sequential(*layers, nn.ReLU()))
        self.up.append(_doubling(2 * sizes[0], 1))

    @property
    def reduction(self) -> int:
        """Height and width of the images must be multiples of this; the original's are equal to it."""
        return 1 << self.levels

    def forward(self, linear: Tensor) -> Tensor:
        """Weigh the pixels of linear images.

        Raises:
            ValueError: if height or width is no multiple of ``reduction``, or the images have another shape.
        """
        if linear.ndim != 4 or any(side % self.reduction for side in linear.shape[2:]):
            raise ValueError(
                f"images must have shape (N, 3, H, W), H and W multiples of {self.reduction}, but their shape is "
                f"{tuple(linear.shape)}; resize them"
            )
        return self.weigh(code_input(linear))

    def weigh(self, coded: Tensor) -> Tensor:
        """Weigh the pixels of images that are coded already, ``(N, 7, H, W)``."""
        skipped: list[Tensor] = []
        for down in self.down:
            coded = down(coded)
            skipped.append(coded)
        features = skipped.pop()
        for up in self.up:
            features = up(features)
            if skipped:
                features = torch.cat([skipped.pop(), features], dim=1)
        return cast(Tensor, features.sigmoid())


def _halving(before: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, kernel_size=4, stride=2, padding=1)


def _doubling(before: int, after: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(before, after, kernel_size=4, stride=2, padding=1)
