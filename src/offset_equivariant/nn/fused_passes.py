"""The passes over memory of :mod:`offset_equivariant.nn.fused`, and the small numbers between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Recipe(NamedTuple):
    """What is no tensor that a gradient flows to; ``running`` mean and variance are None in training."""

    running: tuple[Tensor, Tensor] | None
    eps: float
    offset_groups: int
    rectify: bool = True
    #: Averages what belongs to the batch over the processes that have a part of it each; its own gradient's map.
    average: Callable[[Tensor], Tensor] = lambda values: values


class Coefficients(NamedTuple):
    """What steps 1 to 5 of the derivation find: of each channel, ``(C,)``, or of each image's, ``(N, C)``."""

    #: a, (C,).
    scale: Tensor
    #: What scale * v lacks of y - φ(h), (N, C).
    bias: Tensor
    #: φ(h), (N, C).
    threshold: Tensor
    #: M, (C,).
    batch_mean: Tensor
    #: V, (C,).
    batch_variance: Tensor
    #: d - M, (N, C).
    deviation: Tensor
    #: 1 / sqrt(V + ε), (C,).
    inverse_std: Tensor


def spread_mean(values: Tensor, offset_groups: int) -> Tensor:
    """Each group's mean in place of its channels, ``(N, C)``: symmetric, and its own gradient's map."""
    grouped: Tensor = values.unflatten(1, (offset_groups, -1))
    return grouped.mean(2, keepdim=True).expand_as(grouped).flatten(1)


def _coefficients(
    mean: Tensor,
    variance: Tensor | None,
    shift: Tensor,
    shortcut_level: Tensor | None,
    weight: Tensor,
    beta: Tensor,
    recipe: Recipe,
) -> Coefficients:
    """Compute the coefficients from the moments of the values.

    Args:
        mean: of the values of z, ``(N, C)``.
        variance: likewise; None if the running statistics are used.
        shift: of z, ``(N, C)``.
        shortcut_level: shift of the shortcut minus its group means, ``(N, C)``.
        weight: γ, ``(C,)``.
        beta: β, ``(C,)``.
        recipe: whose running statistics are used.
    """
    level = mean + shift
    group = spread_mean(level, recipe.offset_groups)
    centred = level - group
    if recipe.running is None:
        assert variance is not None
        batch_mean = recipe.average(centred.mean(0))
        deviation = centred - batch_mean
        batch_variance = recipe.average((variance + deviation.square()).mean(0))
    else:
        batch_mean, batch_variance = recipe.running
        deviation = centred - batch_mean
    inverse_std = torch.rsqrt(batch_variance + recipe.eps)
    scale = weight * inverse_std
    normalised_mean = torch.addcmul(beta, scale, deviation)
    rectified_from = spread_mean(normalised_mean, recipe.offset_groups)
    bias = torch.addcmul(normalised_mean - rectified_from, scale, mean, value=-1)
    if shortcut_level is not None:
        bias = bias + shortcut_level
    return Coefficients(scale, bias, rectified_from + group, batch_mean, batch_variance, deviation, inverse_std)


class _SmallGradients(NamedTuple):
    """Gradients of the arguments of :func:`_coefficients`, and the group means of that of ``bias``."""

    mean: Tensor
    #: (C,), the same for all images; None with running statistics.
    variance: Tensor | None
    shift: Tensor
    weight: Tensor
    beta: Tensor
    bias_groups: Tensor


def _coefficients_backward(
    found: Coefficients,
    gradients: tuple[Tensor, Tensor, Tensor],
    mean: Tensor,
    weight: Tensor,
    recipe: Recipe,
) -> _SmallGradients:
    """Take the gradients of ``scale``, ``bias`` and ``threshold`` back to the arguments of :func:`_coefficients`."""
    scale_gradient, bias_gradient, threshold_gradient = gradients
    bias_groups = spread_mean(bias_gradient, recipe.offset_groups)
    threshold_groups = spread_mean(threshold_gradient, recipe.offset_groups)
    normalised_gradient = bias_gradient - bias_groups + threshold_groups
    scale_gradient = scale_gradient + (normalised_gradient * found.deviation - bias_gradient * mean).sum(0)
    deviation_gradient = normalised_gradient * found.scale
    variance_gradient = None
    if recipe.running is None:
        of_all = recipe.average(scale_gradient)
        variance_gradient = of_all * weight * found.inverse_std**3 * (-0.5 / len(mean))
        deviation_gradient = torch.addcmul(deviation_gradient, found.deviation, variance_gradient, value=2)
        deviation_gradient = deviation_gradient - recipe.average(deviation_gradient.mean(0))
    level_gradient = deviation_gradient + threshold_groups
    level_gradient = level_gradient - spread_mean(deviation_gradient, recipe.offset_groups)
    mean_gradient = torch.addcmul(level_gradient, bias_gradient, found.scale, value=-1)
    weight_gradient = scale_gradient * found.inverse_std
    return _SmallGradients(
        mean_gradient, variance_gradient, level_gradient, weight_gradient, normalised_gradient.sum(0), bias_groups
    )


def shortcut_level(x: Tensor | None, x_shift: Tensor | None, offset_groups: int) -> Tensor | None:
    """The shift of the shortcut without the shortcut's group means, which the merge takes away."""
    if x is None or x_shift is None:
        return None
    return x_shift - spread_mean(pixel_mean(x, x_shift.dtype) + x_shift, offset_groups)


def normalise_and_rectify(
    z: Tensor,
    shift: Tensor,
    x: Tensor | None,
    x_shift: Tensor | None,
    weight: Tensor,
    beta: Tensor,
    recipe: Recipe,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The whole of it in differentiable operations, for a compiler: new values and shift, M and V."""
    mean = pixel_mean(z, shift.dtype)
    variance = pixel_mean((z - over_pixels(mean)).square(), shift.dtype) if recipe.running is None else None
    level = shortcut_level(x, x_shift, recipe.offset_groups)
    found = _coefficients(mean, variance, shift, level, weight, beta, recipe)
    y = z * over_pixels(found.scale) + over_pixels(found.bias)
    y = y if x is None else y + x
    values = (torch.relu(y) if recipe.rectify else y).to(z.dtype)
    return values, found.threshold, found.batch_mean.detach(), found.batch_variance.detach()


def forward_pass(
    z: Tensor,
    shift: Tensor,
    x: Tensor | None,
    x_shift: Tensor | None,
    weight: Tensor,
    beta: Tensor,
    recipe: Recipe,
    out: Tensor,
) -> tuple[Tensor, Coefficients]:
    """Write the new values to ``out``; return the mean of z over pixels, and the coefficients.

    Args:
        z: values of the convolution's output, ``(N, C, H, W)``.
        shift: of z, ``(N, C)``.
        x: values of the shortcut, shaped as z, or None.
        x_shift: of the shortcut, ``(N, C)``, or None.
        weight: γ, ``(C,)``.
        beta: β, ``(C,)``.
        recipe: the rest.
        out: shaped as z.
    """
    layout = Layout(z)
    seen = layout.see(z)
    mean = layout.sum(seen, shift.dtype) / layout.pixels
    variance = None
    if recipe.running is None:
        # From the differences, in one pass: a difference of means of squares cancels where the mean is large.
        wide = seen.to(mean.dtype)
        squares = nn.functional.mse_loss(wide, layout.spread(mean).expand_as(wide), reduction="none")
        variance = layout.sum(squares, mean.dtype) / layout.pixels
    level = shortcut_level(x, x_shift, recipe.offset_groups)
    found = _coefficients(mean, variance, shift, level, weight, beta, recipe)
    bias, scale, result = layout.spread(found.bias), layout.spread(found.scale), layout.see(out)
    if z.dtype != bias.dtype:
        y = torch.addcmul(bias, seen, scale)
        result.copy_(y if x is None else y.add_(layout.see(x)))
    elif x is None:
        torch.addcmul(bias, seen, scale, out=result)
    else:
        torch.addcmul(layout.see(x), seen, scale, out=result).add_(bias)
    if recipe.rectify:
        out.relu_()
    return mean, found


def backward_pass(
    gradient: Tensor,
    threshold_gradient: Tensor,
    z: Tensor,
    values: Tensor | None,
    mean: Tensor,
    weight: Tensor,
    found: Coefficients,
    recipe: Recipe,
    has_shortcut: bool,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of z, its shift, the shortcut, its shift, γ and β.

    Args:
        gradient: of the new values, ``(N, C, H, W)``; may be overwritten.
        threshold_gradient: of the new shift, ``(N, C)``.
        z: as in :func:`forward_pass`, which found the next arguments.
        values: what was written; None where nothing was rectified.
        mean: of z over the pixels.
        weight: γ.
        found: coefficients.
        recipe: as in :func:`forward_pass`.
        has_shortcut: whether there was an x.
    """
    if values is not None:
        # Ties go to the threshold, as they go to zero in torch's relu.
        torch.ops.aten.threshold_backward.grad_input(gradient, values, 0, grad_input=gradient)
    layout = Layout(z)
    rectified, seen = layout.see(gradient), layout.see(z)
    bias_gradient = layout.sum(rectified, mean.dtype)
    # The products too: in half precision they could vanish.
    scale_gradient = layout.sum(rectified.to(mean.dtype) * seen, mean.dtype).sum(0)
    small = _coefficients_backward(found, (scale_gradient, bias_gradient, threshold_gradient), mean, weight, recipe)
    scale, constant = layout.spread(found.scale), small.mean / layout.pixels
    if small.variance is None:
        z_gradient = torch.addcmul(layout.spread(constant), rectified, scale)
    else:
        slope = small.variance * (2 / layout.pixels)
        constant = torch.addcmul(constant, mean, slope, value=-1)
        z_gradient = torch.addcmul(layout.spread(constant), seen, layout.spread(slope)).addcmul_(rectified, scale)
    x_gradient = x_shift_gradient = None
    if has_shortcut:
        x_gradient = layout.unsee(rectified.sub_(layout.spread(small.bias_groups / layout.pixels)))
        x_shift_gradient = bias_gradient - small.bias_groups
    z_gradient = layout.unsee(z_gradient).to(z.dtype)
    return z_gradient, small.shift, x_gradient, x_shift_gradient, small.weight, small.beta


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of a pixel, and the pixels of a row, are next to each other."""
    return x.shape[1] > 1 and x.stride(1) == 1 and x.stride(3) == x.shape[1]


class Layout:
    """How tensors like one ``(N, C, H, W)`` are gone through.

    In channels-last, the channels of a pixel may be too few for an inner loop. A row of pixels is not: such tensors
    are seen as ``(N, H, W * C)``. Others stay as they are.
    """

    _ENOUGH_CHANNELS = 32

    def __init__(self, like: Tensor) -> None:
        self.channels, self.width = like.shape[1], like.shape[3]
        self.pixels = like.shape[2] * like.shape[3]
        self._by_rows = is_channels_last(like) and like.shape[1] < self._ENOUGH_CHANNELS

    def see(self, x: Tensor) -> Tensor:
        if not self._by_rows:
            return x
        pixels: Tensor = x.permute(0, 2, 3, 1)
        return (pixels if is_channels_last(x) else pixels.contiguous()).flatten(2)

    def unsee(self, x: Tensor) -> Tensor:
        if not self._by_rows:
            return x
        return x.view(*x.shape[:2], self.width, self.channels).permute(0, 3, 1, 2)

    def spread(self, values: Tensor) -> Tensor:
        """``(N, C)`` or ``(C,)`` written out for arithmetic with what is seen."""
        if not self._by_rows:
            return values[..., None, None]
        return values.unsqueeze(-2).expand(*values.shape[:-1], self.width, -1).flatten(-2).unsqueeze(-2)

    def sum(self, seen: Tensor, dtype: torch.dtype) -> Tensor:
        """Sum over the pixels, ``(N, C)``."""
        if not self._by_rows:
            return seen.sum((2, 3), dtype=dtype)
        return seen.sum(1, dtype=dtype).view(len(seen), self.width, self.channels).sum(1)


def pixel_mean(x: Tensor, dtype: torch.dtype) -> Tensor:
    layout = Layout(x)
    return layout.sum(layout.see(x), dtype) / layout.pixels


def over_pixels(values: Tensor) -> Tensor:
    """Shape ``(N, C)`` or ``(C,)`` for arithmetic with ``(N, C, H, W)``."""
    return values[..., None, None]
