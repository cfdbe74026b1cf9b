"""Any module made offset equivariant by two group poolings (Section 2.4, Eq. 19), and the layers built on it.

These are the plain compositions, written to be read. :mod:`offset_equivariant.nn.fused` computes the same pattern of
normalisation, activation and merge in fewer passes over memory.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from offset_equivariant.groups import (
    add_offset,
    at_least_single,
    channels_per_group,
    require_offset_groups,
    split_groups,
)
from offset_equivariant.nn.pooling import make_group_pooling
from offset_equivariant.nn.precision import autocasts
from offset_equivariant.nn.shifted import require_tensor
from offset_equivariant.nn.synchronised import SynchronisableBatchNorm2d


class OffsetAdapter(nn.Module):
    """h(x) = f(x - Gφ₁(x)) + Gφ₂(x), equivariant for any f (Eq. 19 and 20).

    Args:
        module: f, from ``(N, C, ...)`` to ``(N, C', ...)``, both divisible by the groups.
        offset_groups: number of offset groups.
        subtract: φ₁, a name (``mean``, ``max``, ``min``) or a module from ``(N, C, ...)`` to ``(N, g)``.
        add: φ₂, likewise; None for the same as φ₁, computed once.

    Raises:
        ValueError: if there are no groups, for an unknown pooling, one whose result has another shape, or channels not
            divisible by the groups.
    """

    def __init__(
        self,
        module: nn.Module,
        offset_groups: int = 3,
        subtract: str | nn.Module = "mean",
        add: str | nn.Module | None = None,
    ) -> None:
        super().__init__()
        require_offset_groups(offset_groups)
        self.module = module
        self.offset_groups = offset_groups
        self.subtract = make_group_pooling(subtract, offset_groups) if isinstance(subtract, str) else subtract
        self.add = make_group_pooling(add, offset_groups) if isinstance(add, str) else add

    def forward(self, x: Tensor) -> Tensor:
        subtracted = self._pooled(self.subtract, require_tensor(x))
        added = subtracted if self.add is None else self._pooled(self.add, x)
        y: Tensor = self.module(add_offset(x, -subtracted))
        # Of the low precision that autocast gives, the sum would be rounded, and the offset with it.
        return add_offset(y.to(at_least_single(y.dtype)) if autocasts(x) else y, added)

    def _pooled(self, pooling: nn.Module, x: Tensor) -> Tensor:
        values: Tensor = pooling(x)
        if values.shape != (x.shape[0], self.offset_groups):
            raise ValueError(
                f"a group pooling must give one number an image and group, ({x.shape[0]}, {self.offset_groups}), "
                f"but {type(pooling).__name__} gave {tuple(values.shape)}"
            )
        return values


class _BatchNorm(OffsetAdapter):
    """What batch normalisation of one and two dimensions shares: all but torch's own layer."""

    _normalisation: ClassVar[type[nn.BatchNorm1d] | type[nn.BatchNorm2d]]

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        offset_groups: int = 3,
        pooling: str | nn.Module = "mean",
    ) -> None:
        channels_per_group(num_features, offset_groups, "num_features")
        normalisation = self._normalisation(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        super().__init__(normalisation, offset_groups, pooling)


class BatchNorm1d(_BatchNorm):
    """Batch normalisation of ``(N, C)`` or ``(N, C, L)`` by Eq. 19; arguments as torch's, ``pooling`` as ReLU's."""

    _normalisation = nn.BatchNorm1d


class BatchNorm2d(_BatchNorm):
    """Batch normalisation of ``(N, C, H, W)`` by Eq. 19; arguments as torch's, ``pooling`` as ReLU's."""

    # torch's own, but that its statistics can be those of several processes.
    _normalisation = SynchronisableBatchNorm2d


class ReLU(OffsetAdapter):
    """max(x, Gφ(x)): the rectifier of Eq. 21. ``pooling`` is φ: mean, max, min, or a module.

    Of the maximum nothing else is left, φ = max, and nothing is rectified with φ = min: of use are the mean and learned
    ones.

    ``inplace`` is torch's, of this and the two layers below; here it overwrites x - Gφ(x), and never the input.
    """

    def __init__(self, inplace: bool = False, *, offset_groups: int = 3, pooling: str | nn.Module = "mean") -> None:
        super().__init__(nn.ReLU(inplace), offset_groups, pooling)


class LeakyReLU(OffsetAdapter):
    """The leaky rectifier by Eq. 19, bending at the group pooling φ instead of at zero."""

    def __init__(
        self,
        negative_slope: float = 0.01,
        inplace: bool = False,
        *,
        offset_groups: int = 3,
        pooling: str | nn.Module = "mean",
    ) -> None:
        super().__init__(nn.LeakyReLU(negative_slope, inplace), offset_groups, pooling)


class Dropout(OffsetAdapter):
    """Dropout by Eq. 19: a dropped feature falls to its group's mean instead of to zero."""

    def __init__(self, p: float = 0.5, inplace: bool = False, *, offset_groups: int = 3) -> None:
        super().__init__(nn.Dropout(p, inplace), offset_groups)


class Maxout(nn.Module):
    """Maximum over ``pieces`` consecutive channels of a group, equivariant by nature (Section 2.4, after Eq. 21).

    ``(N, C, ...)`` to ``(N, C // pieces, ...)``.

    Raises:
        ValueError: if a group's channels are not divisible by ``pieces``, or one of the two is not positive.
    """

    def __init__(self, pieces: int, *, offset_groups: int = 3) -> None:
        super().__init__()
        if pieces < 1:
            raise ValueError(f"pieces must be at least 1, got {pieces}")
        require_offset_groups(offset_groups)
        self.pieces = pieces
        self.offset_groups = offset_groups

    def forward(self, x: Tensor) -> Tensor:
        size = split_groups(x, self.offset_groups).shape[2]
        if size % self.pieces:
            valid = ", ".join(str(pieces) for pieces in range(1, size + 1) if size % pieces == 0)
            raise ValueError(
                f"pieces = {self.pieces} does not divide the {size} channels of a group; valid numbers are {valid}"
            )
        pieces: Tensor = x.unflatten(1, (-1, self.pieces))
        return pieces.amax(2)


class InvariantHead(nn.Module):
    """Mean over the groups of k scores each, ``(N, g·k)`` to ``(N, k)`` (Section 4.1).

    An offset Δ of the input adds the mean of Δ to all k scores alike, so their softmax does not change (Eq. 28). What
    comes before it gives one score a class and group, ``oe.nn.Linear(features, 3 * classes)`` with three groups.

    Raises:
        ValueError: if the scores are not divisible by the groups, or there are none.
    """

    def __init__(self, *, offset_groups: int = 3) -> None:
        super().__init__()
        require_offset_groups(offset_groups)
        self.offset_groups = offset_groups

    def forward(self, scores: Tensor) -> Tensor:
        if isinstance(scores, Tensor) and scores.ndim > 1 and scores.shape[1] % self.offset_groups:
            raise ValueError(
                f"got {scores.shape[1]} scores, which offset_groups = {self.offset_groups} does not divide: an "
                f"invariant head needs one a class and group; of k classes let Linear give {self.offset_groups} * k"
            )
        return split_groups(scores, self.offset_groups).mean(1)

    def extra_repr(self) -> str:
        return f"offset_groups={self.offset_groups}"
