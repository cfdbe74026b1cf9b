r"""Feature maps with their offsets carried beside them, so that no layer computes with an offset again and again.

A feature map x is held as three parts,

.. math:: x_{nc}(p) = v_{nc}(p) + s_{nc} + (G \delta_n)_c ,

``values`` v over the pixels p, a ``shift`` s of each image and channel, and an ``offset`` δ of each image and group.
Offset equivariant layers pass δ on untouched, f(x + Gδ) = f(x) + Gδ (Eq. 2), and a convolution that pads with the
border's own values maps a shift to a shift, s ↦ (Σ_t W_t) s + b. What costs passes over memory is done on the values
alone, and these stay small however large the offset.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from offset_equivariant.groups import (
    add_offset,
    at_least_single,
    expand_groups,
    group_mean,
    require_offset_groups,
)
from offset_equivariant.nn.precision import autocasts


class ShiftedFeatures(NamedTuple):
    """Feature maps in three parts, see the module's description.

    A tuple to torch and to Python, which pass its parts on by iterating; it has no index of its own, since images or
    channels cannot be taken out of one part alone. ``_replace(values=...)`` leaves out ``padded``, which shows other
    values, unless it is given too.

    Attributes:
        values: ``(N, C, *spatial)``.
        shift: ``(N, C)``, in at least single precision.
        offset: ``(N, g)``, likewise.
        padded: ``values`` within a border of their own outermost pixels, or None. It is what the next convolution
            reads, and what its gradient goes to: values must not be changed in place, and their own gradient is None.
    """

    values: Tensor
    shift: Tensor
    offset: Tensor
    padded: Tensor | None = None

    def __add__(self, other: object) -> Any:
        # A tuple's sum would be a longer tuple, and fail layers later.
        raise TypeError(
            "feature maps with their offset beside them are not added: a sum holds the offset twice; for a residual "
            "connection call BatchNormReLU(input, shortcut), for anything else take .joined() of both"
        )

    def __radd__(self, other: object) -> Any:
        return self + other

    def __mul__(self, other: object) -> Any:
        # Of a tuple: a longer one.
        raise TypeError(
            "feature maps with their offset beside them are not multiplied: the offset would be, too; take .joined()"
        )

    def __rmul__(self, other: object) -> Any:
        return self * other

    def __getitem__(self, index: object) -> Any:
        # Of a tuple: one of the parts.
        raise TypeError(
            "feature maps with their offset beside them have no index: values alone lack their shift and offset; take "
            ".joined()[...] for images or channels, and .values, .shift or .offset for one of the parts"
        )

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # Some of torch's functions take tuples, and look into them by index: where that raises, they end the process.
        raise TypeError(
            f"torch's {getattr(function, '__name__', function)} takes tensors, got ShiftedFeatures, whose values lack "
            "their shift and offset; pass on .joined(), in an nn.Sequential by oe.nn.Joined()"
        )

    @property
    def shape(self) -> torch.Size:
        """Shape of the feature maps."""
        return self.values.shape

    @property
    def border(self) -> int:
        """Width of the border of ``padded``."""
        return 0 if self.padded is None else (self.padded.shape[-1] - self.values.shape[-1]) // 2

    def channel_means(self) -> Tensor:
        """Mean of each channel over its pixels, without the offset: ``(N, C)``."""
        return self.values.flatten(2).mean(2, dtype=self.shift.dtype) + self.shift

    def joined(self) -> Tensor:
        """Return the feature maps as one tensor ``(N, C, *spatial)``, of the type of ``values``.

        Under autocast in at least single precision, since they hold the offset now.
        """
        shift = self.shift + expand_groups(self.offset, self.shape[1])
        joined = self.values + shift.reshape(*shift.shape, *(1,) * (self.values.ndim - 2))
        return joined if autocasts(self.values) else joined.to(self.values.dtype)


_replace_parts = ShiftedFeatures._replace


def _replace(self: ShiftedFeatures, **parts: Any) -> ShiftedFeatures:
    """Return other feature maps, with some parts replaced; new values without ``padded``, unless it is given too."""
    if "values" in parts:
        parts.setdefault("padded", None)
    return _replace_parts(self, **parts)


# A NamedTuple's body may not define it.
ShiftedFeatures._replace = _replace  # type: ignore[method-assign,assignment]


#: What layers pass on to each other: ordinary ones tensors, those of this package either.
FeatureMaps = Tensor | ShiftedFeatures


def unshifted(x: Tensor, offset_groups: int) -> ShiftedFeatures:
    """Wrap ``x``, ``(N, C, *spatial)``, as it is, but in at least single precision."""
    wide = at_least_single(x.dtype)
    zeros = torch.zeros(x.shape[:2], dtype=wide, device=x.device)
    return ShiftedFeatures(x.to(wide), zeros, zeros.new_zeros(len(x), offset_groups))


def require_groups(x: ShiftedFeatures, offset_groups: int) -> None:
    """Refuse feature maps whose offsets are of another number of groups than a layer's.

    Raises:
        ValueError: with both numbers.
    """
    if x.offset.shape[1] != offset_groups:
        raise ValueError(
            f"the feature maps carry the offsets of {x.offset.shape[1]} groups, but this layer has offset_groups = "
            f"{offset_groups}; give the same number to TakeOutOffset and to every layer"
        )


def require_tensor(x: object) -> Tensor:
    """Refuse feature maps with their offsets beside them where only a tensor can be taken.

    Raises:
        TypeError: says what to do.
    """
    if isinstance(x, ShiftedFeatures):
        raise TypeError(
            "expected a tensor, got ShiftedFeatures, which only convolutions, BatchNormReLU, "
            "BatchNormOfShortcut, MaxPool2d, OptionAShortcut and GlobalAveragePool take; pass on .joined()"
        )
    return cast(Tensor, x)


def without_offset(x: Tensor, offset_groups: int) -> ShiftedFeatures:
    """Take the group means φ(x) out of ``x``, ``(N, C, *spatial)``, and carry them beside it.

    Raises:
        TypeError: if ``x`` holds whole numbers: pixels that were not made log RGB.
        ValueError: if the channels are not divisible by the groups.
    """
    if isinstance(x, Tensor) and not x.is_floating_point():
        raise TypeError(f"expected floating-point features, such as log RGB, got {x.dtype}; convert the images first")
    offset = group_mean(x, offset_groups)
    shift = torch.zeros(x.shape[:2], dtype=offset.dtype, device=x.device)
    return ShiftedFeatures(add_offset(x, -offset), shift, offset)


class TakeOutOffset(nn.Module):
    """The entrance of a network: ``(N, C, *spatial)`` to :class:`ShiftedFeatures`.

    Raises:
        TypeError: if the input holds whole numbers: pixels that were not made log RGB.
        ValueError: if the channels are not divisible by the groups.
    """

    def __init__(self, *, offset_groups: int = 3) -> None:
        super().__init__()
        require_offset_groups(offset_groups)
        self.offset_groups = offset_groups

    def forward(self, x: Tensor) -> ShiftedFeatures:
        return without_offset(x, self.offset_groups)

    def extra_repr(self) -> str:
        return f"offset_groups={self.offset_groups}"


class Joined(nn.Module):
    """Where layers that take tensors only begin: :class:`ShiftedFeatures` to ``(N, C, *spatial)``.

    Tensors pass unchanged. See :meth:`ShiftedFeatures.joined`.
    """

    def forward(self, x: FeatureMaps) -> Tensor:
        return x.joined() if isinstance(x, ShiftedFeatures) else x


class GlobalAveragePool(nn.Module):
    """Mean over the pixels, ``(N, C, *spatial)`` or :class:`ShiftedFeatures` to a tensor ``(N, C)``.

    Under autocast the latter in at least single precision: the offset is among them again.
    """

    def forward(self, x: FeatureMaps) -> Tensor:
        if isinstance(x, ShiftedFeatures):
            means = x.channel_means() + expand_groups(x.offset, x.shape[1])
            return means if autocasts(x.values) else means.to(x.values.dtype)
        return x.flatten(2).mean(2)
