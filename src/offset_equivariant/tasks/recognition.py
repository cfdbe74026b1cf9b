"""Image recognition (Section 4.1): a classifier trained on cross entropy, tested under coloured light."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from offset_equivariant.color.angular_error import as_light, recovery_angular_error
from offset_equivariant.color.constancy import balance
from offset_equivariant.color.illuminants import IlluminantAugmentation, apply_illuminant
from offset_equivariant.color.jitter import ColorJitter
from offset_equivariant.color.representation import Representation, decode_srgb
from offset_equivariant.color.srgb import linear_to_srgb, srgb_to_linear
from offset_equivariant.data.batches import EpochOrder, random_crop_and_flip, step_generator
from offset_equivariant.data.labelled_images import LabelledImages
from offset_equivariant.nn.constraint import project_
from offset_equivariant.reporting.statistics import STATISTICS
from offset_equivariant.tasks.task import Stateful
from offset_equivariant.training.ranks import own_part, ranks, without_averaging


@dataclass(frozen=True)
class InputPipeline:
    """From linear RGB to the network's input: colour balancing, where the strategy has one, and representation.

    ``estimator`` maps linear RGB ``(N, 3, H, W)`` to the illuminants ``(N, 3)`` that are divided out.
    """

    representation: Representation
    estimator: Callable[[Tensor], Tensor] | None = None

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
        return self.representation(balance(linear, estimate)), estimate

    def from_srgb_bytes(self, images: Tensor) -> Tensor:
        """Map uint8 sRGB images ``(N, 3, H, W)`` to the network's input."""
        return self(decode_srgb(images)) if self.balances else self.representation.from_srgb_bytes(images)


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images: zero padding and cropping back, left-right flips, colours and light."""

    crop_padding: int = 4
    flip: bool = True
    jitter: ColorJitter | None = None
    illuminants: IlluminantAugmentation | None = None

    @property
    def changes_colours(self) -> bool:
        return self.jitter is not None or self.illuminants is not None

    def colours(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Change the colours of uint8 sRGB images ``(N, 3, H, W)``, then their light; return linear RGB."""
        if self.jitter is None:
            linear = decode_srgb(images)
        else:
            linear = srgb_to_linear(self.jitter(images.float() / 255, generator))
        return linear if self.illuminants is None else self.illuminants(linear, generator)


class RecognitionTraining:
    """Cross entropy on batches of a data set that is kept whole on the device.

    The images are kept as uint8 and converted batch by batch; those that are to be colour-balanced are balanced and
    converted once, before the first step, unless random changes of their colours come before.

    Args:
        network: ``(N, 3, H, W)`` to ``(N, classes)``, on the device.
        optimizer: over the network's parameters, learning rates at their peak.
        images: the training images, on the device.
        pipeline: conversion to the network's input.
        augmentation: random changes of the images.
        batch_size: images a step, of all ranks together, see :mod:`offset_equivariant.training.ranks`.
        seed: of the images' order and augmentation.
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
        images: LabelledImages,
        pipeline: InputPipeline,
        augmentation: Augmentation,
        *,
        batch_size: int,
        seed: int,
        label_smoothing: float = 0.0,
        autocast: torch.dtype | None = None,
        channels_last: bool = False,
        forward: Callable[[Tensor], Tensor] | None = None,
        accumulate: int = 1,
    ) -> None:
        if accumulate < 1 or batch_size % (ranks() * accumulate):
            raise ValueError(
                f"batch_size = {batch_size} cannot be divided among {ranks()} ranks in accumulate = {accumulate} parts "
                "each"
            )
        self.network = network
        self.optimizer = optimizer
        self.batch_size = batch_size
        self._forward = network if forward is None else forward
        self._order = EpochOrder(len(images), batch_size, seed)
        self._seed = seed
        self._labels = images.labels
        self._pipeline = pipeline
        self._augmentation = augmentation
        self._label_smoothing = label_smoothing
        self._autocast = autocast
        self._scaler = torch.amp.GradScaler(images.images.device.type, enabled=autocast == torch.float16)
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self._accumulate = accumulate
        self._peak_rates = [group["lr"] for group in optimizer.param_groups]
        self._images = images.images
        if pipeline.balances and not augmentation.changes_colours:
            self._images = torch.cat([pipeline.from_srgb_bytes(batch) for batch in images.images.split(1000)])

    @property
    def steps_per_epoch(self) -> int:
        return self._order.steps_per_epoch

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
        """Return the network's input at a step, ``(batch_size / ranks, C, H, W)``, and the labels.

        All ranks prepare the whole batch, a few per cent of a step's time, so that the random changes of an image are
        the same whatever their number.
        """
        indices = self._order.indices(step).to(self._images.device)
        generator = step_generator(self._seed, step, stream=1)
        images = self._images[indices]
        if self._augmentation.changes_colours:
            images = self._pipeline(self._augmentation.colours(images, generator))
        elif not images.is_floating_point():
            images = self._pipeline.from_srgb_bytes(images)
        images = random_crop_and_flip(images, self._augmentation.crop_padding, self._augmentation.flip, generator)
        own = own_part(self.batch_size)
        return images[own].contiguous(memory_format=self._memory_format), self._labels[indices[own]]


#: Metric and outcome of strategies that balance colours: the angle between estimated and applied illuminant.
RECOVERY = "recovery_error_degrees"


@dataclass(frozen=True)
class _Answer:
    """What is found of images: posterior probabilities ``(N, classes)``, and the illuminants ``(N, 3)`` divided out."""

    posteriors: Tensor
    illuminants: Tensor | None


@dataclass(frozen=True)
class _OpenBatch:
    """Test images on their way through the sweep, and what is found without an illuminant."""

    linear: Tensor
    labels: Tensor
    reference: _Answer


class RecognitionEvaluation:
    """Classification under a given illuminant (Section 4.1.1), for :func:`offset_equivariant.evaluation.sweep.sweep`.

    Per image: ``error``, whether it is misclassified, and ``posterior_change``, the largest change of any class's
    posterior probability from that of the image without the illuminant, which an invariant network keeps at zero.
    Where the pipeline balances colours, ``recovery_error_degrees`` too, with its median as a metric: the angle between
    the illuminant that was divided out and the one that had been put on the image. The images count as balanced, which
    they are more or less; see :func:`~offset_equivariant.color.as_light`.

    Args:
        network: as in training, on the device.
        images: the test images, on the device.
        pipeline: conversion to the network's input.
        requantize: round the distorted sRGB image to 8 bits, as a file on disk would be.
        channels_last: memory format of the batches.
    """

    #: Outcomes whose per-image values are kept beside the record.
    kept_outcomes: tuple[str, ...] = ("error",)

    def __init__(
        self,
        network: nn.Module,
        images: LabelledImages,
        pipeline: InputPipeline,
        *,
        requantize: bool = False,
        channels_last: bool = False,
    ) -> None:
        #: metric -> the outcome it summarises, and how.
        self.summaries: dict[str, tuple[str, Callable[[npt.NDArray[Any]], float]]] = {
            "error_percent": ("error", lambda error: float(error.mean() * 100)),
            "posterior_change": ("posterior_change", lambda change: float(change.max())),
        }
        if pipeline.balances:
            self.summaries[f"median_{RECOVERY}"] = (RECOVERY, STATISTICS["median"])
        self.network = network
        self.images = len(images)
        self._data = images
        self._pipeline = pipeline
        self._requantize = requantize
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format

    @torch.no_grad()
    def open_batch(self, indices: Tensor) -> _OpenBatch:
        """Decode images, and classify them as they are."""
        indices = indices.to(self._data.images.device)
        linear = decode_srgb(self._data.images[indices])
        return _OpenBatch(linear, self._data.labels[indices], self._answer(linear))

    @torch.no_grad()
    def measure(self, batch: _OpenBatch, illuminants: Tensor) -> dict[str, Tensor]:
        """Return the outcomes of each image under its illuminant, ``(N, 3)``, linear RGB."""
        neutral = not self._requantize and bool((illuminants == 1).all())
        answer = batch.reference if neutral else self._answer(self.distort(batch.linear, illuminants))
        outcomes = {
            "error": answer.posteriors.argmax(1) != batch.labels,
            "posterior_change": (answer.posteriors - batch.reference.posteriors).abs().amax(1),
        }
        if answer.illuminants is not None:
            estimate, truth = (as_light(light.cpu().double()) for light in (answer.illuminants, illuminants))
            outcomes[RECOVERY] = recovery_angular_error(estimate, truth).float()
        return outcomes

    def distort(self, linear: Tensor, illuminants: Tensor) -> Tensor:
        """Return linear RGB images under their illuminants."""
        lit = apply_illuminant(linear, illuminants)
        return decode_srgb(quantized_srgb(lit)) if self._requantize else lit

    def posteriors(self, linear: Tensor) -> Tensor:
        """Return the network's posterior probabilities ``(N, classes)`` for linear RGB images."""
        return self._answer(linear).posteriors

    def _answer(self, linear: Tensor) -> _Answer:
        self.network.eval()
        inputs, estimate = self._pipeline.with_estimate(linear)
        scores = self.network(inputs.contiguous(memory_format=self._memory_format))
        return _Answer(torch.softmax(scores, dim=1), estimate)


def quantized_srgb(linear: Tensor) -> Tensor:
    """Return linear RGB as 8-bit sRGB, uint8."""
    return (linear_to_srgb(linear) * 255).round().clamp(0, 255).to(torch.uint8)
