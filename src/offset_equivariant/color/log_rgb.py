"""The logarithmic RGB space of Eq. 23, and the clipping that precedes the logarithm (Section 3).

In log RGB a von Kries change of illuminant (Eq. 22) is the addition of an offset to each channel (Eq. 24). Black has no
logarithm, so linear values are first clipped from below, in one of three ways:

- `AbsoluteClipping`, the paper's: one threshold for all. A dimmed channel has more of its values clipped, so here the
  pipeline is not equivariant.
- `RelativeClipping`: the threshold is proportional to the channel's own mean and scales with the illuminant, so the
  pipeline stays exactly equivariant as long as no channel is extinguished.
- `FilledClipping`: relative clipping for images with pixels that hold no measurement, black in some channel, such as a
  covered colour chart. They are filled with the mean colour of the others; as equivariant as relative clipping.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from offset_equivariant.color.srgb import at_least_single, require_floating_point


@dataclass(frozen=True)
class AbsoluteClipping:
    """Clips linear values from below at a constant (Section 3).

    Attributes:
        epsilon: The threshold, in linear units where 1 is full scale; strictly between 0 and 1.
    """

    epsilon: float = 2e-4

    def __post_init__(self) -> None:
        _require_inside_unit_interval("AbsoluteClipping.epsilon", self.epsilon)

    def __call__(self, linear: Tensor) -> Tensor:
        """Returns max(linear, epsilon); floating point of any shape, usually (N, C, H, W).

        Raises:
            TypeError: If `linear` is not floating point.
        """
        require_floating_point("linear", linear)
        return linear.clamp(min=self.epsilon)


@dataclass(frozen=True)
class RelativeClipping:
    """Clips each channel of each image from below at a fraction of its own spatial mean.

    For every positive gain g of a channel, clip(g x) = g clip(x): clipping commutes with Eq. 22. Negative values (noise
    below a camera's black level) count as zero in the mean. A channel that is zero everywhere carries no information
    and has no scale of its own; it becomes the constant `zero_value`.

    Attributes:
        fraction: The threshold over the channel's mean; strictly between 0 and 1.
        zero_value: Linear value of an extinguished channel; strictly between 0 and 1.
    """

    fraction: float = 1e-3
    zero_value: float = 2e-4

    def __post_init__(self) -> None:
        _require_inside_unit_interval("RelativeClipping.fraction", self.fraction)
        _require_inside_unit_interval("RelativeClipping.zero_value", self.zero_value)

    def __call__(self, linear: Tensor) -> Tensor:
        """Clips a batch.

        Args:
            linear: Linear images of shape (N, C, H, W).

        Returns:
            Clipped images, strictly positive, same shape, in at least single precision: in half precision the
            threshold of a dark channel would be zero.

        Raises:
            TypeError: If `linear` is not floating point.
            ValueError: If `linear` does not have four dimensions.
        """
        _require_images(linear)
        linear = linear.to(at_least_single(linear.dtype))
        mean = linear.clamp(min=0).mean(dim=(2, 3), keepdim=True)
        return torch.maximum(linear, self.threshold(mean))

    def threshold(self, mean: Tensor) -> Tensor:
        """Returns the smallest value left in a channel of that mean; any shape."""
        return torch.where(mean > 0, self.fraction * mean, self.zero_value)


@dataclass(frozen=True)
class FilledClipping:
    """Clips relative to each channel's mean over the valid pixels, and fills the others with their mean in log RGB.

    A pixel is valid where every channel is positive, channels that are zero in the whole image aside. The valid pixels
    of an image are the same under every illuminant without a zero, so that clip(g x) = g clip(x) for every positive
    gain of a channel. A channel that is zero everywhere becomes the constant `zero_value`, and so does an image without
    a valid pixel.

    Attributes:
        fraction: The threshold over the channel's mean; strictly between 0 and 1.
        zero_value: Linear value of an extinguished channel; strictly between 0 and 1.
    """

    fraction: float = 1e-3
    zero_value: float = 2e-4

    def __post_init__(self) -> None:
        _require_inside_unit_interval("FilledClipping.fraction", self.fraction)
        _require_inside_unit_interval("FilledClipping.zero_value", self.zero_value)

    def __call__(self, linear: Tensor) -> Tensor:
        """Clips and fills a batch.

        Args:
            linear: Linear images of shape (N, C, H, W).

        Returns:
            Images of the same shape, strictly positive, in at least single precision.

        Raises:
            TypeError: If `linear` is not floating point.
            ValueError: If `linear` does not have four dimensions.
        """
        _require_images(linear)
        linear = linear.to(at_least_single(linear.dtype))
        dark = linear.amax(dim=(2, 3), keepdim=True) <= 0
        valid = ((linear > 0) | dark).all(dim=1, keepdim=True)
        mean = _mean_over(linear.clamp(min=0), valid)
        clipped = torch.maximum(linear, torch.where(mean > 0, self.fraction * mean, self.zero_value))
        fill = torch.where(mean > 0, _mean_over(clipped.log(), valid).exp(), self.zero_value)
        return torch.where(valid, clipped, fill)


def _mean_over(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of each image's channels over the chosen pixels, (N, C, 1, 1); zero where none is chosen."""
    count = chosen.sum(dim=(2, 3), keepdim=True).clamp(min=1)
    return torch.where(chosen, values, 0).sum(dim=(2, 3), keepdim=True) / count


def _require_images(linear: Tensor) -> None:
    require_floating_point("linear", linear)
    if linear.ndim != 4:
        raise ValueError(
            f"linear must have shape (N, C, H, W) to be clipped relative to each channel's mean, "
            f"but its shape is {tuple(linear.shape)}."
        )


Clipping = AbsoluteClipping | RelativeClipping | FilledClipping

_CLIPPINGS: dict[str, type[AbsoluteClipping] | type[RelativeClipping] | type[FilledClipping]] = {
    "absolute": AbsoluteClipping,
    "relative": RelativeClipping,
    "filled": FilledClipping,
}


def make_clipping(name: str, **params: float) -> Clipping:
    """Builds a clipping from its name, "absolute", "relative" or "filled", and its parameters.

    Raises:
        ValueError: If the name is unknown, a parameter is unknown to that clipping, or a value is out of range.
    """
    if name not in _CLIPPINGS:
        raise ValueError(f"Unknown clipping {name!r}; choose one of {', '.join(_CLIPPINGS)}.")
    clipping = _CLIPPINGS[name]
    valid = [field.name for field in fields(clipping)]
    unknown = sorted(set(params) - set(valid))
    if unknown:
        raise ValueError(f"Clipping {name!r} has no parameter {', '.join(unknown)}; it takes {', '.join(valid)}.")
    return clipping(**params)


def linear_to_log_rgb(linear: Tensor, clipping: Callable[[Tensor], Tensor]) -> Tensor:
    """Converts linear RGB to log RGB, x' = log(1 / x) (Eq. 23), after clipping.

    Args:
        linear: Linear images of shape (N, C, H, W), floating point.
        clipping: Makes the values positive; see the three classes of this module. It is given at least single
            precision, and so is the logarithm.

    Returns:
        Log RGB images, same shape and dtype. Dark is large: linear 1 maps to 0, linear 2e-4 to 8.5.

    Raises:
        TypeError: If `linear` is not floating point.
    """
    require_floating_point("linear", linear)
    return (-clipping(linear.to(at_least_single(linear.dtype))).log()).to(linear.dtype)


def log_rgb_to_linear(log_rgb: Tensor) -> Tensor:
    """Converts log RGB of any shape back to linear RGB, x = exp(-x'): the inverse of Eq. 23."""
    return (-log_rgb).exp()


def _require_inside_unit_interval(name: str, value: float) -> None:
    if not isinstance(value, int | float) or not 0 < value < 1:
        raise ValueError(f"{name} must be a number strictly between 0 and 1, but is {value!r}.")
