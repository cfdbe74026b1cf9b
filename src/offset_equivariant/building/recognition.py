"""Building image recognition (Section 4.1): ResNets on data sets of labelled sRGB images."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import nn

from offset_equivariant.building.common import (
    PlannedTraining,
    balancing_weights,
    build_family,
    build_optimizer,
    build_representation,
    build_schedule,
    configured_setting,
)
from offset_equivariant.building.quasi_unsupervised import balancing_estimator
from offset_equivariant.building.recognition_images import (
    check_crops,
    check_dataset,
    counts_top5,
    evaluation_images,
    load_split,
    training_batches,
)
from offset_equivariant.color import BALANCING_METHODS, ColorJitter, IlluminantAugmentation
from offset_equivariant.config import ConfigError, ExperimentConfig, check_arguments
from offset_equivariant.data import FILE_DATASETS, ImageFiles, LabelledImages, describe_dataset
from offset_equivariant.models.resnet import RESNETS
from offset_equivariant.nn import fuse_for_inference
from offset_equivariant.nn.synchronised import synchronise_batch_norm_
from offset_equivariant.performance.settings import CompiledOrEager, Setting, fastest_setting
from offset_equivariant.provenance import repository_root
from offset_equivariant.tasks.recognition import Augmentation, InputPipeline, RecognitionTraining
from offset_equivariant.tasks.recognition_evaluation import RecognitionEvaluation
from offset_equivariant.training.ranks import averaging_gradients, is_first, ranks

__all__ = [
    "HEADLINE",
    "build_augmentation",
    "build_evaluation",
    "build_network",
    "build_pipeline",
    "check_options",
    "load_split",
    "plan_training",
    "runtime_setting",
]

log = logging.getLogger(__name__)

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
    estimator = BALANCING_METHODS[strategy.balancing] if weights is None else balancing_estimator(weights)
    return InputPipeline(representation, estimator, strategy.brightness)


def check_options(config: ExperimentConfig) -> dict[str, Callable[[], object]]:
    """Return, by group of settings, functions that fail where the group cannot be used."""
    resnet = RESNETS[config.model.architecture].func
    check_arguments(resnet.__init__, config.model.options, "model.options", _NO_OPTIONS_OF_RESNETS)
    return {
        "model": lambda: build_network(config),
        "model.representation": lambda: build_representation(config),
        "strategy": lambda: build_augmentation(config),
        "dataset": lambda: check_dataset(config),
        "train.random_resized_crop": lambda: check_crops(config),
        "train.accumulate": lambda: _require_equal_parts(config),
    }


def _require_equal_parts(config: ExperimentConfig) -> None:
    """Check that the ranks there are, each in its parts, can share a batch equally."""
    size, parts = config.train.batch_size, config.train.accumulate or 1
    if size % (ranks() * parts):
        raise ConfigError(
            f"train.batch_size = {size} must be divisible by train.accumulate = {parts} times the number of ranks, "
            f"{ranks()}"
        )


#: Decided by other settings, or by the architecture's name.
_NO_OPTIONS_OF_RESNETS = ("self", "depth", "block", "counts", "classes", "family", "in_channels", "widths")


def build_augmentation(config: ExperimentConfig) -> Augmentation:
    """Build the random changes of training images that are made on the device; files are flipped with their crops."""
    jitter, saturation = config.strategy.jitter, config.strategy.illuminant_saturation
    return Augmentation(
        config.train.crop_padding,
        config.train.flip and config.train.random_resized_crop is None,
        None if jitter is None else ColorJitter(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue),
        None if saturation is None else IlluminantAugmentation(saturation),
    )


def plan_training(config: ExperimentConfig, network: nn.Module, images: LabelledImages | ImageFiles) -> PlannedTraining:
    """Build the training of a network, which is on the device, on images that are there too, or on disk."""
    recipe = config.train
    _require_equal_parts(config)
    device = _device_of(network)
    setting, pipeline, augmentation = (
        runtime_setting(config, device),
        build_pipeline(config),
        build_augmentation(config),
    )
    compiled = setting.compile and ranks() == 1
    if config.runtime.compile and not compiled and is_first():
        log.warning("runtime.compile = true has no effect with %d ranks: they do not compile", ranks())
    if recipe.synchronise_batch_norm:
        synchronise_batch_norm_(network)
    task = RecognitionTraining(
        network,
        build_optimizer(config, network),
        training_batches(config, images, pipeline, augmentation, device),
        pipeline,
        augmentation,
        seed=config.seed,
        label_smoothing=recipe.label_smoothing,
        autocast=None if recipe.autocast is None else getattr(torch, recipe.autocast),
        channels_last=setting.channels_last,
        forward=CompiledOrEager(network) if compiled else averaging_gradients(network),
        accumulate=recipe.accumulate or 1,
    )
    total_steps = recipe.total_steps(task.steps_per_epoch)
    return PlannedTraining(task, total_steps, build_schedule(config, total_steps))


def build_evaluation(
    config: ExperimentConfig, network: nn.Module, images: LabelledImages | ImageFiles
) -> RecognitionEvaluation:
    """Build the evaluation of a network as it is now, folded, on images that are on its device, or on disk."""
    device = _device_of(network)
    return RecognitionEvaluation(
        fuse_for_inference(network) if build_family(config).folds else network,
        evaluation_images(config, images, device),
        build_pipeline(config),
        requantize=config.distortion.requantize,
        channels_last=runtime_setting(config, device).channels_last,
        top5=counts_top5(images),
    )


def _device_of(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


def runtime_setting(config: ExperimentConfig, device: torch.device) -> Setting:
    """Return layout and compilation: those configured, else what makes this training fastest on this device.

    What was measured are networks and images of Table 1; those of Table 2 are channels-last, without a compiler.
    """
    if config.dataset.name in FILE_DATASETS:
        return configured_setting(config, device)
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
