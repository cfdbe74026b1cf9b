"""Data sets: where they lie, how they are read, and a registry of them by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offset_equivariant.data.cifar10 import CLASSES, load_cifar10
from offset_equivariant.data.labelled_images import LabelledImages, Split, pixels_sha256
from offset_equivariant.data.locations import DataNotFoundError, data_directories
from offset_equivariant.data.synthetic import synthetic_arguments, synthetic_images

__all__ = [
    "DATASETS",
    "NO_OPTIONS",
    "DataNotFoundError",
    "DatasetDescription",
    "LabelledImages",
    "Split",
    "data_directories",
    "describe_dataset",
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


def load_dataset(name: str, split: Split, directories: Sequence[Path], **options: Any) -> LabelledImages:
    """Load a split of the data set ``name``.

    Args:
        name: a key of `DATASETS`.
        split: ``"train"`` or ``"test"``.
        directories: where data sets lie, see `data_directories`.
        options: further keyword arguments of `load_cifar10` or `synthetic_images`.

    Raises:
        ValueError: when the name or the split is unknown.
        TypeError: when the data set has no such option.
        DataNotFoundError: when the data set is not there and cannot be downloaded.
    """
    return _loader(name)(split, directories, **options)


def _loader(name: str) -> Callable[..., LabelledImages]:
    if name not in DATASETS:
        raise ValueError(f"there is no data set {name!r}; valid names are {', '.join(sorted(DATASETS))}")
    return DATASETS[name]


NO_OPTIONS = ("split", "directories", "progress")
"""Parameters of the loaders that are no settings of a data set."""


@dataclass(frozen=True)
class DatasetDescription:
    """What is known of a data set before it is loaded: its number of classes, and of images by split."""

    classes: int
    images: Mapping[Split, int]


def options_of(name: str) -> Callable[..., LabelledImages]:
    """Return the function whose keyword parameters, but for `NO_OPTIONS`, are the options of a data set.

    Raises:
        ValueError: when the name is unknown.
    """
    return synthetic_images if name == "synthetic" else _loader(name)


def describe_dataset(name: str, **options: Any) -> DatasetDescription:
    """Describe a data set with its options, without loading it.

    Raises:
        ValueError: when the name is unknown, or an option is out of range.
    """
    _loader(name)
    if name == "cifar10":
        return DatasetDescription(len(CLASSES), {"train": 50_000, "test": 10_000})
    chosen = synthetic_arguments(**options)
    return DatasetDescription(chosen["classes"], {"train": chosen["n_train"], "test": chosen["n_test"]})
