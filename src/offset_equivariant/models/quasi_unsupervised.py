"""The network of quasi-unsupervised colour constancy: how much each pixel tells of the light (Bianco and Cusano 2019).

It stands for the paper's "preprocessing" strategy (Section 4.1.1), is trained apart from the networks whose images it
balances, and is conventional in every layer.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from offset_equivariant.color.achromatic import usable_pixels, weighted_estimate
from offset_equivariant.color.equalisation import INPUT_CHANNELS, code_input

_SLOPE, _DROPOUT = 0.2, 0.5
#: The widest layers have this many times the channels of the first.
_WIDEST = 8
#: Transposed convolutions at least this many halvings below the image have dropout behind them.
_DROPOUT_BELOW = 5
#: Of all images in one pass through the network: sixteen images of the original's size.
_PIXELS_AT_A_TIME = 2**20


class QuasiUnsupervised(nn.Module):
    """Coded images ``(N, 7, S, S)`` to the weights of their pixels, ``(N, 1, S, S)``, in (0, 1).

    A U-Net on what :func:`~offset_equivariant.color.code_input` makes of linear images. ``levels`` convolutions of 4x4
    with stride 2 and leaky rectifiers halve the image each, to a single pixel where S is 2 to the number of levels; as
    many transposed ones with rectifiers lead back, each but the first on the convolution's output of its own size
    beside what comes from below. All but the outermost two are followed by batch normalisation. The channels double
    from ``width`` up to 8 times that. The three innermost transposed convolutions of the original's eight have channel
    dropout; with fewer levels the innermost ones are left out, and so is their dropout.

    With the defaults it is the original for 256x256 pixels, of 54,420,481 parameters.

    Args:
        levels: convolutions on the way down, at least 2.
        width: channels of the first one.
        image_size: S, of the images that it is trained on; others are resized to it by :func:`estimate_illuminants`.

    Raises:
        ValueError: if ``levels`` is below 2, ``width`` is not positive, or ``image_size`` no positive multiple of 2 to
            the number of levels.
    """

    def __init__(self, levels: int = 8, width: int = 64, image_size: int = 256) -> None:
        super().__init__()
        if levels < 2:
            raise ValueError(f"levels = {levels} must be at least 2")
        if width < 1:
            raise ValueError(f"width = {width} must be at least 1")
        if image_size < 1 or image_size % (1 << levels):
            raise ValueError(
                f"image_size = {image_size} must be a positive multiple of {1 << levels}, 2 to the number of levels"
            )
        self.levels = levels
        self.image_size = image_size
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

    def forward(self, coded: Tensor) -> Tensor:
        """Weigh the pixels of coded images.

        Raises:
            ValueError: if height or width is no multiple of ``reduction``, or the images have another shape.
        """
        sides = coded.shape[2:]
        if coded.ndim != 4 or coded.shape[1] != INPUT_CHANNELS or any(side % self.reduction for side in sides):
            raise ValueError(
                f"coded images must have shape (N, {INPUT_CHANNELS}, H, W), H and W multiples of {self.reduction}, but "
                f"their shape is {tuple(coded.shape)}; resize and code them"
            )
        skipped: list[Tensor] = []
        for down in self.down:
            coded = down(coded)
            skipped.append(coded)
        features = skipped.pop()
        for up in self.up:
            features = up(features)
            if skipped:
                features = torch.cat([skipped.pop(), features], dim=1)
        return features.sigmoid()


@torch.no_grad()
def estimate_illuminants(network: QuasiUnsupervised, linear: Tensor) -> Tensor:
    """Estimate the light in images as the mean colour of their pixels by the network's weights.

    The images are resized, in linear RGB, to those that the network was trained on. Pixels without light in a channel
    do not count, see :func:`~offset_equivariant.color.usable_pixels`. The network is put in evaluation mode.

    Args:
        network: on the device of the images.
        linear: linear RGB, ``(N, 3, H, W)``, of any size.

    Returns:
        illuminants of unit norm, ``(N, 3)``; zero in channels without any light.
    """
    network.eval()
    size = network.image_size
    estimates = [_estimate(network, part, size) for part in linear.split(max(1, _PIXELS_AT_A_TIME // size**2))]
    return torch.cat(estimates) if estimates else linear.new_zeros(0, 3)


def _estimate(network: QuasiUnsupervised, linear: Tensor, size: int) -> Tensor:
    if linear.shape[2:] != (size, size):
        linear = F.interpolate(linear, (size, size), mode="bilinear", antialias=True)
    weights = network(code_input(linear))
    return weighted_estimate(linear, weights * usable_pixels(linear))


def _halving(before: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, kernel_size=4, stride=2, padding=1)


def _doubling(before: int, after: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(before, after, kernel_size=4, stride=2, padding=1)
