"""Illuminant estimation (Section 4.2): a network trained on an angular error, tested under coloured light."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from offset_equivariant.color.angular_error import (
    angle_to_neutral,
    as_light,
    recovery_angular_error,
    reproduction_angular_error,
)
from offset_equivariant.color.constancy import BALANCING_METHODS
from offset_equivariant.color.illuminants import apply_illuminant
from offset_equivariant.color.representation import Representation
from offset_equivariant.data.batches import EpochOrder, step_generator
from offset_equivariant.data.illuminant_images import IlluminantImages
from offset_equivariant.nn.constraint import project_
from offset_equivariant.statistics import STATISTICS
from offset_equivariant.training.cross_validation import CrossValidated


def decode_estimate(representation: Representation, outputs: Tensor) -> Tensor:
    """Return the illuminants that a network means, linear RGB ``(N, 3)`` of any norm.

    A network on log RGB estimates in the space of its input, normalisation included: a change of the light moves its
    output as it moves the input. One on linear RGB estimates linear RGB.
    """
    return representation.to_linear(outputs) if representation.space == "log_rgb" else outputs


def random_crops(images: Tensor, smallest: float, generator: torch.Generator) -> Tensor:
    """Show of each square image ``(N, C, S, S)`` a random square, enlarged to the image's size.

    Its side is uniform between ``smallest`` and 1 times the image's. Each pixel is the nearest one: a mean of a pixel
    without light and one with would be of no surface.
    """
    count, _, size, _ = images.shape
    share, top, left = torch.rand(3, count, generator=generator, dtype=torch.float64)
    side = (smallest + (1 - smallest) * share) * size
    steps = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    rows, columns = (
        (start[:, None] * (size - side)[:, None] + steps * side[:, None]).long().to(images.device)
        for start in (top, left)
    )
    number = torch.arange(count, device=images.device)[:, None, None]
    return images.permute(0, 2, 3, 1)[number, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


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
        flip: whether images are shown in random orientations.
        smallest_crop: see :func:`random_crops`; None for whole images.
        channels_last: memory format of the batches.
        forward: the network as it is called, where that is compiled.
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
        flip: bool = True,
        smallest_crop: float | None = None,
        channels_last: bool = False,
        forward: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.network = network
        self.optimizer = optimizer
        self.batch_size = batch_size
        self._forward = network if forward is None else forward
        self._flip = flip
        self._smallest_crop = smallest_crop
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
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
        images = self._images[indices]
        if self._flip:
            images = random_flips_and_transpositions(images, step_generator(self._seed, step, stream=1))
        if self._smallest_crop is not None:
            images = random_crops(images, self._smallest_crop, step_generator(self._seed, step, stream=2))
        inputs = self._representation(images).contiguous(memory_format=self._memory_format)
        for group, peak in zip(self.optimizer.param_groups, self._peak_rates, strict=True):
            group["lr"] = peak * learning_rate_factor
        self.network.train()
        estimate = decode_estimate(self._representation, self._forward(inputs))
        loss = angle_to_neutral(estimate / self._truth[indices]).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        project_(self.network)
        return {"loss": loss.detach()}


#: From linear images ``(N, 3, S, S)``, and the fold of each ``(N,)``, to illuminants ``(N, 3)``, linear RGB, any norm.
Estimator = Callable[[Tensor, Tensor], Tensor]

#: The errors that are measured, in degrees: Eq. 29, Finlayson et al.'s truth over estimate, and the angle between the
#: illuminants themselves.
ERRORS = ("reproduction_error_degrees", "reproduction_error_finlayson_degrees", "recovery_error_degrees")
#: Largest change of an image's error from that without an illuminant: zero for an equivariant estimator.
CHANGE = "reproduction_error_change_degrees"


@dataclass(frozen=True)
class _OpenBatch:
    """Test images on their way through the sweep: linear RGB, fold, the light in the scene, and the error in it."""

    linear: Tensor
    folds: Tensor
    truth: Tensor
    reference: Tensor


class EstimationEvaluation:
    """Angular errors under a given illuminant (Section 4.2.1), for :func:`offset_equivariant.evaluation.sweep.sweep`.

    The image is multiplied by the illuminant, and so is the truth. Of estimates and truths the errors are
    taken as :func:`~offset_equivariant.color.as_light` has them.

    ``summaries`` has every statistic of each of ``ERRORS``, the median reproduction error of every camera and fold,
    and the largest ``CHANGE``.

    Args:
        estimator: see ``Estimator``.
        images: the test images, on the device.
    """

    #: Outcomes whose per-image values are kept beside the record.
    kept_outcomes: tuple[str, ...] = ("reproduction_error_degrees", "recovery_error_degrees")

    def __init__(self, estimator: Estimator, images: IlluminantImages) -> None:
        self.images = len(images)
        self._estimator = estimator
        self._data = images
        self.summaries: dict[str, tuple[str, Callable[[npt.NDArray[Any]], float]]] = {
            f"{statistic}_{error}": (error, summarise)
            for error in ERRORS
            for statistic, summarise in STATISTICS.items()
        }
        parts = {camera: np.array(images.cameras) == camera for camera in sorted(set(images.cameras))}
        parts |= {f"fold{fold}": images.folds.numpy() == fold for fold in sorted(set(images.folds.tolist()))}
        for name, chosen in parts.items():
            self.summaries[f"median_{ERRORS[0]}_{name}"] = (ERRORS[0], partial(_median_of, chosen))
        self.summaries[CHANGE] = (CHANGE, _largest)

    def open_batch(self, indices: Tensor) -> _OpenBatch:
        """Look up images and their illuminants, and measure the error in the light as it was."""
        linear = self._data.images[indices.to(self._data.images.device)]
        batch = _OpenBatch(linear, self._data.folds[indices], self._data.illuminants[indices], torch.empty(0))
        return replace(batch, reference=self._errors(batch, torch.ones(len(indices), 3))[ERRORS[0]])

    def measure(self, batch: _OpenBatch, illuminants: Tensor) -> dict[str, Tensor]:
        """Return the outcomes of each image under its illuminant, ``(N, 3)``, linear RGB."""
        errors = self._errors(batch, illuminants)
        outcomes = errors | {CHANGE: (errors[ERRORS[0]] - batch.reference).abs()}
        return {name: degrees.float() for name, degrees in outcomes.items()}

    @torch.no_grad()
    def _errors(self, batch: _OpenBatch, illuminants: Tensor) -> dict[str, Tensor]:
        """In double precision, on the CPU."""
        estimate = self._estimator(apply_illuminant(batch.linear, illuminants), batch.folds)
        estimate = as_light(estimate.cpu().double())
        truth = as_light(batch.truth * illuminants.cpu().double())
        values = (
            reproduction_angular_error(estimate, truth),
            reproduction_angular_error(estimate, truth, ratio="truth_over_estimate"),
            recovery_angular_error(estimate, truth),
        )
        return dict(zip(ERRORS, values, strict=True))


def _median_of(chosen: npt.NDArray[np.bool_], errors: npt.NDArray[Any]) -> float:
    return STATISTICS["median"](errors[chosen])


def _largest(changes: npt.NDArray[Any]) -> float:
    return float(changes.max())


def network_estimator(network: nn.Module, representation: Representation) -> Estimator:
    """Return the estimator that a network is, in evaluation mode.

    A cross-validated network (:class:`~offset_equivariant.training.cross_validation.CrossValidated`) is told each
    image's fold.
    """
    return partial(_estimate, network, representation)


def _estimate(network: nn.Module, representation: Representation, linear: Tensor, folds: Tensor) -> Tensor:
    network.eval()
    inputs = representation(linear)
    outputs = network(inputs, folds) if isinstance(network, CrossValidated) else network(inputs)
    return decode_estimate(representation, outputs)


def statistical_estimator(method: str) -> Estimator:
    """Return a method of :data:`offset_equivariant.color.BALANCING_METHODS`, which learns nothing.

    Raises:
        ValueError: for another name, listing the valid ones.
    """
    if method not in BALANCING_METHODS:
        raise ValueError(f"method {method!r} is not one of {', '.join(BALANCING_METHODS)}")
    return partial(_statistics, method)


def _statistics(method: str, linear: Tensor, folds: Tensor) -> Tensor:
    return BALANCING_METHODS[method](linear)
