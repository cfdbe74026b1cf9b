"""Building image recognition (Section 4.1): ResNets on data sets of labelled sRGB images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from offset_equivariant.building.common import (
    PlannedTraining,
    balancing_weights,
    build_family,
    build_optimizer,
    build_representation,
    build_schedule,
)
from offset_equivariant.building.quasi_unsupervised import balancing_estimator
from offset_equivariant.color import BALANCING_METHODS, ColorJitter, IlluminantAugmentation
from offset_equivariant.config import ConfigError, ExperimentConfig, check_arguments
from offset_equivariant.data import (
    NO_OPTIONS,
    LabelledImages,
    data_directories,
    describe_dataset,
    load_dataset,
    options_of,
)
from offset_equivariant.models.resnet import RESNETS
from offset_equivariant.nn import fuse_for_inference
from offset_equivariant.performance.settings import CompiledOrEager, Setting, fastest_setting
from offset_equivariant.provenance import repository_root
from offset_equivariant.tasks.recognition import Augmentation, InputPipeline, RecognitionEvaluation, RecognitionTraining

HEADLINE = ("error_percent", "%")


def build_network(config: ExperimentConfig) -> nn.Module:
    """Build the network with its initial weights, drawn from torch's global generator."""
    assert config.dataset.classes is not None
    make = RESNETS[config.model.architecture]
    return make(classes=config.dataset.classes, family=build_family(config), **config.model.options)


def build_pipeline(config: ExperimentConfig) -> InputPipeline:
    """Build the conversion from linear RGB to the network's input.

    Raises:
        FileNotFoundError: if the weights of a network that balances colours are not there.
        ValueError: if they are of another architecture.
    """
    representation, strategy = build_representation(config), config.strategy
    if strategy.balancing is None:
        return InputPipeline(representation)
    weights = balancing_weights(config)
    if weights is not None:
        return InputPipeline(representation, balancing_estimator(weights))
    return InputPipeline(representation, BALANCING_METHODS[strategy.balancing])


def check_options(config: ExperimentConfig) -> dict[str, Callable[[], object]]:
    """Return, by group of settings, functions that fail where the group cannot be used."""
    resnet = RESNETS[config.model.architecture].func
    check_arguments(resnet.__init__, config.model.options, "model.options", _NO_OPTIONS_OF_RESNETS)
    return {
        "model": lambda: build_network(config),
        "model.representation": lambda: build_representation(config),
        "strategy": lambda: build_augmentation(config),
        "dataset": lambda: check_dataset(config),
    }


#: Decided by other settings, or by the architecture's name.
_NO_OPTIONS_OF_RESNETS = ("self", "depth", "block", "counts", "classes", "family", "in_channels", "widths")


def check_dataset(config: ExperimentConfig) -> None:
    """Check the data set's options, and that its images are enough, without loading it.

    Raises:
        ConfigError: names the setting.
    """
    dataset, batch_size = config.dataset, config.train.batch_size
    check_arguments(options_of(dataset.name), dataset.options, "dataset.options", NO_OPTIONS)
    described = describe_dataset(dataset.name, **dataset.options)
    if dataset.classes != described.classes:
        raise ConfigError(f"dataset.classes = {dataset.classes}, but {dataset.name} has {described.classes}")
    training = described.images["train"] - dataset.validation_images
    if training < batch_size:
        raise ConfigError(
            f"train.batch_size = {batch_size} and dataset.validation_images = {dataset.validation_images} do not fit "
            f"the {described.images['train']} training images of {dataset.name}"
        )


def build_augmentation(config: ExperimentConfig) -> Augmentation:
    """Build the random changes of training images."""
    jitter, saturation = config.strategy.jitter, config.strategy.illuminant_saturation
    return Augmentation(
        config.train.crop_padding,
        config.train.flip,
        None if jitter is None else ColorJitter(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue),
        None if saturation is None else IlluminantAugmentation(saturation),
    )


def plan_training(config: ExperimentConfig, network: nn.Module, images: LabelledImages) -> PlannedTraining:
    """Build the training of a network on images, both on the device."""
    recipe = config.train
    setting = runtime_setting(config, images.images.device)
    task = RecognitionTraining(
        network,
        build_optimizer(config, network),
        images,
        build_pipeline(config),
        build_augmentation(config),
        batch_size=recipe.batch_size,
        seed=config.seed,
        label_smoothing=recipe.label_smoothing,
        autocast=None if config.train.autocast is None else getattr(torch, config.train.autocast),
        channels_last=setting.channels_last,
        forward=CompiledOrEager(network) if setting.compile else None,
    )
    total_steps = recipe.total_steps(task.steps_per_epoch)
    return PlannedTraining(task, total_steps, build_schedule(config, total_steps))


def build_evaluation(config: ExperimentConfig, network: nn.Module, images: LabelledImages) -> RecognitionEvaluation:
    """Build the evaluation of a network as it is now, folded, on images, both on the device."""
    return RecognitionEvaluation(
        fuse_for_inference(network) if build_family(config).folds else network,
        images,
        build_pipeline(config),
        requantize=config.distortion.requantize,
        channels_last=runtime_setting(config, images.images.device).channels_last,
    )


def load_split(config: ExperimentConfig, split: str) -> LabelledImages:
    """Load the training images (``train``), or those to evaluate on (``evaluation``).

    With ``dataset.validation_images`` = n, the evaluation is on n training images, always the same, which the training
    then does without: the test images stay unseen while a recipe is chosen.
    """
    held_out = config.dataset.validation_images
    source = "test" if split == "evaluation" and not held_out else "train"
    options = dict(config.dataset.options)
    if config.dataset.name == "cifar10":
        options["download"] = config.dataset.download
    images = load_dataset(config.dataset.name, source, data_directories(config.paths.data), **options)  # type: ignore[arg-type]
    if not held_out:
        return images
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(images)))
    return images.subset(order[:held_out] if split == "evaluation" else order[held_out:])


def runtime_setting(config: ExperimentConfig, device: torch.device) -> Setting:
    """Return layout and compilation: those configured, else what makes this training fastest on this device."""
    images = describe_dataset(config.dataset.name, **config.dataset.options).images["train"]
    steps_per_epoch = (images - config.dataset.validation_images) // config.train.batch_size
    return fastest_setting(
        config.model.family,
        config.train.total_steps(steps_per_epoch),
        device,
        repository_root() / "results",
        channels_last=config.runtime.channels_last,
        compile=False if config.mode == "evaluate" else config.runtime.compile,
    )
