"""Building inpainting (Section 4.3): the Context Encoder, and methods that learn nothing, on photos."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from torch import nn
from torchvision.transforms.functional import center_crop

from offset_equivariant.building.common import (
    PlannedTraining,
    build_family,
    build_optimizer,
    build_representation,
    build_schedule,
    configured_setting,
    representation_of,
    require_several_images,
    split_off_validation,
)
from offset_equivariant.color.representation import decode_srgb
from offset_equivariant.config import ConfigError, ExperimentConfig, RepresentationConfig, check_arguments
from offset_equivariant.data import Split, data_directories, pixels_sha256
from offset_equivariant.data.inpainting_synthetic import check_drawn_facades, drawn_facades
from offset_equivariant.data.photo_folders import check_photo_options, load_facades, load_paris_street_view
from offset_equivariant.data.photo_images import PhotoImages
from offset_equivariant.models.context_encoder import (
    IMAGE_SIZE,
    ContextEncoder,
    Discriminator,
    initialise_,
    start_at_mean_,
)
from offset_equivariant.nn.families import FAMILIES
from offset_equivariant.performance.settings import CompiledOrEager
from offset_equivariant.tasks.inpainting import HoleFilling, InpaintingTraining, JointLoss
from offset_equivariant.tasks.inpainting_evaluation import (
    Filler,
    InpaintingEvaluation,
    classical_filler,
    network_filler,
)
from offset_equivariant.tasks.inpainting_watch import InpaintingWatch
from offset_equivariant.training.weights import WeightsError, load_weights, read_facts

HEADLINE = ("psnr_db", "dB")
_FOLDERS: dict[str, Callable[..., PhotoImages]] = {
    "facades": load_facades,
    "paris_street_view": load_paris_street_view,
}
PHOTO_DATASETS = (*_FOLDERS, "inpainting_synthetic")
#: Parameters of the loaders that are no settings of a data set.
_NO_OPTIONS = ("split", "directories", "size", "progress")
#: Training photos in a grid of samples.
_SAMPLES = 8


def build_network(config: ExperimentConfig) -> nn.Module:
    """Build the network with its initial weights, drawn from torch's global generator; empty if nothing is learned."""
    if config.model.architecture == "classical_inpainting":
        return nn.Module()
    network = _build_one(config)
    initialise_(network)
    return network


def _build_one(config: ExperimentConfig) -> ContextEncoder:
    return ContextEncoder(build_family(config), **config.model.options)


def check_options(config: ExperimentConfig) -> dict[str, Callable[[], object]]:
    """Return, by group of settings, functions that fail where the group cannot be used."""
    options = config.model.options
    if config.model.architecture == "classical_inpainting":
        check_arguments(classical_filler, options, "model.options")
        build: Callable[[], object] = lambda: classical_filler(**options)  # noqa: E731
    else:
        check_arguments(ContextEncoder.__init__, options, "model.options", ("self", "family"))
        require_several_images(config)
        build = lambda: (_build_one(config), Discriminator(_width(config)))  # noqa: E731
    loader = _FOLDERS.get(config.dataset.name, drawn_facades)
    check_arguments(loader, config.dataset.options, "dataset.options", _NO_OPTIONS)
    return {
        "model": build,
        "model.representation": lambda: HoleFilling(build_representation(config)),
        "dataset.options": lambda: _check_dataset_options(config),
    }


def _check_dataset_options(config: ExperimentConfig) -> None:
    options = config.dataset.options
    if config.dataset.name == "inpainting_synthetic":
        check_drawn_facades(**options)
    elif "shorter_side" in options:
        check_photo_options(options["shorter_side"], IMAGE_SIZE)


def _width(config: ExperimentConfig) -> float:
    """The discriminator is as wide as the network."""
    return float(config.model.options.get("width", 1.0))


def plan_training(config: ExperimentConfig, network: nn.Module, images: PhotoImages) -> PlannedTraining:
    """Build the joint training of a network and a new discriminator on images, network and images on the device."""
    recipe, settings, device = config.train, config.train.inpainting, images.images.device
    assert settings is not None
    if len(images) < recipe.batch_size:
        raise ConfigError(f"train.batch_size = {recipe.batch_size}, but there are only {len(images)} training images")
    setting = configured_setting(config, device)
    discriminator = Discriminator(_width(config))
    initialise_(discriminator)
    discriminator = discriminator.to(device)
    filling = HoleFilling(build_representation(config))
    if filling.representation.space == "log_rgb":
        first = center_crop(images.images[: recipe.batch_size], [IMAGE_SIZE, IMAGE_SIZE])
        start_at_mean_(cast(ContextEncoder, network), filling.inputs(decode_srgb(first)))
    task = InpaintingTraining(
        network,
        discriminator,
        (
            build_optimizer(config, network),
            build_optimizer(config, discriminator, settings.discriminator_learning_rate),
        ),
        images,
        filling,
        JointLoss(settings.adversarial_weight, settings.border, settings.border_weight),
        batch_size=recipe.batch_size,
        seed=config.seed,
        flip=recipe.flip,
        channels_last=setting.channels_last,
        forward=CompiledOrEager(network) if setting.compile else None,
    )
    total_steps = recipe.total_steps(task.steps_per_epoch)
    every = settings.sample_epochs
    watch = InpaintingWatch(
        network,
        filling,
        center_crop(images.images[:_SAMPLES], [IMAGE_SIZE, IMAGE_SIZE]),
        None if every is None else max(1, round(every * task.steps_per_epoch)),
    )
    return PlannedTraining(task, total_steps, build_schedule(config, total_steps), watch)


def build_evaluation(config: ExperimentConfig, network: nn.Module, images: PhotoImages) -> InpaintingEvaluation:
    """Build the evaluation of a network on images, both on the device."""
    return InpaintingEvaluation(build_filler(config, network), images)


def build_filler(config: ExperimentConfig, network: nn.Module) -> Filler:
    """Return the method that a network is, see ``Filler``; or the classical one of the configuration."""
    if config.model.architecture == "classical_inpainting":
        return classical_filler(**config.model.options)
    return network_filler(network, HoleFilling(build_representation(config)))


def load_filler(weights: Path) -> Filler:
    """Return the network in a file of weights, see ``Filler``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if its weights are of another architecture.
    """
    settings = read_facts(weights).get("config", {})
    model, dataset = settings.get("model", {}), settings.get("dataset", {})
    if model.get("architecture") != "context_encoder":
        raise WeightsError(f"{weights} holds no network of the architecture context_encoder")
    network = ContextEncoder(FAMILIES[model["family"]](**model["family_options"]), **model["options"])
    load_weights(network, weights)
    representation = representation_of(RepresentationConfig(**model["representation"]), dataset["statistics"])
    return network_filler(network, HoleFilling(representation))


def load_split(config: ExperimentConfig, split: str) -> PhotoImages:
    """Load the training photos (``train``), or those to evaluate on (``evaluation``).

    With ``dataset.validation_images`` = n, the evaluation is on the middle of n training photos, always the same, which
    the training then does without: the test photos stay unseen while a recipe is chosen.
    """
    held_out = config.dataset.validation_images
    images = _load(config, "test" if split == "evaluation" and not held_out else "train")
    if not held_out:
        return images
    chosen: PhotoImages = split_off_validation(config, images, split)
    if split == "train":
        return chosen
    middle = center_crop(chosen.images, [IMAGE_SIZE, IMAGE_SIZE])
    return replace(chosen, images=middle, sha256=pixels_sha256(middle))


def _load(config: ExperimentConfig, split: Split) -> PhotoImages:
    dataset = config.dataset
    progress = config.runtime.progress
    return load_photos(dataset.name, split, dataset.options, data_directories(config.paths.data), progress=progress)


def load_photos(
    name: str, split: Split, options: Mapping[str, Any], directories: Sequence[Path], *, progress: bool = True
) -> PhotoImages:
    """Load a split of the data set ``name``, one of ``PHOTO_DATASETS``, with its options."""
    if name == "inpainting_synthetic":
        return drawn_facades(split, size=IMAGE_SIZE, **options)
    return _FOLDERS[name](split, directories, size=IMAGE_SIZE, progress=progress, **options)


runtime_setting = configured_setting
