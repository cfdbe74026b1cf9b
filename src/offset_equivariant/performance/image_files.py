"""How fast images are made of files, beside what decoding alone takes; and files of the size of ILSVRC-12's."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from offset_equivariant.data.cropping import RandomCrops
from offset_equivariant.data.decoding import decode_image_file
from offset_equivariant.data.image_files import ImageFiles
from offset_equivariant.data.streaming import StreamedBatches, central_batch

#: Width and height of a usual image of ILSVRC-12, in pixels; such a file has 110 kB on average.
WIDTH, HEIGHT = 500, 375
#: Shorter side and crops of the recipe train=imagenet_paper.
SHORTER_SIDE, SIZE = 256, 224
#: Standard deviation of the grain, in levels of 255, and quality of the JPEGs: with them enlarged images have 110 kB
#: too. Without grain they are so smooth that at any quality they have less.
_GRAIN, _QUALITY = 12.0, 95


def enlarged_copies(files: ImageFiles, folder: Path, count: int) -> ImageFiles:
    """Write ``count`` of the images, spread evenly, as JPEGs of the size of ILSVRC-12's in pixels and in bytes.

    They are enlarged to ``WIDTH`` x ``HEIGHT`` pixels, whatever their shape, and given a grain that is the same in the
    three channels, and the same every time. The copies are shown as ``train=imagenet_paper`` shows ILSVRC-12; their
    ``note`` says what they are.
    """
    chosen = files.subset(np.linspace(0, len(files) - 1, count).round().astype(np.int64).tolist())
    rng = np.random.default_rng(0)
    names, sizes = [], []
    for number in range(count):
        pixels = Image.fromarray(decode_image_file(chosen.path(number)).permute(1, 2, 0).numpy())
        enlarged = np.asarray(pixels.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float64)
        grained = enlarged + rng.normal(0, _GRAIN, (HEIGHT, WIDTH, 1))
        path = folder / f"{number:06}.JPEG"
        Image.fromarray(grained.round().clip(0, 255).astype(np.uint8)).save(path, "JPEG", quality=_QUALITY)
        names.append(os.fsencode(path.name))
        sizes.append(path.stat().st_size)
    kilobytes = sum(sizes) / len(sizes) / 1000
    return replace(
        chosen,
        folder=folder,
        names=np.array(names, dtype=np.bytes_),
        sizes=np.array(sizes, dtype=np.int64),
        shorter_side=SHORTER_SIDE,
        size=SIZE,
        note=f"{files.note or files.name}, enlarged to JPEGs of {WIDTH} x {HEIGHT} pixels with some grain, "
        f"{kilobytes:.0f} kB on average",
    )


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
