"""The Context Encoder: what belongs into the middle of an image (Pathak et al. 2016; Section 4.3).

The generator is built on either family of layers; the discriminator, which is there for training alone, is always
conventional.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from offset_equivariant.nn.constraint import ConstrainedWeight, project_
from offset_equivariant.nn.families import Conventional, LayerFamily

#: Height and width of the images, and of the centre that is filled.
IMAGE_SIZE, CENTRE_SIZE = 128, 64
_SLOPE, _INITIAL_STD = 0.2, 0.02


class ContextEncoder(nn.Module):
    """Image with a hole, ``(N, 3, 128, 128)``, to its centre, ``(N, 3, 64, 64)``, in the space of the input.

    Five convolutions of 4x4 with stride 2 and leaky rectifiers lead to 4x4 pixels, one more to a single pixel, and five
    transposed ones back to 64x64; all but the first and the last are followed by batch normalisation. With width 1 it
    has 71,130,531 parameters in conventional layers, and 69,917,493 in offset equivariant ones with
    ``widths = (63, 63, 126, 252, 504)``, the paper's doubling from 63 on.

    The original ends in tanh, which is no part of this module: an equivariant network's output has no range.

    Args:
        family: the layers to build it of.
        width: factor on the conventional channel counts.
        widths: conventional channels of the five convolutions, rounded by the family.
        bottleneck: conventional channels of the single pixel.
        initial_gain: mean of the batch normalisations' initial γ as :func:`initialise_`, to be called next, has them.

    Raises:
        ValueError: if ``width`` or ``initial_gain`` is not positive, or ``widths`` are not five.
    """

    channels = 3

    def __init__(
        self,
        family: LayerFamily | None = None,
        width: float = 1.0,
        widths: Sequence[int] = (64, 64, 128, 256, 512),
        bottleneck: int = 4000,
        initial_gain: float = 1.0,
    ) -> None:
        super().__init__()
        for name, value in {"width": width, "initial_gain": initial_gain}.items():
            if not value > 0:
                raise ValueError(f"{name} = {value} must be positive")
        if len(widths) != 5:
            raise ValueError(f"widths = {list(widths)} must be five numbers, one for each halving of the image")
        self.initial_gain = initial_gain
        family = family or Conventional()
        sizes = [family.width(round(width * channels)) for channels in widths]
        middle = family.width(bottleneck)
        encoder: list[nn.Module] = [family.conv2d(self.channels, sizes[0], 4, 2, 1), family.leaky_relu(_SLOPE)]
        for before, after in itertools.pairwise(sizes):
            encoder += [family.conv2d(before, after, 4, 2, 1), family.batch_norm2d(after), family.leaky_relu(_SLOPE)]
        encoder += [family.conv2d(sizes[-1], middle, 4), family.batch_norm2d(middle), family.leaky_relu(_SLOPE)]
        # With a stride of 4 every output of the single pixel has a tap of its own: the same as any other stride, and
        # what an equivariant layer can be constrained to.
        decoder = [family.conv_transpose2d(middle, sizes[-1], 4, 4), family.batch_norm2d(sizes[-1]), family.relu()]
        for before, after in zip(sizes[:0:-1], sizes[-2:0:-1], strict=False):
            decoder += [family.conv_transpose2d(before, after, 4, 2, 1), family.batch_norm2d(after), family.relu()]
        decoder.append(family.conv_transpose2d(sizes[1], self.channels, 4, 2, 1))
        self.encoder = nn.Sequential(*encoder)
        self.decoder = nn.Sequential(*decoder)

    def forward(self, x: Tensor) -> Tensor:
        """Fill the centre.

        Raises:
            ValueError: if the images are not of 128 x 128 pixels.
        """
        if x.shape[1:] != (self.channels, IMAGE_SIZE, IMAGE_SIZE):
            raise ValueError(
                f"images must have shape (N, {self.channels}, {IMAGE_SIZE}, {IMAGE_SIZE}), but their shape is "
                f"{tuple(x.shape)}; resize them"
            )
        return cast(Tensor, self.decoder(self.encoder(x)))


class Discriminator(nn.Module):
    """Centre ``(N, 3, 64, 64)`` in [-1, 1] to the logit of its being real, ``(N,)``: 2,766,529 parameters.

    Args:
        width: factor on the channel counts.

    Raises:
        ValueError: if ``width`` is not positive.
    """

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        if not width > 0:
            raise ValueError(f"width = {width} must be positive")
        sizes = [round(width * channels) for channels in (64, 128, 256, 512)]
        layers: list[nn.Module] = [nn.Conv2d(3, sizes[0], 4, 2, 1), nn.LeakyReLU(_SLOPE)]
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Conv2d(before, after, 4, 2, 1), nn.BatchNorm2d(after), nn.LeakyReLU(_SLOPE)]
        layers.append(nn.Conv2d(sizes[-1], 1, 4))
        self.layers = nn.Sequential(*layers)

    def forward(self, centre: Tensor) -> Tensor:
        return cast(Tensor, self.layers(centre)).flatten()


@torch.no_grad()
def initialise_(network: ContextEncoder | Discriminator) -> None:
    """Radford et al.'s initial weights, as the original has them: N(0, 0.02), normalisation's γ N(1, 0.02), biases 0.

    Of constrained layers, the weights before their projection. A generator's γ are multiplied by its ``initial_gain``.
    An equivariant rectifier adds to the mean of its group in proportion to γ, and nothing after it takes that away:
    with a gain of 1 the first outputs lie several standard deviations off, differently for each image.
    """
    gain = network.initial_gain if isinstance(network, ContextEncoder) else 1.0
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            weight = layer._free_weight() if isinstance(layer, ConstrainedWeight) else layer.weight
            weight.normal_(0, _INITIAL_STD)
            if layer.bias is not None:
                layer.bias.zero_()
        elif isinstance(layer, nn.BatchNorm2d):
            layer.weight.normal_(1, _INITIAL_STD).mul_(gain)
            layer.bias.zero_()
    project_(network)


@torch.no_grad()
def start_at_mean_(network: ContextEncoder, inputs: Tensor) -> None:
    """Set the last layer's bias so that a network's first outputs have the mean of its inputs, channel by channel.

    What the rectifiers have added to the outputs, see :func:`initialise_`, is far in log RGB, and Adam takes steps of
    one size.

    Args:
        network: a new one; its running statistics stay as they are.
        inputs: typical ones, ``(N, 3, 128, 128)``, N at least 2.
    """
    outputs: Tensor = copy.deepcopy(network).train()(inputs)
    bias = network.decoder[-1].bias
    assert isinstance(bias, Tensor)
    bias += (inputs.mean((2, 3)) - outputs.mean((2, 3))).mean(0)
