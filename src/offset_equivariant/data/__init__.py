"""Data sets: where they lie, how they are read, and a registry of them by name."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offset_equivariant.data.cifar10 import CLASSES, load_cifar10
from offset_equivariant.data.ilsvrc12 import ILSVRC12, load_ilsvrc12
from offset_equivariant.data.image_files import ImageFiles
from offset_equivariant.data.image_folders import Published
from offset_equivariant.data.imagenet_synthetic import CLASSES as DRAWN_CLASSES
from offset_equivariant.data.imagenet_synthetic import load_imagenet_synthetic
from offset_equivariant.data.imagenette import IMAGENETTE, load_imagenette
from offset_equivariant.data.labelled_images import LabelledImages, Split, pixels_sha256
from offset_equivariant.data.locations import DataNotFoundError, data_directories
from offset_equivariant.data.synthetic import synthetic_arguments, synthetic_images

__all__ = [
    "DATASETS",
    "FILE_DATASETS",
    "NO_OPTIONS",
    "DataNotFoundError",
    "DatasetDescription",
    "ImageFiles",
    "LabelledImages",
    "Split",
    "data_directories",
    "describe_dataset",
    "downloads",
    "load_cifar10",
    "load_dataset",
    "options_of",
    "pixels_sha256",
    "synthetic_images",
]


def _load_synthetic(split: Split, directories: Sequence[Path], **options: Any) -> LabelledImages:
    return synthetic_images(split, **options)


DATASETS: dict[str, Callable[..., LabelledImages]] = {"cifar10": load_cifar10, "synthetic": _load_synthetic}
"""Data sets by name. Each loader takes the split, the data directories, and keyword options of its own."""

FILE_DATASETS: dict[str, Callable[..., ImageFiles]] = {
    "ilsvrc12": load_ilsvrc12,
    "imagenette": load_imagenette,
    "imagenet_synthetic": load_imagenet_synthetic,
}
"""Likewise those that stay on disk."""

_PUBLISHED: dict[str, Published] = {"ilsvrc12": ILSVRC12, "imagenette": IMAGENETTE}


def load_dataset(name: str, split: Split, directories: Sequence[Path], **options: Any) -> LabelledImages | ImageFiles:
    """Load a split of the data set ``name``, or find the files of one that stays on disk.

    Args:
        name: a key of `DATASETS` or `FILE_DATASETS`.
        split: ``"train"`` or ``"test"``.
        directories: where data sets lie, see `data_directories`.
        options: further keyword arguments of the data set's loader.

    Raises:
        ValueError: when the name or the split is unknown.
        TypeError: when the data set has no such option.
        DataNotFoundError: when the data set is not there and cannot be downloaded.
        ImageDataError: when files are missing or damaged.
    """
    return _loader(name)(split, directories, **options)


def _loader(name: str) -> Callable[..., LabelledImages | ImageFiles]:
    loaders: dict[str, Callable[..., LabelledImages | ImageFiles]] = {**DATASETS, **FILE_DATASETS}
    if name not in loaders:
        raise ValueError(f"there is no data set {name!r}; valid names are {', '.join(sorted(loaders))}")
    return loaders[name]


NO_OPTIONS = ("split", "directories", "progress", "sample", "download")
"""Parameters of the loaders that are no options of a data set: other settings say them, or none."""


@dataclass(frozen=True)
class DatasetDescription:
    """What is known of a data set before it is loaded: its number of classes, and of images by split.

    Of one that may be there in part, the number of images is the largest possible, and that of classes is None.
    """

    classes: int | None
    images: Mapping[Split, int]


def downloads(name: str) -> bool:
    """Whether a data set can be downloaded: then its loader takes ``download``."""
    return "download" in inspect.signature(_loader(name)).parameters


def options_of(name: str) -> Callable[..., LabelledImages | ImageFiles]:
    """Return the function whose keyword parameters, but for `NO_OPTIONS`, are the options of a data set.

    Raises:
        ValueError: when the name is unknown.
    """
    return synthetic_images if name == "synthetic" else _loader(name)


def describe_dataset(name: str, **options: Any) -> DatasetDescription:
    """Describe a data set with its options, without loading it.

    Raises:
        ValueError: when the name is unknown, or an option is out of range.
        NotImplementedError: when nothing is known here of a data set of the registry.
    """
    _loader(name)
    if name in _PUBLISHED:
        published = _PUBLISHED[name]
        return DatasetDescription(None if options.get("subset") else published.classes, published.images)
    if name == "cifar10":
        return DatasetDescription(len(CLASSES), {"train": 50_000, "test": 10_000})
    if name == "imagenet_synthetic":
        return DatasetDescription(
            DRAWN_CLASSES, {"train": options.get("n_train", 128), "test": options.get("n_test", 64)}
        )
    if name != "synthetic":
        raise NotImplementedError(f"the data set {name!r} has no description; add it to describe_dataset")
    chosen = synthetic_arguments(**options)
    return DatasetDescription(chosen["classes"], {"train": chosen["n_train"], "test": chosen["n_test"]})
