"""What several networks say about the same images as the light turns coloured (Figure 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from offset_equivariant.color.illuminants import random_illuminants
from offset_equivariant.color.representation import decode_srgb
from offset_equivariant.color.srgb import linear_to_srgb
from offset_equivariant.data.labelled_images import LabelledImages
from offset_equivariant.evaluation.shown import SATURATIONS
from offset_equivariant.reporting.predictions import PredictionPanel
from offset_equivariant.tasks.recognition_evaluation import RecognitionEvaluation


def first_of_each_class(labels: torch.Tensor, classes: int) -> list[int]:
    """Return the numbers of the first images of the first ``classes`` different classes: a choice that nobody makes."""
    chosen: dict[int, int] = {}
    for number, label in enumerate(labels.tolist()):
        chosen.setdefault(label, number)
        if len(chosen) == classes:
            break
    return list(chosen.values())


@torch.no_grad()
def prediction_panel(
    networks: Mapping[str, RecognitionEvaluation],
    images: LabelledImages,
    indices: Sequence[int],
    *,
    seed: int,
    saturations: Sequence[float] = SATURATIONS,
    checkpoint_sha256: Mapping[str, str],
) -> PredictionPanel:
    """Classify images under illuminants of growing saturation and the hue that the sweep gives them.

    Args:
        networks: evaluations on ``images``, by the name to show.
        images: the test images.
        indices: numbers of the images to show.
        seed: of the hues.
        saturations: one column each.
        checkpoint_sha256: digests of the networks' weights, by name.
    """
    chosen = torch.tensor(indices)
    linear = decode_srgb(images.images[chosen.to(images.images.device)])
    lit: list[torch.Tensor] = []
    posteriors: dict[str, list[torch.Tensor]] = {name: [] for name in networks}
    for saturation in saturations:
        illuminants = random_illuminants(seed, chosen, saturation)
        for name, evaluation in networks.items():
            posteriors[name].append(evaluation.posteriors(evaluation.distort(linear, illuminants)).cpu())
        lit.append(linear_to_srgb(next(iter(networks.values())).distort(linear, illuminants)).cpu())
    labels = [int(images.labels[index]) for index in indices]
    shown = (torch.stack(lit, 1).permute(0, 1, 3, 4, 2) * 255).round().to(torch.uint8)
    return PredictionPanel(
        images=shown.numpy(),
        saturations=tuple(saturations),
        numbers=tuple(indices),
        labels=tuple(labels),
        classes=images.classes,
        posteriors={name: torch.stack(parts, 1).numpy().astype(np.float32) for name, parts in posteriors.items()},
        checkpoint_sha256=dict(checkpoint_sha256),
    )
