"""Colour constancy by image statistics: estimate the illuminant, then divide it out.

This is the "preprocessing" strategy of Section 4.1.1 with classical estimators. An estimator maps linear images of
shape (N, 3, H, W) to illuminants of shape (N, 3); `BALANCING_METHODS` lists those known by name.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from offset_equivariant.color.illuminants import apply_illuminant
from offset_equivariant.color.srgb import linear_to_srgb, srgb_to_linear


def grey_world(linear: Tensor) -> Tensor:
    """Estimates the illuminant as the mean colour of the image (Buchsbaum 1980).

    Args:
        linear: Linear images of shape (N, 3, H, W).

    Returns:
        Illuminants of shape (N, 3) and unit norm; zero for an all-black image.
    """
    return shades_of_grey(linear, p=1.0)


def shades_of_grey(linear: Tensor, p: float = 6.0) -> Tensor:
    """Estimates the illuminant as the Minkowski mean (mean x^p)^(1/p) of each channel (Finlayson and Trezzi 2004).

    Args:
        linear: Linear images of shape (N, 3, H, W). Negative values (noise below the black level) count as zero.
        p: Order of the mean, at least 1 and finite. 1 is grey-world; large values approach the channel's maximum.

    Returns:
        Illuminants of shape (N, 3) and unit norm; zero for an all-black image.

    Raises:
        ValueError: If the images have another shape, or p is out of range.
    """
    _require_rgb(linear)
    if not (math.isfinite(p) and p >= 1):
        raise ValueError(f"p must be finite and at least 1, but is {p}.")
    light = linear.clamp(min=0)
    # Relative to the maximum no power of a dark channel underflows.
    maximum = light.amax(dim=(2, 3), keepdim=True)
    relative = light / torch.where(maximum > 0, maximum, 1)
    return _unit(maximum[..., 0, 0] * relative.pow(p).mean(dim=(2, 3)).pow(1 / p))


def max_rgb(linear: Tensor) -> Tensor:
    """Estimates the illuminant as the largest value of each channel, the white patch (Land 1977).

    Args:
        linear: Linear images of shape (N, 3, H, W).

    Returns:
        Illuminants of shape (N, 3) and unit norm; zero for an all-black image.

    Raises:
        ValueError: If the images have another shape.
    """
    _require_rgb(linear)
    return _unit(linear.clamp(min=0).amax(dim=(2, 3)))


def grey_edge(linear: Tensor, p: float = 6.0, sigma: float = 1.0) -> Tensor:
    """Estimates the illuminant from the edges: first-order grey-edge (van de Weijer, Gevers and Gijsenij 2007).

    The Minkowski mean over the pixels of each channel's gradient magnitude, the gradient being taken at a scale of
    `sigma` pixels. Pixels that are black in all channels hold no measurement (a covered colour chart, for instance):
    what lies within the filters' reach of one is left out, for its edges are not the scene's.

    Args:
        linear: Linear images of shape (N, 3, H, W).
        p: Order of the mean, at least 1 and finite.
        sigma: Standard deviation of the Gaussian whose derivatives are taken, in pixels, positive.

    Returns:
        Illuminants of shape (N, 3) and unit norm; zero for an image without an edge.

    Raises:
        ValueError: If the images have another shape, or p or sigma is out of range.
    """
    _require_rgb(linear)
    if not (math.isfinite(sigma) and sigma > 0):
        raise ValueError(f"sigma must be finite and positive, but is {sigma}.")
    radius = math.ceil(3 * sigma)
    steps = torch.arange(-radius, radius + 1, dtype=linear.dtype, device=linear.device)
    smooth = (-0.5 * (steps / sigma).square()).exp()
    smooth = smooth / smooth.sum()
    slope = steps * smooth
    slope = slope / (steps * slope).sum()  # a ramp has its own slope
    light = linear.clamp(min=0)
    across = _separable(light, rows=smooth, columns=slope)
    down = _separable(light, rows=slope, columns=smooth)
    black = (light <= 0).all(dim=1, keepdim=True).to(light.dtype)
    reached = nn.functional.max_pool2d(black, 2 * radius + 1, stride=1, padding=radius) > 0
    return shades_of_grey(torch.where(reached, 0, torch.hypot(across, down)), p)


def _separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Correlate each channel with the product of two filters, one down the rows and one across the columns."""
    radius = len(rows) // 2
    planes = images.flatten(0, 1)[:, None]
    padded = nn.functional.pad(planes, (radius,) * 4, mode="replicate")
    filtered = nn.functional.conv2d(nn.functional.conv2d(padded, rows[None, None, :, None]), columns[None, None, None])
    return filtered.reshape(images.shape)


def _unit(vectors: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return vectors / torch.where(norm > 0, norm, 1)


def _require_rgb(linear: Tensor) -> None:
    if linear.ndim != 4 or linear.shape[1] != 3:
        raise ValueError(f"linear must have shape (N, 3, H, W), but its shape is {tuple(linear.shape)}.")


def balance(linear: Tensor, illuminant: Tensor, brightness: float | None = None) -> Tensor:
    """Divides an illuminant out of images, keeping the overall brightness or, on demand, fixing that too.

    The gain of channel c is g / I_c, where g is the geometric mean of the illuminant's non-zero components. A channel
    whose estimate is zero holds no light to be scaled: its gain is 1. An all-black image is therefore unchanged.

    So balanced, an image under coloured light is darker or brighter than under white light, by the geometric mean of
    the light. With a `brightness` it is the same image, if the estimate follows the light.

    Args:
        linear: Linear images of shape (N, 3, H, W).
        illuminant: Estimates of shape (N, 3), not negative, of any norm.
        brightness: Mean over pixels and channels that each image is scaled to before it is clipped, positive; None
            leaves the gains as they are.

    Returns:
        Balanced linear images clipped to [0, 1], same shape.

    Raises:
        ValueError: If the shapes do not fit, an estimate is negative or not finite, or the brightness not positive.
    """
    if brightness is not None and not brightness > 0:
        raise ValueError(f"brightness must be positive, but is {brightness}.")
    if not bool(((illuminant >= 0) & illuminant.isfinite()).all()):
        raise ValueError("illuminant must be finite and not negative in every component; check the estimator.")
    lit = illuminant > 0
    logarithm = torch.where(lit, illuminant, 1).log()
    log_mean = logarithm.sum(dim=-1, keepdim=True) / lit.sum(dim=-1, keepdim=True).clamp(min=1)
    gain = torch.where(lit, (log_mean - logarithm).exp(), 1)
    if brightness is not None:
        mean = (gain * linear.mean(dim=(2, 3))).mean(dim=1, keepdim=True)
        gain = gain * brightness / torch.where(mean > 0, mean, brightness)
    return apply_illuminant(linear, gain).clamp(0, 1)


BALANCING_METHODS: dict[str, Callable[[Tensor], Tensor]] = {
    "grey_world": grey_world,
    "shades_of_grey": shades_of_grey,
    "max_rgb": max_rgb,
    "grey_edge": grey_edge,
}


def balance_srgb(srgb: Tensor, method: str, brightness: float | None = None) -> Tensor:
    """Balances the colours of sRGB images: gamma off, estimate the illuminant, divide it out, gamma on.

    Args:
        srgb: Gamma-encoded images of shape (N, 3, H, W), in [0, 1].
        method: A key of `BALANCING_METHODS`.
        brightness: As of `balance`, in linear RGB.

    Returns:
        Balanced gamma-encoded images, same shape, in [0, 1].

    Raises:
        TypeError: If `srgb` is not floating point.
        ValueError: If the method is unknown or the shape is wrong.
    """
    if method not in BALANCING_METHODS:
        raise ValueError(f"Unknown balancing method {method!r}; choose one of {', '.join(BALANCING_METHODS)}.")
    linear = srgb_to_linear(srgb)
    return linear_to_srgb(balance(linear, BALANCING_METHODS[method](linear), brightness))
