"""Made-up images as JPEG files in folders by class: for trying what reads ILSVRC-12, never for results."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import get_args

from PIL import Image

from offset_equivariant.data.image_files import ImageFiles
from offset_equivariant.data.image_folders import SPLIT_FOLDERS, Published, read_image_folder, wnids_sha256
from offset_equivariant.data.labelled_images import Split
from offset_equivariant.data.photo_folders import check_photo_options
from offset_equivariant.data.synthetic import synthetic_images

CLASSES = 10
_WNIDS = tuple(f"n{number:08}" for number in range(CLASSES))
_LARGEST = 80  # pixels


def load_imagenet_synthetic(
    split: Split,
    directories: Sequence[Path],
    *,
    n_train: int = 128,
    n_test: int = 64,
    shorter_side: int = 72,
    size: int = 64,
    subset: bool = False,
    progress: bool = True,
) -> ImageFiles:
    """Draw the gratings of `synthetic_images` into a temporary folder, and find them there.

    They have from 64 to 80 pixels a side. The folder is there until this process ends.

    Args:
        split: ``"train"`` or ``"test"``.
        directories: not used: nothing is kept.
        n_train: number of images of the training split.
        n_test: number of images of the test split.
        shorter_side: of an image in evaluation, in pixels, before the central crop.
        size: height and width of the crops, in pixels.
        subset: of no effect, here for its name: what is drawn is complete.
        progress: whether to show a progress bar.

    Raises:
        ValueError: when an argument is out of range.
    """
    check_photo_options(shorter_side, size)
    for name, count in (("n_train", n_train), ("n_test", n_test)):
        if count < CLASSES:
            raise ValueError(f"{name} must be at least {CLASSES}, one image a class, got {count}")
    published = Published(
        name="imagenet_synthetic",
        classes=CLASSES,
        images={"train": n_train, "test": n_test},
        wnids_sha256=wnids_sha256(_WNIDS),
    )
    root = Path(_drawn(n_train, n_test).name)
    files = read_image_folder(root, published, split, shorter_side=shorter_side, size=size, progress=progress)
    return replace(files, synthetic=True)


@cache
def _drawn(n_train: int, n_test: int) -> tempfile.TemporaryDirectory[str]:
    """Draw both splits; the folder is removed with the returned object, when the process ends."""
    folder = tempfile.TemporaryDirectory(prefix="imagenet-synthetic-")
    for split in get_args(Split):
        images = synthetic_images(split, n_train, n_test, CLASSES, _LARGEST)
        for number, (pixels, label) in enumerate(zip(images.images, images.labels.tolist(), strict=True)):
            path = Path(folder.name) / SPLIT_FOLDERS[split] / _WNIDS[label] / f"{number:05}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            cut = pixels[:, number % 17 :, (5 * number) % 17 :]
            Image.fromarray(cut.permute(1, 2, 0).numpy()).save(path, "JPEG", quality=95)
    return folder
