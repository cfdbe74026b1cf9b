"""Batches of images that worker processes decode and crop while the network computes.

Nothing here has a state that must be saved, and nothing depends on how many processes there are: the images of a step
and their crops are functions of (seed, step), and the ranks of a distributed training share what one would have seen.
What workers hand over are bytes; colour is computed from them in batches, on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from offset_equivariant.data.batches import EpochOrder, step_generator
from offset_equivariant.data.cropping import RandomCrops, central_crop
from offset_equivariant.data.decoding import decode_image_file
from offset_equivariant.data.image_files import ImageFileError, ImageFiles

_PREFETCHED = 2  # batches a worker makes ahead


def share_of(count: int, rank: int, world: int) -> range:
    """Return the part of ``range(count)`` that a rank takes: contiguous, and as long as the others' but for one.

    Raises:
        ValueError: when ``rank`` is not in 0 to ``world`` - 1.
    """
    if not 0 <= rank < world:
        raise ValueError(f"rank = {rank} must lie in 0 to world - 1 = {world - 1}")
    return range(count * rank // world, count * (rank + 1) // world)


class StreamedBatches:
    """Training batches by step: uint8 images (B, 3, size, size), cropped and flipped at random, and labels (B,).

    Args:
        files: the training images; its ``size`` is the crops'.
        crops: how they are cropped.
        batch_size: images a step, of all ranks together.
        seed: of the images' order, crops and flips.
        end: number of steps of the training; no batch is made ahead beyond it.
        rank: number of this process; it gets the ``rank``-th part of each batch, B = batch_size / world.
        world: number of processes.
        workers: processes that decode; 0 to decode in this one, when a batch is asked for.
        pin_memory: whether batches are to be copied to a CUDA device.

    Raises:
        ValueError: when there are fewer images than one batch takes, ``world`` does not divide the batch, or a number
            is out of range.
    """

    def __init__(
        self,
        files: ImageFiles,
        crops: RandomCrops,
        *,
        batch_size: int,
        seed: int,
        end: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        part = share_of(batch_size, rank, world)
        if batch_size % world:
            raise ValueError(f"batch_size = {batch_size} cannot be divided among {world} processes; give a multiple")
        self._batches = _TrainingBatches(files, crops, batch_size, seed, part)
        self._end = end
        self._loader = _Loader(workers, pin_memory)
        self._open: Iterator[tuple[Tensor, Tensor]] | None = None
        self._next = 0

    @property
    def steps_per_epoch(self) -> int:
        return self._batches.order.steps_per_epoch

    def indices(self, step: int) -> Tensor:
        """Return the numbers of this rank's images at a step, (B,)."""
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


class EvaluationBatches:
    """Batches of this process's share of the images, each once, without chance: resized, and cropped centrally.

    Iterating gives image numbers (B,), uint8 images (B, 3, size, size) and labels (B,), in the order of the numbers.
    The last batch may be smaller. The numbers are those in ``files``, whatever the rank: what is drawn for an image at
    test time depends on them.

    Args:
        files: the images.
        batch_size: images at a time, of this process.
        rank: number of this process.
        world: number of processes.
        workers: processes that decode; 0 to decode in this one.
        pin_memory: whether batches are to be copied to a CUDA device.

    Raises:
        ValueError: when a number is out of range.
    """

    def __init__(
        self,
        files: ImageFiles,
        *,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self._batches = _CentralBatches(files, batch_size, share_of(len(files), rank, world))
        self._loader = _Loader(workers, pin_memory)

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Read the images anew.

        Raises:
            ImageFileError: when a file cannot be decoded; names it.
        """
        return self._loader.run(self._batches, range(len(self)))


def central_batch(files: ImageFiles, indices: Sequence[int] | Tensor) -> Tensor:
    """Decode images in this process as `EvaluationBatches` does: uint8 (N, 3, size, size).

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
    """A rank's part of each step's batch, by step."""

    def __init__(self, files: ImageFiles, crops: RandomCrops, batch_size: int, seed: int, part: range) -> None:
        self.order = EpochOrder(len(files), batch_size, seed)
        self._files = files
        self._crops = crops
        self._seed = seed
        self._part = slice(part.start, part.stop)

    def indices(self, step: int) -> Tensor:
        return self.order.indices(step)[self._part]

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        indices = self.indices(step)
        # Drawn for the whole batch, so that an image has its crop on whatever rank it is.
        drawn = self._crops.draw(self.order.batch_size, step_generator(self._seed, step, stream=1))[self._part]
        changes = [lambda image, numbers=row: self._crops.apply(image, self._files.size, numbers) for row in drawn]
        return _stacked(self._files, indices.tolist(), changes), self._files.labels[indices]


class _CentralBatches(Dataset[Any]):
    """A rank's images in batches, by the batch's number."""

    def __init__(self, files: ImageFiles, batch_size: int, part: range) -> None:
        self._files = files
        self._batch_size = batch_size
        self._part = part

    def __len__(self) -> int:
        return -(-len(self._part) // self._batch_size)

    def __getitem__(self, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        indices = torch.tensor(self._part[batch * self._batch_size : (batch + 1) * self._batch_size])
        return indices, central_batch(self._files, indices), self._files.labels[indices]


class _Loader:
    """Runs a data set whose items are batches through torch's loader."""

    def __init__(self, workers: int, pin_memory: bool) -> None:
        if workers < 0:
            raise ValueError(f"workers must not be negative, got {workers}")
        self._workers = workers
        self._pin_memory = pin_memory

    def run(self, batches: Dataset[Any], numbers: range) -> Iterator[Any]:
        loader = DataLoader(
            _Caught(batches),
            batch_size=None,
            sampler=numbers,
            num_workers=self._workers,
            collate_fn=_unchanged,
            pin_memory=self._pin_memory,
            prefetch_factor=_PREFETCHED if self._workers else None,
            # The loader draws a seed for its workers, which do not use it: not from the global generator, whose state
            # a training that is taken up again must find as it was.
            generator=torch.Generator(),
        )
        for batch in loader:
            if isinstance(batch, ImageFileError):
                raise batch
            yield batch


class _Caught(Dataset[Any]):
    """Gives the error in place of a batch: raised in a worker, its message would be buried in a traceback."""

    def __init__(self, batches: Dataset[Any]) -> None:
        self._batches = batches

    def __getitem__(self, number: int) -> Any:
        try:
            return self._batches[number]
        except ImageFileError as error:
            return error


def _unchanged(batch: Any) -> Any:
    return batch
