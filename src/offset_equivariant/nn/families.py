"""Two families of layers, so that an architecture is written once (Section 4).

A model asks its family for layers and never which family it is. ``Conventional`` gives torch's own layers,
``OffsetEquivariant`` those of this package. The difference between two networks is then the paper's method alone.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, get_args

from torch import nn

from offset_equivariant.groups import channels_per_group, nearest_multiple
from offset_equivariant.nn import (
    adapters,
    concatenation,
    fused,
    layers,
    one_position,
    plain,
    residual,
    shifted,
    synchronised,
    transposed,
)
from offset_equivariant.nn.constraint import Constraint
from offset_equivariant.nn.initialisation import initialise_constrained_, initialise_conventional_
from offset_equivariant.nn.pooling import GroupLinear, MaxPool2d, make_group_pooling

#: How convolutions pad.
BorderPadding = Literal["replicate", "offset"]


class LayerFamily(Protocol):
    """What an architecture needs of its layers. Channel counts given to the methods are final: see ``width``."""

    def width(self, channels: int) -> int:
        """Round a conventional channel count to one that this family can have."""

    def conv2d(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
    ) -> nn.Module:
        """Convolution."""

    def conv_transpose2d(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
    ) -> nn.Module:
        """Transposed convolution."""

    def linear(self, in_features: int, out_features: int, bias: bool = True) -> nn.Module:
        """Fully connected layer."""

    def entrance(self) -> nn.Module:
        """What the images pass first: they become feature maps, as convolutions, ``batch_norm``, ``batch_norm_relu``,
        ``max_pool2d`` and shortcuts take and give them.
        """

    def max_pool2d(self, kernel_size: int, stride: int, padding: int = 0) -> nn.Module:
        """Maximum over windows of such feature maps."""

    def global_average_pool(self) -> nn.Module:
        """Mean over the pixels of such feature maps, a tensor ``(N, C)``."""

    def batch_norm2d(self, channels: int) -> nn.Module:
        """Batch normalisation of tensors ``(N, C, H, W)``."""

    def batch_norm(self, channels: int) -> nn.Module:
        """Batch normalisation of feature maps without a rectifier, as of a projected shortcut before the merge."""

    def batch_norm_relu(self, channels: int, border: int = 0) -> nn.Module:
        """Batch normalisation and ReLU; called with second feature maps, merges that shortcut before the ReLU.

        ``border`` is the padding of the convolution that follows.
        """

    def relu(self) -> nn.Module:
        """Rectifier."""

    def leaky_relu(self, negative_slope: float) -> nn.Module:
        """Leaky rectifier."""

    def dropout(self, p: float) -> nn.Module:
        """Dropout."""

    def concatenate(self) -> nn.Module:
        """Concatenation along the channels; called with the tensors one after another."""

    def shortcut(self, in_channels: int, out_channels: int, stride: int) -> nn.Module:
        """Parameter-free shortcut of a residual block, the identity where nothing changes."""

    def score_features(self, classes: int) -> int:
        """How many outputs the last linear layer has for so many classes."""

    def scores(self) -> nn.Module:
        """Map the last linear layer's outputs to one score a class."""

    def initialise_(self, network: nn.Module) -> None:
        """Draw the network's initial weights, in place."""

    @property
    def folds(self) -> bool:
        """Whether :func:`~offset_equivariant.nn.fuse_for_inference` finds what it can fold in networks of these."""


class _FreeLayers:
    """Layers whose weights obey no constraint: torch's own."""

    padding_mode: ClassVar[Literal["zeros", "replicate"]] = "zeros"

    def conv2d(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
    ) -> nn.Module:
        return one_position.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, bias=bias, padding_mode=self.padding_mode
        )

    def conv_transpose2d(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
    ) -> nn.Module:
        return one_position.ConvTranspose2d(in_channels, out_channels, kernel_size, stride, padding, bias=bias)

    def linear(self, in_features: int, out_features: int, bias: bool = True) -> nn.Module:
        return nn.Linear(in_features, out_features, bias)


@dataclass(frozen=True)
class Conventional(_FreeLayers):
    """torch's own layers."""

    folds: ClassVar[bool] = True

    def width(self, channels: int) -> int:
        return channels

    def entrance(self) -> nn.Module:
        return nn.Identity()

    def max_pool2d(self, kernel_size: int, stride: int, padding: int = 0) -> nn.Module:
        return nn.MaxPool2d(kernel_size, stride, padding)

    def global_average_pool(self) -> nn.Module:
        return shifted.GlobalAveragePool()

    def batch_norm(self, channels: int) -> nn.Module:
        return synchronised.SynchronisableBatchNorm2d(channels)

    def batch_norm_relu(self, channels: int, border: int = 0) -> nn.Module:
        return fused.ConventionalBatchNormReLU(channels)

    def batch_norm2d(self, channels: int) -> nn.Module:
        return synchronised.SynchronisableBatchNorm2d(channels)

    def relu(self) -> nn.Module:
        return nn.ReLU()

    def leaky_relu(self, negative_slope: float) -> nn.Module:
        return nn.LeakyReLU(negative_slope)

    def dropout(self, p: float) -> nn.Module:
        return nn.Dropout(p)

    def concatenate(self) -> nn.Module:
        return concatenation.ConventionalConcatenation()

    def shortcut(self, in_channels: int, out_channels: int, stride: int) -> nn.Module:
        if stride == 1 and in_channels == out_channels:
            return nn.Identity()
        return residual.ConventionalOptionAShortcut(in_channels, out_channels, stride)

    def score_features(self, classes: int) -> int:
        return classes

    def scores(self) -> nn.Module:
        return nn.Identity()

    def initialise_(self, network: nn.Module) -> None:
        initialise_conventional_(network)


@dataclass(frozen=True)
class OffsetEquivariant:
    """The layers of this package, for any number of offset groups.

    Args:
        offset_groups: 1 for grey levels, 3 for RGB, as many as a spectral camera has bands.
        constraint: how Eq. 10 and 16 are held, see :class:`~offset_equivariant.nn.constraint.ConstrainedWeight`; with
            ``projection``, call :func:`~offset_equivariant.nn.constraint.project_` after each optimiser step.
        shortcut_padding: see :class:`~offset_equivariant.nn.residual.OptionAShortcut`.
        init_gain: standard deviation of the initial convolution weights in units of He et al.'s, after projection.
        padding: of convolutions: ``replicate``, the border's own values, as in the paper, or ``offset``, zeros beside
            the offset (see :class:`~offset_equivariant.nn.layers.Conv2d`). Transposed convolutions replicate. With
            ``offset`` this family and the plain one are different functions of the same weights, both equivariant:
            zeros beside the offset mean the level at which this family's rectifiers rectify, and the group means of
            what the plain one's convolutions are given. With ``replicate`` they are the same up to rounding.

    Raises:
        ValueError: if ``offset_groups`` or ``init_gain`` is not positive, or the ``padding`` is another.
    """

    offset_groups: int = 3
    constraint: Constraint = "parametrization"
    shortcut_padding: residual.ShortcutPadding = "inside_groups"
    init_gain: float = 1.0
    padding: BorderPadding = "replicate"
    folds: ClassVar[bool] = True

    def __post_init__(self) -> None:
        channels_per_group(self.offset_groups, self.offset_groups)  # refuses what cannot be a number of groups
        if not self.init_gain > 0:
            raise ValueError(f"init_gain = {self.init_gain} must be positive")
        if self.padding not in get_args(BorderPadding):
            raise ValueError(f"padding = {self.padding!r} is not one of {', '.join(get_args(BorderPadding))}")

    def width(self, channels: int) -> int:
        return nearest_multiple(channels, self.offset_groups)

    def conv2d(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
    ) -> nn.Module:
        return layers.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            bias=bias,
            padding_mode=self.padding,
            offset_groups=self.offset_groups,
            constraint=self.constraint,
        )

    def conv_transpose2d(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
    ) -> nn.Module:
        return transposed.ConvTranspose2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            bias=bias,
            offset_groups=self.offset_groups,
            constraint=self.constraint,
        )

    def linear(self, in_features: int, out_features: int, bias: bool = True) -> nn.Module:
        return layers.Linear(
            in_features, out_features, bias, offset_groups=self.offset_groups, constraint=self.constraint
        )

    def entrance(self) -> nn.Module:
        return shifted.TakeOutOffset(offset_groups=self.offset_groups)

    def max_pool2d(self, kernel_size: int, stride: int, padding: int = 0) -> nn.Module:
        return MaxPool2d(kernel_size, stride, padding)

    def global_average_pool(self) -> nn.Module:
        return shifted.GlobalAveragePool()

    def batch_norm(self, channels: int) -> nn.Module:
        return fused.BatchNormOfShortcut(channels, offset_groups=self.offset_groups)

    def batch_norm_relu(self, channels: int, border: int = 0) -> nn.Module:
        border = border if self.padding == "replicate" else 0
        return fused.BatchNormReLU(channels, offset_groups=self.offset_groups, border=border)

    def batch_norm2d(self, channels: int) -> nn.Module:
        return adapters.BatchNorm2d(channels, offset_groups=self.offset_groups)

    def relu(self) -> nn.Module:
        return adapters.ReLU(offset_groups=self.offset_groups)

    def leaky_relu(self, negative_slope: float) -> nn.Module:
        return adapters.LeakyReLU(negative_slope, offset_groups=self.offset_groups)

    def dropout(self, p: float) -> nn.Module:
        return adapters.Dropout(p, offset_groups=self.offset_groups)

    def concatenate(self) -> nn.Module:
        return concatenation.Concatenation(offset_groups=self.offset_groups)

    def shortcut(self, in_channels: int, out_channels: int, stride: int) -> nn.Module:
        if stride == 1 and in_channels == out_channels:
            return nn.Identity()
        return residual.OptionAShortcut(
            in_channels, out_channels, stride, offset_groups=self.offset_groups, padding=self.shortcut_padding
        )

    def score_features(self, classes: int) -> int:
        return classes * self.offset_groups

    def scores(self) -> nn.Module:
        return adapters.InvariantHead(offset_groups=self.offset_groups)

    def initialise_(self, network: nn.Module) -> None:
        initialise_constrained_(network, self.offset_groups, self.init_gain)


@dataclass(frozen=True)
class PlainOffsetEquivariant(OffsetEquivariant):
    """The same layers as plain compositions of Eq. 19, 21 and 27, feature maps passed on as tensors, nothing fused.

    Slower; for comparison, and for other group poolings than the mean.

    Args:
        normalisation_pooling: φ of normalisation: ``mean``, ``max``, ``min``, or ``linear``, a learned combination
            (:class:`~offset_equivariant.nn.pooling.GroupLinear`) for each layer.
        rectifier_pooling: φ of the rectifier: ``mean`` or ``linear``. By Eq. 21, max(x, φ(x)), nothing but the maximum
            is left behind ``max``, and ``min`` rectifies nothing.

    Raises:
        ValueError: for other poolings, and as :class:`OffsetEquivariant`.
    """

    normalisation_pooling: str = "mean"
    rectifier_pooling: str = "mean"
    folds: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rectifier_pooling not in ("mean", "linear"):
            raise ValueError(f"rectifier_pooling = {self.rectifier_pooling!r} is not one of mean, linear")
        with warnings.catch_warnings():  # of a learned one that has nothing to learn: it is thrown away
            warnings.simplefilter("ignore", UserWarning)
            self._pooling(self.normalisation_pooling, self.offset_groups)  # refuses an unknown one

    def _pooling(self, name: str, channels: int) -> nn.Module:
        if name == "linear":
            return GroupLinear(channels, self.offset_groups, self.constraint)
        return make_group_pooling(name, self.offset_groups)

    def entrance(self) -> nn.Module:
        return nn.Identity()

    def batch_norm(self, channels: int) -> nn.Module:
        pooling = self._pooling(self.normalisation_pooling, channels)
        return adapters.BatchNorm2d(channels, offset_groups=self.offset_groups, pooling=pooling)

    def batch_norm2d(self, channels: int) -> nn.Module:
        return self.batch_norm(channels)

    def batch_norm_relu(self, channels: int, border: int = 0) -> nn.Module:
        poolings = (self._pooling(name, channels) for name in (self.normalisation_pooling, self.rectifier_pooling))
        return plain.PlainBatchNormReLU(channels, self.offset_groups, *poolings)


@dataclass(frozen=True)
class UnconstrainedOffsetEquivariant(_FreeLayers, PlainOffsetEquivariant):
    """The same layers, with the weights of convolutions and linear layers left free: not equivariant.

    For comparison: what the constraint does, with everything else as it is. Convolutions replicate the border, and
    ``constraint`` is that of learned group poolings alone.
    """

    padding_mode: ClassVar[Literal["zeros", "replicate"]] = "replicate"

    def initialise_(self, network: nn.Module) -> None:
        initialise_conventional_(network)
        super().initialise_(network)


FAMILIES: dict[str, type[Conventional] | type[OffsetEquivariant]] = {
    "conventional": Conventional,
    "offset_equivariant": OffsetEquivariant,
    "offset_equivariant_plain": PlainOffsetEquivariant,
    "offset_equivariant_unconstrained": UnconstrainedOffsetEquivariant,
}
