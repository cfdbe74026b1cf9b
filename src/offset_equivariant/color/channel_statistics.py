"""Mean and standard deviation of the channels of images, for the normalisation of a network's input.

An 8-bit channel has 256 values, so that a histogram of each image says all that is needed, also where the clipping
looks at the channel's mean; linear images are summed value by value. Counts are exact, and moments are summed in double
precision: images can come in any order and in batches of any size, whole data sets through files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from offset_equivariant.color.log_rgb import AbsoluteClipping, RelativeClipping
from offset_equivariant.color.representation import Space, to_space
from offset_equivariant.color.srgb import srgb_lookup_table

_AT_ONCE = 2**24  # values, 128 MB of 64-bit integers


def byte_histograms(images: Tensor) -> Tensor:
    """Count the values of each channel of each image: uint8 (N, C, H, W) to int64 (N, C, 256).

    Raises:
        TypeError: if the images are not uint8.
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"images must be uint8, but are {images.dtype}")
    count, channels = images.shape[:2]
    parts = images.flatten(2).split(max(1, _AT_ONCE // max(1, images[0].numel()))) if count else ()
    histograms = torch.empty(count, channels, 256, dtype=torch.int64)
    first = 0
    for part in parts:
        rows = torch.arange(len(part) * channels).view(len(part), channels, 1) * 256
        counted = torch.bincount((part.cpu() + rows).flatten(), minlength=len(part) * channels * 256)
        histograms[first : first + len(part)] = counted.view(len(part), channels, 256)
        first += len(part)
    return histograms


class _Moments:
    """Sums of values and of their squares, by channel."""

    def __init__(self) -> None:
        self._sums: list[Tensor] = []

    def add(self, count: Tensor, total: Tensor, squares: Tensor) -> None:
        """Add to the number of values of each channel, (C,), to their sum, and to the sum of their squares."""
        added = [count, total, squares]
        self._sums = [old + new for old, new in zip(self._sums, added, strict=True)] if self._sums else added

    def result(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        if not self._sums or not bool((self._sums[0] > 0).all()):
            raise ValueError("there was no pixel to compute statistics of")
        count, total, squares = self._sums
        mean = total / count
        variance = squares / count - mean.square()
        return tuple(mean.tolist()), tuple(variance.clamp(min=0).sqrt().tolist())


class ChannelStatistics:
    """Collects the moments of each channel over all pixels of images that are given by their histograms.

    Args:
        space: colour space of the statistics.
        clipping: of log RGB, absolute or relative.

    Raises:
        ValueError: for a clipping that a histogram is not enough for.
    """

    def __init__(self, space: Space, clipping: Callable[[Tensor], Tensor] | None = None) -> None:
        if not (clipping is None or isinstance(clipping, AbsoluteClipping | RelativeClipping)):
            raise ValueError(f"clipping = {clipping!r} looks at pixels, not at values; give absolute or relative")
        self._space: Space = space
        self._clipping = clipping
        self._moments = _Moments()

    def update(self, histograms: Tensor) -> None:
        """Add images, int64 (N, C, 256), see `byte_histograms`."""
        counts = histograms.double()
        values = self._values(counts)
        self._moments.add(histograms.sum((0, 2)), (counts * values).sum((0, 2)), (counts * values**2).sum((0, 2)))

    def result(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and standard deviation of each channel.

        Raises:
            ValueError: if there was no pixel.
        """
        return self._moments.result()

    def _values(self, counts: Tensor) -> Tensor:
        """The space's value for each of the 256 bytes, (1, 1, 256), or (N, C, 256) where images differ."""
        linear = srgb_lookup_table(dtype=torch.float64)
        if isinstance(self._clipping, RelativeClipping):
            mean = (counts * linear).sum(2, keepdim=True) / counts.sum(2, keepdim=True)
            return -torch.maximum(linear, self._clipping.threshold(mean)).log()
        return to_space(linear.view(1, 1, 1, 256), self._space, self._clipping)[0]


class LinearStatistics:
    """Collects the moments of each channel of linear images, which are not counted by value.

    Args:
        space: ``linear``, over all pixels; or ``log_rgb``, over the pixels that hold light in every channel, which need
            no clipping.
    """

    def __init__(self, space: Literal["linear", "log_rgb"]) -> None:
        self._space = space
        self._moments = _Moments()

    def update(self, linear: Tensor) -> None:
        """Add images, (N, C, H, W)."""
        pixels = linear.double().permute(0, 2, 3, 1).flatten(0, 2)
        if self._space == "log_rgb":
            pixels = -pixels[(pixels > 0).all(1)].log()
        self._moments.add(torch.full((linear.shape[1],), len(pixels)), pixels.sum(0), pixels.square().sum(0))

    def result(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and standard deviation of each channel.

        Raises:
            ValueError: if there was no pixel.
        """
        return self._moments.result()


def channel_statistics(
    images: Tensor, space: Space, clipping: Callable[[Tensor], Tensor] | None = None, batch_size: int = 1000
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all pixels of uint8 sRGB images ``(N, 3, H, W)``."""
    statistics = ChannelStatistics(space, clipping)
    for batch in images.split(batch_size):
        statistics.update(byte_histograms(batch))
    return statistics.result()
