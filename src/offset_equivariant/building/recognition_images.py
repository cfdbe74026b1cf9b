"""The images of recognition: kept whole on the device, or on disk and decoded as they are needed.

Here alone the two are told apart; the task knows batches by step, and images by number.
"""

from __future__ import annotations

import os
from typing import cast

import torch

from offset_equivariant.building.common import split_off_validation
from offset_equivariant.config import ConfigError, ExperimentConfig, check_arguments
from offset_equivariant.data import (
    FILE_DATASETS,
    NO_OPTIONS,
    ImageFiles,
    LabelledImages,
    Split,
    data_directories,
    describe_dataset,
    downloads,
    load_dataset,
    options_of,
)
from offset_equivariant.data.batches import EvaluationImages, TrainingBatches
from offset_equivariant.data.cropping import RandomCrops
from offset_equivariant.data.photo_folders import check_photo_options
from offset_equivariant.data.streaming import StreamedBatches, StreamedImages
from offset_equivariant.data.workers import usable_cores
from offset_equivariant.tasks.recognition import Augmentation, InputPipeline, kept_batches
from offset_equivariant.training.ranks import is_first, own_part

#: Of ``conf/train/imagenet_*.yaml``.
_PRESETS_FOR_FILES = ("paper", "fast", "smoke")


def check_dataset(config: ExperimentConfig) -> None:
    """Check the data set's options, and that its images are enough, without loading it.

    Raises:
        ConfigError: names the setting.
    """
    dataset, batch_size = config.dataset, config.train.batch_size
    check_arguments(options_of(dataset.name), dataset.options, "dataset.options", NO_OPTIONS)
    described = describe_dataset(dataset.name, **dataset.options)
    if described.classes is not None:
        _require_classes(config, described.classes)
    training = described.images["train"] - dataset.validation_images
    if training < batch_size:
        raise ConfigError(
            f"train.batch_size = {batch_size} and dataset.validation_images = {dataset.validation_images} do not fit "
            f"the {described.images['train']} training images of {dataset.name}"
        )
    if {"shorter_side", "size"} <= dataset.options.keys():
        check_photo_options(dataset.options["shorter_side"], dataset.options["size"])


def check_crops(config: ExperimentConfig) -> None:
    """Check that the crops of the recipe are those that the data set's images can have.

    Raises:
        ConfigError: names the setting.
    """
    on_disk, recipe = config.dataset.name in FILE_DATASETS, config.train
    if on_disk == (recipe.random_resized_crop is None):
        needed = (
            f"needs it, for its images have different sizes; give train={_preset_for_files(recipe.preset)}"
            if on_disk
            else "is kept whole in memory; give null"
        )
        raise ConfigError(
            f"train.random_resized_crop = {recipe.random_resized_crop} does not fit dataset {config.dataset.name}, "
            f"which {needed}"
        )
    if on_disk and recipe.crop_padding:
        raise ConfigError(
            f"train.crop_padding = {recipe.crop_padding} is not for dataset {config.dataset.name}, whose images are "
            "cropped by train.random_resized_crop; give 0"
        )
    if on_disk:
        _random_crops(config)


def load_split(config: ExperimentConfig, split: str) -> LabelledImages | ImageFiles:
    """Load the training images (``train``), or those to evaluate on (``evaluation``); of files, find and check them.

    With ``dataset.validation_images`` = n, the evaluation is on n training images, always the same, which the training
    then does without: the test images stay unseen while a recipe is chosen.

    Raises:
        ConfigError: if the data set has other classes, or too few images.
    """
    dataset, held_out = config.dataset, config.dataset.validation_images
    source: Split = "test" if split == "evaluation" and not held_out else "train"
    options = dict(dataset.options)
    if downloads(dataset.name):
        options["download"] = dataset.download
    if dataset.name in FILE_DATASETS:
        options["progress"] = config.runtime.progress and is_first()
    images = load_dataset(dataset.name, source, data_directories(config.paths.data), **options)
    _require_classes(config, len(images.classes))
    if source == "train" and len(images) - held_out < config.train.batch_size:
        raise ConfigError(
            f"train.batch_size = {config.train.batch_size} and dataset.validation_images = {held_out} do not fit the "
            f"{len(images)} training images of {dataset.name} that are there"
        )
    if not held_out:
        return images
    return cast("LabelledImages | ImageFiles", split_off_validation(config, images, split))


def training_batches(
    config: ExperimentConfig,
    images: LabelledImages | ImageFiles,
    pipeline: InputPipeline,
    augmentation: Augmentation,
    device: torch.device,
) -> TrainingBatches:
    """Build this rank's part of the training batches, up to the last step."""
    batch_size = config.train.batch_size
    if isinstance(images, LabelledImages):
        return kept_batches(images, pipeline, augmentation, batch_size, config.seed)
    return StreamedBatches(
        images,
        _random_crops(config),
        batch_size=batch_size,
        seed=config.seed,
        end=config.train.total_steps(len(images) // batch_size),
        part=own_part(batch_size),
        workers=worker_count(config, device),
        device=device,
    )


def evaluation_images(
    config: ExperimentConfig, images: LabelledImages | ImageFiles, device: torch.device
) -> EvaluationImages:
    """Build the access to images by number; those of this rank's part are read ahead."""
    if isinstance(images, LabelledImages):
        return images
    return StreamedImages(
        images,
        batch_size=config.runtime.evaluation_batch_size,
        part=own_part(len(images)),
        workers=worker_count(config, device),
        device=device,
    )


def counts_top5(images: LabelledImages | ImageFiles) -> bool:
    """Whether the top-5 error is measured too: on ILSVRC-12 and its parts, as is usual there."""
    return isinstance(images, ImageFiles) and len(images.classes) > 5


def worker_count(config: ExperimentConfig, device: torch.device) -> int:
    """Return how many processes decode images for this rank: those configured, else one a core that is free.

    Where the cores train the network themselves, none is.
    """
    if config.runtime.workers is not None:
        return config.runtime.workers
    if device.type == "cpu":
        return 0
    return max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _random_crops(config: ExperimentConfig) -> RandomCrops:
    settings = config.train.random_resized_crop
    assert settings is not None  # see check_crops
    area, aspect_ratio = (cast(tuple[float, float], tuple(v)) for v in (settings.area, settings.aspect_ratio))
    return RandomCrops(area, aspect_ratio, config.train.flip)


def _preset_for_files(preset: str) -> str:
    """The preset for files in place of another; that of a changed recipe is ``<preset>_changed_<digest>``."""
    meant = preset.partition("_changed_")[0]
    return f"imagenet_{meant if meant in _PRESETS_FOR_FILES else 'fast'}"


def _require_classes(config: ExperimentConfig, classes: int) -> None:
    if config.dataset.classes != classes:
        raise ConfigError(f"dataset.classes = {config.dataset.classes}, but {config.dataset.name} has {classes}")
