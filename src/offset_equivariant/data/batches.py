"""The order in which training images are seen, and their geometric augmentation: functions of (seed, step) alone.

Nothing here has a state: a run that is taken up again at step k sees what an uninterrupted one would have seen. Images
are kept on the device (`KeptBatches`, `LabelledImages`) or on disk (:mod:`offset_equivariant.data.streaming`); who
trains or evaluates knows them as `TrainingBatches` and `EvaluationImages`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor


def step_generator(seed: int, step: int, stream: int) -> torch.Generator:
    """Return the random numbers of one step. Different streams are for different purposes, and independent."""
    derived = int(np.random.SeedSequence([seed, step, stream]).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(derived >> 1)


@dataclass
class EpochOrder:
    """Batches of image numbers: every epoch a new permutation, the last partial batch dropped.

    Args:
        images: number of images.
        batch_size: images a batch.
        seed: of the permutations.

    Raises:
        ValueError: if there are fewer images than one batch takes.
    """

    images: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if not 0 < self.batch_size <= self.images:
            raise ValueError(f"batch_size = {self.batch_size} must be between 1 and the {self.images} training images")
        self._epoch = -1
        self._permutation = torch.empty(0, dtype=torch.int64)

    @property
    def steps_per_epoch(self) -> int:
        return self.images // self.batch_size

    def indices(self, step: int) -> Tensor:
        """Return the image numbers of step ``step``, counted from 0, ``(batch_size,)``."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            self._permutation = torch.randperm(self.images, generator=step_generator(self.seed, epoch, stream=0))
        return self._permutation[batch * self.batch_size : (batch + 1) * self.batch_size]


class TrainingBatches(Protocol):
    """Training images by step."""

    #: Images a step, of all processes together.
    batch_size: int

    @property
    def steps_per_epoch(self) -> int:
        """How many steps see every image once, but for those of the last partial batch."""

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return this process's images of a step, ``(B, C, H, W)``, and their labels ``(B,)``, on the device.

        Images are sRGB bytes; floating-point ones have been made the network's input already.
        """


class EvaluationImages(Protocol):
    """Images to evaluate on, by number."""

    def __len__(self) -> int:
        """How many there are."""

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return images, uint8 ``(B, 3, H, W)``, and their labels ``(B,)``, on the device."""


class KeptBatches:
    """Training batches of images that are all on the device, see `TrainingBatches`.

    Args:
        images: ``(N, C, H, W)``, bytes or the network's input.
        labels: ``(N,)``, on the same device.
        batch_size: images a step, of all processes together.
        seed: of their order.
        part: those of a step's images that this process gets.

    Raises:
        ValueError: if there are fewer images than one batch takes.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, *, batch_size: int, seed: int, part: slice = slice(None)
    ) -> None:
        self.batch_size = batch_size
        self._images = images
        self._labels = labels
        self._order = EpochOrder(len(images), batch_size, seed)
        self._part = part

    @property
    def steps_per_epoch(self) -> int:
        return self._order.steps_per_epoch

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        indices = self._order.indices(step)[self._part].to(self._images.device)
        return self._images[indices], self._labels[indices]


class CropDraws(NamedTuple):
    """What chance decides for each image, ``(N, 1)``: whether it is flipped, and the crop's row and column."""

    flipped: Tensor
    row: Tensor
    column: Tensor

    def of(self, part: slice) -> CropDraws:
        """Return what was drawn for some of the images."""
        return CropDraws(*(drawn[part] for drawn in self))


def draw_crops(count: int, padding: int, flip: bool, generator: torch.Generator) -> CropDraws:
    """Draw crops of images with a border of ``padding`` pixels, and flips of half of them."""
    flipped = torch.rand(count, 1, generator=generator) < 0.5 if flip else torch.zeros(count, 1, dtype=torch.bool)
    if not padding:
        return CropDraws(flipped, *torch.zeros(2, count, 1, dtype=torch.int64))
    row, column = (torch.randint(0, 2 * padding + 1, (count, 1), generator=generator) for _ in range(2))
    return CropDraws(flipped, row, column)


def crop_and_flip(images: Tensor, padding: int, drawn: CropDraws) -> Tensor:
    """Pad with zeros, crop at the place drawn back to the size, and flip left to right where that was drawn.

    ``(N, C, H, W)``, each image on its own draw; He et al. 2016, Section 4.2. The images are normalised already, so
    that zero is the mean colour.
    """
    count, _, height, width = images.shape
    columns = torch.arange(width).expand(count, -1)
    columns = torch.where(drawn.flipped, width - 1 - columns, columns) + drawn.column
    rows = torch.arange(height).expand(count, -1) + drawn.row
    if padding:
        images = torch.nn.functional.pad(images, (padding,) * 4)
    rows, columns = rows.to(images.device), columns.to(images.device)
    number = torch.arange(count, device=images.device)[:, None, None]
    # Indexing around a slice puts the indexed axes first: the result is (N, H, W, C) in memory, channels-last.
    cropped = images.permute(0, 2, 3, 1)[number, rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2)


def random_crop_and_flip(images: Tensor, padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Draw crops and flips for a batch, `draw_crops`, and apply them, `crop_and_flip`."""
    return crop_and_flip(images, padding, draw_crops(len(images), padding, flip, generator))
