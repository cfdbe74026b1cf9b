"""Image recognition under coloured light (Section 4.1.1): what a classifier answers, and how it changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn

from offset_equivariant.color.angular_error import as_light, recovery_angular_error
from offset_equivariant.color.illuminants import apply_illuminant
from offset_equivariant.color.representation import decode_srgb
from offset_equivariant.color.srgb import linear_to_srgb
from offset_equivariant.data.batches import EvaluationImages
from offset_equivariant.statistics import STATISTICS
from offset_equivariant.tasks.recognition import InputPipeline

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
    they are more or less; see :func:`~offset_equivariant.color.as_light`. With ``top5``, ``top5_error``: whether the
    class is not among the five most probable ones.

    Args:
        network: as in training, on the device.
        images: the test images.
        pipeline: conversion to the network's input.
        requantize: round the distorted sRGB image to 8 bits, as a file on disk would be.
        channels_last: memory format of the batches.
        top5: whether the five most probable classes count too.
    """

    #: Outcomes whose per-image values are kept beside the record.
    kept_outcomes: tuple[str, ...] = ("error",)

    def __init__(
        self,
        network: nn.Module,
        images: EvaluationImages,
        pipeline: InputPipeline,
        *,
        requantize: bool = False,
        channels_last: bool = False,
        top5: bool = False,
    ) -> None:
        summaries: dict[str, tuple[str, Callable[[npt.NDArray[Any]], float]]] = {
            "error_percent": ("error", _percent),
            "posterior_change": ("posterior_change", lambda change: float(change.max())),
        }
        if top5:
            summaries["top5_error_percent"] = ("top5_error", _percent)
        if pipeline.balances:
            summaries[f"median_{RECOVERY}"] = (RECOVERY, STATISTICS["median"])
        #: metric -> the outcome it summarises, and how.
        self.summaries: Mapping[str, tuple[str, Callable[[npt.NDArray[Any]], float]]] = summaries
        self.network = network
        self.images = len(images)
        self._data = images
        self._pipeline = pipeline
        self._requantize = requantize
        self._top5 = top5
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format

    @torch.no_grad()
    def open_batch(self, indices: Tensor) -> _OpenBatch:
        """Decode images, and classify them as they are."""
        images, labels = self._data.batch(indices)
        linear = decode_srgb(images)
        return _OpenBatch(linear, labels, self._answer(linear))

    @torch.no_grad()
    def measure(self, batch: _OpenBatch, illuminants: Tensor) -> dict[str, Tensor]:
        """Return the outcomes of each image under its illuminant, ``(N, 3)``, linear RGB."""
        neutral = not self._requantize and bool((illuminants == 1).all())
        answer = batch.reference if neutral else self._answer(self.distort(batch.linear, illuminants))
        outcomes = {
            "error": answer.posteriors.argmax(1) != batch.labels,
            "posterior_change": (answer.posteriors - batch.reference.posteriors).abs().amax(1),
        }
        if self._top5:
            best = answer.posteriors.topk(5).indices
            outcomes["top5_error"] = (best != batch.labels[:, None]).all(1)
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


def _percent(error: npt.NDArray[Any]) -> float:
    return float(error.mean() * 100)
