"""Made-up images whose class is a texture: for smoke tests and tests, never for results."""

import math
from typing import get_args

import numpy as np
import torch

from offset_equivariant.data.labelled_images import LabelledImages, Split, check_split, pixels_sha256

_WAVELENGTHS = (3.5, 8.0)  # pixels
_MINIMUM_SIZE = 8  # one period of the coarsest grating


def synthetic_images(
    split: Split, n_train: int = 2000, n_test: int = 500, classes: int = 10, size: int = 32, seed: int = 0
) -> LabelledImages:
    """Noisy two-coloured gratings, whose class is their orientation and wavelength.

    Class k has the orientation ⌊k/2⌋ · 90° / (⌈classes/2⌉ - 1), leaning to the left or to the right, so that a
    horizontal flip keeps the class, and a wavelength of 3.5 (k even) or 8 pixels (k odd), varied by up to 5 %. Mean
    colour, contrast of each channel, phase and noise are random and independent of the class. Classes are equally
    frequent, up to one image.

    Args:
        split: ``"train"`` or ``"test"``; the two share no random numbers.
        n_train: number of images of the training split.
        n_test: number of images of the test split.
        classes: number of classes. More than about 20 are too close for a small network.
        size: height and width in pixels, at least 8.
        seed: non-negative; the same seed gives the same images.

    Raises:
        ValueError: when an argument is out of range.
    """
    check_split(split)
    synthetic_arguments(n_train, n_test, classes, size, seed)
    n = n_train if split == "train" else n_test
    rng = np.random.default_rng([seed, get_args(Split).index(split)])
    labels = rng.permutation(np.arange(n) % classes)

    waves = _gratings(labels, classes, size, rng)
    # Both signs of contrast in every channel: the two colours of a grating then say nothing about its class.
    mean = rng.uniform(80, 175, (n, 3, 1, 1)).astype(np.float32)
    contrast = (rng.uniform(25, 60, (n, 3, 1, 1)) * rng.choice([-1, 1], (n, 3, 1, 1))).astype(np.float32)
    noise = rng.standard_normal((n, 3, size, size), dtype=np.float32) * 10
    images = torch.from_numpy((mean + contrast * waves[:, None] + noise).round().clip(0, 255).astype(np.uint8))
    return LabelledImages(
        name="synthetic",
        split=split,
        images=images,
        labels=torch.from_numpy(labels.astype(np.int64)),
        classes=tuple(f"grating {k}" for k in range(classes)),
        sha256=pixels_sha256(images),
        synthetic=True,
    )


def synthetic_arguments(
    n_train: int = 2000, n_test: int = 500, classes: int = 10, size: int = 32, seed: int = 0
) -> dict[str, int]:
    """Return the arguments of `synthetic_images` by name, without making the images.

    Raises:
        ValueError: when an argument is out of range.
    """
    given = {"n_train": n_train, "n_test": n_test, "classes": classes, "size": size, "seed": seed}
    minima = {"n_train": 1, "n_test": 1, "classes": 2, "size": _MINIMUM_SIZE, "seed": 0}
    for name, value in given.items():
        if value < minima[name]:
            raise ValueError(f"{name} must be at least {minima[name]}, got {value}")
    return given


def _gratings(labels: np.ndarray, classes: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Sinusoids in -1 to 1, float32 (N, size, size), of each label's orientation and wavelength."""
    n = len(labels)
    steps = max(1, math.ceil(classes / 2) - 1)
    angle = (labels // 2) * (math.pi / 2 / steps) * rng.choice([-1, 1], n)
    wavelength = np.asarray(_WAVELENGTHS)[labels % 2] * rng.uniform(0.95, 1.05, n)
    frequency = (2 * math.pi / wavelength)[:, None, None]
    row, column = np.mgrid[:size, :size]
    across = column * np.cos(angle)[:, None, None] + row * np.sin(angle)[:, None, None]
    phase = rng.uniform(0, 2 * math.pi, (n, 1, 1))
    return np.asarray(np.sin(frequency * across + phase), np.float32)
