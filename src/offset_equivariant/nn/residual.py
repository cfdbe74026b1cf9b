"""Residual merges and parameter-free shortcuts (Section 4.1, Eq. 26 and 27)."""

from __future__ import annotations

from typing import Any, Literal, get_args

from torch import Tensor, nn

from offset_equivariant.groups import (
    add_offset,
    channels_per_group,
    expand_groups,
    group_mean,
    require_offset_groups,
    split_groups,
)
from offset_equivariant.nn.shifted import ShiftedFeatures, require_groups, without_offset

ShortcutPadding = Literal["inside_groups", "end"]


class ResidualMerge(nn.Module):
    """y = f(x) + x - Gφ(x), φ the average group pooling (Eq. 27).

    Exactly one group mean is subtracted: the coefficients of the three equivariant terms sum to one (Eq. 5).
    """

    def __init__(self, *, offset_groups: int = 3) -> None:
        super().__init__()
        require_offset_groups(offset_groups)
        self.offset_groups = offset_groups

    def forward(self, branch: Tensor, shortcut: Tensor) -> Tensor:
        """Merge f(x), ``branch``, with x, ``shortcut``, both ``(N, C, *spatial)``.

        Raises:
            ValueError: if their shapes differ.
        """
        if branch.shape != shortcut.shape:
            raise ValueError(f"the shortcut has shape {tuple(shortcut.shape)}, the branch {tuple(branch.shape)}")
        return branch + add_offset(shortcut, -group_mean(shortcut, self.offset_groups))

    def extra_repr(self) -> str:
        return f"offset_groups={self.offset_groups}"


class OptionAShortcut(nn.Module):
    """The parameter-free shortcut of He et al. (their option A), made equivariant.

    ``(N, in, H, W)`` to ``(N, out, ⌈H/s⌉, ⌈W/s⌉)``.

    Pixels are subsampled, and the channels that are missing filled with their group's mean, which is what zero is to
    an ordinary network: the merge of Eq. 27 takes it away again.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output, not fewer.
        stride: keep every stride-th row and column.
        offset_groups: number of offset groups.
        padding: ``inside_groups`` adds the new channels at the end of every group, so that each old channel stays in
            its own; ``end`` adds them behind all others, as the ordinary network does, so that most old channels
            move into another colour's group (their offset is exchanged for their new group's).

    Raises:
        ValueError: if channel counts do not fit the groups or each other, or for an unknown ``padding``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        *,
        offset_groups: int = 3,
        padding: ShortcutPadding = "inside_groups",
    ) -> None:
        super().__init__()
        if padding not in get_args(ShortcutPadding):
            raise ValueError(f"padding = {padding!r} is not one of {', '.join(get_args(ShortcutPadding))}")
        if out_channels < in_channels:
            raise ValueError(f"out_channels = {out_channels} must not be fewer than in_channels = {in_channels}")
        self.added = channels_per_group(out_channels, offset_groups, "out_channels") - channels_per_group(
            in_channels, offset_groups, "in_channels"
        )
        self.stride = stride
        self.offset_groups = offset_groups
        self.padding = padding

    def forward(self, x: Any) -> Any:
        """Map a tensor, or :class:`~offset_equivariant.nn.shifted.ShiftedFeatures`, which stay such."""
        if not isinstance(x, ShiftedFeatures):
            return self._shortened(without_offset(x, self.offset_groups)).joined()
        return self._shortened(x)

    def _shortened(self, x: ShiftedFeatures) -> ShiftedFeatures:
        require_groups(x, self.offset_groups)
        x = x._replace(values=x.values[:, :, :: self.stride, :: self.stride], padded=None)
        mean = group_mean(x.channel_means(), self.offset_groups)
        # New channels have the value zero and the shift mean; those that move into another group leave their mean.
        centred = self._with_new_channels((x.shift - expand_groups(mean, x.shape[1]))[..., None, None])[..., 0, 0]
        values = self._with_new_channels(x.values)
        return ShiftedFeatures(values, centred + expand_groups(mean, values.shape[1]), x.offset)

    def _with_new_channels(self, x: Tensor) -> Tensor:
        if self.padding == "end":
            return nn.functional.pad(x, (0, 0, 0, 0, 0, self.added * self.offset_groups))
        grouped = split_groups(x, self.offset_groups)
        return nn.functional.pad(grouped, (0, 0, 0, 0, 0, self.added)).flatten(1, 2)

    def extra_repr(self) -> str:
        return f"added={self.added * self.offset_groups}, stride={self.stride}, padding={self.padding!r}"


class ConventionalOptionAShortcut(nn.Module):
    """Option A of He et al.: pixels subsampled, missing channels zero; shapes as :class:`OptionAShortcut`."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        if out_channels < in_channels:
            raise ValueError(f"out_channels = {out_channels} must not be fewer than in_channels = {in_channels}")
        self.added = out_channels - in_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added))

    def extra_repr(self) -> str:
        return f"added={self.added}, stride={self.stride}"
