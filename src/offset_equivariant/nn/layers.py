"""Offset equivariant linear and convolution layers (Sections 2.1 and 2.2).

Signatures follow torch's, with ``offset_groups`` and ``constraint`` added. torch's own ``groups`` keeps its meaning.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from offset_equivariant.groups import channels_per_group, expand_groups
from offset_equivariant.nn.constraint import ConstrainedWeight, Constraint, OffsetConstraint
from offset_equivariant.nn.one_position import has_one_position, whole_to_pixel
from offset_equivariant.nn.padding import PADDING_MODES, pad
from offset_equivariant.nn.precision import is_autocast_on, past_low_precision, rounds_operands
from offset_equivariant.nn.shifted import ShiftedFeatures, require_groups, require_tensor, without_offset

#: Pads with the features' own offset.
OFFSET_PADDING = "offset"


class Linear(ConstrainedWeight, nn.Linear):
    """Offset equivariant linear layer (Eq. 7 with the constraint of Eq. 10): ``(..., in)`` to ``(..., out)``.

    As torch's, it takes the last axis for the channels; all other layers take the second one, ``(N, C, ...)``. Between
    them move it, ``x.movedim(-1, 1)``, unless there are only the two.

    Raises:
        ValueError: if ``in_features`` or ``out_features`` is not divisible by ``offset_groups``.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        offset_groups: int = 3,
        constraint: Constraint = "parametrization",
    ) -> None:
        channels_per_group(in_features, offset_groups, "in_features")
        channels_per_group(out_features, offset_groups, "out_features")
        super().__init__(in_features, out_features, bias, device, dtype)
        self._constrain(OffsetConstraint(offset_groups), constraint)

    def forward(self, input: Tensor) -> Tensor:
        if not rounds_operands(require_tensor(input)):
            return super().forward(input)
        rows = input.reshape(-1, input.shape[-1])
        wide = past_low_precision(super().forward, rows, self.offset_groups)
        return wide.reshape(*input.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, offset_groups={self.offset_groups}, constraint={self.constraint!r}"


def require_torch_groups(channels: int, groups: int, offset_groups: int, name: str) -> None:
    """Refuse channels that torch's ``groups`` do not divide, naming the nearest that both kinds of groups divide."""
    if groups < 1:
        raise ValueError(f"groups must be at least 1, got {groups}")
    if channels % groups:
        both = math.lcm(groups, offset_groups)
        below = channels // both * both
        valid = " or ".join(str(count) for count in (below, below + both) if count)
        raise ValueError(
            f"{name} = {channels} cannot be split evenly into groups = {groups}; the nearest valid number of channels, "
            f"with offset_groups = {offset_groups}, is {valid}"
        )


class _Conv(ConstrainedWeight):
    """What the convolutions of one, two and three dimensions share.

    ``padding_mode`` is one of torch's but ``zeros``, or ``offset``, which is what zeros are to an ordinary network:
    zeros beside the offset, of :class:`~offset_equivariant.nn.shifted.ShiftedFeatures` those of their values (so the
    output of a rectifier is padded with the level at which it rectifies), of a tensor its group means φ(x). As
    equivariant as the others, and the convolution pads by itself.
    """

    _convolve: ClassVar[Callable[..., Tensor]]
    _reversed_padding_repeated_twice: list[int]
    padding_mode: Literal["zeros", "reflect", "replicate", "circular"]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | str = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "replicate",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        offset_groups: int = 3,
        constraint: Constraint = "parametrization",
    ) -> None:
        channels_per_group(in_channels, offset_groups, "in_channels")
        channels_per_group(out_channels, offset_groups, "out_channels")
        for name, count in (("in_channels", in_channels), ("out_channels", out_channels)):
            require_torch_groups(count, groups, offset_groups, name)
        if padding_mode not in (*PADDING_MODES, OFFSET_PADDING):
            raise ValueError(
                f"padding_mode = {padding_mode!r} would break offset equivariance at the border (Section 2.2); "
                f"choose one of {', '.join((*PADDING_MODES, OFFSET_PADDING))}"
            )
        arguments: tuple[Any, ...] = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        super().__init__(*arguments, bias, "zeros" if padding_mode == OFFSET_PADDING else padding_mode, device, dtype)
        self.padding_mode = cast(Any, padding_mode)
        self._pads_with_offset = padding_mode == OFFSET_PADDING
        self._constrain(OffsetConstraint(offset_groups, groups), constraint)

    def forward(self, input: Any) -> Any:
        """Convolve a tensor, or :class:`~offset_equivariant.nn.shifted.ShiftedFeatures`, which stay such."""
        weight, bias = self.weight, cast("Tensor | None", self.bias)
        if not isinstance(input, ShiftedFeatures):
            beside = self._pads_with_offset or (self.holds_scaled_weight and rounds_operands(input))
            if beside and input.ndim == weight.ndim:
                return self.forward(self._beside_offset(input)).joined()
            if not rounds_operands(input):
                return self._conv_forward(input, weight, bias)
            return past_low_precision(lambda x: self._conv_forward(x, weight, bias), input, self.offset_groups)
        require_groups(input, self.offset_groups)
        if self._pads_with_offset:
            values = self._convolve(input.values, weight, None, self.stride, self.padding, self.dilation, self.groups)
        elif self.padding_mode == "replicate" and set(self._reversed_padding_repeated_twice) == {input.border}:
            source = input.values if input.padded is None else input.padded
            values = self._convolve(source, weight, None, self.stride, 0, self.dilation, self.groups)
        else:
            values = self._conv_forward(input.values, weight, None)
        return ShiftedFeatures(values, self._shifted(input.shift, weight, bias), input.offset)

    def _beside_offset(self, input: Tensor) -> ShiftedFeatures:
        """The group means of a tensor beside the rest of it."""
        x = without_offset(input, self.offset_groups)
        if not self.holds_scaled_weight:
            return x
        # Scaled weights pass no offset on as it is, but any shift as they would pass it in the values.
        return x._replace(shift=expand_groups(x.offset, input.shape[1]), offset=torch.zeros_like(x.offset))

    def _shifted(self, shift: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The shift of the output: a constant image meets, at every pixel, the sum of the taps."""
        if is_autocast_on(shift.device.type):
            with torch.autocast(shift.device.type, enabled=False):
                return self._shifted(shift, weight, bias)
        summed = weight.to(shift.dtype).flatten(2).sum(2)
        bias = None if bias is None else bias.to(shift.dtype)
        if self.groups == 1:
            return F.linear(shift, summed, bias)
        wide: Tensor = F.conv1d(shift[..., None], summed[..., None], bias, groups=cast(int, self.groups))
        return wide[..., 0]

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if input.ndim != weight.ndim:
            raise ValueError(f"expected a batch (N, C, ...) of {weight.ndim} axes, got shape {tuple(input.shape)}")
        padded = pad(input, self._reversed_padding_repeated_twice, self.padding_mode)
        dilation, groups = cast("tuple[int, ...]", self.dilation), cast(int, self.groups)
        if has_one_position(padded.shape[2:], weight, dilation, groups):
            return whole_to_pixel(padded, weight, bias)
        convolved: Tensor = self._convolve(padded, weight, bias, self.stride, 0, dilation, groups)
        return convolved

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, offset_groups={self.offset_groups}, constraint={self.constraint!r}"


class Conv1d(_Conv, nn.Conv1d):
    """Offset equivariant 1-D convolution (Eq. 12 and 16): ``(N, in, L)`` to ``(N, out, L')``.

    Raises:
        ValueError: if a channel count is not divisible by ``offset_groups`` or by torch's ``groups``, or the padding
            is constant.
    """

    _convolve = staticmethod(F.conv1d)


class Conv2d(_Conv, nn.Conv2d):
    """Offset equivariant 2-D convolution (Eq. 12 and 16): ``(N, in, H, W)`` to ``(N, out, H', W')``.

    Raises:
        ValueError: as :class:`Conv1d`.
    """

    _convolve = staticmethod(F.conv2d)


class Conv3d(_Conv, nn.Conv3d):
    """Offset equivariant 3-D convolution (Eq. 12 and 16): ``(N, in, D, H, W)`` to ``(N, out, D', H', W')``.

    Raises:
        ValueError: as :class:`Conv1d`. Reflecting padding of three dimensions is torch's to refuse or accept.
    """

    _convolve = staticmethod(F.conv3d)
