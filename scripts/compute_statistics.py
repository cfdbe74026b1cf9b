"""Compute the mean and standard deviation of a data set's training pixels in every representation.

    python scripts/compute_statistics.py cifar10
    python scripts/compute_statistics.py ilsvrc12 --workers 8

Prints what ``conf/dataset/<name>.yaml`` holds under ``statistics``. Of images that are files of different sizes, the
pixels are those of the evaluation: resized to the shorter side, and cropped to the central square, so that all images
count alike. Each file is decoded once, and a damaged one named.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from typing import Any

from omegaconf import OmegaConf
from torch import Tensor
from tqdm import tqdm

from offset_equivariant.building.inpainting import PHOTO_DATASETS, load_photos
from offset_equivariant.color import AbsoluteClipping, Clipping, RelativeClipping
from offset_equivariant.color.channel_statistics import ChannelStatistics, byte_histograms
from offset_equivariant.color.representation import Space
from offset_equivariant.data import DATASETS, FILE_DATASETS, data_directories
from offset_equivariant.data.streaming import StreamedImages
from offset_equivariant.provenance import repository_root

REPRESENTATIONS: dict[str, tuple[Space, Clipping | None]] = {
    "srgb": ("srgb", None),
    "log_rgb_absolute": ("log_rgb", AbsoluteClipping()),
    "log_rgb_relative": ("log_rgb", RelativeClipping()),
}
BATCH = 250


def main() -> None:
    """Print the statistics as YAML."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=sorted({*DATASETS, *PHOTO_DATASETS, *FILE_DATASETS}))
    parser.add_argument("--workers", type=int, default=0, help="processes that decode files; 0: this one")
    arguments = parser.parse_args()
    options = OmegaConf.load(repository_root() / "conf" / "dataset" / f"{arguments.dataset}.yaml").options
    statistics = {name: ChannelStatistics(*space) for name, space in REPRESENTATIONS.items()}
    for images in training_images(arguments.dataset, options, arguments.workers):
        histograms = byte_histograms(images)
        for collected in statistics.values():
            collected.update(histograms)
    print("statistics:")
    for name, collected in statistics.items():
        mean, std = collected.result()
        print(f"  {name}:")
        print(f"    mean: [{', '.join(f'{value:.4f}' for value in mean)}]")
        print(f"    std: [{', '.join(f'{value:.4f}' for value in std)}]")


def training_images(name: str, options: Any, workers: int) -> Iterable[Tensor]:
    """Give the training images in batches, uint8 (N, 3, H, W)."""
    if name in FILE_DATASETS:
        return streamed(name, options, workers)
    if name in PHOTO_DATASETS:
        return load_photos(name, "train", options, data_directories()).images.split(BATCH)
    return DATASETS[name]("train", data_directories(), **options).images.split(BATCH)


def streamed(name: str, options: Any, workers: int) -> Iterator[Tensor]:
    """Decode the training images from their files."""
    files = FILE_DATASETS[name]("train", data_directories(), **options)
    batches = StreamedImages(files, batch_size=BATCH, workers=workers)
    for _, images, _ in tqdm(batches, f"read {name}", -(-len(files) // BATCH), unit="batch"):
        yield images


if __name__ == "__main__":
    main()
