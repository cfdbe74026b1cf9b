"""Data sets: where they lie, how they are read, and a registry of them by name."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from offset_equivariant.data.cifar10 import CLASSES, load_cifar10
from offset_equivariant.data.labelled_images import LabelledImages, Split, pixels_sha256
from offset_equivariant.data.locations import DataNotFoundError, data_directories
from offset_equivariant.data.synthetic import synthetic_images

__all__ = [
    "DATASETS",
    "DataNotFoundError",
    "LabelledImages",
    "Split",
    "check_options",
    "data_directories",
    "load_cifar10",
    "load_dataset",
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


def check_options(name: str, classes: int, options: Mapping[str, Any]) -> None:
    """Check the options of a data set without loading it.

    Raises:
        ValueError: when the name is unknown, an option is not the data set's, or it has another number of classes.
    """
    loader = _loader(name)
    if name == "synthetic":  # whose registered loader passes its options on
        loader = synthetic_images
    valid = [option for option in inspect.signature(loader).parameters if option not in ("split", "directories")]
    unknown = [option for option in options if option not in valid]
    if unknown:
        raise ValueError(f"data set {name} has no option {unknown[0]!r}, only {', '.join(valid)}")
    expected = len(CLASSES) if name == "cifar10" else options.get("classes", 10)
    if classes != expected:
        raise ValueError(f"classes = {classes}, but data set {name} has {expected}")
