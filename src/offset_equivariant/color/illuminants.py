"""Random illuminants and their application to images: the distortion of Section 4.1.1."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from offset_equivariant.color.srgb import linear_to_srgb, require_floating_point, srgb_to_linear


def hsv_to_rgb(hue: Tensor, saturation: Tensor | float, value: Tensor | float) -> Tensor:
    """Converts HSV to RGB.

    Args:
        hue: In turns: 0 is red, 1/3 green, 2/3 blue. Periodic, nominally in [0, 1).
        saturation: In [0, 1].
        value: The largest of the three components, not negative. All three arguments broadcast.

    Returns:
        RGB of the broadcast shape with a last dimension of size 3 added, in the dtype of `hue`. Where the saturation is
        0 all components are exactly `value`; where it is 1 the smallest is exactly 0.

    Raises:
        TypeError: If `hue` is not floating point.
        ValueError: If a saturation is outside [0, 1].
    """
    require_floating_point("hue", hue)
    saturation, value = (torch.as_tensor(part, dtype=hue.dtype, device=hue.device) for part in (saturation, value))
    if not bool(((saturation >= 0) & (saturation <= 1)).all()):
        raise ValueError(f"saturation must be in [0, 1], but goes from {saturation.min()} to {saturation.max()}.")
    # Component n is at its maximum up to 1/6 of a turn away from its own hue, at its minimum beyond 1/3, and linear
    # between; the offsets 5, 3, 1 place red, green and blue a third of a turn apart.
    offsets = torch.tensor([5, 3, 1], device=hue.device)
    position = (6 * hue.unsqueeze(-1) + offsets).remainder(6)
    drop = torch.minimum(position, 4 - position).clamp(0, 1)
    return value.unsqueeze(-1) * (1 - saturation.unsqueeze(-1) * drop)


def random_hues(seed: int, indices: Iterable[int] | Tensor) -> Tensor:
    """Uniform random hues, one per image.

    The hue of image i is the first draw of a generator seeded with (seed, i) alone. It is therefore the same for every
    model, batch size, order, number of workers and saturation, and on every machine: all curves over the saturation
    are paired comparisons. One generator for the whole data set would tie the hues to the order of evaluation.

    Args:
        seed: Not negative.
        indices: Indices of the images in their data set, not negative.

    Returns:
        float64 tensor of shape (N,), in [0, 1), on the CPU.

    Raises:
        ValueError: If the seed or an index is negative.
    """
    images = [int(index) for index in indices]
    if seed < 0:
        raise ValueError(f"seed must not be negative, but is {seed}.")
    if images and min(images) < 0:
        raise ValueError(f"indices must not be negative, but the smallest is {min(images)}.")
    return torch.tensor([np.random.default_rng([seed, image]).random() for image in images], dtype=torch.float64)


def random_illuminants(seed: int, indices: Iterable[int] | Tensor, saturation: float) -> Tensor:
    """Illuminants of random hue (see `random_hues`), given saturation and value 1 (Section 4.1.1, step 2).

    Args:
        seed: Not negative.
        indices: Indices of the images in their data set, not negative.
        saturation: In [0, 1]; 0 is neutral, exactly (1, 1, 1).

    Returns:
        Linear RGB, float64 tensor of shape (N, 3), on the CPU. The largest component of each row is 1, the smallest is
        1 - saturation.

    Raises:
        ValueError: If the saturation is outside [0, 1], or the seed or an index is negative.
    """
    return hsv_to_rgb(random_hues(seed, indices), saturation, 1.0)


def apply_illuminant(linear: Tensor, illuminant: Tensor) -> Tensor:
    """Multiplies each channel by the illuminant's component: the von Kries model, Eq. 22.

    Args:
        linear: Linear images of shape (N, 3, H, W).
        illuminant: Linear RGB of shape (N, 3), one per image, or (3,), one for all. It is converted to the dtype and
            device of the images.

    Returns:
        The images under the illuminant, same shape and dtype. Nothing is clipped.

    Raises:
        TypeError: If `linear` is not floating point.
        ValueError: If the shapes do not fit.
    """
    require_floating_point("linear", linear)
    if linear.ndim != 4 or linear.shape[1] != 3:
        raise ValueError(f"The images must have shape (N, 3, H, W), but their shape is {tuple(linear.shape)}.")
    if illuminant.shape not in ((3,), (len(linear), 3)):
        raise ValueError(
            f"illuminant must have shape (3,) or ({len(linear)}, 3) for {len(linear)} images, "
            f"but its shape is {tuple(illuminant.shape)}."
        )
    # The dtype first: some devices have no float64.
    return linear * illuminant.to(linear.dtype).to(linear.device)[..., None, None]


def distort_srgb(srgb: Tensor, illuminant: Tensor, *, requantize: bool = False) -> Tensor:
    """Shows sRGB images under another illuminant: gamma off, Eq. 22, gamma on (Section 4.1.1).

    Args:
        srgb: Gamma-encoded images of shape (N, 3, H, W), in [0, 1].
        illuminant: Linear RGB of shape (N, 3) or (3,).
        requantize: Clips the result to [0, 1] and rounds it to a multiple of 1/255, as storing it in 8 bits would. The
            paper does neither.

    Returns:
        Gamma-encoded images, same shape and dtype.

    Raises:
        TypeError: If `srgb` is not floating point.
        ValueError: If the shapes do not fit.
    """
    distorted = linear_to_srgb(apply_illuminant(srgb_to_linear(srgb), illuminant))
    return distorted.clamp(0, 1).mul(255).round().div(255) if requantize else distorted


@dataclass(frozen=True)
class IlluminantAugmentation:
    """Random von Kries changes of illuminant for training images: the test's own distortion, Eq. 22.

    Each image gets an illuminant of uniformly random hue, value 1, and a saturation uniform in [0, largest].

    Attributes:
        largest_saturation: In (0, 1].
    """

    largest_saturation: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.largest_saturation <= 1:
            raise ValueError(f"largest_saturation must be in (0, 1], but is {self.largest_saturation}.")

    def __call__(self, linear: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Shows each image under an illuminant of its own.

        Args:
            linear: Linear images of shape (N, 3, H, W).
            generator: Source of everything random; one on the CPU gives the same illuminants on every device. A fresh
                one has always the same seed; without one, torch's global random numbers on the CPU are used.

        Returns:
            The images under their illuminants, same shape and dtype.
        """
        return apply_illuminant(linear, self.draw(len(linear), generator))

    def draw(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws the illuminants of that many images: linear RGB, float64 (N, 3)."""
        device = torch.device("cpu") if generator is None else generator.device
        hues, shares = torch.rand(2, count, generator=generator, device=device, dtype=torch.float64)
        return hsv_to_rgb(hues, self.largest_saturation * shares, 1.0)
