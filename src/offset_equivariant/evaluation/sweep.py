"""Outcomes over illuminants of random hue and growing saturation (Section 4.1.1).

The hue of image i depends on (seed, i) alone: all networks and all saturations see the same hues, and every curve is
a paired comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from offset_equivariant.color.illuminants import random_illuminants
from offset_equivariant.tasks.task import Evaluable
from offset_equivariant.training.ranks import gathered, own_part

#: Saturations of the paper's figures.
SATURATIONS = tuple(round(0.1 * step, 1) for step in range(11))


@dataclass(frozen=True)
class Evaluation:
    """What a sweep found.

    Attributes:
        metrics: metric -> saturation -> value over all images.
        outcomes: outcome -> saturation -> per-image values, of the outcomes that are kept.
        images: number of test images.
    """

    metrics: Mapping[str, Mapping[float, float]]
    outcomes: Mapping[str, Mapping[float, npt.NDArray[Any]]]
    images: int


def sweep(
    task: Evaluable,
    saturations: Sequence[float] = SATURATIONS,
    *,
    seed: int = 0,
    batch_size: int = 500,
    progress: Callable[[Sequence[Tensor]], Iterable[Tensor]] = iter,
) -> Evaluation:
    """Measure every test image at every saturation, opening each batch of images once.

    Several ranks measure a part of the images each, and all of them return what was found of all.

    Args:
        task: what is measured.
        saturations: of the illuminants, in [0, 1].
        seed: of the hues.
        batch_size: images at a time.
        progress: wraps the batches, for instance to show a bar.

    Raises:
        ValueError: if there is no saturation, or one outside [0, 1].
    """
    if not saturations:
        raise ValueError("saturations is empty; give at least one value in [0, 1]")
    found: dict[float, dict[str, list[npt.NDArray[Any]]]] = {saturation: {} for saturation in saturations}
    for indices in progress(torch.arange(task.images)[own_part(task.images)].split(batch_size)):
        batch = task.open_batch(indices)
        for saturation in saturations:
            illuminants = random_illuminants(seed, indices, saturation)
            for outcome, values in task.measure(batch, illuminants).items():
                found[saturation].setdefault(outcome, []).append(values.cpu().numpy())
    parts = gathered({s: {name: np.concatenate(values) for name, values in found[s].items()} for s in saturations})
    outcomes = {
        s: {name: np.concatenate([part[s][name] for part in parts if part[s]]) for name in parts[-1][s]}
        for s in saturations
    }
    metrics = {
        metric: {s: summarise(outcomes[s][outcome]) for s in saturations}
        for metric, (outcome, summarise) in task.summaries.items()
    }
    kept = {name: {s: outcomes[s][name] for s in saturations} for name in task.kept_outcomes}
    return Evaluation(metrics, kept, task.images)
