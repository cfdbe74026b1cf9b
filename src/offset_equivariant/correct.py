"""White-balance photos: ``python -m offset_equivariant.correct PHOTO [-o OUT]``.

The light's colour is estimated by the released networks of Table 3, row ``equivariant_filled``, whose answer follows
every change of the light, and of the camera's gains, exactly; then it is divided out (von Kries).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from offset_equivariant.building.illuminant_estimation import load_estimators
from offset_equivariant.color import balance, linear_to_srgb, srgb_to_linear
from offset_equivariant.data.photos import SUFFIXES, Photo, PhotoError, read_photo, write_photo
from offset_equivariant.provenance import repository_root
from offset_equivariant.runs import released_weights_path

Encoding = Literal["srgb", "linear"]
Estimator = Callable[[Tensor], Tensor]


def estimate_illuminant(linear: Tensor, estimators: Sequence[Estimator], size: int = 64) -> Tensor:
    """Return the colour of the light in a linear image ``(3, H, W)``, ``(3,)``, of unit norm.

    The image is reduced to ``size`` x ``size`` pixels by averaging areas; the estimators' geometric mean counts.
    """
    small = torch.nn.functional.adaptive_avg_pool2d(linear[None], size)
    small = small / small.amax().clamp(min=torch.finfo(small.dtype).tiny)
    with torch.no_grad():
        logs = torch.stack([estimator(small)[0].log() for estimator in estimators])
    return torch.nn.functional.normalize(logs.mean(0).exp(), dim=0)


def correct_photo(
    photo: Photo, estimators: Sequence[Estimator], encoding: Encoding, size: int = 64
) -> tuple[Photo, Tensor]:
    """Return the photo as if its light were white, and the estimate, ``(3,)``.

    The three channels are divided by the estimate, relative to its geometric mean (:func:`offset_equivariant.color.
    balance`); what exceeds the range is clipped. A channel that is black everywhere tells nothing and stays black.

    Args:
        photo: of any size.
        estimators: linear images ``(N, 3, size, size)`` to illuminants ``(N, 3)``.
        encoding: of the photo's pixels; it is kept.
        size: of the images that the estimators take.

    Raises:
        PhotoError: if the photo is black, or the estimate is no light.
    """
    top = float(np.iinfo(photo.pixels.dtype).max)
    values = torch.from_numpy(photo.pixels.astype(np.float32) / top).permute(2, 0, 1)
    linear = srgb_to_linear(values) if encoding == "srgb" else values
    lit = (linear > 0).flatten(1).any(1)
    if not bool(lit.any()):
        raise PhotoError("the photo is black: there is no light to estimate")
    estimate = estimate_illuminant(linear, estimators, size)
    if not bool((estimate.isfinite() & (estimate > 0)).all()):
        raise PhotoError(f"the estimate {estimate.tolist()} is no light; use the weights of an equivariant network")
    estimate = torch.where(lit, estimate, 0)
    balanced = balance(linear[None], estimate[None])[0]
    encoded = linear_to_srgb(balanced) if encoding == "srgb" else balanced
    pixels: npt.NDArray[Any] = (encoded * top).round().permute(1, 2, 0).numpy().astype(photo.pixels.dtype)
    return replace(photo, pixels=pixels), estimate


def output_paths(photos: Sequence[Path], output: Path | None) -> list[Path]:
    """Return where the corrected photos go: beside each, into the folder ``output``, or one to the file ``output``.

    What does not end like a photo's name is a folder.

    Raises:
        PhotoError: if two photos would go to one file, or a format is unknown.
    """
    if output is not None and not output.is_dir() and output.suffix.lower() in SUFFIXES:
        if len(photos) > 1:
            raise PhotoError(f"{output} is one file, and there are several photos; give a folder")
        return [output]
    targets = []
    for photo in photos:
        target = photo.with_name(f"{photo.stem}_corrected{photo.suffix}")
        targets.append(target if output is None else output / target.name)
        if photo.suffix.lower() not in SUFFIXES:
            raise PhotoError(f"{photo}: unknown format {photo.suffix!r}; give photos that end in {', '.join(SUFFIXES)}")
        if targets.count(targets[-1]) > 1:
            raise PhotoError(f"two of the photos would be written to {targets[-1]}; correct them one by one")
    return targets


def correct_file(
    path: Path, target: Path, estimators: Sequence[Estimator], encoding: Encoding | None, size: int = 64
) -> Tensor:
    """Correct one file, and return the estimate; without an encoding, 8 bits are sRGB and 16 bits are linear.

    Raises:
        PhotoError: names the file, and says what is wrong with it.
    """
    photo = read_photo(path)
    try:
        meant: Encoding = encoding or ("srgb" if photo.bits == 8 else "linear")
        corrected, estimate = correct_photo(photo, estimators, meant, size)
    except PhotoError as error:
        raise PhotoError(f"{path}: {error}") from error
    target.parent.mkdir(parents=True, exist_ok=True)
    write_photo(corrected, target)
    return estimate


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m offset_equivariant.correct",
        description="White-balance photos (JPEG, WebP, PNG, TIFF; 8 or 16 bits; a raw photo as its linear export).",
    )
    parser.add_argument("photos", nargs="+", type=Path, metavar="PHOTO")
    parser.add_argument("-o", "--output", type=Path, help="a file, or a folder; default: PHOTO_corrected beside PHOTO")
    parser.add_argument("--encoding", choices=["srgb", "linear"], help="default: 8 bits are sRGB, 16 bits are linear")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there already")
    parser.add_argument("--weights", type=Path, help="weights of another training of cerberus")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if every photo was corrected, 1 if some were not, 2 if nothing could begin."""
    arguments = parse_arguments(words)
    weights = arguments.weights or released_weights_path(repository_root() / "results", "table3_equivariant_filled", 0)
    several = len(arguments.photos) > 1
    try:
        estimators, size = load_estimators(weights)
        targets = output_paths(arguments.photos, arguments.output)
    except (PhotoError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    failed = False
    for photo, target in zip(tqdm(arguments.photos, disable=None if several else True), targets, strict=True):
        try:
            if target.exists() and not arguments.overwrite:
                raise PhotoError(f"{target} is there already; give --overwrite, or another -o")
            estimate = correct_file(photo, target, estimators, arguments.encoding, size)
        except (PhotoError, OSError) as error:
            tqdm.write(str(error), file=sys.stderr)
            failed = True
            continue
        shown = ", ".join(f"{value:.3f}" for value in estimate.tolist())
        tqdm.write(f"{photo}: illuminant ({shown}), written to {target}", file=sys.stdout)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
