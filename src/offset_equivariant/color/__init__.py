"""Colour as pure tensor functions: sRGB gamma, log RGB, illuminants, angular errors, constancy, equalisation, jitter.

Images are batches of shape (N, 3, H, W); illuminants have shape (N, 3). "Linear" is proportional to light, "sRGB" is
gamma-encoded, both nominally in [0, 1].
"""

from offset_equivariant.color.achromatic import cosine_loss, usable_pixels, weighted_estimate
from offset_equivariant.color.angular_error import as_light, recovery_angular_error, reproduction_angular_error
from offset_equivariant.color.constancy import (
    BALANCING_METHODS,
    balance,
    balance_srgb,
    grey_edge,
    grey_world,
    max_rgb,
    shades_of_grey,
)
from offset_equivariant.color.equalisation import (
    code_input,
    equalise_histogram,
    gradient_directions,
    sobel_gradients,
)
from offset_equivariant.color.illuminants import (
    IlluminantAugmentation,
    apply_illuminant,
    distort_srgb,
    hsv_to_rgb,
    random_hues,
    random_illuminants,
)
from offset_equivariant.color.jitter import (
    ColorJitter,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
)
from offset_equivariant.color.log_rgb import (
    AbsoluteClipping,
    Clipping,
    FilledClipping,
    RelativeClipping,
    linear_to_log_rgb,
    log_rgb_to_linear,
    make_clipping,
)
from offset_equivariant.color.srgb import linear_to_srgb, srgb_lookup_table, srgb_to_linear

__all__ = [
    "BALANCING_METHODS",
    "AbsoluteClipping",
    "Clipping",
    "ColorJitter",
    "FilledClipping",
    "IlluminantAugmentation",
    "RelativeClipping",
    "adjust_brightness",
    "adjust_contrast",
    "adjust_hue",
    "adjust_saturation",
    "apply_illuminant",
    "as_light",
    "balance",
    "balance_srgb",
    "code_input",
    "cosine_loss",
    "distort_srgb",
    "equalise_histogram",
    "gradient_directions",
    "grey_edge",
    "grey_world",
    "hsv_to_rgb",
    "linear_to_log_rgb",
    "linear_to_srgb",
    "log_rgb_to_linear",
    "make_clipping",
    "max_rgb",
    "random_hues",
    "random_illuminants",
    "recovery_angular_error",
    "reproduction_angular_error",
    "shades_of_grey",
    "sobel_gradients",
    "srgb_lookup_table",
    "srgb_to_linear",
    "usable_pixels",
    "weighted_estimate",
]
