"""Inpainting (Section 4.3): a network is shown an image without its centre, and gives the centre.

The training is that of Pathak et al. 2016, *Context Encoders*: a squared error and a discriminator's judgement.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.optim import Optimizer

from offset_equivariant.color.representation import Representation, decode_srgb
from offset_equivariant.color.srgb import linear_to_srgb
from offset_equivariant.data.batches import EpochOrder, step_generator
from offset_equivariant.data.photo_images import PhotoImages
from offset_equivariant.models.context_encoder import CENTRE_SIZE, IMAGE_SIZE
from offset_equivariant.nn.constraint import project_

#: What an ordinary network is shown in place of the centre: the mean colour of ImageNet, sRGB.
HOLE_COLOUR = (0.485, 0.456, 0.406)
_FIRST, _END = (IMAGE_SIZE - CENTRE_SIZE) // 2, (IMAGE_SIZE + CENTRE_SIZE) // 2


def centre_of(images: Tensor) -> Tensor:
    """Return the 64 x 64 pixels in the middle of images ``(N, C, 128, 128)``."""
    return images[..., _FIRST:_END, _FIRST:_END]


def with_centre(images: Tensor, centre: Tensor) -> Tensor:
    """Return images ``(N, C, 128, 128)`` with another centre, ``(N, C, 64, 64)``."""
    filled = images.clone()
    filled[..., _FIRST:_END, _FIRST:_END] = centre
    return filled


def visible_pixels(images: Tensor) -> Tensor:
    """Return what is not the centre of images ``(N, C, 128, 128)``, row by row, ``(N, C, 1, 12288)``."""
    return images[..., _visible(images.device)].unsqueeze(2)


def _visible(device: torch.device) -> Tensor:
    """Which pixels are visible, bool ``(128, 128)``."""
    mask = torch.ones(IMAGE_SIZE, IMAGE_SIZE, dtype=torch.bool, device=device)
    mask[_FIRST:_END, _FIRST:_END] = False
    return mask


@dataclass(frozen=True)
class HoleFilling:
    """The way of an image into an inpainting network and out of it.

    An ordinary network is shown sRGB with a constant colour for the centre; its outputs go through tanh, the range of
    its input. An equivariant one is shown log RGB whose centre is each channel's mean over the visible pixels, so that
    it moves with them; its outputs, in log RGB too, pass no tanh (Section 4.3), but are cut at each channel's brightest
    visible pixel, which moves with the light as they do. Clipping sees visible pixels alone.

    Args:
        representation: colour space and range of the network's input and output. In sRGB the range is -1 to 1.

    Raises:
        ValueError: for a space other than sRGB and log RGB, or another range of sRGB.
    """

    representation: Representation

    def __post_init__(self) -> None:
        known = self.representation
        if known.space == "linear":
            raise ValueError("space = 'linear' is not for inpainting; choose srgb or log_rgb")
        if known.space == "srgb" and (set(known.mean), set(known.std)) != ({0.5}, {0.5}):
            raise ValueError(
                f"mean = {known.mean} and std = {known.std} must be 0.5 in sRGB: the network's outputs lie in -1 to 1"
            )

    def inputs(self, linear: Tensor) -> Tensor:
        """Map linear RGB ``(N, 3, 128, 128)``, whose centre is not looked at, to the network's input."""
        visible = self.representation(visible_pixels(linear))
        inputs = torch.empty_like(linear)
        if self.representation.space == "srgb":
            inputs[:] = 2 * linear.new_tensor(HOLE_COLOUR)[:, None, None] - 1
        else:
            inputs[:] = visible.mean(-1, keepdim=True)
        inputs[..., _visible(linear.device)] = visible.squeeze(2)
        return inputs

    def linear(self, outputs: Tensor, inputs: Tensor) -> Tensor:
        """Map the network's output ``(N, 3, 64, 64)`` for its inputs ``(N, 3, 128, 128)`` to linear RGB in 0 to 1."""
        if self.representation.space == "srgb":
            return self.representation.to_linear(outputs.tanh())
        return self.representation.to_linear(_cut(outputs, inputs))

    def srgb(self, outputs: Tensor, inputs: Tensor) -> Tensor:
        """Map the network's output ``(N, 3, 64, 64)`` for its inputs ``(N, 3, 128, 128)`` to sRGB in 0 to 1."""
        if self.representation.space == "srgb":
            return (outputs.tanh() + 1) / 2
        return linear_to_srgb(self.linear(outputs, inputs))


def _cut(outputs: Tensor, inputs: Tensor) -> Tensor:
    """Cut log RGB, in which bright is small, at each channel's brightest input.

    The gradient passes as if nothing had been cut, but is that of the cut value: an output that overshoots is pulled
    back by a bounded force, where the exponential function's would grow with the distance and end the training.
    """
    brightest = inputs.amin((2, 3), keepdim=True)
    return outputs + (outputs.maximum(brightest) - outputs).detach()


class JointLoss:
    """The squared error of a centre, and how far it is from fooling the discriminator.

    Args:
        adversarial_weight: of the second; the weight of the first is 1 minus it.
        border: pixels along the border of the centre whose error counts more.
        border_weight: how many times.
    """

    def __init__(self, adversarial_weight: float, border: int, border_weight: float) -> None:
        self.adversarial_weight = adversarial_weight
        self._weights = torch.full((CENTRE_SIZE, CENTRE_SIZE), float(border_weight))
        self._weights[border : CENTRE_SIZE - border, border : CENTRE_SIZE - border] = 1.0

    def reconstruction(self, centre: Tensor, truth: Tensor) -> Tensor:
        """Mean over all pixels of the weighted squared error; centres ``(N, 3, 64, 64)``."""
        return ((centre - truth).square() * self._weights.to(centre.device)).mean()

    def generator(self, centre: Tensor, truth: Tensor, judgement: Tensor) -> dict[str, Tensor]:
        """Return the joint loss, ``loss``, and its two parts, unweighted; ``judgement`` are logits ``(N,)``."""
        reconstruction = self.reconstruction(centre, truth)
        adversarial = binary_cross_entropy_with_logits(judgement, torch.ones_like(judgement))
        joint = (1 - self.adversarial_weight) * reconstruction + self.adversarial_weight * adversarial
        return {"loss": joint, "reconstruction_loss": reconstruction, "adversarial_loss": adversarial}

    def discriminator(self, of_real: Tensor, of_filled: Tensor) -> Tensor:
        """Mean of the cross-entropies of both logits, ``(N,)``: real ones are to be told from filled ones."""
        real = binary_cross_entropy_with_logits(of_real, torch.ones_like(of_real))
        filled = binary_cross_entropy_with_logits(of_filled, torch.zeros_like(of_filled))
        return (real + filled) / 2


def random_crops_and_flips(images: Tensor, size: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Cut of each image ``(N, C, H, W)`` a random square of ``size`` pixels, and flip half of them left to right."""
    count, _, height, width = images.shape
    top = torch.randint(0, height - size + 1, (count, 1), generator=generator)
    left = torch.randint(0, width - size + 1, (count, 1), generator=generator)
    offsets = torch.arange(size).expand(count, -1)
    if flip:
        flipped = torch.rand(count, 1, generator=generator) < 0.5
        rows, columns = top + offsets, left + torch.where(flipped, size - 1 - offsets, offsets)
    else:
        rows, columns = top + offsets, left + offsets
    rows, columns = rows.to(images.device), columns.to(images.device)
    number = torch.arange(count, device=images.device)[:, None, None]
    return images.permute(0, 2, 3, 1)[number, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class InpaintingTraining:
    """The joint training of an inpainting network and its discriminator, on photos kept as bytes on the device.

    Loss and discriminator see sRGB in the range -1 to 1, whatever the network's own space. A step first improves the
    discriminator, then the network.

    Args:
        network: ``(N, 3, 128, 128)`` to ``(N, 3, 64, 64)``, on the device.
        discriminator: ``(N, 3, 64, 64)`` to logits ``(N,)``, on the device.
        optimizers: of both, over their parameters, learning rates at their peak.
        images: the training photos, on the device.
        filling: what the network is shown, and what its outputs mean.
        loss: the joint loss.
        batch_size: images a step.
        seed: of the images' order, crops and flips.
        flip: whether half of the images are flipped.
        channels_last: memory format of the batches.
        forward: the network as it is called, where that is compiled.
    """

    def __init__(
        self,
        network: nn.Module,
        discriminator: nn.Module,
        optimizers: tuple[Optimizer, Optimizer],
        images: PhotoImages,
        filling: HoleFilling,
        loss: JointLoss,
        *,
        batch_size: int,
        seed: int,
        flip: bool = True,
        channels_last: bool = False,
        forward: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.network = network
        self.discriminator = discriminator
        self.batch_size = batch_size
        self._forward = network if forward is None else forward
        self._optimizers = dict(zip(("network", "discriminator"), optimizers, strict=True))
        self._peak_rates = {
            name: [group["lr"] for group in optimizer.param_groups] for name, optimizer in self._optimizers.items()
        }
        self._images = images.images
        self._filling = filling
        self._loss = loss
        self._order = EpochOrder(len(images), batch_size, seed)
        self._seed = seed
        self._flip = flip
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format

    @property
    def steps_per_epoch(self) -> int:
        return self._order.steps_per_epoch

    def modules(self) -> Mapping[str, nn.Module]:
        return {"network": self.network, "discriminator": self.discriminator}

    def optimizers(self) -> Mapping[str, Optimizer]:
        return self._optimizers

    def training_step(self, step: int, learning_rate_factor: float) -> dict[str, Tensor]:
        """Take one step of both; return ``loss`` and ``discriminator_loss``, and the parts of the former."""
        images = self._images[self._order.indices(step).to(self._images.device)]
        images = random_crops_and_flips(images, IMAGE_SIZE, self._flip, step_generator(self._seed, step, stream=1))
        for name, optimizer in self._optimizers.items():
            for group, peak in zip(optimizer.param_groups, self._peak_rates[name], strict=True):
                group["lr"] = peak * learning_rate_factor
        self.network.train()
        self.discriminator.train()
        inputs = self._filling.inputs(decode_srgb(images)).contiguous(memory_format=self._memory_format)
        filled = 2 * self._filling.srgb(self._forward(inputs), inputs) - 1
        truth = (centre_of(images).float() / 127.5 - 1).contiguous(memory_format=self._memory_format)
        discriminator_loss = self._improve_discriminator(truth, filled.detach())
        losses = self._improve_network(truth, filled)
        return {**losses, "discriminator_loss": discriminator_loss}

    def _improve_discriminator(self, truth: Tensor, filled: Tensor) -> Tensor:
        loss = self._loss.discriminator(self.discriminator(truth), self.discriminator(filled))
        self._optimizers["discriminator"].zero_grad()
        loss.backward()
        self._optimizers["discriminator"].step()
        return loss.detach()

    def _improve_network(self, truth: Tensor, filled: Tensor) -> dict[str, Tensor]:
        losses = self._loss.generator(filled, truth, self.discriminator(filled))
        self._optimizers["network"].zero_grad()
        losses["loss"].backward()
        self._optimizers["network"].step()
        project_(self.network)
        return {name: loss.detach() for name, loss in losses.items()}
