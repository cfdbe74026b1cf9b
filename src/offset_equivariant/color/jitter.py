"""Colour jitter for whole batches: torchvision's `v2.ColorJitter` with independent factors for every image.

torchvision draws one set of factors per call, so a batch given to it shares them; calling it image by image is slow.
Each operation here equals `torchvision.transforms.v2.functional` on float images, image by image, and like there each
result is clamped to [0, 1].
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# ITU-R BT.601 luma with torchvision's rounding of the coefficients.
_LUMA = (0.2989, 0.587, 0.114)


class JitterDraws(NamedTuple):
    """The order of the four operations, and for each of them and each image a number in [0, 1), (4, N)."""

    order: tuple[int, ...]
    numbers: Tensor

    def of(self, part: slice) -> "JitterDraws":
        """What was drawn for some of the images."""
        return JitterDraws(self.order, self.numbers[:, part])


@dataclass(frozen=True)
class ColorJitter:
    """Random brightness, contrast, saturation and hue.

    For each image three factors are uniform in [max(0, 1 - strength), 1 + strength], and a hue shift is uniform in
    [-hue, hue]. The order of the four operations is drawn once per batch. A strength of 0 leaves its operation out; it
    changes none of the other draws.

    Attributes:
        brightness: Strength, finite and not negative.
        contrast: Strength, finite and not negative.
        saturation: Strength, finite and not negative.
        hue: Largest shift in turns, in [0, 0.5].
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        for name, largest in (("brightness", math.inf), ("contrast", math.inf), ("saturation", math.inf), ("hue", 0.5)):
            strength = getattr(self, name)
            if not (math.isfinite(strength) and 0 <= strength <= largest):
                limits = "in [0, 0.5]" if name == "hue" else "finite and not negative"
                raise ValueError(f"ColorJitter.{name} must be {limits}, but is {strength}.")

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Jitters a batch.

        Args:
            images: sRGB images of shape (N, 3, H, W), floating point in [0, 1].
            generator: Source of everything random; one on the CPU gives the same jitter on every device. A fresh one
                has always the same seed; without one, torch's global random numbers on the CPU are used.

        Returns:
            Jittered images, same shape and dtype, in [0, 1]; the input itself if every strength is 0.

        Raises:
            ValueError: If `images` is not a floating-point batch of RGB images.
        """
        return self.apply(images, self.draw(len(images), generator))

    def draw(self, count: int, generator: torch.Generator | None = None) -> JitterDraws:
        """Draws what `apply` needs for a batch of that many images."""
        device = torch.device("cpu") if generator is None else generator.device
        order = torch.randperm(4, generator=generator, device=device).tolist()
        return JitterDraws(tuple(order), torch.rand(4, count, generator=generator, device=device))

    def apply(self, images: Tensor, drawn: JitterDraws) -> Tensor:
        """Jitters a batch as was drawn for it, see `__call__`."""
        _require_rgb_batch(images)
        draws = drawn.numbers.to(images.dtype)
        ranges = [(max(0.0, 1 - s), 1 + s) for s in (self.brightness, self.contrast, self.saturation)]
        ranges.append((-self.hue, self.hue))
        operations = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
        for k in drawn.order:
            low, high = ranges[k]
            if low < high:
                # Rounding may carry a draw just past the end of its range.
                factors = (low + (high - low) * draws[k]).clamp(low, high)
                images = operations[k](images, factors)
        return images


def adjust_brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Multiplies each image by its factor.

    Args:
        images: Shape (N, 3, H, W), floating point in [0, 1].
        factors: Shape (N,), not negative; 0 is black, 1 leaves the image as it is.

    Returns:
        Images of the same shape, in [0, 1].

    Raises:
        ValueError: If a shape or dtype is wrong or a factor out of range.
    """
    return (images * _per_image(images, factors, 0, math.inf)).clamp_(0, 1)


def adjust_contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Moves each pixel away from (factor above 1) or towards the image's mean luma.

    Args, returns and errors as for `adjust_brightness`; a factor of 0 gives uniform grey.
    """
    factors = _per_image(images, factors, 0, math.inf)
    return torch.lerp(_luma(images).mean(dim=(2, 3), keepdim=True), images, factors).clamp_(0, 1)


def adjust_saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Moves each pixel away from (factor above 1) or towards its own luma.

    Args, returns and errors as for `adjust_brightness`; a factor of 0 gives a grey-level image.
    """
    factors = _per_image(images, factors, 0, math.inf)
    return torch.lerp(_luma(images), images, factors).clamp_(0, 1)


def adjust_hue(images: Tensor, factors: Tensor) -> Tensor:
    """Turns the hue of each pixel (in HSV) by its image's shift.

    Args, returns and errors as for `adjust_brightness`, except that the factors are shifts in turns, in [-0.5, 0.5].
    """
    shifts = _per_image(images, factors, -0.5, 0.5).squeeze(1)
    red, green, blue = images.unbind(1)
    maximum = torch.maximum(torch.maximum(red, green), blue)
    chroma = maximum - torch.minimum(torch.minimum(red, green), blue)
    # Grey has no hue; it gets 0, which does no harm, since its chroma of 0 multiplies what follows.
    divisor = chroma.clamp(min=torch.finfo(images.dtype).tiny)
    # The hue in turns if red, green or blue is the largest. The choice among them is a lerp with weights 0 or 1, which
    # is exact, and on a CPU many times faster than `where`; `round` likewise, than `remainder`.
    divisor *= 6
    if_red = (green - blue).div_(divisor)
    if_green = (blue - red).div_(divisor).add_(1 / 3)
    if_blue = (red - green).div_(divisor).add_(2 / 3)
    not_red, not_green = (maximum - red).sign_(), (maximum - green).sign_()
    hue = if_red.lerp_(if_green.lerp_(if_blue, not_green), not_red).add_(shifts)
    hue = hue.sub_(hue.round()).mul_(6)
    # From here on in sixths of a turn, in [-3, 3]. A channel is at the maximum up to 1 from its own hue, at the minimum
    # from 2 on, and linear between; the second absolute value folds distances beyond half a turn.
    own_hues = images.new_tensor([0, 2, -2])[:, None, None]
    drop = (hue[:, None] - own_hues).abs_().sub_(3).abs_().neg_().add_(2).clamp_(0, 1)
    return drop.mul_(chroma[:, None]).neg_().add_(maximum[:, None]).clamp_(0, 1)


def _luma(images: Tensor) -> Tensor:
    red, green, blue = images[:, 0:1], images[:, 1:2], images[:, 2:3]
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])


def _per_image(images: Tensor, factors: Tensor, low: float, high: float) -> Tensor:
    """Checks images and factors, and returns the factors with shape (N, 1, 1, 1)."""
    _require_rgb_batch(images)
    if factors.shape != (len(images),):
        raise ValueError(f"factors must have shape ({len(images)},), one per image, but is {tuple(factors.shape)}.")
    # Of factors on another device the check would wait for it; jitter draws its own within the range.
    if factors.device.type == "cpu" and not bool(((factors >= low) & (factors <= high)).all()):
        raise ValueError(f"factors must be in [{low}, {high}], but go from {factors.min()} to {factors.max()}.")
    return factors.to(images)[:, None, None, None]


def _require_rgb_batch(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(
            "images must be a floating-point tensor of shape (N, 3, H, W) in [0, 1], "
            f"but is {images.dtype} of shape {tuple(images.shape)}."
        )
