"""Data sets that are folders of photos: CMP facades, Paris Street View of the Context Encoder, and any folder.

All photos are held in memory, as bytes after resizing: 3 * size^2 of them a square, so that 10,000 photos of 256 x 256
pixels take 2 GB, and as much again while they are read.
"""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from tqdm import tqdm

from offset_equivariant.data.labelled_images import Split, check_split, pixels_sha256
from offset_equivariant.data.locations import DATA_DIR_VARIABLE, DataNotFoundError
from offset_equivariant.data.photo_images import PhotoDataError, PhotoImages

log = logging.getLogger(__name__)

#: Longest side of a photo that is taken for one, in units of its shortest.
_LONGEST = 20
SUFFIXES = (".jpg", ".jpeg", ".png")
"""Ends of the names of photos, in small or capital letters."""


@dataclass(frozen=True)
class PhotoFolders:
    """Where the photos of a data set lie.

    Attributes:
        name: the data set, and its folder inside a data directory.
        folders: split -> folder inside that one.
        advice: where the photos are to be had, for the message when they are not there.
    """

    name: str
    folders: Mapping[Split, str]
    advice: str


FACADES = PhotoFolders(
    "facades",
    {"train": "train", "test": "test"},
    "Get the photos of the CMP Facade Database (Tyleček and Šára 2013, https://cmp.felk.cvut.cz/~tylecr1/facade/) "
    "without the label maps",
)
PARIS_STREET_VIEW = PhotoFolders(
    "paris_street_view",
    {"train": "paris_train_original", "test": "paris_eval_gt"},
    "Ask the authors of the Context Encoder (Pathak et al. 2016) for it: it is given out on request only",
)


def load_facades(
    split: Split, directories: Sequence[Path], *, shorter_side: int = 144, size: int = 128, progress: bool = True
) -> PhotoImages:
    """Load CMP facades, ``facades/train`` or ``facades/test`` in a data directory.

    Args:
        split: ``"train"`` or ``"test"``.
        directories: where data sets lie, in order.
        shorter_side: of the training photos, in pixels; see `read_folder`.
        size: height and width of the test photos, in pixels, and of the crops that training takes.
        progress: whether to show a progress bar.

    Raises:
        ValueError: when the split is unknown or a size is out of range.
        DataNotFoundError: when no directory holds photos of that split; says where they are to be had.
        PhotoDataError: when a photo cannot be read.
    """
    return _load(FACADES, split, directories, shorter_side, size, progress)


def load_paris_street_view(
    split: Split, directories: Sequence[Path], *, shorter_side: int = 350, size: int = 128, progress: bool = True
) -> PhotoImages:
    """Load Paris Street View, ``paris_street_view/paris_train_original`` or ``paris_eval_gt`` in a data directory.

    Arguments and errors are those of `load_facades`.
    """
    return _load(PARIS_STREET_VIEW, split, directories, shorter_side, size, progress)


def check_photo_options(shorter_side: int, size: int) -> None:
    """Check the sizes that the loaders take.

    Raises:
        ValueError: when ``size`` is not positive, or no square of it fits a photo of ``shorter_side``.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    if shorter_side < size:
        raise ValueError(f"shorter_side must be at least size, which is {size}, got {shorter_side}")


def _load(
    source: PhotoFolders, split: Split, directories: Sequence[Path], shorter_side: int, size: int, progress: bool
) -> PhotoImages:
    check_split(split)
    check_photo_options(shorter_side, size)
    folders = [directory / source.name / source.folders[split] for directory in directories]
    folder = next((folder for folder in folders if _photos_in(folder)), None)
    if folder is None:
        raise DataNotFoundError(
            f"{source.name} ({split}) is not there; looked for photos ({', '.join(SUFFIXES)}) in "
            f"{', '.join(map(str, folders))}.\n{source.advice}, and put the photos into such a folder,\n"
            f"or say with {DATA_DIR_VARIABLE} or paths.data= where {source.name}/{source.folders[split]} lies."
        )
    square = split == "test"
    return read_folder(folder, source.name, split, size if square else shorter_side, square, progress)


def read_folder(
    folder: Path,
    name: str,
    split: Split,
    shorter_side: int,
    square: bool,
    progress: bool = True,
    *,
    subfolders: bool = False,
) -> PhotoImages:
    """Read all photos of a folder into memory, in the order of their names, without hidden files.

    Photos are turned upright by their EXIF orientation, converted to RGB of 8 bits, resized by Pillow's bicubic
    interpolation, which is antialiased, and cropped centrally, so that they fit one tensor. Transparency and embedded
    colour profiles are ignored.

    Args:
        folder: where the photos lie.
        name: the data set's.
        split: the split that the photos are.
        shorter_side: of height and width, in pixels, after resizing.
        square: whether to crop to the central square; otherwise the crop has the smallest height and the smallest
            width of all resized photos.
        progress: whether to show a progress bar, on a terminal.
        subfolders: whether to read those of its folders too, at any depth, such as one a class. Hidden folders, and
            links to folders, are passed over. Names are then relative to ``folder``.

    Raises:
        PhotoDataError: when there is no photo, or one cannot be read.
    """
    paths = _photos_in(folder, subfolders)
    if not paths:
        raise PhotoDataError(f"{folder} holds no photos; their names must end in {', '.join(SUFFIXES)}")
    with ThreadPoolExecutor() as pool:
        read = pool.map(partial(_read_photo, shorter_side=shorter_side), paths)
        photos = list(tqdm(read, f"read {name} {split}", len(paths), unit="photo", disable=None if progress else True))
    height = shorter_side if square else min(photo.shape[0] for photo in photos)
    width = shorter_side if square else min(photo.shape[1] for photo in photos)
    images = torch.empty(len(photos), 3, height, width, dtype=torch.uint8)
    while photos:  # each is let go once it is copied: whole data sets may not fit into memory twice
        photo = _central(photos.pop(), height, width)
        images[len(photos)] = torch.from_numpy(photo).permute(2, 0, 1)
    return PhotoImages(
        name=name,
        split=split,
        images=images,
        names=tuple(path.relative_to(folder).as_posix() for path in paths),
        sha256=pixels_sha256(images),
        synthetic=False,
    )


def _photos_in(folder: Path, subfolders: bool = False) -> list[Path]:
    if not folder.is_dir():
        return []
    named = (path for path in folder.glob("**/*" if subfolders else "*") if path.suffix.lower() in SUFFIXES)
    visible = (path for path in named if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    return sorted(path for path in visible if path.is_file())


def _read_photo(path: Path, shorter_side: int) -> npt.NDArray[np.uint8]:
    """Pixels of a resized photo, uint8 (H, W, 3)."""
    try:
        with Image.open(path) as stored:
            if stored.mode.startswith(("I", "F")):
                raise PhotoDataError(f"its mode is {stored.mode}; convert it to 8 bits a channel")
            upright = _rgb(ImageOps.exif_transpose(stored))
            if max(upright.size) > _LONGEST * min(upright.size):
                raise PhotoDataError(f"its {upright.size[0]}x{upright.size[1]} pixels are no photo's; take it away")
            if min(upright.size) < shorter_side:
                log.warning("%s has %dx%d pixels and is enlarged to %d", path, *upright.size, shorter_side)
            factor = shorter_side / min(upright.size)
            width, height = (round(length * factor) for length in upright.size)
            return np.array(upright.resize((width, height), Image.Resampling.BICUBIC))
    except Exception as error:  # a damaged file fails in many ways, all of which mean the same
        raise PhotoDataError(f"{path} cannot be read as a photo: {error}") from error


def _rgb(image: Image.Image) -> Image.Image:
    # Pillow warns where it drops a palette's transparency in one step.
    return (image.convert("RGBA") if image.has_transparency_data else image).convert("RGB")


def _central(photo: npt.NDArray[Any], height: int, width: int) -> npt.NDArray[Any]:
    top, left = (photo.shape[0] - height) // 2, (photo.shape[1] - width) // 2
    return photo[top : top + height, left : left + width]
