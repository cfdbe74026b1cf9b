"""A labelled image data set that stays on disk, as files that are decoded when they are needed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from offset_equivariant.data.indexing import image_indices
from offset_equivariant.data.labelled_images import check_split
from offset_equivariant.data.locations import DataError


class ImageDataError(DataError):
    """Image files that cannot be used; the message names them and says what is wrong."""


class ImageFileError(ImageDataError):
    """A file that cannot be decoded as an image; the message names it."""


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Files of one split of a data set and their classes.

    Names and labels are arrays, not lists of objects: the worker processes of a loader would copy a million objects bit
    by bit, as each is touched.

    Attributes:
        name: the data set, for example ``"ilsvrc12"``.
        split: ``"train"``, ``"test"``, or ``"validation"`` for images held out of the first.
        folder: the folder that the names are relative to.
        names: relative names, bytes of shape (N,), as `os.fsencode` gives them.
        sizes: of the files, in bytes, int64 of shape (N,).
        labels: int64 tensor of shape (N,), indices into ``classes``.
        classes: names of the classes.
        wnids: WordNet identifiers of the classes, which are the folders that the files lie in.
        shorter_side: of height and width that an image is resized to in evaluation, in pixels.
        size: height and width of what a network is shown, in pixels: the central square in evaluation, a random crop
            that is resized in training.
        note: which copy of the data set it is, for people; records have it in their ``environment``.
        synthetic: whether the images were made up; then ``name``, which records and figures show, says so.

    Raises:
        ImageDataError: when the split is unknown, or arrays, labels, classes or sizes do not fit.
    """

    name: str
    split: str
    folder: Path
    names: npt.NDArray[np.bytes_]
    sizes: npt.NDArray[np.int64]
    labels: Tensor
    classes: tuple[str, ...]
    wnids: tuple[str, ...]
    shorter_side: int
    size: int
    note: str = ""
    synthetic: bool = False

    def __post_init__(self) -> None:
        try:
            if self.split != "validation":
                check_split(self.split)
        except ValueError as error:
            raise ImageDataError(str(error)) from error
        if self.names.dtype.kind != "S" or self.names.ndim != 1:
            raise ImageDataError(
                f"names must be bytes of shape (N,), got {self.names.dtype} of shape {self.names.shape}"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != (len(self),) or self.sizes.shape != (len(self),):
            raise ImageDataError(
                f"there are {len(self)} names; sizes have the shape {self.sizes.shape}, and labels are "
                f"{self.labels.dtype} of {tuple(self.labels.shape)}; give one of each a file, labels as int64"
            )
        if len(self.classes) != len(self.wnids):
            raise ImageDataError(f"there are {len(self.classes)} classes, but {len(self.wnids)} wnids; give as many")
        if len(self) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
            raise ImageDataError(
                f"labels must lie in 0 to {len(self.classes) - 1} (there are {len(self.classes)} classes), "
                f"got {int(self.labels.min())} to {int(self.labels.max())}"
            )
        if not 0 < self.size <= self.shorter_side:
            raise ImageDataError(
                f"size = {self.size} must be between 1 and shorter_side, which is {self.shorter_side}: the central "
                "square of the resized image is what is shown"
            )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.names)

    def path(self, index: int) -> Path:
        """The file of the image ``index``."""
        return self.folder / os.fsdecode(self.names[index])

    def to(self, device: torch.device | str) -> ImageFiles:
        """The same files: they stay on disk, and what reads them is told where its batches go."""
        return self

    @cached_property
    def sha256(self) -> str:
        """Fingerprint, hexadecimal: SHA-256 over the names and sizes of all files, in their order.

        Of the files' contents only the sizes are in it: reading all of ILSVRC-12 takes longer than an epoch.
        """
        digest = hashlib.sha256()
        for name, size in zip(self.names.tolist(), self.sizes.tolist(), strict=True):
            digest.update(b"%s\0%d\n" % (name, size))
        return digest.hexdigest()

    def subset(self, indices: Sequence[int] | Tensor) -> ImageFiles:
        """The files at ``indices``, in that order.

        Raises:
            TypeError: when ``indices`` are not one-dimensional integers.
            IndexError: when an index is outside 0 to N - 1.
        """
        index = image_indices(indices, len(self))
        chosen = index.numpy()
        return replace(self, names=self.names[chosen], sizes=self.sizes[chosen], labels=self.labels[index])
