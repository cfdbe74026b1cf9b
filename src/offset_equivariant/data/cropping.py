"""What a network is shown of an image of any size: a random crop in training, the centre in evaluation.

Both work on uint8 tensors (3, H, W), with bilinear interpolation that is antialiased. Random crops are those of Szegedy
et al. 2015 (Section 6) as torchvision's `RandomResizedCrop` draws them, made of random numbers that are drawn for a
whole batch beforehand, so that a crop does not depend on which process takes it, or when.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

_ATTEMPTS = 10
_PER_ATTEMPT = 4

Box = tuple[int, int, int, int]
"""Top, left, height, width of a crop, in pixels."""


@dataclass(frozen=True)
class RandomCrops:
    """Crops of a random part of the image's area and a random aspect ratio, and left-right flips of half of them.

    Attributes:
        area: smallest and largest part of the image's area, in (0, 1], uniformly distributed.
        aspect_ratio: smallest and largest width over height, uniformly distributed in the logarithm.
        flip: whether to flip.

    Raises:
        ValueError: when a range is empty or out of bounds.
    """

    area: tuple[float, float] = (0.08, 1.0)
    aspect_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True

    def __post_init__(self) -> None:
        if len(self.area) != 2 or not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"area = {self.area} must be two parts of the image in (0, 1], the smaller one first")
        if len(self.aspect_ratio) != 2 or not 0 < self.aspect_ratio[0] <= self.aspect_ratio[1] < math.inf:
            raise ValueError(f"aspect_ratio = {self.aspect_ratio} must be two positive ratios, the smaller one first")

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw the random numbers of ``count`` crops: float64 (count, 41) in [0, 1)."""
        return torch.rand(count, _ATTEMPTS * _PER_ATTEMPT + 1, generator=generator, dtype=torch.float64)

    def box(self, height: int, width: int, drawn: Tensor) -> Box:
        """Return the crop that the numbers ``drawn``, (41,), mean for an image of that size.

        Area and ratio are taken again, up to ten times, where the crop would not fit; then it is the largest central
        one whose ratio is allowed.
        """
        lowest, highest = (math.log(ratio) for ratio in self.aspect_ratio)
        numbers = drawn[:-1].tolist()
        for first in range(0, len(numbers), _PER_ATTEMPT):
            for_area, for_ratio, for_top, for_left = numbers[first : first + _PER_ATTEMPT]
            area = height * width * (self.area[0] + for_area * (self.area[1] - self.area[0]))
            ratio = math.exp(lowest + for_ratio * (highest - lowest))
            box_height, box_width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < box_height <= height and 0 < box_width <= width:
                top, left = int(for_top * (height - box_height + 1)), int(for_left * (width - box_width + 1))
                return top, left, box_height, box_width
        return self._largest(height, width)

    def _largest(self, height: int, width: int) -> Box:
        smallest_ratio, largest_ratio = self.aspect_ratio
        box_width = max(1, min(width, round(height * largest_ratio)))
        box_height = max(1, min(height, round(width / smallest_ratio)))
        return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width

    def apply(self, image: Tensor, size: int, drawn: Tensor) -> Tensor:
        """Crop, resize to ``size`` and flip an image, uint8 (3, H, W), as the numbers ``drawn``, (41,), say."""
        box = self.box(image.shape[1], image.shape[2], drawn)
        cropped: Tensor = F.resized_crop(image, *box, [size, size], antialias=True)
        return cropped.flip(2) if self.flip and drawn[-1] < 0.5 else cropped


def central_crop(image: Tensor, shorter_side: int, size: int) -> Tensor:
    """Resize an image, uint8 (3, H, W), to its shorter side, and crop it to the central square (3, size, size)."""
    resized = F.resize(image, [shorter_side], antialias=True)
    cropped: Tensor = F.center_crop(resized, [size, size])
    return cropped
