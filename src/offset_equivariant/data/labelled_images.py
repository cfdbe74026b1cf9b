"""A labelled image data set held in memory as one tensor."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from offset_equivariant.data.indexing import image_indices

Split = Literal["train", "test"]


def check_split(split: str) -> None:
    """Raise `ValueError` unless ``split`` is one of `Split`."""
    if split not in get_args(Split):
        raise ValueError(f"split is {split!r}; valid splits are {', '.join(get_args(Split))}")


def pixels_sha256(images: Tensor) -> str:
    """SHA-256 (hexadecimal) of the pixels of ``images``, uint8 (N, 3, H, W), taken in (N, H, W, 3) order."""
    digest = hashlib.sha256()
    for part in images.split(1000):  # a copy of the whole may not fit into memory
        digest.update(part.permute(0, 2, 3, 1).contiguous().cpu().numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images of one split of a data set and their classes.

    Attributes:
        name: the data set, for example ``"cifar10"``.
        split: ``"train"``, ``"test"``, or ``"validation"`` for images held out of the first.
        images: uint8 tensor of shape (N, 3, H, W), gamma-encoded sRGB in 0 to 255.
        labels: int64 tensor of shape (N,), indices into ``classes``.
        classes: names of the classes.
        sha256: fingerprint of the images, see `pixels_sha256`. It is not computed again here.
        synthetic: whether the images were made up; then ``name``, which records and figures show, says so.

    Raises:
        ValueError: when shapes, types, devices or label values are not as above.
    """

    name: str
    split: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    sha256: str
    synthetic: bool

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.dim() != 4 or self.images.shape[1] != 3:
            raise ValueError(
                f"images must be uint8 of shape (N, 3, H, W), got {self.images.dtype} of {tuple(self.images.shape)}"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels must be int64 of shape ({len(self.images)},), one per image, "
                f"got {self.labels.dtype} of {tuple(self.labels.shape)}"
            )
        if self.labels.device != self.images.device:
            raise ValueError(
                f"labels are on {self.labels.device} and images on {self.images.device}; put them on the same device"
            )
        if len(self.labels) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
            raise ValueError(
                f"labels must lie in 0 to {len(self.classes) - 1} (there are {len(self.classes)} classes), "
                f"got {int(self.labels.min())} to {int(self.labels.max())}"
            )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def to(self, device: torch.device | str) -> "LabelledImages":
        """The same images and labels on ``device``."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The images at ``indices``, (B,), uint8 (B, 3, H, W), and their labels, (B,), on the device of all."""
        indices = indices.to(self.images.device)
        return self.images[indices], self.labels[indices]

    def subset(self, indices: Sequence[int] | Tensor) -> "LabelledImages":
        """The images at ``indices``, in that order, with a fingerprint of their own.

        Args:
            indices: integers in 0 to N - 1, a sequence or a one-dimensional integer tensor.

        Raises:
            TypeError: when ``indices`` are not integers (a boolean mask is not a list of indices).
            IndexError: when an index is outside 0 to N - 1.
        """
        index = image_indices(indices, len(self)).to(self.images.device)
        images = self.images[index]
        return replace(self, images=images, labels=self.labels[index], sha256=pixels_sha256(images))
