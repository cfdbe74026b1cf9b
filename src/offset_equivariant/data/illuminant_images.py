"""A set of linear images whose illuminants are known, held in memory as one tensor."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from offset_equivariant.data.indexing import image_indices
from offset_equivariant.data.locations import DataError


class IlluminantDataError(DataError):
    """Images or illuminants that cannot be used; the message names them and says what is wrong."""


@dataclass(frozen=True, eq=False)
class IlluminantImages:
    """Linear images, the illuminant of each, its camera, and its fold of a cross-validation.

    Attributes:
        name: the data set, for example ``"nus"``.
        images: float32 tensor of shape (N, 3, S, S), linear RGB in 0 to 1. A pixel that is zero in a channel holds no
            light: what covers the colour chart, or the sensor's black.
        illuminants: float64 tensor of shape (N, 3), linear RGB of unit norm, strictly positive.
        names: a name of each image, all different.
        cameras: the camera of each image.
        folds: int64 tensor of shape (N,): the fold in which each image is a test image; -1 if it never is.
        sha256: fingerprint, see `fingerprint`. It is not computed again here.
        synthetic: whether the images were made up; then ``name``, which records and figures show, says so.
        split: what is measured on the test images: a result (``"test"``), or a choice (``"validation"``).

    Raises:
        IlluminantDataError: when shapes or types are not as above, or an image or an illuminant cannot be used.
    """

    name: str
    images: Tensor
    illuminants: Tensor
    names: tuple[str, ...]
    cameras: tuple[str, ...]
    folds: Tensor
    sha256: str
    synthetic: bool
    split: str = "test"

    def __post_init__(self) -> None:
        shape = tuple(self.images.shape)
        if self.images.dtype != torch.float32 or len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3]:
            raise IlluminantDataError(f"images must be float32 of shape (N, 3, S, S), got {self.images.dtype} {shape}")
        if self.illuminants.dtype != torch.float64 or self.illuminants.shape[1:] != (3,):
            raise IlluminantDataError(
                f"illuminants must be float64 of shape ({shape[0]}, 3), "
                f"got {self.illuminants.dtype} {tuple(self.illuminants.shape)}"
            )
        self._require_one_each()
        self._refuse("no light at all, or values that are not finite and in 0 to 1", self._unusable_images())
        usable = (self.illuminants > 0).all(1) & self.illuminants.isfinite().all(1)
        self._refuse("an illuminant that is not finite and positive in every component", ~usable)
        self._refuse("an illuminant whose norm is not 1", (self.illuminants.norm(dim=1) - 1).abs() > 1e-6)

    def _require_one_each(self) -> None:
        """One illuminant, name, camera and fold an image."""
        counts = {
            "illuminants": len(self.illuminants),
            "names": len(self.names),
            "cameras": len(self.cameras),
            "folds": len(self.folds),
        }
        for what, count in counts.items():
            if count != len(self.images):
                without = f"; the first image without one is {self.names[count]}" if count < len(self.names) else ""
                raise IlluminantDataError(f"there are {len(self.images)} images, but {count} {what}{without}")
        if len(set(self.names)) < len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise IlluminantDataError(f"there is more than one image of the name {twice}")

    def _unusable_images(self) -> Tensor:
        values = self.images.flatten(1)
        return ~((values >= 0) & (values <= 1)).all(1) | (values.amax(1) <= 0)

    def _refuse(self, problem: str, bad: Tensor) -> None:
        if bool(bad.any()):
            rows = bad.nonzero().flatten().tolist()
            listed = ", ".join(self.names[row] for row in rows[:10]) + (", ..." if len(rows) > 10 else "")
            raise IlluminantDataError(f"{len(rows)} of {len(bad)} images of {self.name} have {problem}: {listed}")

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    @property
    def size(self) -> int:
        """Height and width in pixels, S."""
        return self.images.shape[2]

    def to(self, device: torch.device | str) -> "IlluminantImages":
        """The same images with ``images`` on ``device``; the rest is small and stays where it is."""
        return replace(self, images=self.images.to(device))

    def subset(self, indices: Sequence[int] | Tensor) -> "IlluminantImages":
        """The images at ``indices``, in that order, with a fingerprint of their own.

        Raises:
            TypeError: when ``indices`` are not integers (a boolean mask is not a list of indices).
            IndexError: when an index is outside 0 to N - 1.
        """
        index = image_indices(indices, len(self))
        images, illuminants = self.images[index.to(self.images.device)], self.illuminants[index]
        return replace(
            self,
            images=images,
            illuminants=illuminants,
            names=tuple(self.names[i] for i in index.tolist()),
            cameras=tuple(self.cameras[i] for i in index.tolist()),
            folds=self.folds[index],
            sha256=fingerprint(images, illuminants),
        )


def fingerprint(images: Tensor, illuminants: Tensor) -> str:
    """SHA-256 (hexadecimal) of the images as 16-bit values in (N, S, S, 3) order, followed by the illuminants."""
    digest = hashlib.sha256()
    for image in images.cpu():
        digest.update((image.permute(1, 2, 0).double() * 65535).round().numpy().astype("<u2").tobytes())
    digest.update(np.ascontiguousarray(illuminants.cpu().numpy(), "<f8").tobytes())
    return digest.hexdigest()
