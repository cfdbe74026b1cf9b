r"""Batch normalisation, rectifier and residual merge in one affine map and one maximum.

The plain composition is ``ReLU(BatchNorm2d(z))`` or ``ReLU(ResidualMerge(BatchNorm2d(z), x))`` with the adapters of
Eq. 19 and the merge of Eq. 27. Every group mean in it follows from the mean and variance that each channel of z has
over the pixels of each image, so that only two passes over z remain.

**Derivation.** With :math:`\mu_{nc}, v_{nc}` the mean and variance of channel c of image n, and G left out where an
index shows it:

1. φ(z) is the mean of μ over the group's channels: :math:`\varphi_{ng}`. The centred channel has the mean
   :math:`d_{nc} = \mu_{nc} - \varphi_{ng}` and the same variance.
2. Batch statistics of the centred tensor: :math:`M_c = \mathrm{mean}_n d_{nc}` and
   :math:`V_c = \mathrm{mean}_n v_{nc} + \mathrm{var}_n d_{nc}`, a sum of two variances: nothing cancels, however large
   the offset.
3. Normalisation by Eq. 19: :math:`h = a_c (z - \varphi_{ng} - M_c) + \beta_c + \varphi_{ng}` with
   :math:`a_c = \gamma_c / \sqrt{V_c + \epsilon}`.
4. Merge (Eq. 27): :math:`y = h + x - \varphi(x)`. The last two terms have no group mean, so φ(y) = φ(h).
5. Rectifier (Eq. 21): :math:`\max(y, \varphi(h))`, with φ(h) the group's mean of
   :math:`a_c (d_{nc} - M_c) + \beta_c`, plus :math:`\varphi_{ng}`.

Steps 3 to 5 are ``maximum(scale * z + shift [+ x], threshold)`` with shift and threshold one number an image and
channel. ``d`` takes the place of ``z - φ``, so large offsets meet only in the last sum.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from offset_equivariant.groups import channels_per_group, expand_groups, group_mean


class BatchNormReLU(nn.BatchNorm2d):
    """Equivariant batch normalisation and rectifier, with the residual merge between them where a shortcut is given.

    Parameters and buffers are torch's ``BatchNorm2d``'s. Equal to the composition of
    :class:`~offset_equivariant.nn.adapters.BatchNorm2d`, :class:`~offset_equivariant.nn.residual.ResidualMerge` and
    :class:`~offset_equivariant.nn.adapters.ReLU` up to rounding.

    ``SyncBatchNorm.convert_sync_batchnorm`` does not know this module, and would put a plain one in its place.

    Raises:
        ValueError: if ``num_features`` is not divisible by ``offset_groups``, or ``momentum`` is None.
    """

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, *, offset_groups: int = 3
    ) -> None:
        channels_per_group(num_features, offset_groups, "num_features")
        if momentum is None:
            raise ValueError("momentum = None, a cumulative average, is not supported here; give a number")
        super().__init__(num_features, eps, momentum)
        self.offset_groups = offset_groups

    def forward(self, input: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """Return the activation, shaped as ``input``, ``(N, C, H, W)``; ``shortcut`` is the x of Eq. 27.

        Raises:
            ValueError: if ``input`` is no batch of images, or has only one value a channel in training, or if
                ``shortcut`` has another shape.
        """
        self._check_input_dim(input)
        _require_same_shape(input, shortcut)
        channels = input.shape[1]
        mean, variance = _ChannelMoments.apply(input)
        group = expand_groups(group_mean(mean, self.offset_groups), channels)
        centred = mean - group
        batch_mean, batch_variance = self._statistics(centred, variance, input)
        scale = self.weight * torch.rsqrt(batch_variance + self.eps)
        normalised_mean = scale * (centred - batch_mean) + self.bias
        threshold = expand_groups(group_mean(normalised_mean, self.offset_groups), channels) + group
        shift = self.bias - scale * (batch_mean + group) + group
        if shortcut is not None:
            shortcut_mean = shortcut.mean((2, 3), dtype=mean.dtype)
            shift = shift - expand_groups(group_mean(shortcut_mean, self.offset_groups), channels)
        activation: Tensor = _AffineMaximum.apply(input, shortcut, scale, shift, threshold)
        return activation

    def _statistics(self, centred: Tensor, variance: Tensor, input: Tensor) -> tuple[Tensor, Tensor]:
        """Per-channel mean and variance to normalise by, updating the running ones in training."""
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        if not self.training:
            return self.running_mean, self.running_var
        count = input.shape[0] * input.shape[2] * input.shape[3]
        if count < 2:
            raise ValueError(
                f"batch normalisation in training needs more than one value a channel, got {tuple(input.shape)}"
            )
        batch_mean = centred.mean(0)
        batch_variance = variance.mean(0) + centred.var(0, correction=0)
        with torch.no_grad():
            self.running_mean.lerp_(batch_mean.to(self.running_mean.dtype), self.momentum)
            unbiased = batch_variance * (count / (count - 1))
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        return batch_mean, batch_variance

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, offset_groups={self.offset_groups}"


class ConventionalBatchNormReLU(nn.BatchNorm2d):
    """The ordinary counterpart: ``relu(batch_norm(input) [+ shortcut])`` (Eq. 26)."""

    def forward(self, input: Tensor, shortcut: Tensor | None = None) -> Tensor:
        normalised = super().forward(input)
        return nn.functional.relu(normalised if shortcut is None else normalised + shortcut)


def _require_same_shape(input: Tensor, shortcut: Tensor | None) -> None:
    """Broadcasting would merge what does not belong together."""
    if shortcut is not None and shortcut.shape != input.shape:
        raise ValueError(f"the shortcut has shape {tuple(shortcut.shape)}, the branch {tuple(input.shape)}")


def _pixels(values: Tensor) -> Tensor:
    """Shape ``(N, C)`` or ``(C,)`` for arithmetic with ``(N, C, H, W)``."""
    return values[..., None, None]


class _ChannelMoments(torch.autograd.Function):
    """Mean and (biased) variance over the pixels of each channel of each image, in at least single precision."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> tuple[Tensor, Tensor]:
        wide = z.dtype if z.dtype == torch.float64 else torch.float32
        mean = z.mean((2, 3), dtype=wide)
        variance = (z - _pixels(mean)).square_().mean((2, 3))
        ctx.save_for_backward(z, mean)
        return mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (z, mean), (mean_gradient, variance_gradient) = ctx.saved_tensors, gradients
        count = z.shape[2] * z.shape[3]
        slope = variance_gradient * (2 / count)
        return torch.addcmul(_pixels(mean_gradient / count - slope * mean), z.to(mean.dtype), _pixels(slope)).to(
            z.dtype
        )


class _AffineMaximum(torch.autograd.Function):
    """``maximum(scale * z + shift [+ shortcut], threshold)``.

    torch's own ``maximum`` splits the gradient of ties between its arguments, which costs several passes; here ties
    go to the threshold, as they go to zero in torch's ``relu``.
    """

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, shortcut: Tensor | None, scale: Tensor, shift: Tensor, threshold: Tensor
    ) -> Tensor:
        y = torch.addcmul(_pixels(shift), z.to(shift.dtype), _pixels(scale))
        if shortcut is not None:
            y += shortcut
        y = torch.maximum(y, _pixels(threshold)).to(z.dtype)
        ctx.save_for_backward(z, scale, y, threshold)
        ctx.shortcut_dtype = None if shortcut is None else shortcut.dtype
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        z, scale, y, threshold = ctx.saved_tensors
        (gradient,) = gradients
        passed = gradient * (y > _pixels(threshold.to(y.dtype)))
        shift_gradient = passed.sum((2, 3), dtype=scale.dtype)
        threshold_gradient = gradient.sum((2, 3), dtype=scale.dtype) - shift_gradient
        scale_gradient = (passed * z).sum((0, 2, 3), dtype=scale.dtype)
        shortcut_gradient = None if ctx.shortcut_dtype is None else passed.to(ctx.shortcut_dtype)
        z_gradient = (passed * _pixels(scale)).to(z.dtype)
        return z_gradient, shortcut_gradient, scale_gradient, shift_gradient, threshold_gradient
