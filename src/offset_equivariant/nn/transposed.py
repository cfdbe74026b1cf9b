r"""Offset equivariant transposed convolutions, and up-sampling (Section 4.3).

A transposed convolution with a stride sends each input to several outputs, and each output meets only the taps of its
own phase: along one axis, with stride s, padding a and dilation d,

.. math:: y(p) = \sum_t W_t \, x\left(\frac{p + a - d t}{s}\right)

over the taps t for which that is a whole number. So Eq. 16 must hold for the taps of each phase
(:func:`~offset_equivariant.nn.constraint.project_transposed_weight`), and every output must meet all taps of its phase,
at the border too: the input is padded by its own outermost values, and what torch would not have given is cropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from offset_equivariant.groups import channels_per_group
from offset_equivariant.nn.constraint import ConstrainedWeight, Constraint, TransposedOffsetConstraint
from offset_equivariant.nn.layers import require_torch_groups
from offset_equivariant.nn.one_position import is_one_pixel, pixel_to_whole
from offset_equivariant.nn.padding import pad
from offset_equivariant.nn.precision import past_low_precision, rounds_operands
from offset_equivariant.nn.shifted import require_tensor


class _ConvTranspose(ConstrainedWeight):
    """What the transposed convolutions of one and two dimensions share."""

    _convolve: ClassVar[Callable[..., Tensor]]
    stride: tuple[int, ...]
    output_padding: tuple[int, ...]
    dilation: tuple[int, ...]
    kernel_size: tuple[int, ...]
    groups: int
    bias: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] = 0,
        output_padding: int | tuple[int, ...] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | tuple[int, ...] = 1,
        padding_mode: str = "zeros",
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
        arguments: tuple[Any, ...] = (in_channels, out_channels, kernel_size, stride, padding, output_padding, groups)
        super().__init__(*arguments, bias, dilation, padding_mode, device, dtype)
        for size, step, spread in zip(self.kernel_size, self.stride, self.dilation, strict=True):
            _require_all_phases(size, step, spread)
        for cut, extra, step, spread in zip(
            cast(tuple[int, ...], self.padding), self.output_padding, self.stride, self.dilation, strict=True
        ):
            _require_what_torch_takes(cut, extra, step, spread)
        self._constrain(TransposedOffsetConstraint(offset_groups, self.stride, self.dilation, groups), constraint)

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Return ``(N, out, *spatial)``, of the size that torch's layer gives, or ``output_size``.

        Raises:
            ValueError: if ``input`` is no batch, or ``output_size`` cannot be had.
        """
        dimensions = len(self.kernel_size)
        if require_tensor(input).ndim != dimensions + 2:
            raise ValueError(f"expected a batch (N, C, ...) of {dimensions + 2} axes, got shape {tuple(input.shape)}")
        if rounds_operands(input):
            return past_low_precision(lambda x: self._transposed(x, output_size), input, self.offset_groups)
        return self._transposed(input, output_size)

    def _transposed(self, input: Tensor, output_size: Sequence[int] | None) -> Tensor:
        dimensions = len(self.kernel_size)
        extra = self.output_padding
        if output_size is not None:
            extra = tuple(
                self._output_padding(  # type: ignore[operator]
                    input, list(output_size), self.stride, self.padding, self.kernel_size, dimensions, self.dilation
                )
            )
        plans = [_Plan(*axis) for axis in self._axes(input.shape[2:], extra)]
        widths = [width for plan in reversed(plans) for width in (plan.before, plan.after)]
        padded = pad(input, widths, "replicate")
        cropped = tuple(min(plan.crop_before, plan.crop_after) for plan in plans)
        if is_one_pixel(padded.shape[2:], cropped, self.dilation, self.groups):
            output = pixel_to_whole(padded, self.weight, self.bias)
        else:
            output = self._convolve(padded, self.weight, self.bias, self.stride, cropped, 0, self.groups, self.dilation)
        for axis, (plan, done) in enumerate(zip(plans, cropped, strict=True), 2):
            if output.shape[axis] != plan.size:
                output = output.narrow(axis, plan.crop_before - done, plan.size)
        return output

    def _axes(self, sizes: Sequence[int], extra: Sequence[int]) -> list[tuple[int, ...]]:
        return list(
            zip(
                sizes,
                self.kernel_size,
                self.stride,
                cast(tuple[int, ...], self.padding),
                extra,
                self.dilation,
                strict=True,
            )
        )

    def extra_repr(self) -> str:
        shown: str = super().extra_repr()
        return f"{shown}, offset_groups={self.offset_groups}, constraint={self.constraint!r}"


def _require_what_torch_takes(padding: int, output_padding: int, stride: int, dilation: int) -> None:
    """torch's own layer checks these at each call; here it is not given them."""
    if padding < 0:
        raise ValueError(f"padding = {padding} must not be negative")
    if not 0 <= output_padding < max(stride, dilation):
        raise ValueError(
            f"output_padding = {output_padding} must be at least 0 and below the larger of stride = {stride} and "
            f"dilation = {dilation}"
        )


def _require_all_phases(size: int, stride: int, dilation: int) -> None:
    """An output whose phase has no taps would be the bias, whatever the input: no offset could pass."""
    if len({tap * dilation % stride for tap in range(size)}) < stride:
        raise ValueError(
            f"kernel_size = {size} with stride = {stride} and dilation = {dilation} leaves outputs that no input "
            "reaches, and through which no offset can pass; make kernel_size at least the stride, and let dilation and "
            "stride have no common divisor"
        )


class _Plan:
    """How one axis is padded before, and cropped after, an unpadded transposed convolution.

    Args:
        length: of the input.
        size: of the kernel.
        stride: of the layer, and so on.
    """

    def __init__(self, length: int, size: int, stride: int, padding: int, extra: int, dilation: int) -> None:
        reach = dilation * (size - 1)
        self.size = (length - 1) * stride - 2 * padding + reach + extra + 1
        # Of the output at p, the inputs are (p + padding - dilation * t) / stride, where whole: from first to last.
        self.before = max(0, (reach - padding) // stride)
        self.after = max(0, (reach - padding + extra) // stride)
        whole = (length + self.before + self.after - 1) * stride + reach + 1
        self.crop_before = padding + self.before * stride
        self.crop_after = whole - self.crop_before - self.size


class ConvTranspose1d(_ConvTranspose, nn.ConvTranspose1d):
    """Offset equivariant transposed 1-D convolution: ``(N, in, L)`` to ``(N, out, L')``.

    Parameters, arguments and output size are torch's. Outputs at the border differ from those of torch's layer with the
    same weights, which lets fewer taps than all take part there.

    Raises:
        ValueError: if a channel count is not divisible by ``offset_groups`` or by torch's ``groups``; if some outputs
            would be reached by no input.
    """

    _convolve = staticmethod(F.conv_transpose1d)


class ConvTranspose2d(_ConvTranspose, nn.ConvTranspose2d):
    """Offset equivariant transposed 2-D convolution: ``(N, in, H, W)`` to ``(N, out, H', W')``.

    As :class:`ConvTranspose1d`. From one pixel to a block, as at the beginning of a decoder, the stride should be the
    kernel size: then every output has one tap of its own, while with stride 1 all outputs would be the same.

    Raises:
        ValueError: as :class:`ConvTranspose1d`.
    """

    _convolve = staticmethod(F.conv_transpose2d)
