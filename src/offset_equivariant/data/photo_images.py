"""A set of photos without labels, held in memory as one tensor."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from offset_equivariant.data.indexing import image_indices
from offset_equivariant.data.labelled_images import pixels_sha256
from offset_equivariant.data.locations import DataError

SPLITS = ("train", "test", "validation")


class PhotoDataError(DataError):
    """Photos that cannot be used; the message names them and says what is wrong."""


@dataclass(frozen=True, eq=False)
class PhotoImages:
    """Photos of one split of a data set, all of one size.

    Attributes:
        name: the data set, for example ``"facades"``.
        split: one of `SPLITS`; ``"validation"`` is a part of the training photos, kept for making choices.
        images: uint8 tensor of shape (N, 3, H, W), gamma-encoded sRGB in 0 to 255.
        names: a name of each image, all different.
        sha256: fingerprint of the images, see `pixels_sha256`. It is not computed again here.
        synthetic: whether the images were made up; then ``name``, which records and figures show, says so.

    Raises:
        PhotoDataError: when the split is unknown, the tensor is not as above, or there is not one name an image.
    """

    name: str
    split: str
    images: Tensor
    names: tuple[str, ...]
    sha256: str
    synthetic: bool

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise PhotoDataError(f"split is {self.split!r}; valid splits are {', '.join(SPLITS)}")
        if self.images.dtype != torch.uint8 or self.images.dim() != 4 or self.images.shape[1] != 3:
            raise PhotoDataError(
                f"images must be uint8 of shape (N, 3, H, W), got {self.images.dtype} of {tuple(self.images.shape)}"
            )
        if len(self.names) != len(self.images):
            raise PhotoDataError(f"there are {len(self.images)} images, but {len(self.names)} names; give one an image")
        if len(set(self.names)) < len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise PhotoDataError(f"there is more than one image of the name {twice}")

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def to(self, device: torch.device | str) -> "PhotoImages":
        """The same images on ``device``."""
        return replace(self, images=self.images.to(device))

    def subset(self, indices: Sequence[int] | Tensor) -> "PhotoImages":
        """The images at ``indices``, in that order, with a fingerprint of their own.

        Raises:
            TypeError: when ``indices`` are not integers (a boolean mask is not a list of indices).
            IndexError: when an index is outside 0 to N - 1.
        """
        index = image_indices(indices, len(self))
        images = self.images[index.to(self.images.device)]
        names = tuple(self.names[i] for i in index.tolist())
        return replace(self, images=images, names=names, sha256=pixels_sha256(images))
