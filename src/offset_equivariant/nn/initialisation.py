"""Initial weights of networks of either family."""

from __future__ import annotations

import math

import torch
from torch import nn

from offset_equivariant.nn.constraint import ConstrainedWeight
from offset_equivariant.nn.pooling import GroupLinear


def initialise_conventional_(network: nn.Module) -> None:
    """He et al.'s normal initialisation of convolutions (fan in), biases zero; of all others torch's own."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


@torch.no_grad()
def initialise_constrained_(network: nn.Module, offset_groups: int, init_gain: float) -> None:
    """Normal weights (fan in), projected: He et al.'s variance 2 / fan_in for convolutions, torch's 1 / (3 fan_in)
    for linear layers; biases zero.

    The projection takes one of each K = (channels of a group x taps) degrees of freedom, and a part 1/K of the
    variance with it; the standard deviation is raised by sqrt(K / (K - 1)) so that what is left has the variance
    that was asked for. Of a transposed convolution, the taps are those that one output meets: all by the stride. Of a
    grouped one, an output loses one degree of freedom for each of the offset groups that it sees. Learned group
    poolings start as the average.

    Args:
        network: whose constrained layers are given weights.
        offset_groups: their number of offset groups.
        init_gain: standard deviation of the weights of convolutions in units of He et al.'s.

    Raises:
        ValueError: if batch normalisation was folded into the weights.
    """
    layers = list(network.modules())
    if any(isinstance(layer, ConstrainedWeight) and layer.holds_scaled_weight for layer in layers):
        raise ValueError(
            "a network folded by fuse_for_inference has no initial weights; initialise the one it was made of"
        )
    for layer in layers:
        if isinstance(layer, ConstrainedWeight):
            weight = layer._free_weight()
            fan_in = _fan_in(layer, weight)
            gain = init_gain * math.sqrt(2) if weight.ndim > 2 else math.sqrt(1 / 3)
            if getattr(layer, "groups", 1) == 1:
                kept = 1 - offset_groups / fan_in if fan_in > offset_groups else 1.0
                weight.normal_(0, gain / math.sqrt(fan_in * kept))
            else:
                weight.normal_(0, gain / math.sqrt(fan_in))
                _raise_variance_(layer, weight, fan_in)
            layer.project_()
            if isinstance(layer.bias, torch.Tensor):
                nn.init.zeros_(layer.bias)
    for layer in layers:
        if isinstance(layer, GroupLinear):
            layer.start_as_average_()


def _raise_variance_(layer: ConstrainedWeight, weight: torch.Tensor, fan_in: float) -> None:
    """Divide a grouped convolution's weights by the root of the part of their variance that the projection leaves."""
    lost = (layer._projection.seen(weight) > 0).sum(1) / fan_in  # of each output
    kept = torch.where(lost < 1, 1 - lost, 1.0).sqrt().to(weight.dtype)
    if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d):  # (m, n / groups, *taps)
        of_inputs = kept.view(layer.groups, 1, -1).expand(-1, layer.in_channels // layer.groups, -1).flatten(0, 1)
        weight.div_(of_inputs[(..., *[None] * (weight.ndim - 2))])
    else:
        weight.div_(kept[(..., *[None] * (weight.ndim - 1))])


def _fan_in(layer: nn.Module, weight: torch.Tensor) -> float:
    """How many weights an output meets; of a transposed convolution, on average over its phases."""
    if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d):
        visible = layer.in_channels // layer.groups
        return visible * weight[0, 0].numel() / math.prod(layer.stride)
    return weight[0].numel()
