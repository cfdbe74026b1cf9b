"""Padding with the input's own values, which keeps offset equivariance at the border (Section 2.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

#: A constant, zero or other, would break equivariance at the border.
PADDING_MODES = ("replicate", "reflect", "circular")


def pad(x: Tensor, padding: Sequence[int], mode: str) -> Tensor:
    """Pad the last axes of ``x``, as :func:`torch.nn.functional.pad` does: two widths an axis, last axis first.

    Raises:
        ValueError: if ``mode`` is not one of ``PADDING_MODES``.
    """
    if mode not in PADDING_MODES:
        raise ValueError(f"padding mode {mode!r} is not one of {', '.join(PADDING_MODES)}")
    if not any(padding):
        return x
    # The compiler's model of the gradient of torch's replicate padding has other strides than the real one (seen in
    # torch 2.14): a network in channels-last, or one that the compiler lays out so, stops with an assertion.
    if mode == "replicate" and torch.compiler.is_compiling():
        return _replicate(x, padding)
    return F.pad(x, tuple(padding), mode)


def _replicate(x: Tensor, padding: Sequence[int]) -> Tensor:
    """Replicate padding of slices and concatenations, which a compiler fuses with what comes before and after."""
    for index in range(len(padding) // 2):
        axis = x.ndim - 1 - index
        before, after = padding[2 * index : 2 * index + 2]
        first, last = x.narrow(axis, 0, 1), x.narrow(axis, x.shape[axis] - 1, 1)
        x = torch.cat([first] * before + [x] + [last] * after, axis)
    return x


def write_border_(padded: Tensor) -> None:
    """Fill the border of one pixel of ``(N, C, H, W)`` with the nearest values inside it, in place."""
    inner = padded[:, :, 1:-1, 1:-1]
    height, width = inner.shape[2:]
    # The first and the last row, or column, at once: a step from one to the other selects both.
    padded[:, :, :: height + 1, 1:-1] = inner[:, :, :: max(height - 1, 1)]
    padded[:, :, :, :: width + 1] = padded[:, :, :, 1:-1][:, :, :, :: max(width - 1, 1)]


def fold_border_(inner: Tensor, padded: Tensor) -> None:
    """Add the border of ``padded`` to the outermost values of ``inner``: the gradient of :func:`write_border_`."""
    height, width = inner.shape[2:]
    rows = padded[:, :, :: height + 1]
    _add_to_ends_(folded := rows[:, :, :, 1:-1].clone(), rows[:, :, :, :: width + 1], 3)
    _add_to_ends_(inner, folded, 2)
    _add_to_ends_(inner, padded[:, :, 1:-1, :: width + 1], 3)


def _add_to_ends_(x: Tensor, ends: Tensor, axis: int) -> None:
    """Add two slices to the first and the last one along an axis, which may be the same."""
    if x.shape[axis] == 1:
        x += ends.sum(axis, keepdim=True)
        return
    chosen = [slice(None)] * x.ndim
    chosen[axis] = slice(None, None, x.shape[axis] - 1)
    x[tuple(chosen)] += ends
