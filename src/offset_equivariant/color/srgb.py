"""The sRGB transfer function (the "gamma") in both directions.

Source: IEC 61966-2-1. Both directions work elementwise on floating-point tensors of any shape; 1.0 is full scale.
"""

import torch
from torch import Tensor

_ENCODED_THRESHOLD = 0.04045
_LINEAR_THRESHOLD = 0.0031308


def srgb_to_linear(srgb: Tensor) -> Tensor:
    """Removes the sRGB gamma.

    Args:
        srgb: Gamma-encoded values of any shape, nominally in [0, 1]. Negative values continue the linear segment.

    Returns:
        Linear values, same shape and dtype.

    Raises:
        TypeError: If `srgb` is not floating point.
    """
    require_floating_point("srgb", srgb)
    # The clamp keeps the branch that `where` discards free of NaN, in the value as well as in the gradient.
    curve = ((srgb.clamp(min=_ENCODED_THRESHOLD) + 0.055) / 1.055).pow(2.4)
    return torch.where(srgb <= _ENCODED_THRESHOLD, srgb / 12.92, curve)


def linear_to_srgb(linear: Tensor) -> Tensor:
    """Applies the sRGB gamma; the inverse of `srgb_to_linear`.

    Args:
        linear: Linear values of any shape, nominally in [0, 1]. Negative values continue the linear segment.

    Returns:
        Gamma-encoded values, same shape and dtype.

    Raises:
        TypeError: If `linear` is not floating point.
    """
    require_floating_point("linear", linear)
    curve = 1.055 * linear.clamp(min=_LINEAR_THRESHOLD).pow(1 / 2.4) - 0.055
    return torch.where(linear <= _LINEAR_THRESHOLD, linear * 12.92, curve)


def srgb_lookup_table(device: torch.device | str | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Linear value of every 8-bit sRGB value.

    Returns:
        Tensor of shape (256,); entry v is `srgb_to_linear(v / 255)`, computed in float64 and rounded once to `dtype`.
    """
    # Computed on the CPU because some devices have no float64.
    table = srgb_to_linear(torch.arange(256, dtype=torch.float64, device="cpu") / 255)
    return table.to(dtype).to(device)


def at_least_single(dtype: torch.dtype) -> torch.dtype:
    """Return a type of values, but single precision for lower ones."""
    return torch.promote_types(dtype, torch.float32)


def require_floating_point(name: str, values: Tensor) -> None:
    if not values.is_floating_point():
        raise TypeError(
            f"{name} must be a floating-point tensor scaled to [0, 1], but its dtype is {values.dtype}; "
            "divide 8-bit values by 255, or index srgb_lookup_table() with them."
        )
