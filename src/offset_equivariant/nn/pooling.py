"""Pooling over pixels (Section 2.3) and over groups (Section 2.4, Eq. 18)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from offset_equivariant.groups import (
    at_least_single,
    channels_per_group,
    group_mean,
    require_offset_groups,
    split_groups,
)
from offset_equivariant.nn.constraint import Constraint
from offset_equivariant.nn.layers import Linear
from offset_equivariant.nn.precision import autocasts
from offset_equivariant.nn.shifted import ShiftedFeatures, require_tensor

# Max pooling pads with minus infinity, which never wins, and adaptive pooling pads nothing: torch's own are
# equivariant as they are. Average pooling is, unless it counts padded zeros.
MaxPool1d = nn.MaxPool1d
MaxPool3d = nn.MaxPool3d
AdaptiveAvgPool1d = nn.AdaptiveAvgPool1d
AdaptiveAvgPool2d = nn.AdaptiveAvgPool2d
AdaptiveAvgPool3d = nn.AdaptiveAvgPool3d
AdaptiveMaxPool1d = nn.AdaptiveMaxPool1d
AdaptiveMaxPool2d = nn.AdaptiveMaxPool2d
AdaptiveMaxPool3d = nn.AdaptiveMaxPool3d


class MaxPool2d(nn.MaxPool2d):
    """torch's, of tensors ``(N, C, H, W)`` or of :class:`~offset_equivariant.nn.shifted.ShiftedFeatures`.

    The largest of values that are all moved alike is the largest of the values, moved.
    """

    def forward(self, input: Any) -> Any:
        """Return the largest value of every window.

        Raises:
            ValueError: if the indices of :class:`ShiftedFeatures` are asked for.
        """
        if not isinstance(input, ShiftedFeatures):
            return super().forward(input)
        if self.return_indices:
            raise ValueError("return_indices=True is for tensors, not for ShiftedFeatures; pass on .joined()")
        return input._replace(values=super().forward(input.values), padded=None)


class _AvgPool(nn.Module):
    """Refuses to count the zeros of the padding, by default torch's behaviour (Section 2.3)."""

    def __init__(
        self,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] | None = None,
        padding: int | tuple[int, ...] = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = False,
    ) -> None:
        padded = padding != 0 if isinstance(padding, int) else any(padding)
        if padded and count_include_pad:
            raise ValueError("count_include_pad=True averages padded zeros, which breaks offset equivariance")
        arguments: tuple[Any, ...] = (kernel_size, stride, padding, ceil_mode, False)
        super().__init__(*arguments)

    def forward(self, input: Tensor) -> Tensor:
        averaged: Tensor = super().forward(require_tensor(input))
        return averaged


class AvgPool1d(_AvgPool, nn.AvgPool1d):
    """Average pooling over windows of ``(N, C, L)``, padded positions left out of the average.

    Raises:
        ValueError: if padded positions are to be counted.
    """


class AvgPool2d(_AvgPool, nn.AvgPool2d):
    """Average pooling over windows of ``(N, C, H, W)``; see :class:`AvgPool1d`."""


class AvgPool3d(_AvgPool, nn.AvgPool3d):
    """Average pooling over windows of ``(N, C, D, H, W)``; see :class:`AvgPool1d`."""


class _GroupPooling(nn.Module):
    """What the group poolings without parameters share."""

    def __init__(self, offset_groups: int = 3) -> None:
        super().__init__()
        require_offset_groups(offset_groups)
        self.offset_groups = offset_groups

    def extra_repr(self) -> str:
        return f"offset_groups={self.offset_groups}"


class GroupMean(_GroupPooling):
    """Average group pooling: the mean over a group's channels and all pixels, ``(N, C, *spatial)`` to ``(N, g)``."""

    def forward(self, x: Tensor) -> Tensor:
        return group_mean(x, self.offset_groups)


class GroupMax(_GroupPooling):
    """Maximum group pooling: the largest value of a group's channels and all pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return split_groups(x, self.offset_groups).flatten(2).amax(2)


class GroupMin(_GroupPooling):
    """Minimum group pooling: the smallest value of a group's channels and all pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return split_groups(x, self.offset_groups).flatten(2).amin(2)


class GroupLinear(nn.Module):
    """Learned linear group pooling: one constrained combination (Eq. 10) of the channels' means a group.

    Starts as the average. ``(N, channels, *spatial)`` to ``(N, g)``.

    Raises:
        ValueError: if ``channels`` is not divisible by ``offset_groups``.
    """

    def __init__(self, channels: int, offset_groups: int = 3, constraint: Constraint = "parametrization") -> None:
        super().__init__()
        channels_per_group(channels, offset_groups)
        self.offset_groups = offset_groups
        self.combination = Linear(
            channels, offset_groups, bias=False, offset_groups=offset_groups, constraint=constraint
        )
        self.start_as_average_()

    @torch.no_grad()
    def start_as_average_(self) -> None:
        """Set the combination to the mean of each group's channels."""
        self.combination._free_weight().zero_()
        self.combination.project_()

    def forward(self, x: Tensor) -> Tensor:
        x = require_tensor(x)
        means = x.flatten(2).mean(2, dtype=at_least_single(x.dtype)) if x.ndim > 2 else x
        pooled: Tensor = self.combination(means if autocasts(x) else means.to(x.dtype))
        return pooled


GROUP_POOLINGS: dict[str, type[_GroupPooling]] = {"mean": GroupMean, "max": GroupMax, "min": GroupMin}


def make_group_pooling(name: str, offset_groups: int) -> nn.Module:
    """Return the parameterless group pooling of that name: ``mean``, ``max`` or ``min``.

    Raises:
        ValueError: for another name, listing the valid ones.
    """
    if name not in GROUP_POOLINGS:
        raise ValueError(
            f"group pooling {name!r} is not one of {', '.join(GROUP_POOLINGS)}; a learned one is passed as a module, "
            "GroupLinear(channels)"
        )
    return GROUP_POOLINGS[name](offset_groups)
