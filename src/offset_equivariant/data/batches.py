"""The order in which training images are seen, and their geometric augmentation: functions of (seed, step) alone.

Nothing here has a state: a run that is taken up again at step k sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

from dataclasses import dataclass

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


def random_crop_and_flip(images: Tensor, padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Pad with zeros, crop at a random place back to the size, and flip half of the images left to right.

    ``(N, C, H, W)``, each image on its own draw; He et al. 2016, Section 4.2. The images are normalised already, so
    that zero is the mean colour.
    """
    count, _, height, width = images.shape
    rows = torch.arange(height).expand(count, -1)
    columns = torch.arange(width).expand(count, -1)
    if flip:
        flipped = torch.rand(count, 1, generator=generator) < 0.5
        columns = torch.where(flipped, width - 1 - columns, columns)
    if padding:
        images = torch.nn.functional.pad(images, (padding,) * 4)
        rows = rows + torch.randint(0, 2 * padding + 1, (count, 1), generator=generator)
        columns = columns + torch.randint(0, 2 * padding + 1, (count, 1), generator=generator)
    rows, columns = rows.to(images.device), columns.to(images.device)
    number = torch.arange(count, device=images.device)[:, None, None]
    # Indexing around a slice puts the indexed axes first: the result is (N, H, W, C) in memory, channels-last.
    cropped = images.permute(0, 2, 3, 1)[number, rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2)
