"""From a checked configuration to networks, data and tasks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from offset_equivariant.color import BALANCING_METHODS, ColorJitter, balance, make_clipping
from offset_equivariant.color.representation import Representation
from offset_equivariant.config import ConfigError, ExperimentConfig, JitterConfig, check_arguments
from offset_equivariant.data import (
    NO_OPTIONS,
    LabelledImages,
    data_directories,
    describe_dataset,
    load_dataset,
    options_of,
)
from offset_equivariant.models.resnet import CifarResNet
from offset_equivariant.nn.families import FAMILIES
from offset_equivariant.performance.settings import CompiledOrEager, Setting, fastest_setting
from offset_equivariant.provenance import repository_root
from offset_equivariant.reporting.comparison import find_row
from offset_equivariant.tasks.recognition import Augmentation, InputPipeline, RecognitionEvaluation, RecognitionTraining
from offset_equivariant.training.schedules import SCHEDULES, make_schedule


def build_network(config: ExperimentConfig) -> nn.Module:
    """Build the network with its initial weights, drawn from torch's global generator."""
    family = FAMILIES[config.model.family](**config.model.family_options)
    depth = int(config.model.architecture.removeprefix("resnet"))
    return CifarResNet(depth, config.dataset.classes, family)


def build_pipeline(config: ExperimentConfig) -> InputPipeline:
    """Build the conversion from linear RGB to the network's input."""
    settings = config.model.representation
    statistics = config.dataset.statistics[settings.statistics]
    clipping = None if settings.clipping is None else make_clipping(settings.clipping, **settings.clipping_options)
    _require_one_scale_a_group(config)
    representation = Representation(settings.space, tuple(statistics["mean"]), tuple(statistics["std"]), clipping)
    if config.strategy.balancing is None:
        return InputPipeline(representation)
    return InputPipeline(representation, partial(_balanced, method=config.strategy.balancing))


def _require_one_scale_a_group(config: ExperimentConfig) -> None:
    """Channels of one offset group must be divided by the same number: otherwise one offset becomes several."""
    groups = config.model.family_options.get("offset_groups")
    std = config.dataset.statistics[config.model.representation.statistics]["std"]
    if groups and len(std) % groups == 0:
        size = len(std) // groups
        if any(len(set(std[first : first + size])) > 1 for first in range(0, len(std), size)):
            raise ValueError(
                f"with offset_groups = {groups}, the std {std} divides one group's channels by different numbers, and "
                f"the network is not invariant; give statistics {config.model.representation.statistics!r} with one "
                "std a group"
            )


def _balanced(linear: Tensor, method: str) -> Tensor:
    return balance(linear, BALANCING_METHODS[method](linear))


def check_components(config: ExperimentConfig) -> None:
    """Build whatever needs no data, and throw it away: a wrong option shows before any work.

    Raises:
        ConfigError: names the group of settings, and says what is wrong with it.
    """
    schedule, jitter = config.train.schedule, config.strategy.jitter
    family = FAMILIES[config.model.family]
    check_arguments(family, config.model.family_options, "model.family_options")
    check_arguments(SCHEDULES[schedule.name], schedule.options, "train.schedule.options", ("total_steps",))
    components: dict[str, Callable[[], object]] = {
        "model": lambda: build_network(config),
        "model.representation": lambda: build_pipeline(config),
        "train.schedule": lambda: make_schedule(schedule.name, 1, **schedule.options)(0),
        "strategy.jitter": lambda: None if jitter is None else _color_jitter(jitter),
        "dataset": lambda: check_dataset(config),
        "paths.data": lambda: data_directories(config.paths.data),
        "runtime.device": lambda: choose_device(config.runtime.device),
        "table, row": lambda: None if config.table is None else find_row(config.table, config.row),
    }
    for name, build in components.items():
        try:
            build()
        except ConfigError:
            raise
        except (TypeError, ValueError, KeyError, RuntimeError) as error:
            raise ConfigError(f"{name}: {error}") from error


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


def _color_jitter(jitter: JitterConfig) -> ColorJitter:
    return ColorJitter(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)


def build_training(config: ExperimentConfig, network: nn.Module, images: LabelledImages) -> RecognitionTraining:
    """Build the training task of a network on images, both on the device."""
    recipe, jitter = config.train, config.strategy.jitter
    setting = runtime_setting(config, images.images.device)
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
    )
    return RecognitionTraining(
        network,
        optimizer,
        images,
        build_pipeline(config),
        Augmentation(
            recipe.crop_padding,
            recipe.flip,
            None if jitter is None else _color_jitter(jitter),
        ),
        batch_size=recipe.batch_size,
        seed=config.seed,
        label_smoothing=recipe.label_smoothing,
        autocast=None if config.train.autocast is None else getattr(torch, config.train.autocast),
        channels_last=setting.channels_last,
        forward=CompiledOrEager(network) if setting.compile else None,
    )


def build_evaluation(config: ExperimentConfig, network: nn.Module, images: LabelledImages) -> RecognitionEvaluation:
    """Build the evaluation of a network on images, both on the device."""
    return RecognitionEvaluation(
        network,
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


def runtime_setting(config: ExperimentConfig, device: torch.device) -> Setting:
    """Return layout and compilation: those configured, else what makes this training fastest on this device."""
    images = describe_dataset(config.dataset.name, **config.dataset.options).images["train"]
    steps_per_epoch = (images - config.dataset.validation_images) // config.train.batch_size
    steps = 0 if config.mode == "evaluate" else config.train.total_steps(steps_per_epoch)
    fastest = fastest_setting(config.model.family, steps, device, repository_root() / "results")
    chosen, compiled = config.runtime.channels_last, config.runtime.compile
    return Setting(
        fastest.channels_last if chosen is None else chosen, fastest.compile if compiled is None else compiled
    )


def memory_format(config: ExperimentConfig, device: torch.device) -> torch.memory_format:
    """Return the layout that networks and batches have in memory."""
    return torch.channels_last if runtime_setting(config, device).channels_last else torch.contiguous_format
