"""Imagenette (Howard 2019, https://github.com/fastai/imagenette): 9,469 + 3,925 images of ten classes of ILSVRC-12."""

from __future__ import annotations

import http.client
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from offset_equivariant.data.downloading import impatient_sockets
from offset_equivariant.data.image_files import ImageFiles
from offset_equivariant.data.image_folders import SAMPLE, SPLIT_FOLDERS, Published, read_image_folder
from offset_equivariant.data.labelled_images import Split, check_split
from offset_equivariant.data.locations import DATA_DIR_VARIABLE, DataNotFoundError
from offset_equivariant.data.photo_folders import check_photo_options
from offset_equivariant.storage import locked

logger = logging.getLogger(__name__)

Variant = Literal["128px", "160px", "320px", "full"]

IMAGENETTE = Published(
    name="imagenette",
    classes=10,
    images={"train": 9469, "test": 3925},
    wnids_sha256="7fd320a0db9278e1d61bad4b60fa16be117f8d8adcfe4d03fb5c95672bae6033",
)
CLASSES = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}
FOLDERS: dict[Variant, str] = {
    "128px": "imagenette128",
    "160px": "imagenette2-160",
    "320px": "imagenette2-320",
    "full": "imagenette2",
}
"""Folders of the published sizes, and of a copy that was reduced to 128 x 128 pixels, which is not published."""
DOWNLOADED: Variant = "160px"


def load_imagenette(
    split: Split,
    directories: Sequence[Path],
    *,
    variant: Variant | None = None,
    shorter_side: int = 128,
    size: int = 112,
    subset: bool = False,
    download: bool = True,
    sample: int = SAMPLE,
    progress: bool = True,
) -> ImageFiles:
    """Find Imagenette in a data directory or download it, and check it, see `read_image_folder`.

    Args:
        split: ``"train"`` or ``"test"``, which are the validation images.
        directories: folders to search for those of `FOLDERS`, in order; a download goes into the first.
        variant: size of the images as they are stored, in pixels; None for whichever is there, whole copies first, then
            the smallest, or else a download of 160 pixels. The variant found is the ``note`` of the images.
        shorter_side: of an image in evaluation, in pixels, before the central crop.
        size: height and width of the crops, in pixels.
        subset: whether some of the classes or images are enough.
        download: whether to download what is not there.
        sample: files to decode, to see whether they are whole.
        progress: whether to show progress bars.

    Raises:
        ValueError: when the split or the variant is unknown, a size is out of range, or no directory is given.
        DataNotFoundError: when it is not there and cannot be downloaded.
        ImageDataError: when it is incomplete or damaged.
    """
    check_split(split)
    check_photo_options(shorter_side, size)
    if variant is not None and variant not in FOLDERS:
        raise ValueError(f"variant is {variant!r}; valid variants are {', '.join(get_args(Variant))}, or None for any")
    if not directories:
        raise ValueError("directories is empty; name at least one folder to look for Imagenette in")
    wanted = tuple(FOLDERS) if variant is None else (variant,)
    candidates = [(v, directory / FOLDERS[v]) for v in wanted for directory in directories]
    # A whole copy before one of this split alone, so that both splits are of the same size. One of the other split
    # alone is refused when it is read: it was not copied to its end, and a download may be of another size.
    best = max(candidates, key=lambda candidate: _completeness(candidate[1], split))
    found = best if _completeness(best[1], split) else None
    if found is None:
        chosen = variant or DOWNLOADED
        found = chosen, directories[0] / FOLDERS[chosen]
        failure = _download(chosen, directories[0]) if download else "downloading is switched off"
        if failure:
            raise DataNotFoundError(_how_to_get_it(split, [root for _, root in candidates], failure))
    files = read_image_folder(
        found[1],
        IMAGENETTE,
        split,
        shorter_side=shorter_side,
        size=size,
        subset=subset,
        note=f"Imagenette, images of {found[0]}",
        sample=sample,
        progress=progress,
    )
    return replace(files, classes=tuple(CLASSES.get(wnid, wnid) for wnid in files.wnids))


def _completeness(root: Path, split: Split) -> int:
    """3 for a folder with both splits, 2 for this split alone, 1 for the other alone, 0 for none."""
    return sum((2 if s == split else 1) * (root / folder).is_dir() for s, folder in SPLIT_FOLDERS.items())


def _how_to_get_it(split: Split, roots: Sequence[Path], failure: str) -> str:
    return (
        f"Imagenette ({split}) is not there; looked for the folder {SPLIT_FOLDERS[split]}/ in "
        f"{', '.join(map(str, roots))}, and could not download it: {failure}.\n"
        f"Unpack one of the archives of https://github.com/fastai/imagenette into {roots[0].parent}, "
        f"or say with {DATA_DIR_VARIABLE} or paths.data= where it lies."
    )


def _download(variant: Variant, directory: Path) -> str | None:
    """Download a variant; its folder appears when it is complete. Return what failed, if something did."""
    if variant == "128px":
        return "the images of 128 pixels are not published; give variant=160px, 320px or full"
    try:
        with locked(directory / ".imagenette.lock"):
            if not (directory / FOLDERS[variant]).is_dir():  # another process was not faster
                logger.info("Downloading Imagenette (%s) into %s", variant, directory)
                _fetch(variant, directory)
    except (OSError, RuntimeError, EOFError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__
    return None


def _fetch(variant: Variant, directory: Path) -> None:
    from torchvision.datasets import Imagenette

    fetch: Any = Imagenette
    for left in directory.glob(".imagenette-*/"):  # by a process that was killed
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=".imagenette-", dir=directory) as staging:
        with impatient_sockets():
            fetch(staging, split="train", size=variant, download=True)
        os.replace(Path(staging) / FOLDERS[variant], directory / FOLDERS[variant])
