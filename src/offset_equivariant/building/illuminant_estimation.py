"""Building illuminant estimation (Section 4.2): Color Cerberus, and methods that learn nothing, on linear images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from offset_equivariant.building.common import (
    PlannedTraining,
    build_family,
    build_optimizer,
    build_representation,
    build_schedule,
    configured_setting,
    representation_of,
)
from offset_equivariant.config import ConfigError, ExperimentConfig, RepresentationConfig, check_arguments
from offset_equivariant.data import data_directories
from offset_equivariant.data.cross_validation import assign_folds, hold_out
from offset_equivariant.data.illuminant_images import IlluminantDataError, IlluminantImages
from offset_equivariant.data.nus import CAMERAS, load_nus
from offset_equivariant.data.nus_synthetic import check_scenes, synthetic_scenes
from offset_equivariant.models.cerberus import ColorCerberus
from offset_equivariant.nn.families import FAMILIES
from offset_equivariant.performance.settings import CompiledOrEager
from offset_equivariant.tasks.illuminant_estimation import (
    EstimationEvaluation,
    EstimationTraining,
    Estimator,
    network_estimator,
    statistical_estimator,
)
from offset_equivariant.training.cross_validation import CrossValidated, CrossValidationTraining
from offset_equivariant.training.weights import WeightsError, load_weights, read_facts

HEADLINE = ("median_reproduction_error_degrees", "°")
_DATASETS: dict[str, Callable[..., IlluminantImages]] = {"nus": load_nus, "nus_synthetic": synthetic_scenes}
_FOLDS: dict[str, int] = {"folds": 3, "cameras": len(CAMERAS)}


def build_network(config: ExperimentConfig) -> nn.Module:
    """Build one network a fold; for image statistics, an empty one."""
    if config.model.architecture == "image_statistics":
        return nn.Module()
    return CrossValidated(lambda: _build_one(config), _networks(vars(config.dataset)))


def _networks(dataset: Mapping[str, Any]) -> int:
    """How many networks the settings of a data set ask for."""
    return 1 if dataset["validation_images"] else _FOLDS[dataset["cross_validation"]]


def _build_one(config: ExperimentConfig) -> ColorCerberus:
    return ColorCerberus(build_family(config), **config.model.options)


def check_options(config: ExperimentConfig) -> dict[str, Callable[[], object]]:
    """Return, by group of settings, functions that fail where the group cannot be used."""
    options, data_options = config.model.options, config.dataset.options
    if config.model.architecture == "image_statistics":
        check_arguments(statistical_estimator, options, "model.options")
        build: Callable[[], object] = lambda: statistical_estimator(**options)  # noqa: E731
    else:
        check_arguments(ColorCerberus.__init__, options, "model.options", ("self", "family"))
        build = lambda: _require_one_estimate(_build_one(config))  # noqa: E731
    check_arguments(_DATASETS[config.dataset.name], data_options, "dataset.options", ("directories",))
    return {
        "model": build,
        "model.representation": lambda: build_representation(config),
        "dataset.options": lambda: _check_images(config),
    }


def _check_images(config: ExperimentConfig) -> None:
    """Check what can be known of the images before they are loaded."""
    options = config.dataset.options
    if config.dataset.name == "nus_synthetic":
        check_scenes(**options)
    size, expected = options.get("size", 64), config.model.options.get("image_size", 64)
    if config.model.architecture == "cerberus" and size != expected:
        raise ConfigError(f"dataset.options.size = {size}, but model.options.image_size = {expected}; give the same")


def _require_one_estimate(network: ColorCerberus) -> None:
    if network.estimates != 1:
        raise ConfigError(f"model.options.estimates = {network.estimates}: only one estimate can be trained here")


def plan_training(config: ExperimentConfig, network: nn.Module, images: IlluminantImages) -> PlannedTraining:
    """Build the training of all folds, on images on the device."""
    recipe, representation = config.train, build_representation(config)
    assert isinstance(network, CrossValidated)  # image statistics have no steps, and are never trained
    setting = runtime_setting(config, images.images.device)
    fewest = min(int((images.folds != fold).sum()) for fold in range(len(network.networks)))
    if fewest < recipe.batch_size:
        raise ConfigError(f"train.batch_size = {recipe.batch_size}, but a fold has only {fewest} training images")
    trainings = [
        EstimationTraining(
            one,
            build_optimizer(config, one),
            images.subset((images.folds != fold).nonzero().flatten()),
            representation,
            batch_size=recipe.batch_size,
            seed=config.seed,
            flip=recipe.flip,
            smallest_crop=recipe.smallest_crop,
            channels_last=setting.channels_last,
            forward=CompiledOrEager(one) if setting.compile else None,
        )
        for fold, one in enumerate(network.networks)
    ]
    steps = [recipe.total_steps(training.steps_per_epoch) for training in trainings]
    task = CrossValidationTraining(network, trainings, steps)
    return PlannedTraining(task, task.total_steps, task.schedule(lambda steps: build_schedule(config, steps)))


def build_evaluation(config: ExperimentConfig, network: nn.Module, images: IlluminantImages) -> EstimationEvaluation:
    """Build the evaluation on images, on the device."""
    if config.model.architecture == "image_statistics":
        return EstimationEvaluation(statistical_estimator(**config.model.options), images)
    return EstimationEvaluation(network_estimator(network, build_representation(config)), images)


def load_estimators(weights: Path) -> tuple[list[Callable[[Tensor], Tensor]], int]:
    """Return the networks in a file of weights as functions from linear images ``(N, 3, S, S)`` to illuminants; and S.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if its weights are of another architecture.
    """
    settings = read_facts(weights).get("config", {})
    model, dataset = settings.get("model", {}), settings.get("dataset", {})
    if model.get("architecture") != "cerberus":
        raise WeightsError(f"{weights} holds no network of the architecture cerberus")
    family = FAMILIES[model["family"]](**model["family_options"])
    network = CrossValidated(lambda: ColorCerberus(family, **model["options"]), _networks(dataset))
    load_weights(network, weights)
    representation = representation_of(RepresentationConfig(**model["representation"]), dataset["statistics"])
    estimators = [partial(_estimate_alone, network_estimator(one, representation)) for one in network.networks]
    return list(estimators), model["options"].get("image_size", 64)


def _estimate_alone(estimator: Estimator, linear: Tensor) -> Tensor:
    return estimator(linear, torch.zeros(len(linear)))


def load_split(config: ExperimentConfig, split: str) -> IlluminantImages:
    """Load all images (``train``), or those that are of a fold (``evaluation``); each network trains on other folds.

    With ``dataset.validation_images`` = n, these are n images outside the official first fold, see
    :func:`~offset_equivariant.data.cross_validation.hold_out`.

    Raises:
        IlluminantDataError: if the folds are not as many as the networks.
    """
    dataset = config.dataset
    options: dict[str, Any] = dict(dataset.options)
    if dataset.name == "nus":
        options["directories"] = data_directories(config.paths.data)
    images = _DATASETS[dataset.name](**options)
    if dataset.validation_images:
        images = hold_out(images, dataset.validation_images)
    else:
        assert dataset.cross_validation is not None
        images = assign_folds(images, dataset.cross_validation)
    found, expected = int(images.folds.max()) + 1, _networks(vars(dataset))
    if found != expected:
        raise IlluminantDataError(f"{images.name} has {found} {dataset.cross_validation}, not {expected}")
    return images if split == "train" else images.subset((images.folds >= 0).nonzero().flatten())


runtime_setting = configured_setting
