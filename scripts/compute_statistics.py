"""Compute the mean and standard deviation of a data set's training pixels in every representation.

    python scripts/compute_statistics.py cifar10

Prints what ``conf/dataset/<name>.yaml`` holds under ``statistics``.
"""

from __future__ import annotations

import argparse

from omegaconf import OmegaConf

from offset_equivariant.building.inpainting import PHOTO_DATASETS, load_photos
from offset_equivariant.color import AbsoluteClipping, Clipping, RelativeClipping
from offset_equivariant.color.representation import Space, channel_statistics
from offset_equivariant.data import DATASETS, data_directories, load_dataset
from offset_equivariant.provenance import repository_root

REPRESENTATIONS: dict[str, tuple[Space, Clipping | None]] = {
    "srgb": ("srgb", None),
    "log_rgb_absolute": ("log_rgb", AbsoluteClipping()),
    "log_rgb_relative": ("log_rgb", RelativeClipping()),
}


def main() -> None:
    """Print the statistics as YAML."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=sorted([*DATASETS, *PHOTO_DATASETS]))
    name = parser.parse_args().dataset
    options = OmegaConf.load(repository_root() / "conf" / "dataset" / f"{name}.yaml").options
    if name in PHOTO_DATASETS:
        images = load_photos(name, "train", options, data_directories()).images
    else:
        images = load_dataset(name, "train", data_directories(), **options).images
    print("statistics:")
    for name, (space, clipping) in REPRESENTATIONS.items():
        mean, std = channel_statistics(images, space, clipping)
        print(f"  {name}:")
        print(f"    mean: [{', '.join(f'{value:.4f}' for value in mean)}]")
        print(f"    std: [{', '.join(f'{value:.4f}' for value in std)}]")


if __name__ == "__main__":
    main()
