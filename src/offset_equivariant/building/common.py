"""What every task's networks and trainings are built of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from offset_equivariant.color import make_clipping
from offset_equivariant.color.representation import Representation
from offset_equivariant.config import ConfigError, ExperimentConfig, RepresentationConfig
from offset_equivariant.nn.families import FAMILIES, LayerFamily
from offset_equivariant.performance.settings import Setting
from offset_equivariant.provenance import repository_root
from offset_equivariant.tasks.task import Trainable, Watch
from offset_equivariant.training.schedules import Schedule, make_schedule

#: The second decay rate of Adam, as everywhere.
_ADAM_BETA2 = 0.999


@dataclass(frozen=True)
class PlannedTraining:
    """A training, where it ends, its learning rates on the way, and what is looked at beside its scalars."""

    task: Trainable
    total_steps: int
    schedule: Schedule
    watch: Watch | None = None


def build_family(config: ExperimentConfig) -> LayerFamily:
    """Build the factory of layers."""
    return FAMILIES[config.model.family](**config.model.family_options)


def build_representation(config: ExperimentConfig) -> Representation:
    """Build the conversion from linear RGB to the colour space and range of the network's input.

    Raises:
        ValueError: if the channels of one offset group would be divided by different numbers.
    """
    settings = config.model.representation
    assert settings is not None  # but for a network with a coding of its own, which is never asked for one
    _require_one_scale_a_group(config, settings.statistics)
    return representation_of(settings, config.dataset.statistics)


def representation_of(
    settings: RepresentationConfig, of_dataset: Mapping[str, Mapping[str, Sequence[float]]]
) -> Representation:
    """Build the conversion that the settings describe, with the statistics of a data set that they name."""
    statistics = of_dataset[settings.statistics]
    clipping = None if settings.clipping is None else make_clipping(settings.clipping, **settings.clipping_options)
    return Representation(settings.space, tuple(statistics["mean"]), tuple(statistics["std"]), clipping)


def _require_one_scale_a_group(config: ExperimentConfig, statistics: str) -> None:
    """Channels of one offset group must be divided by the same number: otherwise one offset becomes several."""
    groups = config.model.family_options.get("offset_groups")
    std = config.dataset.statistics[statistics]["std"]
    if groups and len(std) % groups == 0:
        size = len(std) // groups
        if any(len(set(std[first : first + size])) > 1 for first in range(0, len(std), size)):
            raise ValueError(
                f"with offset_groups = {groups}, the std {std} divides one group's channels by different numbers, and "
                f"the network is not invariant; give statistics {statistics!r} with one std a group"
            )


def build_optimizer(
    config: ExperimentConfig, network: nn.Module, learning_rate: float | None = None
) -> torch.optim.Optimizer:
    """Build the optimiser of a network, its learning rate at the peak: the recipe's, unless another is given."""
    recipe, rate = config.train, config.train.peak_learning_rate if learning_rate is None else learning_rate
    if recipe.optimizer == "adam":
        betas = (recipe.momentum, _ADAM_BETA2)
        # Fused: one pass over the weights in place of ten.
        return torch.optim.Adam(
            network.parameters(), lr=rate, betas=betas, weight_decay=recipe.weight_decay, fused=True
        )
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        network.parameters(),
        lr=rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
    )


def balancing_weights(config: ExperimentConfig) -> Path | None:
    """Return the file of the network that balances the images' colours, if one does.

    Raises:
        FileNotFoundError: if it is not there; says how to make it.
    """
    if config.strategy.weights is None:
        return None
    path = repository_root() / config.strategy.weights
    if not path.exists():
        raise FileNotFoundError(
            f"strategy.weights: there are no weights at {path}; train them with experiment=quasi_unsupervised and "
            "scripts/release_weights.py, or convert the authors' with scripts/convert_quasi_unsupervised.py"
        )
    return path


def build_schedule(config: ExperimentConfig, total_steps: int) -> Schedule:
    """Build the factor on the learning rate at every step."""
    return make_schedule(config.train.schedule.name, total_steps, **config.train.schedule.options)


def choose_device(name: str) -> torch.device:
    """Return the device of that name; ``auto`` takes CUDA, then MPS, then the CPU.

    Raises:
        RuntimeError: if that device is not there.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if not available[name]:
        raise RuntimeError(f"runtime.device = {name} is not available here; use runtime.device=auto")
    return torch.device(name)


def configured_setting(config: ExperimentConfig, device: torch.device) -> Setting:
    """Return layout and compilation of a task that was not timed: those configured, else channels-last, no compiler."""
    chosen = config.runtime.channels_last
    return Setting(True if chosen is None else chosen, bool(config.runtime.compile))


def require_several_images(config: ExperimentConfig) -> None:
    """Check the batch size of a network with batch normalisation of a single pixel, which needs another's beside it.

    Raises:
        ConfigError: if it is 1.
    """
    if config.train.batch_size < 2:
        raise ConfigError(
            f"train.batch_size = {config.train.batch_size} must be at least 2: {config.model.architecture} normalises "
            "a single pixel of each image over the batch"
        )


def split_off_validation(config: ExperimentConfig, images: Any, split: str) -> Any:
    """Return what of the training images is evaluated on (``evaluation``), or is left to train on (``train``).

    The ``dataset.validation_images`` = n images that are evaluated on are always the same ones.

    Raises:
        ConfigError: if nothing would be left to train on.
    """
    held_out = config.dataset.validation_images
    if held_out >= len(images):
        raise ConfigError(
            f"dataset.validation_images = {held_out}, but {config.dataset.name} has only {len(images)} images"
        )
    order = np.random.default_rng(0).permutation(len(images)).tolist()
    if split == "train":
        return images.subset(order[held_out:])
    return replace(images.subset(order[:held_out]), split="validation")
