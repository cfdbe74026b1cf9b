"""Image recognition (Section 4.1): a classifier trained on cross entropy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from offset_equivariant.color.constancy import balance
from offset_equivariant.color.illuminants import IlluminantAugmentation, apply_illuminant
from offset_equivariant.color.jitter import ColorJitter
from offset_equivariant.color.representation import Representation, decode_srgb
from offset_equivariant.color.srgb import srgb_to_linear
from offset_equivariant.data.batches import KeptBatches, TrainingBatches, crop_and_flip, draw_crops, step_generator
from offset_equivariant.data.labelled_images import LabelledImages
from offset_equivariant.nn.constraint import project_
from offset_equivariant.tasks.task import Stateful
from offset_equivariant.training.ranks import own_part, ranks, without_averaging


@dataclass(frozen=True)
class InputPipeline:
    """From linear RGB to the network's input: colour balancing, where the strategy has one, and representation.

    ``estimator`` maps linear RGB ``(N, 3, H, W)`` to the illuminants ``(N, 3)`` that are divided out; ``brightness`` is
    that of :func:`~offset_equivariant.color.constancy.balance`.
    """

    representation: Representation
    estimator: Callable[[Tensor], Tensor] | None = None
    brightness: float | None = None

    @property
    def balances(self) -> bool:
        return self.estimator is not None

    def __call__(self, linear: Tensor) -> Tensor:
        """Map linear RGB ``(N, 3, H, W)`` to the network's input."""
        return self.with_estimate(linear)[0]

    def with_estimate(self, linear: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map linear RGB ``(N, 3, H, W)`` to the network's input, and to the illuminants ``(N, 3)`` divided out."""
        if self.estimator is None:
            return self.representation(linear), None
        estimate = self.estimator(linear)
        return self.representation(balance(linear, estimate, self.brightness)), estimate

    def from_srgb_bytes(self, images: Tensor) -> Tensor:
        """Map uint8 sRGB images ``(N, 3, H, W)`` to the network's input."""
        return self(decode_srgb(images)) if self.balances else self.representation.from_srgb_bytes(images)


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images: zero padding and cropping back, left-right flips, colours and light.

    Random numbers are drawn for the images of a step on all ranks, ``count``, of which a rank has the ``part``: what
    happens to an image does not depend on how many ranks there are.
    """

    crop_padding: int = 4
    flip: bool = True
    jitter: ColorJitter | None = None
    illuminants: IlluminantAugmentation | None = None

    @property
    def changes_colours(self) -> bool:
        return self.jitter is not None or self.illuminants is not None

    def colours(self, images: Tensor, generator: torch.Generator, count: int, part: slice) -> Tensor:
        """Change the colours of uint8 sRGB images ``(N, 3, H, W)``, then their light; return linear RGB."""
        if self.jitter is None:
            linear = decode_srgb(images)
        else:
            drawn = self.jitter.draw(count, generator).of(part)
            linear = srgb_to_linear(self.jitter.apply(images.float() / 255, drawn))
        if self.illuminants is None:
            return linear
        return apply_illuminant(linear, self.illuminants.draw(count, generator)[part])

    def place(self, inputs: Tensor, generator: torch.Generator, count: int, part: slice) -> Tensor:
        """Crop and flip the network's input ``(N, C, H, W)``."""
        if not (self.crop_padding or self.flip):
            return inputs
        return crop_and_flip(
            inputs, self.crop_padding, draw_crops(count, self.crop_padding, self.flip, generator).of(part)
        )


def kept_batches(
    images: LabelledImages, pipeline: InputPipeline, augmentation: Augmentation, batch_size: int, seed: int
) -> KeptBatches:
    """Return the training batches of a data set that is kept whole on the device.

    The images are kept as bytes; those that are to be colour-balanced are balanced and converted once, unless random
    changes of their colours come before.

    Raises:
        ValueError: if there are fewer images than one batch takes.
    """
    kept = images.images
    if pipeline.balances and not augmentation.changes_colours:
        kept = torch.cat([pipeline.from_srgb_bytes(batch) for batch in kept.split(1000)])
    return KeptBatches(kept, images.labels, batch_size=batch_size, seed=seed, part=own_part(batch_size))


class RecognitionTraining:
    """Cross entropy on batches of images, whose colours are computed on the device.

    Args:
        network: ``(N, 3, H, W)`` to ``(N, classes)``, on the device.
        optimizer: over the network's parameters, learning rates at their peak.
        batches: this rank's images and labels by step, see :mod:`offset_equivariant.training.ranks`.
        pipeline: conversion to the network's input.
        augmentation: random changes of the images.
        seed: of the augmentation.
        label_smoothing: of the cross entropy.
        autocast: dtype of mixed precision, or None for the network's own. With float16, whose smallest numbers are not
            small enough for gradients, the loss is scaled, and a step whose gradients overflow is left out.
        channels_last: memory format of the batches.
        forward: the network as it is called, where that is compiled, or averages gradients over ranks.
        accumulate: parts into which a rank's images are divided, whose gradients are added up, so that one part at a
            time is in memory. Batch normalisation sees a part at a time.

    Raises:
        ValueError: if the batch cannot be divided into equal parts.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Optimizer,
        batches: TrainingBatches,
        pipeline: InputPipeline,
        augmentation: Augmentation,
        *,
        seed: int,
        label_smoothing: float = 0.0,
        autocast: torch.dtype | None = None,
        channels_last: bool = False,
        forward: Callable[[Tensor], Tensor] | None = None,
        accumulate: int = 1,
    ) -> None:
        if accumulate < 1 or batches.batch_size % (ranks() * accumulate):
            raise ValueError(
                f"batch_size = {batches.batch_size} cannot be divided among {ranks()} ranks in accumulate = "
                f"{accumulate} parts each"
            )
        self.network = network
        self.optimizer = optimizer
        self.batch_size = batches.batch_size
        self._forward = network if forward is None else forward
        self._batches = batches
        self._seed = seed
        self._pipeline = pipeline
        self._augmentation = augmentation
        self._label_smoothing = label_smoothing
        self._autocast = autocast
        device = next(network.parameters()).device.type
        self._scaler = torch.amp.GradScaler(device, enabled=autocast == torch.float16)
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self._accumulate = accumulate
        self._peak_rates = [group["lr"] for group in optimizer.param_groups]

    @property
    def steps_per_epoch(self) -> int:
        return self._batches.steps_per_epoch

    def modules(self) -> Mapping[str, nn.Module]:
        return {"network": self.network}

    def optimizers(self) -> Mapping[str, Stateful]:
        return {"network": self.optimizer} | ({"loss_scale": self._scaler} if self._scaler.is_enabled() else {})

    def training_step(self, step: int, learning_rate_factor: float) -> dict[str, Tensor]:
        """Take one step; return the mean ``loss`` and ``error_percent`` of this rank's part of the batch."""
        inputs, labels = self.batch(step)
        for group, peak in zip(self.optimizer.param_groups, self._peak_rates, strict=True):
            group["lr"] = peak * learning_rate_factor
        self.network.train()
        self.optimizer.zero_grad()
        losses, errors = [], []
        parts = list(zip(inputs.chunk(self._accumulate), labels.chunk(self._accumulate), strict=True))
        for number, (part, truth) in enumerate(parts):
            last = number == len(parts) - 1
            with nullcontext() if last else without_averaging(self._forward):
                loss, error = self._backward(part, truth)
            losses.append(loss)
            errors.append(error)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        project_(self.network)
        return {"loss": torch.stack(losses).mean(), "error_percent": torch.stack(errors).mean()}

    def _backward(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Add the gradients of a part of the batch; return its mean loss and error in per cent."""
        with torch.autocast(inputs.device.type, self._autocast, enabled=self._autocast is not None):
            scores = self._forward(inputs)
        loss = nn.functional.cross_entropy(scores.float(), labels, label_smoothing=self._label_smoothing)
        self._scaler.scale(loss / self._accumulate).backward()
        return loss.detach(), (scores.detach().argmax(1) != labels).float().mean() * 100

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the network's input at a step, ``(batch_size / ranks, C, H, W)``, and the labels."""
        images, labels = self._batches.batch(step)
        generator = step_generator(self._seed, step, stream=1)
        count, part = self.batch_size, own_part(self.batch_size)
        if self._augmentation.changes_colours:
            images = self._pipeline(self._augmentation.colours(images, generator, count, part))
        elif not images.is_floating_point():
            images = self._pipeline.from_srgb_bytes(images)
        images = self._augmentation.place(images, generator, count, part)
        return images.contiguous(memory_format=self._memory_format), labels
