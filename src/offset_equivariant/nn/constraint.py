r"""The linear constraint that makes linear and convolutional layers offset equivariant (Eq. 10 and 16).

A layer with weights ``W`` of shape ``(n, m, *taps)`` is equivariant exactly when, for every output, the weights that
it gives to one group's channels, summed over channels *and* taps, are 1 for the output's own group and 0 for the
others: ``(Σ_st W_st) G_m = G_n``. The bias is free.

**The projection.** The nearest point of this affine space in the Euclidean norm. The constraint splits into one
scalar equation per output i and input group q, over disjoint sets of K = |group q|·|taps| weights:
``Σ w = t`` with t in {0, 1}. The nearest solution of one such equation moves all K weights by the same amount,
``w ← w - (Σ w - t) / K``. Written with matrices and S = Σ_st W_st,

.. math:: \hat W_{ij} = W_{ij} - \frac{1}{k^2} (S G_m - G_n) G_m^{+} .

For one tap this is Eq. 11. It is *not* Eq. 17 of the paper, which divides the whole weight by k² and subtracts each
tap's own sum: its result satisfies Eq. 16 too, but it is not a projection (applied twice it differs from once) and
repeating it after every step shrinks the weights to a box filter. See docs/DEVIATIONS.md.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Sequence
from itertools import product
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from offset_equivariant.groups import assignment_matrix, channels_per_group

Constraint = Literal["parametrization", "projection"]
CONSTRAINTS: tuple[str, ...] = get_args(Constraint)


def project_weight(weight: Tensor, offset_groups: int, groups: int = 1) -> Tensor:
    """Return the nearest weight that satisfies Eq. 16 (Eq. 10 where there are no taps).

    Args:
        weight: ``(n, m // groups, *taps)``, as torch's linear and convolution layers keep it.
        offset_groups: number of offset groups g.
        groups: torch's own ``groups`` of a grouped convolution; 1 for all others.

    Raises:
        ValueError: if n or m is not divisible by g, or n by ``groups``.
    """
    outputs, visible = weight.shape[:2]
    channels_per_group(outputs, offset_groups, "out_channels")
    channels_per_group(visible * groups, offset_groups, "in_channels")
    if groups == 1:
        # Views, which copy nothing whatever the weight's layout: layers of 33 million weights go through here.
        blocks = weight.unflatten(1, (offset_groups, -1))
        target = assignment_matrix(outputs, offset_groups, dtype=weight.dtype, device=weight.device)
        members = blocks[0, 0].numel()
        axes = tuple(range(2, blocks.ndim))
        excess = blocks.mean(axes, keepdim=True) - (target / members)[(..., *[None] * len(axes))]
        return torch.flatten(blocks - excess, 1, 2)
    violation, is_member = _excess(weight, offset_groups, groups)
    taps = weight[0, 0].numel()
    share = violation / (is_member.sum(1) * taps).clamp_min(1)
    of_channel = (share.unsqueeze(1) * is_member).sum(2)
    return weight - of_channel.reshape(outputs, visible, *(1,) * (weight.ndim - 2))


def _excess(weight: Tensor, offset_groups: int, groups: int) -> tuple[Tensor, Tensor]:
    """Left minus right side of Eq. 16, ``(n, g)``, and each weight's input group, one-hot, ``(n, m // groups, g)``."""
    outputs, visible = weight.shape[:2]
    members = _visible_groups(outputs, visible, offset_groups, groups, weight.device).to(weight.dtype)
    target = assignment_matrix(outputs, offset_groups, dtype=weight.dtype, device=weight.device)
    # No product of matrices, which autocast would round.
    summed = weight.reshape(outputs, visible, -1).sum(2)
    return (summed.unsqueeze(2) * members).sum(1) - target, members


def _visible_groups(outputs: int, visible: int, offset_groups: int, groups: int, device: torch.device) -> Tensor:
    """One-hot offset group of each input channel that an output of a grouped convolution sees: ``(n, m/groups, g)``.

    Every output sees its own offset group, so that Eq. 16 can hold: relative to all channels, output i is the interval
    [i/n, (i+1)/n), which lies in its offset group and in its torch group; these two share a stretch of input channels
    whose ends are whole numbers, and which is therefore at least one channel long.
    """
    if outputs % groups:
        raise ValueError(f"out_channels = {outputs} must be divisible by groups = {groups}")
    first = torch.arange(outputs, device=device) // (outputs // groups) * visible
    seen = (first[:, None] + torch.arange(visible, device=device)) // (visible * groups // offset_groups)
    return nn.functional.one_hot(seen, offset_groups)


def constraint_error(weight: Tensor, offset_groups: int, groups: int = 1) -> float:
    """Return the largest violation of Eq. 16 (Eq. 10 where there are no taps); arguments as :func:`project_weight`.

    Of a transposed convolution, whose phases satisfy it each, ask the layer: ``layer.constraint_error()``.

    Raises:
        ValueError: as :func:`project_weight`.
    """
    channels_per_group(weight.shape[0], offset_groups, "out_channels")
    channels_per_group(weight.shape[1] * groups, offset_groups, "in_channels")
    return _excess(weight.detach(), offset_groups, groups)[0].abs().max().item()


class OffsetConstraint(nn.Module):
    """Reparametrisation that maps a free weight to the nearest one satisfying Eq. 16.

    For ``torch.nn.utils.parametrize``: the optimiser works on the free weight, the layer computes with its projection.
    """

    def __init__(self, offset_groups: int, groups: int = 1) -> None:
        super().__init__()
        self.offset_groups = offset_groups
        self.groups = groups

    def forward(self, weight: Tensor) -> Tensor:
        return project_weight(weight, self.offset_groups, self.groups)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight

    def error(self, weight: Tensor) -> float:
        """Return the largest violation of the constraint."""
        return constraint_error(weight, self.offset_groups, self.groups)

    def seen(self, weight: Tensor) -> Tensor:
        """Return how many input channels of each offset group each output sees, ``(n, g)``; with taps, at each."""
        outputs, visible = weight.shape[:2]
        return _visible_groups(outputs, visible, self.offset_groups, self.groups, weight.device).sum(1)

    def largest_sum(self, shape: Sequence[int]) -> int:
        """Return how many weights of that shape the longest sum of Eq. 16 has: 1 if it leaves nothing to learn.

        The first output sees the most channels of one group: all that it sees, or all of its group.
        """
        return min(shape[1], shape[1] * self.groups // self.offset_groups) * math.prod(shape[2:])

    def rounding(self, weight: Tensor) -> float:
        """Return the largest violation that rounding to the weight's type explains."""
        return _rounding(weight.detach().abs().flatten(1).sum(1), weight.dtype)


def project_transposed_weight(
    weight: Tensor, offset_groups: int, stride: Sequence[int], dilation: Sequence[int], groups: int = 1
) -> Tensor:
    """Return the nearest weight of a transposed convolution that satisfies Eq. 16 for every phase of its output.

    An output at position p meets the taps t with p + padding ≡ dilation · t (mod stride) alone: the taps fall into
    phases, of which each output has one, and the weights of each phase must satisfy Eq. 16 by themselves.

    Args:
        weight: ``(m, n // groups, *taps)``, as torch's transposed convolutions keep it.
        offset_groups: number of offset groups g.
        stride: along each axis.
        dilation: along each axis.
        groups: torch's own ``groups``.

    Raises:
        ValueError: if n or m is not divisible by g, or m by ``groups``.
    """
    if weight.shape[0] % groups:
        raise ValueError(f"in_channels = {weight.shape[0]} must be divisible by groups = {groups}")
    phases = list(product(*map(_phases_of_taps, weight.shape[2:], stride, dilation)))
    if groups == 1:
        return _project_phases(weight, offset_groups, phases)
    # Of an ordinary convolution with as many outputs and inputs: (n, m // groups, *taps).
    blocks = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    projected = torch.empty_like(blocks)
    for phase in phases:
        taps: Any = (slice(None), slice(None), *phase)
        projected[taps] = project_weight(blocks[taps], offset_groups, groups)
    result: Tensor = projected.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    return result


def _project_phases(weight: Tensor, offset_groups: int, phases: Sequence[tuple[slice, ...]]) -> Tensor:
    """As :func:`project_transposed_weight`, of a layer without torch's groups, in two passes over the weight."""
    channels_per_group(weight.shape[0], offset_groups, "in_channels")
    target = assignment_matrix(weight.shape[1], offset_groups, dtype=weight.dtype, device=weight.device).T
    blocks = weight.unflatten(0, (offset_groups, -1))
    by_group = blocks.mean(1)  # (g, n, *taps), small as against the weight
    axes = tuple(range(2, by_group.ndim))
    share = torch.empty_like(by_group)
    for phase in phases:
        taps: Any = (slice(None), slice(None), *phase)
        of_phase = by_group[taps]
        members = blocks.shape[1] * of_phase[0, 0].numel()
        mean = of_phase.mean(axes, keepdim=True) - (target / members)[(..., *[None] * len(axes))]
        share[taps] = mean.expand_as(of_phase)
    return torch.flatten(blocks - share.unsqueeze(1), 0, 1)


def _phases_of_taps(size: int, stride: int, dilation: int) -> list[slice]:
    """The taps of each phase along one axis; phases without taps are left out.

    Taps t and t' are of one phase where dilation · (t - t') is a multiple of the stride.
    """
    step = stride // math.gcd(stride, dilation)
    return [slice(tap, None, step) for tap in range(min(size, step))]


class TransposedOffsetConstraint(OffsetConstraint):
    """As :class:`OffsetConstraint`, of a transposed convolution, see :func:`project_transposed_weight`."""

    def __init__(self, offset_groups: int, stride: Sequence[int], dilation: Sequence[int], groups: int = 1) -> None:
        super().__init__(offset_groups, groups)
        self.stride = tuple(stride)
        self.dilation = tuple(dilation)

    def forward(self, weight: Tensor) -> Tensor:
        return project_transposed_weight(weight, self.offset_groups, self.stride, self.dilation, self.groups)

    def error(self, weight: Tensor) -> float:
        # Of an ordinary convolution with as many outputs and inputs: (n, m // groups, *taps).
        blocks = weight.unflatten(0, (self.groups, -1)).transpose(1, 2).flatten(0, 1)
        phases = product(*map(_phases_of_taps, weight.shape[2:], self.stride, self.dilation))
        return max(constraint_error(blocks[:, :, *phase], self.offset_groups, self.groups) for phase in phases)

    def seen(self, weight: Tensor) -> Tensor:
        outputs, visible = weight.shape[1] * self.groups, weight.shape[0] // self.groups
        return _visible_groups(outputs, visible, self.offset_groups, self.groups, weight.device).sum(1)

    def largest_sum(self, shape: Sequence[int]) -> int:
        first = [_phases_of_taps(*axis)[0] for axis in zip(shape[2:], self.stride, self.dilation, strict=True)]
        taps = [len(range(size)[phase]) for size, phase in zip(shape[2:], first, strict=True)]
        return min(shape[0] // self.groups, shape[0] // self.offset_groups) * math.prod(taps)

    def rounding(self, weight: Tensor) -> float:
        return _rounding(weight.detach().abs().flatten(2).sum(2).unflatten(0, (self.groups, -1)).sum(1), weight.dtype)


def _rounding(summed: Tensor, dtype: torch.dtype) -> float:
    """What rounding may take from Eq. 16, by the largest sum of absolute weights of an output, and the target of 1.

    Every weight is rounded, and so was the mean that the projection took from each: a few units in the last place.
    """
    return 4 * torch.finfo(dtype).eps * (1 + summed.max().item())


class ConstrainedWeight(nn.Module):
    """Mixin of every layer whose ``weight`` obeys Eq. 10 or 16.

    ``constraint="parametrization"`` holds it at all times. With ``"projection"`` the layer computes with its plain
    weight, and ``project_`` must follow each optimiser step. Both take the same path under SGD with momentum and weight
    decay, but where gradients are clipped by their norm, in which projection counts what it takes away; under Adam,
    which rescales each weight's gradient, projection takes back much of every step (docs/DEVIATIONS.md). A
    ``state_dict`` of either kind loads into the other. Weights that do not satisfy the constraint, of an ordinary
    network for instance, must be projected once they are loaded (``project_``) where ``constraint="projection"``;
    ``constraint_error`` measures it. torch's spectral and weight normalisation and pruning, which compute a weight
    anew from a constrained one, break it.
    """

    weight: Tensor
    offset_groups: int
    constraint: Constraint
    _projection: OffsetConstraint
    #: Whether batch normalisation was folded into the weight, which therefore satisfies no constraint any more.
    holds_scaled_weight = False

    def _constrain(self, projection: OffsetConstraint, constraint: Constraint) -> None:
        """Start to hold the constraint; to be called once, when the layer has its weight."""
        if constraint not in CONSTRAINTS:
            raise ValueError(f"constraint = {constraint!r} is not one of {', '.join(CONSTRAINTS)}")
        self.offset_groups = projection.offset_groups
        self.constraint = constraint
        # Not as a submodule: it has no state, and is no part of what the layer computes.
        self.__dict__["_projection"] = projection
        self.project_()
        if projection.largest_sum(self.weight.shape) == 1:
            warnings.warn(
                f"{type(self).__name__} with a weight of shape {tuple(self.weight.shape)}, offset_groups = "
                f"{projection.offset_groups} and groups = {projection.groups} has weights that can learn nothing: no "
                "output has more than one for an offset group, which the constraint sets to 0 or 1; give it a larger "
                "kernel (of a transposed convolution, larger than the stride), more input channels or fewer groups",
                stacklevel=_calls_inside_the_package(),
            )
        if constraint == "parametrization":
            parametrize.register_parametrization(self, "weight", projection)
        self.register_load_state_dict_pre_hook(_translate_weight_key)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def project_(self) -> None:
        """Replace the weight by its projection, in place; for a parametrised layer, its free weight.

        Raises:
            ValueError: if something else computes the weight, such as torch's spectral normalisation or pruning.
        """
        if self.holds_scaled_weight:
            return
        if parametrize.is_parametrized(self, "weight"):
            alone = len(cast(nn.ModuleList, self.parametrizations["weight"])) == 1  # type: ignore[index]
        else:
            alone = "weight" in self._parameters
        if not alone:
            raise ValueError(
                f"the weight of {type(self).__name__} is computed by something other than its constraint, such as "
                "spectral or weight normalisation or pruning of torch.nn.utils, which break it; remove that first"
            )
        weight = self._free_weight()
        weight.copy_(self._projection(weight))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw weight and bias anew, as torch's layer does, and project the weight."""
        if "_projection" not in self.__dict__:  # torch's constructor
            super().reset_parameters()  # type: ignore[misc]
            return
        with parametrize.cached():  # torch's function fills the weight that it gets
            drawn = self.weight
            super().reset_parameters()  # type: ignore[misc]
            self._free_weight().copy_(drawn)
        self.project_()

    def constraint_error(self) -> float:
        """Return the largest violation of the constraint by the weight that the layer computes with."""
        return self._projection.error(self.weight)

    def satisfies_constraint(self) -> bool:
        """Return whether the weight that the layer computes with obeys the constraint up to its type's rounding."""
        weight = self.weight.detach().cpu()  # not every device has double precision
        return self._projection.error(weight.double()) <= self._projection.rounding(weight)

    def _free_weight(self) -> Tensor:
        if parametrize.is_parametrized(self, "weight"):
            return cast(Tensor, self.parametrizations["weight"].original)  # type: ignore[index,union-attr]
        return self.weight


def _calls_inside_the_package() -> int:
    """Return the caller's ``stacklevel`` of whoever made the layer outside of this package."""
    level, frame = 0, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("offset_equivariant."):
        level, frame = level + 1, frame.f_back
    return level + 1


def _translate_weight_key(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Let a plain ``weight`` load into a parametrised layer, and the other way round."""
    plain, free = prefix + "weight", prefix + "parametrizations.weight.original"
    wanted, other = (free, plain) if parametrize.is_parametrized(module, "weight") else (plain, free)
    if wanted not in state_dict and other in state_dict:
        weight = state_dict.pop(other)
        assert isinstance(module, ConstrainedWeight)
        # Of another shape it is torch's to refuse, with the names of all that do not fit.
        fits = weight.shape == module._free_weight().shape
        state_dict[wanted] = module._projection(weight) if fits else weight


def project_(module: nn.Module) -> None:
    """Project the weights of every constrained layer in ``module`` onto Eq. 16, in place.

    To be called after each optimiser step when the layers were made with ``constraint="projection"``; harmless
    otherwise. Also restores the constraint to the new precision after ``module.double()``.
    """
    for layer in module.modules():
        if isinstance(layer, ConstrainedWeight):
            layer.project_()


@torch.no_grad()
def remove_parametrizations_(module: nn.Module) -> None:
    """Turn every parametrised layer of ``module`` into a plain one with the same, constrained weight, in place.

    The free weights stay the same parameters, so that an optimiser that has them keeps them.

    Raises:
        ValueError: for a layer that was given other parametrisations.
    """
    for layer in module.modules():
        if isinstance(layer, ConstrainedWeight) and parametrize.is_parametrized(layer, "weight"):
            # torch's own function deletes the property from the class, which deep copies of the layer share.
            _require_no_other_parametrization(layer)
            free, weight = layer._free_weight(), layer.weight
            layer.__class__ = parametrize.type_before_parametrizations(layer)
            del layer.parametrizations
            layer.weight = cast(nn.Parameter, free.copy_(weight))
            layer.constraint = "projection"


def _require_no_other_parametrization(layer: ConstrainedWeight) -> None:
    of_tensor = cast(nn.ModuleDict, layer.parametrizations)
    others = [name for name in of_tensor if name != "weight"]
    if others or len(cast(nn.ModuleList, of_tensor["weight"])) > 1:
        raise ValueError(
            f"{type(layer).__name__} has parametrisations of {', '.join(others) or 'its weight'} beside the "
            "constraint; remove them first, by torch.nn.utils.parametrize.remove_parametrizations"
        )
