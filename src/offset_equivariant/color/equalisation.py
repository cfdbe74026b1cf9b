"""What the network of quasi-unsupervised colour constancy is shown of an image (Bianco and Cusano 2019, Section 3).

Seven channels that say where things are and hardly what colour they have: the mean of red, green and blue with its
histogram equalised, and the direction of every channel's gradient. A network trained on balanced images can therefore
be used on others.

The directions do not change when a channel is multiplied by a positive number, so not under any von Kries illuminant
that leaves it some light. The equalised intensity keeps its order under any increasing change that is common to the
three channels, and keeps its values as far as 64 bins show them; a coloured light alters the mean of the channels, and
it with it.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from offset_equivariant.color.srgb import at_least_single, require_floating_point

INPUT_CHANNELS = 7
"""Channels of `code_input`: the intensity, then across and down the gradient of red, of green and of blue."""


def equalise_histogram(values: Tensor, bins: int = 64) -> Tensor:
    """Maps the values of each image to their share of the image: histogram equalisation, interpolated.

    With the position s = (bins - 2)·x of a value, the histogram counts floor(s). C(k) is the number of values in the
    bins 1 to k, divided by C(bins - 1), so that the lowest bin is mapped to 0. A value is mapped to the line between
    C(floor(s)) and C(floor(s) + 1). An image whose values are all in the lowest bin is mapped to 0.

    Differentiable but where a value lies on the edge of a bin; the histogram itself counts as constant.

    Args:
        values: Of shape (N, ...), nominally in [0, 1]; what lies outside counts as the nearer end.
        bins: Of the histogram, at least 3.

    Returns:
        Values in [0, 1], same shape; in the order of the given ones.

    Raises:
        TypeError: If the values are not floating point.
        ValueError: If there are fewer than 3 bins, or a value is not finite.
    """
    require_floating_point("values", values)
    if bins < 3:
        raise ValueError(f"bins must be at least 3, but is {bins}.")
    if not bool(values.isfinite().all()):
        raise ValueError("values must be finite.")
    position = values.flatten(1).clamp(0, 1) * (bins - 2)
    lower = position.detach().long()
    # Counted in whole numbers: in bfloat16, 256 + 1 is 256.
    counts = lower.new_zeros(len(values), bins).scatter_add(1, lower, torch.ones_like(lower))
    cumulative = counts.cumsum(1) - counts[:, :1]
    wide = at_least_single(values.dtype)
    shares = (cumulative.to(wide) / cumulative[:, -1:].clamp(min=1)).to(values.dtype)
    start, end = shares.gather(1, lower), shares.gather(1, lower + 1)
    return (start + (position - lower) * (end - start)).reshape(values.shape)


def sobel_gradients(images: Tensor) -> Tensor:
    """Computes the gradients of every channel by Sobel's filters, with zeros around the image.

    Differences are taken before sums: where a channel does not change, its gradient is 0 exactly, in any precision.

    Args:
        images: Of shape (N, C, H, W).

    Returns:
        Of shape (N, C, 2, H, W): across (to the right), then down; 8 times the slope of a ramp.

    Raises:
        ValueError: If the images have another number of dimensions.
    """
    if images.ndim != 4:
        raise ValueError(f"images must have shape (N, C, H, W), but their shape is {tuple(images.shape)}.")
    padded = F.pad(images, (1, 1, 1, 1))
    across = padded[..., 2:] - padded[..., :-2]
    across = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]
    down = padded[..., 2:, :] - padded[..., :-2, :]
    down = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
    return torch.stack([across, down], dim=2)


def gradient_directions(images: Tensor) -> Tensor:
    """Computes the direction of every channel's gradient, as a vector of length 1; 0 where there is no gradient.

    Args:
        images: Of shape (N, C, H, W).

    Returns:
        Directions of shape (N, 2C, H, W), in [-1, 1]: across and down of the first channel, then of the next.

    Raises:
        ValueError: If the images have another number of dimensions.
    """
    gradients = sobel_gradients(images)
    # By the larger component first: squares of small numbers underflow.
    largest = gradients.detach().abs().amax(dim=2, keepdim=True)
    some = largest > 0
    scaled = gradients / torch.where(some, largest, 1)
    # The square root has no derivative at 0.
    length = torch.where(some, scaled.square().sum(dim=2, keepdim=True), 1).sqrt()
    return (scaled / length).flatten(1, 2)


def code_input(linear: Tensor) -> Tensor:
    """Codes images for the network: equalised intensity in [-1, 1], and gradient directions.

    Args:
        linear: Linear images of shape (N, 3, H, W), nominally in [0, 1].

    Returns:
        Of shape (N, 7, H, W), in [-1, 1], see `INPUT_CHANNELS`.

    Raises:
        TypeError: If the images are not floating point.
        ValueError: If the images have another shape, or a value is not finite.
    """
    if linear.ndim != 4 or linear.shape[1] != 3:
        raise ValueError(f"linear must have shape (N, 3, H, W), but its shape is {tuple(linear.shape)}.")
    intensity = equalise_histogram(linear.mean(dim=1, keepdim=True))
    return torch.cat([2 * intensity - 1, gradient_directions(linear)], dim=1)
