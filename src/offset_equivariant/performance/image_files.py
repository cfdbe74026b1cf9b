"""How fast images are made of files, beside what decoding alone takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

from offset_equivariant.data.cropping import RandomCrops
from offset_equivariant.data.decoding import decode_image_file
from offset_equivariant.data.image_files import ImageFiles
from offset_equivariant.data.streaming import StreamedBatches, central_batch


def images_per_second(files: ImageFiles, batch_size: int, rounds: int = 5, seed: int = 0) -> dict[str, float]:
    """Return images a second of one core, by what is done: ``decoding``, ``training`` and ``evaluation`` batches.

    The images of a step are decoded, then made a training batch, then an evaluation batch; the median of ``rounds``
    steps is taken. Time is that of this process on its core, without waiting for the disk or for other processes.
    """
    batches = StreamedBatches(files, RandomCrops(), batch_size=batch_size, seed=seed, end=rounds + 1)
    rates: dict[str, list[float]] = {}
    for step in range(rounds + 1):
        indices = batches.indices(step).tolist()
        works: dict[str, Callable[[], object]] = {
            "decoding": partial(_decode, files, indices),
            "training": partial(batches.batch, step),
            "evaluation": partial(central_batch, files, indices),
        }
        for name, work in works.items():
            started = time.process_time()
            work()
            rates.setdefault(name, []).append(batch_size / (time.process_time() - started))
    return {name: statistics.median(values[1:]) for name, values in rates.items()}  # the first one warms up


def _decode(files: ImageFiles, indices: Sequence[int]) -> None:
    for index in indices:
        decode_image_file(files.path(index))
