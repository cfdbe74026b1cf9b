"""From the weights of an image's pixels to the colour of its light: quasi-unsupervised colour constancy.

The network of Bianco and Cusano (2019, Section 3) finds the pixels that are probably grey; the light is their colour.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

NOISE = 100 / 256**2
"""Standard deviation of what is added to mean colours in training: the original's 100 on sums over 256 x 256 pixels."""


def weighted_estimate(linear: Tensor, weights: Tensor, noise: Tensor | None = None) -> Tensor:
    """Estimates the illuminant as the mean colour of the pixels, each times its weight.

    The sum of the original is divided by the number of pixels, which does not change its direction; so noise means the
    same for images of all sizes. An estimate from hardly any weight drowns in it, and the network learns to give some.

    Args:
        linear: Linear images of shape (N, 3, H, W).
        weights: Not negative, of shape (N, 1, H, W).
        noise: What is added to the mean colours, of shape (N, 3), in training alone.

    Returns:
        Illuminants of shape (N, 3) and unit norm; zero where no pixel with a weight holds light.

    Raises:
        ValueError: If the shapes do not fit.
    """
    if linear.ndim != 4 or linear.shape[1] != 3 or weights.shape != (len(linear), 1, *linear.shape[2:]):
        raise ValueError(
            "linear and weights must have shapes (N, 3, H, W) and (N, 1, H, W), but theirs are "
            f"{tuple(linear.shape)} and {tuple(weights.shape)}."
        )
    mean = (linear * weights).mean(dim=(2, 3))
    return F.normalize(mean if noise is None else mean + noise, dim=1, eps=torch.finfo(mean.dtype).tiny)


def usable_pixels(linear: Tensor) -> Tensor:
    """Finds the pixels whose colour can be that of the light: those with light in every channel.

    A zero is no measurement but the end of the scale. Channels that are zero in the whole image (a fully saturated
    light) say nothing of a single pixel and are not asked. Where no pixel is left, all of them are taken.

    Args:
        linear: Linear images of shape (N, 3, H, W).

    Returns:
        1 for these pixels and 0 for others, in the dtype of the images, of shape (N, 1, H, W).
    """
    lit = linear > 0
    dark = ~lit.any(dim=3, keepdim=True).any(dim=2, keepdim=True)
    usable = (lit | dark).all(dim=1, keepdim=True)
    none = ~usable.flatten(1).any(dim=1)
    return (usable | none[:, None, None, None]).to(linear.dtype)


def cosine_loss(estimate: Tensor, target: Tensor | None = None) -> Tensor:
    """Computes 1 minus the cosine between estimates and targets, averaged.

    Args:
        estimate: Illuminants of shape (N, 3) and unit norm.
        target: The same; None for grey, (1, 1, 1) / sqrt(3): images from anywhere have been balanced, more or less, by
            a camera or by a person. This is the unsupervised scenario.

    Returns:
        A scalar, in [0, 2].
    """
    cosine = estimate.sum(dim=1) / math.sqrt(3) if target is None else (estimate * target).sum(dim=1)
    return (1 - cosine).mean()
