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

from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from offset_equivariant.groups import channels_per_group

Constraint = Literal["parametrization", "projection"]
CONSTRAINTS: tuple[str, ...] = get_args(Constraint)


def project_weight(weight: Tensor, offset_groups: int, groups: int = 1) -> Tensor:
    """Return the nearest weight that satisfies Eq. 16 (Eq. 10 where there are no taps).

    Args:
        weight: ``(n, m // groups, *taps)``, as torch's linear and convolution layers keep it.
        offset_groups: number of offset groups g.
        groups: torch's own ``groups`` of a grouped convolution; 1 for all others.

    Raises:
        ValueError: if n or m is not divisible by g, or an output of a grouped convolution sees no channel of its own
            offset group, which makes the constraint infeasible.
    """
    outputs, visible = weight.shape[:2]
    channels_per_group(outputs, offset_groups, "out_channels")
    channels_per_group(visible * groups, offset_groups, "in_channels")
    if groups == 1:
        blocks = weight.reshape(offset_groups, outputs // offset_groups, offset_groups, -1)
        target = torch.eye(offset_groups, dtype=weight.dtype, device=weight.device)[:, None, :, None]
        return (blocks - blocks.mean(3, keepdim=True) + target / blocks.shape[3]).reshape(weight.shape)
    members = _visible_groups(outputs, visible, offset_groups, groups, weight.device).to(weight.dtype)
    target = torch.eye(offset_groups, dtype=weight.dtype, device=weight.device)
    target = target.repeat_interleave(outputs // offset_groups, dim=0)
    taps = weight[0, 0].numel()
    excess = torch.einsum("oc,ocg->og", weight.flatten(2).sum(2), members) - target
    share = excess / (members.sum(1) * taps).clamp_min(1)
    return weight - torch.einsum("og,ocg->oc", share, members).reshape(outputs, visible, *(1,) * (weight.ndim - 2))


def _visible_groups(outputs: int, visible: int, offset_groups: int, groups: int, device: torch.device) -> Tensor:
    """One-hot offset group of each input channel that an output of a grouped convolution sees: ``(n, m/groups, g)``."""
    first = torch.arange(outputs, device=device) // (outputs // groups) * visible
    seen = (first[:, None] + torch.arange(visible, device=device)) // (visible * groups // offset_groups)
    own = torch.arange(outputs, device=device) // (outputs // offset_groups)
    blind = (seen != own[:, None]).all(1)
    if bool(blind.any()):
        raise ValueError(
            f"with groups = {groups}, output channel {int(blind.nonzero()[0])} sees no input channel of its own offset "
            f"group, so Eq. 16 cannot hold; choose groups so that every output sees its own group, for instance a "
            f"multiple of offset_groups = {offset_groups} with in_channels = out_channels"
        )
    return nn.functional.one_hot(seen, offset_groups)


def constraint_error(weight: Tensor, offset_groups: int, groups: int = 1) -> float:
    """Return the largest violation of Eq. 16: the distance from the projection, times the number of weights summed."""
    distance = (weight.detach() - project_weight(weight.detach(), offset_groups, groups)).abs().max().item()
    return distance * weight[0].numel() * groups / offset_groups


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


class ConstrainedWeight(nn.Module):
    """Mixin of every layer whose ``weight`` obeys Eq. 10 or 16.

    ``constraint="parametrization"`` holds it at all times. ``"projection"`` is cheaper: the layer computes with its
    plain weight, and ``project_`` must follow each optimiser step. Both take the same path under SGD with momentum
    and weight decay. A ``state_dict`` of either kind loads into the other.
    """

    weight: Tensor
    offset_groups: int
    constraint: Constraint

    def _constrain(self, offset_groups: int, constraint: Constraint, groups: int = 1) -> None:
        """Start to hold the constraint; to be called once, when the layer has its weight."""
        if constraint not in CONSTRAINTS:
            raise ValueError(f"constraint = {constraint!r} is not one of {', '.join(CONSTRAINTS)}")
        self.offset_groups = offset_groups
        self.constraint = constraint
        self._weight_groups = groups
        self.project_()
        if constraint == "parametrization":
            parametrize.register_parametrization(self, "weight", OffsetConstraint(offset_groups, groups))
        self.register_load_state_dict_pre_hook(_translate_weight_key)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def project_(self) -> None:
        """Replace the weight by its projection, in place; for a parametrised layer, its free weight."""
        weight = self._free_weight()
        weight.copy_(project_weight(weight, self.offset_groups, self._weight_groups))

    def _free_weight(self) -> Tensor:
        if parametrize.is_parametrized(self, "weight"):
            return cast(Tensor, self.parametrizations["weight"].original)  # type: ignore[index,union-attr]
        return self.weight


def _translate_weight_key(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Let a plain ``weight`` load into a parametrised layer, and the other way round."""
    plain, free = prefix + "weight", prefix + "parametrizations.weight.original"
    wanted, other = (free, plain) if parametrize.is_parametrized(module, "weight") else (plain, free)
    if wanted not in state_dict and other in state_dict:
        weight = state_dict.pop(other)
        assert isinstance(module, ConstrainedWeight)
        state_dict[wanted] = project_weight(weight, module.offset_groups, module._weight_groups)


def project_(module: nn.Module) -> None:
    """Project the weights of every constrained layer in ``module`` onto Eq. 16, in place.

    To be called after each optimiser step when the layers were made with ``constraint="projection"``; harmless
    otherwise. Also restores the constraint to the new precision after ``module.double()``.
    """
    for layer in module.modules():
        if isinstance(layer, ConstrainedWeight):
            layer.project_()


def remove_parametrizations_(module: nn.Module) -> None:
    """Turn every parametrised layer of ``module`` into a plain one with the same, constrained weight, in place."""
    for layer in module.modules():
        if isinstance(layer, ConstrainedWeight) and parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
            layer.constraint = "projection"
