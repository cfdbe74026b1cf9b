"""Convolutions whose kernel has one position alone, as of a whole image to a single pixel and back.

They are products of two matrices. As convolutions, torch's CPU kernels take six times as long over those of the Context
Encoder's bottleneck, of 33 million weights each.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def has_one_position(sizes: torch.Size, weight: Tensor, dilation: tuple[int, ...], groups: int) -> bool:
    """Whether a convolution of inputs of these sizes, padded, is :func:`whole_to_pixel`."""
    return groups == 1 and sizes == weight.shape[2:] and _all(dilation, 1)


def is_one_pixel(sizes: torch.Size, padding: tuple[int, ...], dilation: tuple[int, ...], groups: int) -> bool:
    """Whether a transposed convolution of inputs of these sizes is :func:`pixel_to_whole`."""
    return groups == 1 and _all(sizes, 1) and _all(padding, 0) and _all(dilation, 1)


def _all(numbers: tuple[int, ...], value: int) -> bool:
    """Whether all are it; symbolic sizes of a traced network, too, which no set can hold."""
    return all(number == value for number in numbers)


def whole_to_pixel(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve ``(N, m, *taps)`` with ``(n, m, *taps)``: ``(N, n, 1, ...)``."""
    last = _has_channels_last(weight)
    product = F.linear(_rows(input, last), _rows(weight, last), bias)
    return product.reshape(*product.shape, *(1 for _ in weight.shape[2:]))


def pixel_to_whole(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve, transposed, ``(N, m, 1, ...)`` with ``(m, n, *taps)``: ``(N, n, *taps)``."""
    last = _has_channels_last(weight)
    outputs, taps = weight.shape[1], weight.shape[2:]
    product = input.flatten(1) @ _rows(weight, last)
    shape = (*taps, outputs) if last else (outputs, *taps)
    whole = product.reshape(-1, *shape)
    whole = whole.movedim(-1, 1) if last else whole
    return whole if bias is None else whole + bias.reshape(-1, *(1 for _ in taps))


def _has_channels_last(weight: Tensor) -> bool:
    """Whether flattening channels first would copy the weight, and flattening them last would not."""
    return not weight.is_contiguous() and weight.movedim(1, -1).is_contiguous()


def _rows(tensor: Tensor, channels_last: bool) -> Tensor:
    return (tensor.movedim(1, -1) if channels_last else tensor).flatten(1)


class Conv2d(nn.Conv2d):
    """torch's, but for what the module is about."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        one = has_one_position(input.shape[2:], weight, self.dilation, self.groups)
        if one and not isinstance(self.padding, str) and not any(self.padding):
            return whole_to_pixel(input, weight, bias)
        convolved: Tensor = super()._conv_forward(input, weight, bias)
        return convolved


class ConvTranspose2d(nn.ConvTranspose2d):
    """torch's, but for what the module is about."""

    def forward(self, input: Tensor, output_size: Any = None) -> Tensor:
        assert isinstance(self.padding, tuple)
        plain = output_size is None and not any(self.output_padding)
        if plain and is_one_pixel(input.shape[2:], self.padding, self.dilation, self.groups):
            return pixel_to_whole(input, self.weight, self.bias)
        convolved: Tensor = super().forward(input, output_size)
        return convolved
