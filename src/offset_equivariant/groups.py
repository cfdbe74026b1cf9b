"""Offset groups: which channel belongs to which group, and what an offset does (Section 2, Eq. 2, 3, 18 and 25).

Channels are assigned to groups in equal, contiguous runs (Eq. 25): with 15 channels and 3 groups, channels 0-4 are
the first group, 5-9 the second and 10-14 the third. Tensors are laid out as in torch, ``(N, C, *spatial)``.
"""

from __future__ import annotations

from numbers import Integral

import torch
from torch import Tensor


def nearest_multiple(channels: int, offset_groups: int) -> int:
    """Return the multiple of ``offset_groups`` nearest to ``channels``, at least one channel a group (Section 4).

    Half-way cases round up: a network is rather a little larger than a little smaller.
    """
    return max(1, (2 * channels + offset_groups) // (2 * offset_groups)) * offset_groups


def require_offset_groups(offset_groups: int) -> None:
    """Refuse what cannot be a number of groups.

    Raises:
        ValueError: if ``offset_groups`` is no whole number, or not positive.
    """
    if not isinstance(offset_groups, Integral) or isinstance(offset_groups, bool) or offset_groups < 1:
        raise ValueError(f"offset_groups must be a whole number of at least 1, got {offset_groups!r}")


def channels_per_group(channels: int, offset_groups: int, name: str = "channels") -> int:
    """Return how many channels each group has.

    Raises:
        ValueError: if ``offset_groups`` is not positive or does not divide ``channels``; the message names the
            quantity, both numbers and the nearest valid ones.
    """
    require_offset_groups(offset_groups)
    if channels < 1 or channels % offset_groups:
        below = max(channels, 0) // offset_groups * offset_groups
        valid = " or ".join(str(n) for n in (below, below + offset_groups) if n > 0)
        raise ValueError(
            f"{name} = {channels} cannot be split evenly into offset_groups = {offset_groups}; "
            f"the nearest valid number of channels is {valid}"
        )
    return channels // offset_groups


def assignment_matrix(
    channels: int, offset_groups: int, *, dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> Tensor:
    """Return the assignment matrix G of Eq. 3 and 25, shape ``(channels, offset_groups)``, of zeros and ones."""
    size = channels_per_group(channels, offset_groups)
    return torch.eye(offset_groups, dtype=dtype, device=device).repeat_interleave(size, dim=0)


def split_groups(x: Tensor, offset_groups: int) -> Tensor:
    """View ``(N, C, *spatial)`` as ``(N, offset_groups, C // offset_groups, *spatial)``.

    Raises:
        ValueError: if ``x`` has no channel axis, or its channels are not divisible by the groups.
    """
    if not isinstance(x, Tensor):
        advice = "of feature maps with their offset beside them, give .joined()"
        if type(x).__name__ == "Proxy":
            advice = "to torch.fx give the classes in nn.LEAF_MODULES as leaf modules"
        raise TypeError(f"expected a tensor, got {type(x).__name__}; {advice}")
    if x.ndim < 2:
        raise ValueError(f"expected a batch with channels, (N, C, ...), got a tensor of shape {tuple(x.shape)}")
    channels_per_group(x.shape[1], offset_groups)
    groups: Tensor = x.unflatten(1, (offset_groups, -1))
    return groups


def at_least_single(dtype: torch.dtype) -> torch.dtype:
    """Return the type that group means and offsets are computed in: ``dtype``, but single precision for lower ones."""
    return torch.promote_types(dtype, torch.float32)


def group_mean(x: Tensor, offset_groups: int) -> Tensor:
    """Average group pooling φ (Eq. 18): ``(N, C, *spatial)`` to ``(N, offset_groups)``, in at least single precision.

    One number an image and group: the mean over the group's channels and over all pixels.
    """
    return split_groups(x, offset_groups).flatten(2).mean(2, dtype=at_least_single(x.dtype))


def expand_groups(values: Tensor, channels: int) -> Tensor:
    """Return G·values: ``(N, g)`` to ``(N, channels)``, each channel getting its group's value."""
    return values.repeat_interleave(channels_per_group(channels, int(values.shape[-1])), dim=-1)


def add_offset(x: Tensor, offset: Tensor) -> Tensor:
    """Return x + GΔ (Eq. 2), of less than single precision if ``x`` is; only the sum is rounded then.

    Args:
        x: ``(N, C, *spatial)``.
        offset: Δ, ``(N, g)`` for one offset an image, or ``(g,)`` for the same in all.

    Raises:
        ValueError: if C is not divisible by g, or the batch sizes differ.
    """
    offset = offset.expand(x.shape[0], -1) if offset.ndim == 1 else offset
    if offset.ndim != 2 or offset.shape[0] != x.shape[0]:
        raise ValueError(f"offset of shape {tuple(offset.shape)} does not fit a batch of shape {tuple(x.shape)}")
    per_channel = expand_groups(offset, x.shape[1])
    moved = x + per_channel.reshape(*per_channel.shape, *(1,) * (x.ndim - 2))
    return moved.to(x.dtype) if x.dtype in (torch.bfloat16, torch.float16) else moved
