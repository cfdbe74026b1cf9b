"""Quasi-unsupervised colour constancy: a network that finds grey pixels, trained on ordinary images (Section 4.1.1).

In the unsupervised scenario of Bianco and Cusano (2019) every training image is taken as balanced: the weighted mean of
its colours is to be grey. What the network is shown hardly says what colour the light has
(:mod:`offset_equivariant.color.equalisation`), so that it finds the same pixels in images that are not balanced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from offset_equivariant.color.achromatic import NOISE, cosine_loss, weighted_estimate
from offset_equivariant.color.angular_error import (
    angle_to_neutral,
    as_light,
    recovery_angular_error,
    reproduction_angular_error,
)
from offset_equivariant.color.equalisation import code_input
from offset_equivariant.color.illuminants import apply_illuminant
from offset_equivariant.color.representation import decode_srgb
from offset_equivariant.data.batches import EpochOrder, random_crop_and_flip, step_generator
from offset_equivariant.statistics import STATISTICS


class SrgbImages(Protocol):
    """Any data set of photos: with labels or without."""

    @property
    def images(self) -> Tensor:
        """uint8 ``(N, 3, H, W)``, sRGB."""

    def __len__(self) -> int:
        """How many."""


class QuasiUnsupervisedTraining:
    """1 minus the cosine between estimate and grey, on batches of images that are kept as bytes on the device.

    Args:
        network: coded images ``(N, 7, H, W)`` to weights ``(N, 1, H, W)``, on the device.
        optimizer: over the network's parameters, learning rates at their peak.
        images: the training images, on the device.
        batch_size: images a step.
        seed: of the images' order and flips, and of the noise.
        flip: whether half of the images are flipped left to right.
        noise: standard deviation of what is added to the mean colours, see
            :func:`~offset_equivariant.color.weighted_estimate`.
        channels_last: memory format of the batches.
        forward: the network as it is called, where that is compiled.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Optimizer,
        images: SrgbImages,
        *,
        batch_size: int,
        seed: int,
        flip: bool = True,
        noise: float = NOISE,
        channels_last: bool = False,
        forward: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.network = network
        self.optimizer = optimizer
        self.batch_size = batch_size
        self._forward = network if forward is None else forward
        self._images = images.images
        self._order = EpochOrder(len(images), batch_size, seed)
        self._seed = seed
        self._flip = flip
        self._noise = noise
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self._peak_rates = [group["lr"] for group in optimizer.param_groups]

    @property
    def steps_per_epoch(self) -> int:
        return self._order.steps_per_epoch

    def modules(self) -> Mapping[str, nn.Module]:
        return {"network": self.network}

    def optimizers(self) -> Mapping[str, Optimizer]:
        return {"network": self.optimizer}

    def training_step(self, step: int, learning_rate_factor: float) -> dict[str, Tensor]:
        """Take one step; return the ``loss``, the noisy estimates' mean angle to grey, and the mean weight."""
        images = self._images[self._order.indices(step).to(self._images.device)]
        images = random_crop_and_flip(images, 0, self._flip, step_generator(self._seed, step, stream=1))
        linear = decode_srgb(images)
        drawn = torch.randn(len(images), 3, generator=step_generator(self._seed, step, stream=2))
        for group, peak in zip(self.optimizer.param_groups, self._peak_rates, strict=True):
            group["lr"] = peak * learning_rate_factor
        self.network.train()
        weights = self._forward(code_input(linear).contiguous(memory_format=self._memory_format))
        estimate = weighted_estimate(linear, weights, self._noise * drawn.to(linear.device))
        loss = cosine_loss(estimate)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            degrees = angle_to_neutral(estimate).mean()
        return {"loss": loss.detach(), "degrees_to_grey": degrees, "mean_weight": weights.detach().mean()}


#: The errors that are measured, in degrees: the angle between illuminant and estimate, and that of Eq. 29.
ERRORS = ("recovery_error_degrees", "reproduction_error_degrees")


@dataclass(frozen=True)
class _OpenBatch:
    """Test images on their way through the sweep, linear RGB."""

    linear: Tensor


class ConstancyEvaluation:
    """Angular errors on images that are taken as balanced, for :func:`offset_equivariant.evaluation.sweep.sweep`.

    The light is the illuminant that is put on them. At S = 0 an error is the distance of the estimate from grey, of
    which a part is the images' own: nobody knows how well they are balanced. Of estimates and illuminants the
    errors are taken as :func:`~offset_equivariant.color.as_light` has them.

    Args:
        estimator: linear images ``(N, 3, H, W)`` to illuminants ``(N, 3)``, of any norm.
        images: the test images, on the device.
    """

    #: metric -> the outcome it summarises, and how.
    summaries: Mapping[str, tuple[str, Callable[[npt.NDArray[Any]], float]]] = {
        f"{statistic}_{error}": (error, summarise) for error in ERRORS for statistic, summarise in STATISTICS.items()
    }
    #: Outcomes whose per-image values are kept beside the record.
    kept_outcomes: tuple[str, ...] = ERRORS

    def __init__(self, estimator: Callable[[Tensor], Tensor], images: SrgbImages) -> None:
        self.images = len(images)
        self._estimator = estimator
        self._data = images.images

    def open_batch(self, indices: Tensor) -> _OpenBatch:
        """Decode images."""
        return _OpenBatch(decode_srgb(self._data[indices.to(self._data.device)]))

    @torch.no_grad()
    def measure(self, batch: _OpenBatch, illuminants: Tensor) -> dict[str, Tensor]:
        """Return the errors of each image under its illuminant, ``(N, 3)``, linear RGB."""
        estimate = as_light(self._estimator(apply_illuminant(batch.linear, illuminants)).cpu().double())
        truth = as_light(illuminants.cpu().double())
        errors = (recovery_angular_error(estimate, truth), reproduction_angular_error(estimate, truth))
        return {name: degrees.float() for name, degrees in zip(ERRORS, errors, strict=True)}
