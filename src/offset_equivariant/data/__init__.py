"""Data sets: where they lie, how they are read, and a registry of them by name."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from offset_equivariant.data.cifar10 import load_cifar10
from offset_equivariant.data.labelled_images import LabelledImages, Split, pixels_sha256
from offset_equivariant.data.locations import DataNotFoundError, data_directories
from offset_equivariant.data.synthetic import synthetic_images

__all__ = [
    "DATASETS",
    "DataNotFoundError",
    "LabelledImages",
    "Split",
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
    if name not in DATASETS:
        raise ValueError(f"there is no data set {name!r}; valid names are {', '.join(sorted(DATASETS))}")
    return DATASETS[name](split, directories, **options)
