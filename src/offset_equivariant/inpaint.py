"""Fill a rectangle of photos: ``python -m offset_equivariant.inpaint PHOTO --box X Y W H [-o OUT]``.

The network is Table 4's, row ``small_equivariant_relative`` on facades: its fill follows every change of the light
exactly.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.nn.functional import interpolate

from offset_equivariant.building.inpainting import load_filler
from offset_equivariant.data.photos import Photo, PhotoError
from offset_equivariant.models.context_encoder import CENTRE_SIZE, IMAGE_SIZE
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
from offset_equivariant.tasks.inpainting_evaluation import Filler

_EXPERIMENT = "table4_facades_small_equivariant_relative"
_ENDING = "inpainted"


@dataclass(frozen=True)
class Box:
    """A rectangle of pixels: its upper left corner and its size.

    Raises:
        PhotoError: if it is empty.
    """

    x: int
    y: int
    width: int
    height: int

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise PhotoError(f"the box {self} is empty; its width and height must be positive")

    def __str__(self) -> str:
        return f"{self.x} {self.y} {self.width} {self.height}"

    @property
    def rows(self) -> slice:
        return slice(self.y, self.y + self.height)

    @property
    def columns(self) -> slice:
        return slice(self.x, self.x + self.width)

    def check_inside(self, width: int, height: int) -> None:
        """Check that a photo of this size has the box, and something around it.

        Raises:
            PhotoError: if not.
        """
        if min(self.x, self.y) < 0 or self.x + self.width > width or self.y + self.height > height:
            raise PhotoError(f"the box {self} (x y width height) is not inside the photo of {width}x{height} pixels")
        if (self.width, self.height) == (width, height):
            raise PhotoError(f"the box {self} is the whole photo; leave something around it to fill it from")


def context_of(linear: Tensor, box: Box, alpha: Tensor | None = None) -> Tensor:
    """Return what the network is shown of a linear image ``(3, H, W)``: ``(3, 128, 128)``, the box its centre.

    It is the box with half of its width to the left and to the right, and half of its height above and below, each axis
    reduced or enlarged on its own. A long box is shown distorted that way; in a square around it most of the
    hole would be pixels that are known, and those along its long sides, which the fill has to meet, would be hidden.

    A pixel of the result is the mean of the image's around its place, weighted by a triangle (bilinear interpolation,
    antialiased), of those outside the box alone, and by their opacity ``alpha``, ``(H, W)``, 0 to 1, if there is one.
    Beyond the image's borders, and where it is invisible, it is the nearest pixel that has such a mean: at most borders
    a replication, but never of the box.

    Raises:
        PhotoError: if nothing outside the box is visible.
    """
    visible = linear.new_ones(linear.shape[1:]) if alpha is None else alpha.clone()
    visible[box.rows, box.columns] = 0
    rows = _triangles(box.y, box.height, linear.shape[1]).to(linear)
    columns = _triangles(box.x, box.width, linear.shape[2]).to(linear).T
    weight = rows @ visible @ columns
    if not bool((weight > 0).any()):
        raise PhotoError(
            "all around the box, as far as half its size, is transparent; make visible what to fill it from"
        )
    mean = rows @ (linear * visible) @ columns / weight
    places = distance_transform_edt(
        (weight == 0).numpy(), sampling=(box.height, box.width), return_distances=False, return_indices=True
    )
    row, column = torch.from_numpy(places).long()
    return mean[:, row, column]


def _triangles(start: int, length: int, pixels: int) -> Tensor:
    """Weights ``(128, pixels)`` of an image's pixels along one axis, for a hole of some length that begins at one."""
    step = length / CENTRE_SIZE
    centres = start + step * (torch.arange(IMAGE_SIZE, dtype=torch.float64) + 0.5 - (IMAGE_SIZE - CENTRE_SIZE) // 2)
    distances = (centres[:, None] - torch.arange(pixels, dtype=torch.float64) - 0.5).abs()
    return (1 - distances / max(step, 1.0)).clamp(min=0)


def _shown(start: int, length: int) -> slice:
    """All pixels along one axis that a hole's context depends on, and one or two more."""
    margin = length // 2 + length // CENTRE_SIZE + 2
    return slice(max(0, start - margin), start + length + margin)


def fill_box(linear: Tensor, box: Box, filler: Filler, alpha: Tensor | None = None) -> Tensor:
    """Return what belongs into a box of a linear image ``(3, H, W)``, linear RGB from 0 on, ``(3, height, width)``.

    What the image holds there is not looked at, nor what is invisible by its opacity ``alpha``, ``(H, W)``. Times a
    light's colour, the image's fill is the fill times that colour, if the filler is equivariant.

    Raises:
        PhotoError: if nothing around the box is visible, or the filler's answer is not finite.
    """
    with torch.no_grad():
        fill = filler(context_of(linear, box, alpha)[None])
    if not bool(fill.isfinite().all()):
        raise PhotoError("the network's fill is not finite; use the weights of a training that has not diverged")
    return interpolate(fill, (box.height, box.width), mode="bicubic", antialias=True)[0].clamp(min=0)


def fill_photo(photo: Photo, box: Box, filler: Filler, encoding: Encoding) -> Photo:
    """Return the photo with its box filled; all other pixels, and all transparency, keep their bits.

    Args:
        photo: of any size.
        box: in pixels of the upright photo.
        filler: see ``Filler``.
        encoding: of the photo's pixels; it is kept.

    Raises:
        PhotoError: if the box is not inside the photo, or is all of it, if nothing around it is visible, or the
            filler's answer is not finite.
    """
    filled = replace(photo, pixels=photo.pixels.copy())
    upright, transparency = filled.upright, filled.upright_alpha
    height, width = upright.shape[:2]
    box.check_inside(width, height)
    # Only what the network is shown is decoded.
    rows, columns = _shown(box.y, box.height), _shown(box.x, box.width)
    linear = decode_pixels(upright[rows, columns], encoding)
    alpha = None if transparency is None else decode_alpha(transparency[rows, columns])
    fill = fill_box(linear, replace(box, x=box.x - columns.start, y=box.y - rows.start), filler, alpha)
    upright[box.rows, box.columns] = encode_pixels(fill, encoding, upright.dtype)
    return filled


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m offset_equivariant.inpaint",
        description="Fill a rectangle of photos (JPEG, WebP, PNG, TIFF; 8 or 16 bits) from what is around it.",
    )
    add_photo_arguments(parser, _ENDING)
    parser.add_argument(
        "--box",
        nargs=4,
        type=int,
        required=True,
        metavar=("X", "Y", "W", "H"),
        help="upper left corner, width and height, in pixels of the photo as it is seen; the same in all photos",
    )
    parser.add_argument("--weights", type=Path, help="weights of another training of context_encoder")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if every photo was filled, 1 if some were not, 2 if nothing could begin."""
    arguments = parse_arguments(words)
    try:
        box = Box(*arguments.box)
        targets = output_paths(arguments.photos, arguments.output, _ENDING)
        filler = load_filler(arguments.weights or default_weights(_EXPERIMENT))
    except (PhotoError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2

    def convert(photo: Photo, encoding: Encoding) -> tuple[Photo, str]:
        return fill_photo(photo, box, filler, encoding), f"box {box} filled"

    return int(convert_photos(arguments, targets, convert) > 0)


if __name__ == "__main__":
    sys.exit(main())
