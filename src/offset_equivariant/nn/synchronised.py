"""Batch normalisation whose statistics are those of the images of all processes that train together.

Off unless :func:`synchronise_batch_norm_` has switched it on, and without effect in a single process.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from offset_equivariant.groups import at_least_single


def world_size() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def mean_over_processes(values: Tensor) -> Tensor:
    """Average a tensor over all processes; its gradient is averaged likewise."""
    if world_size() == 1:
        return values
    averaged: Tensor = _MeanOverProcesses.apply(values)
    return averaged


class _MeanOverProcesses(torch.autograd.Function):
    """Symmetric: every process's result has the same part of every process's values, and so it is with gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return _averaged(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _averaged(gradients[0])


def _averaged(values: Tensor) -> Tensor:
    values = values.clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(values)
    return values / world_size()


class SynchronisableBatchNorm2d(nn.BatchNorm2d):
    """torch's ``BatchNorm2d``, which can be synchronised on any device.

    Every process must give it as many images, of the same size.
    """

    synchronised = False

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and self.synchronised and distributed.is_initialized()):
            return super().forward(input)
        self._check_input_dim(input)
        # In at least single precision, as torch's own.
        mean = mean_over_processes(input.mean((0, 2, 3), dtype=at_least_single(input.dtype)))
        centred = input - mean[:, None, None]
        variance = mean_over_processes(centred.square().mean((0, 2, 3)))
        count = input[:, 0].numel() * world_size()
        update_running_statistics_(self, mean, variance, count)
        scale = torch.rsqrt(variance + self.eps) * self.weight
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)


@torch.no_grad()
def update_running_statistics_(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: int) -> None:
    """Take a batch's mean and biased variance, over ``count`` values a channel, into the running statistics."""
    assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    # Without a momentum, the average of all batches so far.
    momentum = 1 / norm.num_batches_tracked.item() if norm.momentum is None else norm.momentum
    _lerp_(norm.running_mean, mean, momentum)
    _lerp_(norm.running_var, variance * (count / (count - 1)), momentum)


def _lerp_(running: Tensor, batch: Tensor, weight: float) -> None:
    """Move ``running`` towards ``batch``, in the wider of their types: a batch's variance may exceed half precision."""
    wide = torch.promote_types(running.dtype, batch.dtype)
    running.copy_(running.to(wide).lerp_(batch.to(wide), weight))


def synchronise_batch_norm_(network: nn.Module) -> None:
    """Let every batch normalisation of a network see the images of all processes from now on, in place.

    That of ``oe.nn`` can, but for ``BatchNorm1d``, and so can the ordinary one of ``oe.nn.Conventional()``. torch's own
    cannot, and torch's ``convert_sync_batchnorm`` must not be used on networks with ``BatchNormReLU``.

    Raises:
        TypeError: if one cannot, naming it; none is switched then.
    """
    found = {name: module for name, module in network.named_modules() if isinstance(module, _BatchNorm)}
    for name, module in found.items():
        if not (hasattr(module, "synchronised") and module.affine and module.track_running_stats):
            raise TypeError(
                f"{name or 'the network'} is a {type(module).__name__}, which cannot be synchronised; use BatchNorm2d "
                "or BatchNormReLU of offset_equivariant.nn, with affine and track_running_stats as they are by default"
            )
    for module in found.values():
        cast(Any, module).synchronised = True
