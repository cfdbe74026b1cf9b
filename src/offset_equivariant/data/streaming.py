"""Batches of images that worker processes decode and crop while the network computes.

Nothing here has a state that must be saved, and nothing depends on how many processes there are: the images of a step
and their crops are functions of (seed, step), and each of several ranks reads its part of what one would have seen.
What workers hand over are bytes; colour is computed from them in batches, on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from offset_equivariant.data.batches import EpochOrder, step_generator
from offset_equivariant.data.cropping import RandomCrops, central_crop
from offset_equivariant.data.decoding import decode_image_file
from offset_equivariant.data.image_files import ImageFiles
from offset_equivariant.data.workers import Loader

_ALL = slice(None)
_CPU = torch.device("cpu")


class StreamedBatches:
    """Training batches by step: uint8 images (B, 3, size, size), cropped and flipped at random, and labels (B,).

    Args:
        files: the training images; its ``size`` is the crops'.
        crops: how they are cropped.
        batch_size: images a step, of all ranks together.
        seed: of the images' order, crops and flips.
        end: number of steps of the training; no batch is made ahead beyond it.
        part: those of a step's images that this process gets, and reads.
        workers: processes that decode; 0 to decode in this one, when a batch is asked for.
        device: where the batches go.

    Raises:
        ValueError: when there are fewer images than one batch takes, or a number is out of range.
    """

    def __init__(
        self,
        files: ImageFiles,
        crops: RandomCrops,
        *,
        batch_size: int,
        seed: int,
        end: int,
        part: slice = _ALL,
        workers: int = 0,
        device: torch.device = _CPU,
    ) -> None:
        self.batch_size = batch_size
        self._batches = _TrainingBatches(files, crops, batch_size, seed, part)
        self._end = end
        self._loader = Loader(workers, device)
        self._open: Iterator[tuple[Tensor, Tensor]] | None = None
        self._next = 0

    @property
    def steps_per_epoch(self) -> int:
        return self._batches.order.steps_per_epoch

    def indices(self, step: int) -> Tensor:
        """Return the numbers of this process's images at a step, (B,)."""
        return self._batches.indices(step)

    def between(self, start: int, end: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Give images and labels of the steps ``start`` to ``end`` - 1, across epochs, with the same workers all along.

        Raises:
            ImageFileError: when a file cannot be decoded; names it.
        """
        return self._loader.run(self._batches, range(start, end))

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return images and labels of a step, made ahead where it follows the step asked for last.

        Raises:
            IndexError: when the step is not one of the training's.
            ImageFileError: when a file cannot be decoded; names it.
        """
        if not 0 <= step < self._end:
            raise IndexError(f"step = {step} is not in 0 to {self._end - 1}, the steps of this training")
        if self._open is None or step != self._next:
            self.close()
            self._open = self.between(step, self._end)
        self._next = step + 1
        return next(self._open)

    def close(self) -> None:
        """End the workers that make batches ahead; the next batch starts new ones."""
        self._open = None


class StreamedImages:
    """Images by number, without chance: resized, and cropped centrally.

    Iterating gives image numbers (B,), uint8 images (B, 3, size, size) and labels (B,), in the order of the numbers.
    The last batch may be smaller. The numbers are those in ``files``, whatever the part: what is drawn for an image at
    test time depends on them.

    Args:
        files: the images.
        batch_size: images at a time, of this process.
        part: those of the images that this process reads when they are asked for in a row.
        workers: processes that decode; 0 to decode in this one.
        device: where the batches go.

    Raises:
        ValueError: when a number is out of range.
    """

    def __init__(
        self,
        files: ImageFiles,
        *,
        batch_size: int,
        part: slice = _ALL,
        workers: int = 0,
        device: torch.device = _CPU,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self._files = files
        self._device = device
        self._batches = _CentralBatches(files, batch_size, range(len(files))[part])
        self._loader = Loader(workers, device)
        self._open: Iterator[tuple[Tensor, Tensor, Tensor]] | None = None
        self._next = 0

    def __len__(self) -> int:
        """Number of images, of all parts."""
        return len(self._files)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Read this process's part anew.

        Raises:
            ImageFileError: when a file cannot be decoded; names it.
        """
        return self._loader.run(self._batches, range(len(self._batches)))

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return images of any numbers, (B,), and their labels.

        They were read ahead where they are the part's next ``batch_size``, from the first on.

        Raises:
            ImageFileError: when a file cannot be decoded; names it.
        """
        number = self._batches.number_of(indices)
        if number is None:
            images = central_batch(self._files, indices.tolist())
            return images.to(self._device), self._files.labels[indices.cpu()].to(self._device)
        if number == 0 or number != self._next:
            self._open = self._loader.run(self._batches, range(number, len(self._batches)))
        assert self._open is not None
        self._next = number + 1
        _, images, labels = next(self._open)
        return images, labels


def central_batch(files: ImageFiles, indices: Sequence[int] | Tensor) -> Tensor:
    """Decode images in this process as `StreamedImages` does: uint8 (N, 3, size, size).

    Raises:
        ImageFileError: when a file cannot be decoded; names it.
    """
    numbers = [int(index) for index in indices]
    return _stacked(files, numbers, [lambda image: central_crop(image, files.shorter_side, files.size)] * len(numbers))


def _stacked(files: ImageFiles, indices: Sequence[int], changes: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
    batch = torch.empty(len(indices), 3, files.size, files.size, dtype=torch.uint8)
    for row, index, change in zip(batch, indices, changes, strict=True):
        row.copy_(change(decode_image_file(files.path(index))))
    return batch


class _TrainingBatches(Dataset[Any]):
    """A process's part of each step's batch, by step."""

    def __init__(self, files: ImageFiles, crops: RandomCrops, batch_size: int, seed: int, part: slice) -> None:
        self.order = EpochOrder(len(files), batch_size, seed)
        self._files = files
        self._crops = crops
        self._seed = seed
        self._part = part

    def indices(self, step: int) -> Tensor:
        return self.order.indices(step)[self._part]

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        indices = self.indices(step)
        # Drawn for the whole batch, so that an image has its crop on whatever rank it is.
        drawn = self._crops.draw(self.order.batch_size, step_generator(self._seed, step, stream=2))[self._part]
        changes = [lambda image, numbers=row: self._crops.apply(image, self._files.size, numbers) for row in drawn]
        return _stacked(self._files, indices.tolist(), changes), self._files.labels[indices]


class _CentralBatches(Dataset[Any]):
    """A process's images in batches, by the batch's number."""

    def __init__(self, files: ImageFiles, batch_size: int, part: range) -> None:
        self._files = files
        self._batch_size = batch_size
        self._part = part

    def __len__(self) -> int:
        return -(-len(self._part) // self._batch_size)

    def number_of(self, indices: Tensor) -> int | None:
        """Return which batch these images are; None if they are none."""
        first = int(indices[0]) if len(indices) else -1
        if first not in self._part:
            return None
        number = self._part.index(first) // self._batch_size
        return number if indices.tolist() == list(self._indices(number)) else None

    def _indices(self, batch: int) -> range:
        return self._part[batch * self._batch_size : (batch + 1) * self._batch_size]

    def __getitem__(self, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        indices = torch.tensor(self._indices(batch))
        return indices, central_batch(self._files, indices), self._files.labels[indices]
