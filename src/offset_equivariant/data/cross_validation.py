"""Which images are test images of which network: by official fold, by camera, or held out for choosing a recipe."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from offset_equivariant.data.illuminant_images import IlluminantDataError, IlluminantImages

CrossValidation = Literal["folds", "cameras"]


def assign_folds(images: IlluminantImages, by: CrossValidation) -> IlluminantImages:
    """Return the images with ``folds`` counted from 0: the data set's own, or one a camera, in alphabetical order.

    Raises:
        IlluminantDataError: if that leaves a network without training images.
    """
    keys = images.folds.tolist() if by == "folds" else list(images.cameras)
    numbers = {key: number for number, key in enumerate(sorted(set(keys)))}
    if len(numbers) < 2:
        raise IlluminantDataError(f"all images of {images.name} are of one of the {by}; at least two are needed")
    return replace(images, folds=torch.tensor([numbers[key] for key in keys]))


def hold_out(images: IlluminantImages, count: int) -> IlluminantImages:
    """Return the images of all folds but the first, ``count`` of them as the only fold: for choosing a recipe.

    The first fold is left out whole, so that what is measured on it later is of images that chose nothing. The choice
    is always the same.

    Raises:
        IlluminantDataError: if there are not that many.
    """
    left = images.subset((images.folds != images.folds.min()).nonzero().flatten())
    if not 0 < count < len(left):
        raise IlluminantDataError(f"{count} images cannot be held out of the {len(left)} outside the first fold")
    folds = torch.full((len(left),), -1)
    folds[torch.from_numpy(np.random.default_rng(0).permutation(len(left))[:count])] = 0
    return replace(left, folds=folds, split="validation")
