"""What a network is shown of an image: normalised sRGB, or normalised log RGB (Section 4.1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

from offset_equivariant.color.log_rgb import AbsoluteClipping, linear_to_log_rgb, log_rgb_to_linear
from offset_equivariant.color.srgb import linear_to_srgb, srgb_lookup_table, srgb_to_linear

Space = Literal["srgb", "linear", "log_rgb"]


@dataclass(frozen=True)
class Representation:
    """Colour space and normalisation of a network's input.

    Args:
        space: ``srgb`` (photographs) or ``linear`` (sensor values) for the original networks, ``log_rgb`` for the
            equivariant ones.
        mean: mean of each channel over the training pixels, in that space.
        std: standard deviation likewise.
        clipping: how zeros are kept from the logarithm, see :mod:`offset_equivariant.color.log_rgb`; for
            ``log_rgb`` only.

    Raises:
        ValueError: for an unknown space, a missing or superfluous clipping, or a ``std`` that is not positive.
    """

    space: Space
    mean: tuple[float, ...]
    std: tuple[float, ...]
    clipping: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.space not in get_args(Space):
            raise ValueError(f"space = {self.space!r} is not one of {', '.join(get_args(Space))}")
        if (self.clipping is None) == (self.space == "log_rgb"):
            raise ValueError(f"space = {self.space!r} and clipping = {self.clipping!r} do not fit: log_rgb needs one")
        if len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise ValueError(f"mean = {self.mean} and std = {self.std} must be as many, and std positive")

    def __call__(self, linear: Tensor) -> Tensor:
        """Map linear RGB in [0, 1], ``(N, 3, H, W)``, to the network's input of the same shape."""
        values = to_space(linear, self.space, self.clipping)
        mean, std = self._statistics(values)
        return (values - mean[:, None, None]) / std[:, None, None]

    def to_linear(self, values: Tensor) -> Tensor:
        """Map what a network is shown, or gives in that space and range, to linear RGB: the inverse but for clipping.

        Colours ``(N, 3)`` or images ``(N, 3, H, W)``.
        """
        mean, std = (part.view(-1, *[1] * (values.ndim - 2)) for part in self._statistics(values))
        values = values * std + mean
        if self.space == "srgb":
            return srgb_to_linear(values)
        return values if self.space == "linear" else log_rgb_to_linear(values)

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel, ``(3,)``, in the type and on the device of ``like``."""
        return like.new_tensor(self.mean), like.new_tensor(self.std)

    def from_srgb_bytes(self, images: Tensor) -> Tensor:
        """Map uint8 sRGB images ``(N, 3, H, W)`` to the network's input, by a table where each value stands alone."""
        if self.clipping is not None and not isinstance(self.clipping, AbsoluteClipping):
            return self(decode_srgb(images))
        table = _input_table(self, images.device)
        first_entries = torch.arange(0, table.numel(), 256, device=images.device, dtype=torch.int32)[:, None, None]
        return table[images + first_entries]


@lru_cache(maxsize=16)
def _input_table(representation: Representation, device: torch.device) -> Tensor:
    """The network's input for every 8-bit sRGB value: 256 entries for red, then green, then blue."""
    values = srgb_lookup_table(device).view(1, 1, 1, 256).expand(1, 3, 1, 256)
    return representation(values).flatten()


def to_space(linear: Tensor, space: Space, clipping: Callable[[Tensor], Tensor] | None) -> Tensor:
    """Convert linear RGB to ``space``, without normalisation."""
    if space == "srgb":
        return linear_to_srgb(linear)
    if space == "linear":
        return linear
    assert clipping is not None
    return linear_to_log_rgb(linear, clipping)


def decode_srgb(images: Tensor) -> Tensor:
    """Linear RGB in [0, 1] of uint8 sRGB images, any shape, by a table of 256 entries."""
    return srgb_lookup_table(images.device)[images.long()]
