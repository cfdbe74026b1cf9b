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

import torch
from torch import Tensor

from offset_equivariant.building.illuminant_estimation import load_estimators
from offset_equivariant.color import balance
from offset_equivariant.data.photos import Photo, PhotoError
from offset_equivariant.photo_commands import (
    Encoding,
    add_photo_arguments,
    convert_photos,
    decode_alpha,
    decode_pixels,
    default_weights,
    encode_pixels,
    output_paths,
)

Estimator = Callable[[Tensor], Tensor]
_EXPERIMENT = "table3_equivariant_filled"
_ENDING = "corrected"


def estimate_illuminant(
    linear: Tensor, estimators: Sequence[Estimator], size: int = 64, alpha: Tensor | None = None
) -> Tensor:
    """Return the colour of the light in a linear image ``(3, H, W)``, ``(3,)``, of unit norm.

    The image is reduced to ``size`` x ``size`` pixels by averaging areas; the estimators' geometric mean counts.

    Args:
        linear: the image.
        estimators: linear images ``(N, 3, size, size)`` to illuminants ``(N, 3)``.
        size: of the images that the estimators take.
        alpha: opacity ``(H, W)``, 0 to 1, somewhere positive, or None where all is visible. Pixels weigh as much in the
            averages, and areas without a visible pixel are black, as the parts without a measurement are in the images
            that the networks have learned from. Invisible margins are cut off.
    """
    if alpha is not None:
        rows, columns = _extent(alpha.amax(1)), _extent(alpha.amax(0))
        linear, alpha = linear[:, rows, columns], alpha[rows, columns]
        linear = linear * alpha
    small = torch.nn.functional.adaptive_avg_pool2d(linear[None], size)
    if alpha is not None:
        share = torch.nn.functional.adaptive_avg_pool2d(alpha[None, None], size)
        small = torch.where(share > 0, small / share, 0)
    small = small / small.amax().clamp(min=torch.finfo(small.dtype).tiny)
    with torch.no_grad():
        logs = torch.stack([estimator(small)[0].log() for estimator in estimators])
    return torch.nn.functional.normalize(logs.mean(0).exp(), dim=0)


def _extent(visible: Tensor) -> slice:
    """From the first to the last positive of some values ``(N,)``."""
    places = visible.nonzero().flatten()
    return slice(int(places[0]), int(places[-1]) + 1)


def correct_photo(
    photo: Photo, estimators: Sequence[Estimator], encoding: Encoding, size: int = 64
) -> tuple[Photo, Tensor]:
    """Return the photo as if its light were white, and the estimate, ``(3,)``.

    The three channels are divided by the estimate, relative to its geometric mean (:func:`offset_equivariant.color.
    balance`); what exceeds the range is clipped. Invisible pixels have no influence. A channel that is black in all
    others tells nothing and stays as it is.

    Args:
        photo: of any size.
        estimators: linear images ``(N, 3, size, size)`` to illuminants ``(N, 3)``.
        encoding: of the photo's pixels; it is kept.
        size: of the images that the estimators take.

    Raises:
        PhotoError: if the photo is black or invisible, or the estimate is no light.
    """
    linear = decode_pixels(photo.pixels, encoding)
    alpha = None if photo.alpha is None else decode_alpha(photo.alpha)
    if alpha is not None and not bool(alpha.any()):
        raise PhotoError("all of the photo is transparent: there is no light to estimate; make something of it visible")
    lit = (linear > 0 if alpha is None else (linear > 0) & (alpha > 0)).flatten(1).any(1)
    if not bool(lit.any()):
        raise PhotoError("the photo is black: there is no light to estimate")
    estimate = estimate_illuminant(linear, estimators, size, alpha)
    if not bool((estimate.isfinite() & (estimate > 0)).all()):
        raise PhotoError(f"the estimate {estimate.tolist()} is no light; use the weights of an equivariant network")
    estimate = torch.where(lit, estimate, 0)
    balanced = balance(linear[None], estimate[None])[0]
    return replace(photo, pixels=encode_pixels(balanced, encoding, photo.pixels.dtype)), estimate


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m offset_equivariant.correct",
        description="White-balance photos (JPEG, WebP, PNG, TIFF; 8 or 16 bits; a raw photo as its linear export).",
    )
    add_photo_arguments(parser, _ENDING)
    parser.add_argument("--weights", type=Path, help="weights of another training of cerberus")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if every photo was corrected, 1 if some were not, 2 if nothing could begin."""
    arguments = parse_arguments(words)
    try:
        estimators, size = load_estimators(arguments.weights or default_weights(_EXPERIMENT))
        targets = output_paths(arguments.photos, arguments.output, _ENDING)
    except (PhotoError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2

    def convert(photo: Photo, encoding: Encoding) -> tuple[Photo, str]:
        corrected, estimate = correct_photo(photo, estimators, encoding, size)
        return corrected, f"illuminant ({', '.join(f'{value:.3f}' for value in estimate.tolist())})"

    return int(convert_photos(arguments, targets, convert) > 0)


if __name__ == "__main__":
    sys.exit(main())
