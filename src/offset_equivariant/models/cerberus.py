"""Color Cerberus: the illuminant of a small image (Savchik et al. 2019; Section 4.2), on either family of layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from offset_equivariant.nn.families import Conventional, LayerFamily


class ColorCerberus(nn.Module):
    """Image ``(N, 3, S, S)`` to its illuminant ``(N, 3)``, or to ``(N, 3, k)`` for k > 1 estimates.

    Every pixel is given the global average of the image beside its own values. Four times a 3x3 convolution, rectifier
    and 2x2 max pooling follow, then a 1x1 convolution and two fully connected layers, all but the last with a
    rectifier. With one estimate and 64x64 images it has 203,939 parameters in conventional layers and 196,668 in offset
    equivariant ones; the 206,345 that Table 3 gives for the former are those of three estimates.

    The paper has a rectifier behind the last layer too. In the equivariant network with one estimate it would do
    nothing: a group of one channel is its own mean. In the conventional one it is left out, because an output that it
    silences learns nothing any more.

    Args:
        family: the layers to build it of.
        estimates: illuminants an image, k.
        image_size: S, a multiple of 16 (of 2 to the number of ``widths``).
        widths: conventional channels of the four convolutions, rounded by the family.
        bottleneck: conventional channels of the 1x1 convolution.
        hidden: conventional features between the two fully connected layers.

    Raises:
        ValueError: if ``image_size`` is not a positive multiple of 16, or ``estimates`` is not positive.
    """

    channels = 3

    def __init__(
        self,
        family: LayerFamily | None = None,
        estimates: int = 1,
        image_size: int = 64,
        widths: Sequence[int] = (16, 32, 64, 128),
        bottleneck: int = 16,
        hidden: int = 400,
    ) -> None:
        super().__init__()
        reduction = 2 ** len(widths)
        if image_size < reduction or image_size % reduction:
            raise ValueError(f"image_size = {image_size} is not a positive multiple of {reduction}")
        if estimates < 1:
            raise ValueError(f"estimates = {estimates} must be at least 1")
        family = family or Conventional()
        self.estimates = estimates
        self.image_size = image_size
        self.concatenate = family.concatenate()
        layers: list[nn.Module] = []
        before = 2 * self.channels
        for width in map(family.width, widths):
            layers += [family.conv2d(before, width, 3, padding=1), family.relu(), nn.MaxPool2d(2)]
            before = width
        last = family.width(bottleneck)
        self.features = nn.Sequential(*layers, family.conv2d(before, last, 1), family.relu())
        side = image_size // reduction
        between = family.width(hidden)
        self.estimate = nn.Sequential(
            nn.Flatten(),
            family.linear(last * side * side, between),
            family.relu(),
            family.linear(between, self.channels * estimates),
        )
        family.initialise_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Estimate in the space of the input: linear RGB, or log RGB.

        Raises:
            ValueError: if the images are not of the size that the network was built for.
        """
        if x.shape[1:] != (self.channels, self.image_size, self.image_size):
            raise ValueError(
                f"images must have shape (N, {self.channels}, {self.image_size}, {self.image_size}), "
                f"but their shape is {tuple(x.shape)}; resize them"
            )
        average = x.mean((2, 3), keepdim=True).expand_as(x)
        estimates = cast(Tensor, self.estimate(self.features(self.concatenate(x, average))))
        return estimates if self.estimates == 1 else estimates.unflatten(1, (self.channels, self.estimates))
