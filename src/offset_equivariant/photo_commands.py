"""What the command lines on photos share: their arguments, where their outputs go, and the way through the photos."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from offset_equivariant.color.srgb import linear_to_srgb, srgb_to_linear
from offset_equivariant.data.photos import SUFFIXES, Photo, PhotoError, read_photo, write_photo
from offset_equivariant.provenance import repository_root
from offset_equivariant.runs import released_weights_path

Encoding = Literal["srgb", "linear"]

#: From a photo, and the encoding of its pixels, to another photo and what to say of it.
Conversion = Callable[[Photo, Encoding], tuple[Photo, str]]


def decode_pixels(pixels: npt.NDArray[Any], encoding: Encoding) -> Tensor:
    """Return linear RGB in 0 to 1, ``(3, H, W)``, float32, of uint8 or uint16 pixels ``(H, W, 3)``."""
    top = np.iinfo(pixels.dtype).max
    levels = torch.arange(top + 1, dtype=torch.float32) / top
    table = (srgb_to_linear(levels) if encoding == "srgb" else levels).numpy()
    return torch.from_numpy(table[pixels]).permute(2, 0, 1)


def decode_alpha(alpha: npt.NDArray[Any]) -> Tensor:
    """Return opacity, 0 (invisible) to 1, ``(H, W)``, float32, of transparency as uint8 or uint16."""
    return torch.from_numpy(alpha.astype(np.float32) / np.iinfo(alpha.dtype).max)


def encode_pixels(linear: Tensor, encoding: Encoding, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return linear RGB ``(3, H, W)``, clipped to 0 to 1, as pixels ``(H, W, 3)`` of the type, uint8 or uint16."""
    top = float(np.iinfo(np.dtype(dtype)).max)
    linear = linear.clamp(0, 1)
    encoded = linear_to_srgb(linear) if encoding == "srgb" else linear
    pixels: npt.NDArray[Any] = (encoded * top).round().permute(1, 2, 0).numpy().astype(dtype)
    return pixels


def add_photo_arguments(parser: argparse.ArgumentParser, ending: str) -> None:
    """Add the photos, where they go, and how they are encoded; ``ending`` marks the names of the outputs."""
    parser.add_argument("photos", nargs="+", type=Path, metavar="PHOTO")
    parser.add_argument("-o", "--output", type=Path, help=f"a file, or a folder; default: PHOTO_{ending} beside PHOTO")
    parser.add_argument("--encoding", choices=["srgb", "linear"], help="default: 8 bits are sRGB, 16 bits are linear")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there already")


def default_weights(experiment: str) -> Path:
    """Return the released weights of an experiment.

    Raises:
        PhotoError: if they are not there; says how to train them.
    """
    weights = released_weights_path(repository_root() / "results", experiment, 0)
    if not weights.exists():
        raise PhotoError(
            f"there are no weights at {weights}; train them with `python -m offset_equivariant "
            f"experiment={experiment} seed=0`, and give runs/{experiment}/seed=0/weights.safetensors as --weights"
        )
    return weights


def output_paths(photos: Sequence[Path], output: Path | None, ending: str) -> list[Path]:
    """Return where the outputs go: beside each photo, into the folder ``output``, or one to the file ``output``.

    A folder is what is one already, or has no suffix.

    Raises:
        PhotoError: if two photos would go to one file, or a format is unknown.
    """
    if output is not None and not output.is_dir() and output.suffix:
        if output.suffix.lower() not in SUFFIXES:
            raise PhotoError(
                f"{output}: unknown format {output.suffix!r}; give a file that ends in {', '.join(SUFFIXES)}, or a "
                "folder, which must be there if it has a dot in its name"
            )
        if len(photos) > 1:
            raise PhotoError(f"{output} is one file, and there are several photos; give a folder")
        return [output]
    targets = []
    for photo in photos:
        target = photo.with_name(f"{photo.stem}_{ending}{photo.suffix}")
        targets.append(target if output is None else output / target.name)
        if photo.suffix.lower() not in SUFFIXES:
            raise PhotoError(f"{photo}: unknown format {photo.suffix!r}; give photos that end in {', '.join(SUFFIXES)}")
        if targets.count(targets[-1]) > 1:
            raise PhotoError(f"two of the photos would be written to {targets[-1]}; give them one by one")
    return targets


def convert_photos(arguments: argparse.Namespace, targets: Sequence[Path], convert: Conversion) -> int:
    """Convert the photos of :func:`add_photo_arguments` one after the other, and return how many failed.

    What became of each is printed; after one that failed, the others go on.
    """
    several = len(arguments.photos) > 1
    failed = 0
    for path, target in zip(tqdm(arguments.photos, disable=None if several else True), targets, strict=True):
        try:
            if target.exists() and not arguments.overwrite:
                raise PhotoError(f"{target} is there already; give --overwrite, or another -o")
            said = _convert_file(path, target, arguments.encoding, convert)
        except (PhotoError, OSError) as error:
            tqdm.write(str(error), file=sys.stderr)
            failed += 1
            continue
        tqdm.write(f"{path}: {said}, written to {target}", file=sys.stdout)
    return failed


def _convert_file(path: Path, target: Path, encoding: Encoding | None, convert: Conversion) -> str:
    """Convert one file; without an encoding, 8 bits are sRGB and 16 bits are linear."""
    photo = read_photo(path)
    try:
        converted, said = convert(photo, encoding or ("srgb" if photo.bits == 8 else "linear"))
    except PhotoError as error:
        raise PhotoError(f"{path}: {error}") from error
    write_photo(converted, target)
    return said
