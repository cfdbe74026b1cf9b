"""Illuminant estimation (Section 4.2): a network trained on an angular error, tested under coloured light."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from offset_equivariant.color.angular_error import angle_to_neutral, recovery_angular_error, reproduction_angular_error
from offset_equivariant.color.illuminants import apply_illuminant
from offset_equivariant.color.log_rgb import log_rgb_to_linear
from offset_equivariant.color.representation import Representation
from offset_equivariant.data.batches import EpochOrder, step_generator
from offset_equivariant.data.illuminant_images import IlluminantImages
from offset_equivariant.nn.constraint import project_
from offset_equivariant.reporting.statistics import STATISTICS

#: Share of its largest component that every component of an illuminant has at least, where an error is measured: the
#: reproduction error divides by the true light, and a fully saturated one has a zero.
_SMALLEST_SHARE = 1e-6


def decode_estimate(representation: Representation, outputs: Tensor) -> Tensor:
    """Return the illuminants that a network means, linear RGB ``(N, 3)`` of any norm.

    A network on log RGB estimates in the space of its input, normalisation included: a change of the light moves its
    output as it moves the input. One on linear RGB estimates linear RGB.
    """
    if representation.space != "log_rgb":
        return outputs
    mean, std = (outputs.new_tensor(values) for values in (representation.mean, representation.std))
    return log_rgb_to_linear(outputs * std + mean)


def random_flips_and_transpositions(images: Tensor, generator: torch.Generator) -> Tensor:
    """Show each square image ``(N, C, S, S)`` in one of its eight orientations: none of them changes the illuminant."""
    left_right, up_down, transposed = (torch.rand(3, len(images), generator=generator) < 0.5).to(images.device)
    images = torch.where(left_right[:, None, None, None], images.flip(3), images)
    images = torch.where(up_down[:, None, None, None], images.flip(2), images)
    return torch.where(transposed[:, None, None, None], images.transpose(2, 3), images)


class EstimationTraining:
    """The mean reproduction angular error of Eq. 29, in degrees, on batches of images kept whole on the device.

    Args:
        network: ``(N, 3, S, S)`` to ``(N, 3)``, on the device.
        optimizer: over the network's parameters, learning rates at their peak.
        images: the training images, on the device.
        representation: what the network is shown of a linear image.
        batch_size: images a step.
        seed: of the images' order and orientation.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Optimizer,
        images: IlluminantImages,
        representation: Representation,
        *,
        batch_size: int,
        seed: int,
    ) -> None:
        self.network = network
        self.optimizer = optimizer
        self.batch_size = batch_size
        self._order = EpochOrder(len(images), batch_size, seed)
        self._seed = seed
        self._images = images.images
        self._truth = images.illuminants.to(torch.float32).to(images.images.device)
        self._representation = representation
        self._peak_rates = [group["lr"] for group in optimizer.param_groups]

    @property
    def steps_per_epoch(self) -> int:
        return self._order.steps_per_epoch

    def modules(self) -> Mapping[str, nn.Module]:
        return {"network": self.network}

    def optimizers(self) -> Mapping[str, Optimizer]:
        return {"network": self.optimizer}

    def training_step(self, step: int, learning_rate_factor: float) -> dict[str, Tensor]:
        """Take one step; return the batch's mean error as ``loss``, in degrees."""
        indices = self._order.indices(step).to(self._images.device)
        generator = step_generator(self._seed, step, stream=1)
        inputs = self._representation(random_flips_and_transpositions(self._images[indices], generator))
        for group, peak in zip(self.optimizer.param_groups, self._peak_rates, strict=True):
            group["lr"] = peak * learning_rate_factor
        self.network.train()
        estimate = decode_estimate(self._representation, self.network(inputs))
        loss = angle_to_neutral(estimate / self._truth[indices]).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        project_(self.network)
        return {"loss": loss.detach()}


@dataclass(frozen=True)
class _OpenBatch:
    """Test images on their way through the sweep: linear RGB, and the light that was in the scene."""

    linear: Tensor
    truth: Tensor


class EstimationEvaluation:
    """Angular errors under a given illuminant (Section 4.2.1), for :func:`offset_equivariant.evaluation.sweep.sweep`.

    The image is multiplied by the illuminant, and so is the truth. Per image, in degrees: ``reproduction_error``
    (Eq. 29), ``reproduction_error_finlayson`` (the truth over the estimate, as Finlayson et al. define it) and
    ``recovery_error``. Components of an estimate or of a truth below 1e-6 of its largest are taken as that; an estimate
    without a positive component, which an ordinary network may give, says nothing and counts as grey.

    Args:
        estimator: linear images ``(N, 3, S, S)`` to illuminants ``(N, 3)``, linear RGB of any norm: a network behind
            :func:`network_estimator`, or a method of :data:`offset_equivariant.color.BALANCING_METHODS`.
        images: the test images, on the device.
    """

    #: metric -> the outcome it summarises, and how: every statistic of every error.
    summaries: Mapping[str, tuple[str, Callable[[npt.NDArray[Any]], float]]] = {
        f"{statistic}_{outcome}": (outcome, summarise)
        for outcome in ("reproduction_error", "reproduction_error_finlayson", "recovery_error")
        for statistic, summarise in STATISTICS.items()
    }
    #: Outcomes whose per-image values are kept beside the record.
    kept_outcomes: tuple[str, ...] = ("reproduction_error", "recovery_error")

    def __init__(self, estimator: Callable[[Tensor], Tensor], images: IlluminantImages) -> None:
        self.images = len(images)
        self._estimator = estimator
        self._data = images

    def open_batch(self, indices: Tensor) -> _OpenBatch:
        """Look up images and their illuminants."""
        return _OpenBatch(self._data.images[indices.to(self._data.images.device)], self._data.illuminants[indices])

    @torch.no_grad()
    def measure(self, batch: _OpenBatch, illuminants: Tensor) -> dict[str, Tensor]:
        """Return the outcomes of each image under its illuminant, ``(N, 3)``, linear RGB."""
        estimate = _as_light(self._estimator(apply_illuminant(batch.linear, illuminants)).cpu().double())
        truth = _as_light(batch.truth * illuminants.cpu().double())
        errors = {
            "reproduction_error": reproduction_angular_error(estimate, truth),
            "reproduction_error_finlayson": reproduction_angular_error(estimate, truth, ratio="truth_over_estimate"),
            "recovery_error": recovery_angular_error(estimate, truth),
        }
        return {name: degrees.float() for name, degrees in errors.items()}


def network_estimator(network: nn.Module, representation: Representation) -> Callable[[Tensor], Tensor]:
    """Return the function from linear images to illuminants that a network is, in evaluation mode."""
    return partial(_estimate, network, representation)


def _estimate(network: nn.Module, representation: Representation, linear: Tensor) -> Tensor:
    network.eval()
    return decode_estimate(representation, network(representation(linear)))


def _as_light(illuminants: Tensor) -> Tensor:
    largest = illuminants.amax(1, keepdim=True)
    return torch.where(largest > 0, illuminants.maximum(_SMALLEST_SHARE * largest), 1.0)
