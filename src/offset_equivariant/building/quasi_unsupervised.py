"""Building quasi-unsupervised colour constancy (Section 4.1.1): a network that finds grey pixels, on sRGB images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from offset_equivariant.building.common import (
    PlannedTraining,
    build_optimizer,
    build_schedule,
    configured_setting,
    require_several_images,
    split_off_validation,
)
from offset_equivariant.config import ConfigError, ExperimentConfig, check_arguments
from offset_equivariant.data import DATASETS, NO_OPTIONS, LabelledImages, data_directories, options_of
from offset_equivariant.data.photo_folders import read_folder
from offset_equivariant.data.photo_images import PhotoImages
from offset_equivariant.models.quasi_unsupervised import QuasiUnsupervised, estimate_illuminants
from offset_equivariant.performance.settings import CompiledOrEager
from offset_equivariant.tasks.quasi_unsupervised import ConstancyEvaluation, QuasiUnsupervisedTraining
from offset_equivariant.training.weights import WeightsError, load_weights, read_facts

HEADLINE = ("median_recovery_error_degrees", "°")
#: Height and width of the images of data sets with classes.
_SMALL = 32


def build_network(config: ExperimentConfig) -> QuasiUnsupervised:
    """Build the network with its initial weights, drawn from torch's global generator."""
    return QuasiUnsupervised(**config.model.options)


def check_options(config: ExperimentConfig) -> dict[str, Callable[[], object]]:
    """Return, by group of settings, functions that fail where the group cannot be used."""
    check_arguments(QuasiUnsupervised.__init__, config.model.options, "model.options", ("self",))
    if config.dataset.name == "photo_folder":
        check_arguments(read_photos, config.dataset.options, "dataset.options", ("progress",))
    elif config.dataset.name not in DATASETS:
        raise ConfigError(
            f"dataset {config.dataset.name} is not for quasi_unsupervised: give dataset=photo_folder, with the folder "
            "of its training images as dataset.options.folder"
        )
    else:
        check_arguments(options_of(config.dataset.name), config.dataset.options, "dataset.options", NO_OPTIONS)
    return {"model": lambda: _check_model(config)}


def _check_model(config: ExperimentConfig) -> None:
    if config.model.family != "conventional" or config.model.family_options:
        raise ConfigError("model.family must be conventional, without options: there is no equivariant version")
    network = build_network(config)
    expected = network.image_size
    size = config.dataset.options.get("size", 256 if config.dataset.name == "photo_folder" else _SMALL)
    if size != expected:
        raise ConfigError(
            f"model.options.image_size = {expected}, but the images of {config.dataset.name} have {size} pixels a "
            "side; give the same"
        )
    if network.image_size == network.reduction:
        require_several_images(config)


def plan_training(
    config: ExperimentConfig, network: nn.Module, images: LabelledImages | PhotoImages
) -> PlannedTraining:
    """Build the training of a network on images, both on the device."""
    recipe, setting = config.train, configured_setting(config, images.images.device)
    if len(images) < recipe.batch_size:
        raise ConfigError(f"train.batch_size = {recipe.batch_size}, but there are only {len(images)} training images")
    task = QuasiUnsupervisedTraining(
        network,
        build_optimizer(config, network),
        images,
        batch_size=recipe.batch_size,
        seed=config.seed,
        flip=recipe.flip,
        channels_last=setting.channels_last,
        forward=CompiledOrEager(network) if setting.compile else None,
    )
    total_steps = recipe.total_steps(task.steps_per_epoch)
    return PlannedTraining(task, total_steps, build_schedule(config, total_steps))


def build_evaluation(
    config: ExperimentConfig, network: nn.Module, images: LabelledImages | PhotoImages
) -> ConstancyEvaluation:
    """Build the evaluation of a network on images, both on the device."""
    return ConstancyEvaluation(partial(estimate_illuminants, cast(QuasiUnsupervised, network)), images)


def load_split(config: ExperimentConfig, split: str) -> LabelledImages | PhotoImages:
    """Load the images to train on (``train``), or those to evaluate on (``evaluation``).

    With ``dataset.validation_images`` = n, the evaluation is on n training images, always the same, which the training
    then does without.

    Raises:
        ConfigError: if there are not more images than those held out.
    """
    dataset, held_out = config.dataset, config.dataset.validation_images
    images: LabelledImages | PhotoImages
    if dataset.name == "photo_folder":
        images = read_photos(**dataset.options, progress=config.runtime.progress)
    else:
        options: dict[str, Any] = dict(dataset.options)
        if dataset.name == "cifar10":
            options["download"] = dataset.download
        source = "test" if split == "evaluation" and not held_out else "train"
        images = DATASETS[dataset.name](source, data_directories(config.paths.data), **options)
    if not held_out:
        return images
    return cast("LabelledImages | PhotoImages", split_off_validation(config, images, split))


def read_photos(folder: str, size: int = 256, progress: bool = True) -> PhotoImages:
    """Read the central squares of the photos of a folder and of the folders in it, all into memory."""
    return read_folder(Path(folder), "photo_folder", "train", size, square=True, progress=progress, subfolders=True)


def balancing_estimator(path: Path) -> Callable[[Tensor], Tensor]:
    """Return the network in a file of weights as a function from linear images ``(N, 3, H, W)`` to illuminants.

    It works on the device of the images.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if its weights are of another architecture.
    """
    return partial(_estimate, load_balancing_network(path))


def load_balancing_network(path: Path) -> QuasiUnsupervised:
    """Return the network in a file of weights.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if its weights are of another architecture.
    """
    model = read_facts(path).get("config", {}).get("model", {})
    if model.get("architecture") != "quasi_unsupervised":
        raise WeightsError(f"strategy.weights: {path} holds no network of the architecture quasi_unsupervised")
    network = QuasiUnsupervised(**model["options"])
    load_weights(network, path)
    return network


def _estimate(network: QuasiUnsupervised, linear: Tensor) -> Tensor:
    return estimate_illuminants(network.to(linear.device, linear.dtype), linear)


runtime_setting = configured_setting
