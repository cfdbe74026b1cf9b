r"""Batch normalisation, rectifier and residual merge in one affine map and one rectifier.

The plain composition is ``ReLU(BatchNorm2d(z))`` or ``ReLU(ResidualMerge(BatchNorm2d(z), x))`` with the adapters of
Eq. 19 and the merge of Eq. 27. Every group mean in it follows from the mean and variance that each channel of z has
over the pixels of each image, so that few passes over z remain, and what is made of these numbers, one an image and
channel, costs next to nothing.

**Derivation.** Feature maps are :class:`~offset_equivariant.nn.shifted.ShiftedFeatures`, values v and shift s; their
offset is passed on unchanged. With :math:`\mu_{nc}, v_{nc}` the mean and variance of channel c of image n, and g the
group of the channel:

1. φ(z) is the mean of μ over the group's channels: :math:`\varphi_{ng}`. The centred channel has the mean
   :math:`d_{nc} = \mu_{nc} - \varphi_{ng}` and the same variance.
2. Batch statistics of the centred tensor: :math:`M_c = \mathrm{mean}_n d_{nc}` and
   :math:`V_c = \mathrm{mean}_n v_{nc} + \mathrm{var}_n d_{nc}`, a sum of two variances: nothing cancels.
3. Normalisation by Eq. 19: :math:`h = a_c (z - \varphi_{ng} - M_c) + \beta_c + \varphi_{ng}` with
   :math:`a_c = \gamma_c / \sqrt{V_c + \epsilon}`.
4. Merge (Eq. 27): :math:`y = h + x - \varphi(x)`. The last two terms have no group mean, so φ(y) = φ(h).
5. Rectifier (Eq. 21): :math:`\max(y, \varphi(h)) = \mathrm{relu}(y - \varphi(h)) + \varphi(h)`, with φ(h) the
   group's mean of :math:`a_c (d_{nc} - M_c) + \beta_c`, plus :math:`\varphi_{ng}`.

So the new values are ``relu(scale * v [+ v of x] + bias)``, sparse like any rectifier's, and the new shift is φ(h).
Without a rectifier, as in a projected shortcut, they are ``scale * v + bias``: h less its group means, which is what
the merge will want of it.

**Precision.** What leaves this module is as exact as the plain composition's whatever the offset. The gradient of γ is
a difference of two sums, and loses digits as the mean of a channel's values grows against their spread: 2e-4 of it, in
single precision, at a thousand times. Values have small means once the offset was taken out at the entrance.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from offset_equivariant.groups import channels_per_group
from offset_equivariant.nn.fused_passes import (
    Coefficients,
    Recipe,
    backward_pass,
    forward_pass,
    is_channels_last,
    normalise_and_rectify,
)
from offset_equivariant.nn.padding import fold_border_, write_border_
from offset_equivariant.nn.shifted import ShiftedFeatures, require_groups, require_tensor, unshifted
from offset_equivariant.nn.synchronised import (
    SynchronisableBatchNorm2d,
    mean_over_processes,
    update_running_statistics_,
    world_size,
)


class FusedNormalisation(nn.BatchNorm2d):
    """What equivariant batch normalisation with and without the rectifier share."""

    _rectifies: ClassVar[bool]
    #: See :mod:`offset_equivariant.nn.synchronised`.
    synchronised = False

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        *,
        offset_groups: int = 3,
        border: int = 0,
    ) -> None:
        channels_per_group(num_features, offset_groups, "num_features")
        super().__init__(num_features, eps, momentum)
        self.offset_groups = offset_groups
        self.border = int(border == 1)
        self.register_load_state_dict_pre_hook(_translate_adapters_keys)  # type: ignore[no-untyped-call]

    def _of_any(self, input: Any, shortcut: Any) -> Any:
        """Of tensors or of :class:`ShiftedFeatures`."""
        if isinstance(input, ShiftedFeatures):
            return self._normalised(input, shortcut)
        self._check_input_dim(input)
        wrapped = None if shortcut is None else unshifted(require_tensor(shortcut), self.offset_groups)
        return self._normalised(unshifted(input, self.offset_groups), wrapped).joined().to(input.dtype)

    def _normalised(self, z: ShiftedFeatures, x: ShiftedFeatures | None) -> ShiftedFeatures:
        assert self.running_mean is not None and self.running_var is not None
        self._check_input_dim(z.values)
        require_groups(z, self.offset_groups)
        if z.shape[1] != self.num_features:
            raise ValueError(f"expected num_features = {self.num_features} channels, got shape {tuple(z.shape)}")
        if x is not None and not isinstance(x, ShiftedFeatures):
            raise TypeError(f"the branch is ShiftedFeatures, but the shortcut is {type(x).__name__}: give both alike")
        if x is not None and x.shape != z.shape:  # broadcasting would merge what does not belong together
            raise ValueError(f"the shortcut has shape {tuple(x.shape)}, the branch {tuple(z.shape)}")
        # As torch's own, which counts a batch of no images, and learns nothing of it.
        trains = self.training and len(z.values) > 0
        if trains and z.values[:, 0].numel() < 2:
            raise ValueError(
                f"batch normalisation in training needs more than one value a channel, got {tuple(z.shape)}"
            )
        running = None if trains else (self.running_mean, self.running_var)
        together = self.synchronised and trains
        average = mean_over_processes if together else _as_it_is
        recipe = Recipe(running, self.eps, self.offset_groups, self._rectifies, average)
        shortcut = (None, None) if x is None else (x.values, x.shift)
        arguments = (z.values, z.shift, *shortcut, self.weight, self.bias, recipe)
        if torch.compiler.is_compiling():
            # Of a whole network, the compiler makes its own passes and gradients.
            values, shift, mean, variance = normalise_and_rectify(*arguments)
            padded = values.new_empty(0)
        else:
            values, padded, shift, mean, variance = _NormaliseAndRectify.apply(*arguments, self.border)
        if trains:
            count = z.values[:, 0].numel() * (world_size() if together else 1)
            update_running_statistics_(self, mean, variance, count)
        elif self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return ShiftedFeatures(values, shift, z.offset, padded if padded.numel() else None)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, offset_groups={self.offset_groups}"


class BatchNormReLU(FusedNormalisation):
    """Equivariant batch normalisation and rectifier, with the residual merge between them where a shortcut is given.

    Parameters and buffers are torch's ``BatchNorm2d``'s; state dictionaries of
    :class:`~offset_equivariant.nn.adapters.BatchNorm2d` at the same place load, too. Equal to the composition of
    :class:`~offset_equivariant.nn.adapters.BatchNorm2d`, :class:`~offset_equivariant.nn.residual.ResidualMerge` and
    :class:`~offset_equivariant.nn.adapters.ReLU` up to rounding; but it can be differentiated only once, and not by
    ``torch.func``, which these can.

    ``SyncBatchNorm.convert_sync_batchnorm`` does not know this module, and would put a plain one in its place; use
    :func:`~offset_equivariant.nn.synchronised.synchronise_batch_norm_`.

    Args:
        num_features: channels C.
        eps: added to the variance.
        momentum: weight of a new batch in the running statistics; None for the average of all batches so far.
        offset_groups: number of offset groups.
        border: width of the border that the next convolution pads with. One of 1 pixel is written along with the
            result, which saves that convolution a copy; it does not change what is computed.

    Raises:
        ValueError: if ``num_features`` is not divisible by ``offset_groups``.
    """

    _rectifies = True

    def forward(self, input: Any, shortcut: Any = None) -> Any:
        """Return the activation, shaped as ``input``, ``(N, C, H, W)``; ``shortcut`` is the x of Eq. 27.

        Both are tensors, and then so is the result, or both are :class:`ShiftedFeatures`.

        Raises:
            ValueError: if ``input`` is no batch of images, or has only one value a channel in training, or if
                ``shortcut`` has another shape.
        """
        return self._of_any(input, shortcut)


class BatchNormOfShortcut(FusedNormalisation):
    """Equivariant batch normalisation alone, of tensors or :class:`ShiftedFeatures`, ``(N, C, H, W)``.

    For projected shortcuts, whose merge and rectifier are a :class:`BatchNormReLU`'s. Parameters and buffers are
    torch's ``BatchNorm2d``'s, and it is equal to :class:`~offset_equivariant.nn.adapters.BatchNorm2d` up to rounding.
    Arguments and errors as :class:`BatchNormReLU`.
    """

    _rectifies = False

    def forward(self, input: Any) -> Any:
        """Return h of Eq. 19, shaped as ``input``."""
        return self._of_any(input, None)


def _translate_adapters_keys(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Let the state of :class:`~offset_equivariant.nn.adapters.BatchNorm2d`, which wraps torch's, load."""
    for name in module.state_dict():
        wrapped = f"{prefix}module.{name}"
        if wrapped in state_dict:  # before a count of batches that torch has put in, as of a version without it
            state_dict[prefix + name] = state_dict.pop(wrapped)


def _as_it_is(values: Tensor) -> Tensor:
    return values


class ConventionalBatchNormReLU(SynchronisableBatchNorm2d):
    """The ordinary counterpart: ``relu(batch_norm(input) [+ shortcut])`` (Eq. 26)."""

    def forward(self, input: Tensor, shortcut: Tensor | None = None) -> Tensor:
        # In place: the gradient of normalisation needs its input, and that of the rectifier its output.
        normalised = super().forward(input)
        return nn.functional.relu_(normalised if shortcut is None else normalised.add_(shortcut))


class _NormaliseAndRectify(torch.autograd.Function):
    """:func:`fused_passes.forward_pass` with :func:`fused_passes.backward_pass` for its gradient.

    Returns the new values, the same within their border (empty without one), the new shift, and M and V.
    """

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        shift: Tensor,
        x: Tensor | None,
        x_shift: Tensor | None,
        weight: Tensor,
        beta: Tensor,
        recipe: Recipe,
        border: int,
    ) -> tuple[Tensor, ...]:
        values, padded = room_with_border(z, border)
        mean, found = forward_pass(z, shift, x, x_shift, weight, beta, recipe, values)
        if border:
            write_border_(padded)
        ctx.save_for_backward(z, values if recipe.rectify else None, mean, weight, *found)
        ctx.recipe, ctx.border, ctx.has_shortcut = recipe, border, x is not None
        ctx.mark_non_differentiable(found.batch_mean, found.batch_variance)
        ctx.set_materialize_grads(False)
        return values, padded, found.threshold, found.batch_mean, found.batch_variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # once_differentiable takes for a constant what has no gradient coming in
            raise RuntimeError(
                "BatchNormReLU and BatchNormOfShortcut have no second derivatives (create_graph=True); for those use "
                "BatchNorm2d, ReLU and ResidualMerge of offset_equivariant.nn, which compute the same"
            )
        z, values, mean, weight, *found = ctx.saved_tensors
        like = z if values is None else values
        gradient = _gradient_of_values(gradients[0], gradients[1] if ctx.border else None, like)
        threshold_gradient = torch.zeros_like(mean) if gradients[2] is None else gradients[2]
        found_gradients = backward_pass(
            gradient, threshold_gradient, z, values, mean, weight, Coefficients(*found), ctx.recipe, ctx.has_shortcut
        )
        return *found_gradients, None, None


def room_with_border(like: Tensor, border: int) -> tuple[Tensor, Tensor]:
    """Room for values shaped and laid out as ``like``, and the same with a border around it."""
    # Said outright: an expanded tensor that looks channels-last would have a like of another layout.
    layout = torch.channels_last if is_channels_last(like) else torch.contiguous_format
    shape = (*like.shape[:2], like.shape[2] + 2 * border, like.shape[3] + 2 * border)
    padded = torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)
    if not border:
        return padded, like.new_empty(0)
    return padded[:, :, border:-border, border:-border], padded


def _gradient_of_values(of_values: Tensor | None, of_padded: Tensor | None, like: Tensor) -> Tensor:
    """Gradient of the values from those of the two outputs that show them; a tensor of its own, to be overwritten."""
    if of_padded is None:
        return torch.zeros_like(like) if of_values is None else of_values.clone()
    inner = of_padded[:, :, 1:-1, 1:-1]
    gradient = inner.clone() if of_values is None else inner + of_values
    fold_border_(gradient, of_padded)
    return gradient
