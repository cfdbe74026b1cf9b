"""Compute the mean and standard deviation of a data set's training pixels in the spaces that networks are shown.

    python scripts/compute_statistics.py cifar10
    python scripts/compute_statistics.py imagenette variant=160px shorter_side=160 size=144
    python scripts/compute_statistics.py ilsvrc12 --workers 8
    python scripts/compute_statistics.py photo_folder folder=FOLDER

Prints what conf/dataset/<name>.yaml holds under statistics, and of which images they are. Further words are options of
the data set, dataset.options there; those that are not given are as there.

Of images that are files of different sizes, the pixels are those of the evaluation: resized to the shorter side, and
cropped to the central square, so that all images count alike. Each file is decoded once, and a damaged one named. Of
NUS they are those of all images: each is a training image of some of the folds, whose networks are all normalised
alike. Its log RGB is over the pixels that hold light, and of sRGB there is none. Of photos they are those of the
training photos, resized and cropped to their common size; of a photo folder, those of all its photos.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from omegaconf import OmegaConf
from torch import Tensor
from tqdm import tqdm

from offset_equivariant.building.quasi_unsupervised import read_photos
from offset_equivariant.color import AbsoluteClipping, Clipping, RelativeClipping
from offset_equivariant.color.channel_statistics import ChannelStatistics, LinearStatistics, byte_histograms
from offset_equivariant.color.representation import Space
from offset_equivariant.config import TASKS, ConfigError, check_arguments
from offset_equivariant.data import NO_OPTIONS, ImageFiles, LabelledImages, data_directories, options_of
from offset_equivariant.data.illuminant_images import IlluminantImages
from offset_equivariant.data.inpainting_synthetic import drawn_facades
from offset_equivariant.data.locations import DataError
from offset_equivariant.data.nus import load_nus
from offset_equivariant.data.nus_synthetic import synthetic_scenes
from offset_equivariant.data.photo_folders import load_facades, load_paris_street_view
from offset_equivariant.data.photo_images import PhotoImages
from offset_equivariant.data.streaming import StreamedImages
from offset_equivariant.models.context_encoder import IMAGE_SIZE
from offset_equivariant.provenance import repository_root

#: By the name that they have among a data set's statistics.
REPRESENTATIONS: dict[str, tuple[Space, Clipping | None]] = {
    "srgb": ("srgb", None),
    "log_rgb_absolute": ("log_rgb", AbsoluteClipping()),
    "log_rgb_relative": ("log_rgb", RelativeClipping()),
}
#: Loaders of the data sets without classes, and their parameters that are no options.
LOADERS: dict[str, tuple[Callable[..., Any], Sequence[str]]] = {
    "nus": (load_nus, ("directories",)),
    "nus_synthetic": (synthetic_scenes, ()),
    "facades": (load_facades, ("split", "directories", "size", "progress")),
    "paris_street_view": (load_paris_street_view, ("split", "directories", "size", "progress")),
    "inpainting_synthetic": (drawn_facades, ("split", "size")),
    "photo_folder": (read_photos, ("progress",)),
}
BATCH = 250

Images = LabelledImages | ImageFiles | PhotoImages | IlluminantImages
Statistics = dict[str, tuple[Sequence[float], Sequence[float]]]


def main(words: Sequence[str] | None = None) -> None:
    """Print the statistics as YAML."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=sorted(TASKS))
    parser.add_argument("options", nargs="*", metavar="key=value", help="options of the data set")
    parser.add_argument("--workers", type=int, default=0, help="processes that decode files; 0: this one")
    arguments = parser.parse_intermixed_args(words)
    name: str = arguments.dataset
    configured = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(configuration(name))))
    try:
        images = load(name, configured, arguments.options)
        found = statistics_of(images, configured["statistics"], arguments.workers)
    except (ConfigError, DataError, FileNotFoundError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print(f"# {described(name, images)}")
    print("statistics:")
    for space, values in configured["statistics"].items():
        if space not in found:
            print_statistics(space, values["mean"], values["std"], "    # as it was: not computed of the pixels")
    for space, (mean, std) in found.items():
        print_statistics(space, mean, std)


def configuration(name: str) -> str:
    """Return where a data set's settings lie."""
    return str(repository_root() / "conf" / "dataset" / f"{name}.yaml")


def load(name: str, configured: Mapping[str, Any], words: Sequence[str]) -> Images:
    """Load the images, or find the files, with the configured options and those that the words give.

    Raises:
        ConfigError: for a word that is no option, or an option that is missing.
        ValueError: for an option that is out of range.
        DataError: when images are damaged or missing.
        FileNotFoundError: when the data set is not there.
    """
    if wrong := [word for word in words if "=" not in word]:
        raise ConfigError(f"{wrong[0]!r} is no option of the data set; give key=value")
    options = cast(dict[str, Any], configured["options"]) | cast(
        dict[str, Any], OmegaConf.to_container(OmegaConf.from_dotlist(list(words)))
    )
    if missing := [key for key, value in options.items() if value == "???"]:
        raise ConfigError(f"{name} needs the option {missing[0]}; give {missing[0]}=")
    loader, others = LOADERS[name] if name in LOADERS else (options_of(name), NO_OPTIONS)
    check_arguments(loader, options, "dataset.options", others)
    fixed = {
        "split": "train",
        "directories": data_directories(),
        "download": configured["download"],
        "size": IMAGE_SIZE,
    }
    taken = inspect.signature(loader).parameters
    images: Images = loader(**options, **{key: fixed[key] for key in others if key in fixed and key in taken})
    return images


def statistics_of(images: Images, configured: Mapping[str, Any], workers: int) -> Statistics:
    """Compute mean and standard deviation in the spaces that the configuration has; in all, where it has none."""
    if isinstance(images, IlluminantImages):
        linear = {"linear": LinearStatistics("linear"), "log_rgb": LinearStatistics("log_rgb")}
        for batch in images.images.split(BATCH):
            for collected in linear.values():
                collected.update(batch)
        return {space: collected.result() for space, collected in linear.items()}
    spaces = [space for space in REPRESENTATIONS if space in (configured or REPRESENTATIONS)]
    statistics = {space: ChannelStatistics(*REPRESENTATIONS[space]) for space in spaces}
    for batch in byte_batches(images, workers):
        histograms = byte_histograms(batch)
        for counted in statistics.values():
            counted.update(histograms)
    return {space: counted.result() for space, counted in statistics.items()}


def byte_batches(images: LabelledImages | PhotoImages | ImageFiles, workers: int) -> Iterable[Tensor]:
    """Give the images in batches, uint8 (N, 3, H, W)."""
    return streamed(images, workers) if isinstance(images, ImageFiles) else images.images.split(BATCH)


def streamed(files: ImageFiles, workers: int) -> Iterator[Tensor]:
    """Decode the images from their files."""
    batches = StreamedImages(files, batch_size=BATCH, workers=workers)
    for _, images, _ in tqdm(batches, f"read {files.name}", -(-len(files) // BATCH), unit="batch"):
        yield images


def described(name: str, images: Images) -> str:
    """Say which images these are."""
    split = TASKS[name] in ("recognition", "inpainting")
    text = f"Of {'the' if split else 'all'} {len(images):,} {'training images' if split else 'images'} of {name}"
    if not isinstance(images, ImageFiles):
        return f"{text}, {images.images.shape[3]} x {images.images.shape[2]} pixels."
    copy = f" ({images.note})" if images.note else ""
    return f"{text}{copy}: of each, resized to {images.shorter_side}, the central {images.size} x {images.size} pixels."


def print_statistics(space: str, mean: Sequence[float], std: Sequence[float], comment: str = "") -> None:
    """Print the statistics in one space."""
    print(f"  {space}:{comment}")
    print(f"    mean: [{', '.join(f'{value:.4f}' for value in mean)}]")
    print(f"    std: [{', '.join(f'{value:.4f}' for value in std)}]")


if __name__ == "__main__":
    main()
