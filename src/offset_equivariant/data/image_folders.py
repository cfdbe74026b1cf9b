"""Folders of images by class, ``<split>/<wnid>/*.JPEG``: the layout of ILSVRC-12, checked before it is used."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from offset_equivariant.data.decoding import decode_image_file
from offset_equivariant.data.image_files import ImageDataError, ImageFileError, ImageFiles
from offset_equivariant.data.labelled_images import Split, check_split

SPLIT_FOLDERS: Mapping[Split, str] = {"train": "train", "test": "val"}
"""The labelled images that are tested on are the validation images: the labels of the test images are not published."""
SUFFIXES = (".jpeg", ".jpg", ".png")
"""Ends of the names of images, in small or capital letters; what is in the files may be another format."""
SAMPLE = 100
"""Files of a split that are decoded before it is used."""

_WNID = re.compile("n[0-9]{8}")
_NAMED = 10  # damaged files in a message


@dataclass(frozen=True)
class Published:
    """What is known of a data set before it is read.

    Attributes:
        name: the data set's.
        classes: number of classes.
        images: number of images by split.
        wnids_sha256: SHA-256 of the wnids of all classes, sorted, with a line break between two.
    """

    name: str
    classes: int
    images: Mapping[Split, int]
    wnids_sha256: str


def wnids_sha256(wnids: Sequence[str]) -> str:
    """SHA-256 (hexadecimal) of WordNet identifiers with a line break between two."""
    return hashlib.sha256("\n".join(wnids).encode()).hexdigest()


def read_image_folder(
    root: Path,
    published: Published,
    split: Split,
    *,
    shorter_side: int,
    size: int,
    subset: bool = False,
    note: str = "",
    sample: int = SAMPLE,
    progress: bool = True,
) -> ImageFiles:
    """List the images of a split below ``root`` in the order of their names, and check them.

    Class k is the k-th wnid in sorted order, as everywhere else with ILSVRC-12. Hidden files and folders, folders that
    are not called like a wnid, and files that are not called like an image are left out.

    Args:
        root: holds ``train`` and ``val``.
        published: what there should be.
        split: ``"train"`` or ``"test"``, the folder ``val``.
        shorter_side: see `ImageFiles`.
        size: see `ImageFiles`.
        subset: whether some of the classes or images are enough. Labels are then counted over the classes there are.
        note: see `ImageFiles`.
        sample: files to decode, spread evenly over the classes; the number of images for all.
        progress: whether to show a progress bar.

    Raises:
        ImageDataError: when the split's folder, classes or images are missing, or images too many, the two splits'
            classes differ, or a file of the sample is damaged; names folders and files.
    """
    check_split(split)
    folder = root / SPLIT_FOLDERS[split]
    if not folder.is_dir():
        raise ImageDataError(
            f"the folder {folder} of {published.name} ({split}) is missing; if copying or unpacking was interrupted, "
            f"remove {root} and do it again"
        )
    wnids = _wnids_in(folder)
    _check_classes(root, wnids, published, subset)
    names: list[bytes] = []
    sizes: list[int] = []
    counts: list[int] = []
    for wnid in tqdm(wnids, f"list {published.name} {split}", unit="class", disable=None if progress else True):
        found = _images_in(folder / wnid)
        names += [os.fsencode(f"{wnid}/{name}") for name, _ in found]
        sizes += [length for _, length in found]
        counts.append(len(found))
    _check_counts(folder, wnids, counts, published.images[split], subset)
    files = ImageFiles(
        name=published.name,
        split=split,
        folder=folder,
        names=np.array(names, dtype=np.bytes_),
        sizes=np.array(sizes, dtype=np.int64),
        labels=torch.repeat_interleave(torch.arange(len(wnids)), torch.tensor(counts)),
        classes=wnids,
        wnids=wnids,
        shorter_side=shorter_side,
        size=size,
        note=note,
    )
    check_decoding(files, sample, progress=progress)
    return files


def check_decoding(files: ImageFiles, sample: int = SAMPLE, *, progress: bool = True) -> None:
    """Decode a sample of the files, spread evenly over all of them and the same every time.

    Raises:
        ImageDataError: when some cannot be decoded; names the first ten of them.
    """
    chosen = np.unique(np.linspace(0, len(files) - 1, min(sample, len(files))).round().astype(np.int64)).tolist()

    def problem(index: int) -> str | None:
        try:
            decode_image_file(files.path(index))
        except ImageFileError as error:
            return str(error)
        return None

    with ThreadPoolExecutor() as pool:
        bar = tqdm(
            pool.map(problem, chosen),
            f"decode {files.name} {files.split}",
            len(chosen),
            disable=None if progress else True,
            unit="image",
        )
        problems = [message for message in bar if message is not None]
    if problems:
        rest = f"\n  - and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
        raise ImageDataError(
            f"{len(problems)} of {len(chosen)} files of {files.name} ({files.split}) that were tried are damaged; "
            "get these again, and check the others:" + "".join(f"\n  - {m}" for m in problems[:_NAMED]) + rest
        )


def _wnids_in(folder: Path) -> tuple[str, ...]:
    with os.scandir(folder) as entries:
        found = tuple(sorted(entry.name for entry in entries if _WNID.fullmatch(entry.name) and entry.is_dir()))
    if not found:
        raise ImageDataError(
            f"{folder} holds no folders that are called like classes (n01440764, ...); sort its images into one folder "
            "a class, named by WordNet identifier"
        )
    return found


def _images_in(folder: Path) -> list[tuple[str, int]]:
    """Names and sizes in bytes of a folder's images, in the order of the names."""
    with os.scandir(folder) as entries:
        return sorted(
            (entry.name, entry.stat().st_size)
            for entry in entries
            if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith(".") and entry.is_file()
        )


def _check_classes(root: Path, wnids: tuple[str, ...], published: Published, subset: bool) -> None:
    folders = [root / folder for folder in SPLIT_FOLDERS.values()]
    if all(folder.is_dir() for folder in folders):
        train, val = (_wnids_in(folder) for folder in folders)
        if train != val:
            raise ImageDataError(
                f"{root}: the classes of train and val differ: only train has {_listed(set(train) - set(val))}, "
                f"only val has {_listed(set(val) - set(train))}; both must hold the same folders"
            )
    if subset and len(wnids) < published.classes:
        return
    if len(wnids) != published.classes:
        raise ImageDataError(
            f"{root} holds {len(wnids)} classes; {published.name} has {published.classes}."
            + ("" if len(wnids) > published.classes else " " + _COMPLETE)
        )
    if wnids_sha256(wnids) != published.wnids_sha256:
        raise ImageDataError(f"{root}: the folders are not called like the {len(wnids)} classes of {published.name}")


def _check_counts(folder: Path, wnids: tuple[str, ...], counts: list[int], expected: int, subset: bool) -> None:
    empty = {wnid for wnid, count in zip(wnids, counts, strict=True) if not count}
    if empty:
        raise ImageDataError(
            f"{folder}: there are no images ({', '.join(SUFFIXES)}) in the folders {_listed(empty)}. {_COMPLETE}"
        )
    found = sum(counts)
    if found > expected:
        raise ImageDataError(
            f"{folder} holds {found:,} images, more than the {expected:,} published; remove the others"
        )
    if found < expected and not subset:
        raise ImageDataError(f"{folder} holds {found:,} images, {expected:,} are published. {_COMPLETE}")


_COMPLETE = (
    "If copying or unpacking was interrupted, remove the folder and do it again; if a part of the data set is meant, "
    "say so with dataset.options.subset=true"
)


def _listed(wnids: set[str]) -> str:
    shown = sorted(wnids)[:5]
    more = f" and {len(wnids) - len(shown)} more" if len(wnids) > len(shown) else ""
    return (", ".join(shown) or "none") + more
