"""Angular errors between an estimated and a true illuminant, in degrees.

Both errors ignore the intensity of the illuminants. Angles come from atan2(|a x b|, a . b): the arc cosine of Eq. 29
is the same in exact arithmetic, but loses half of the digits near zero, and its gradient diverges there.
"""

from typing import Literal

import torch
from torch import Tensor

#: See `as_light`: the reproduction error divides by the true light, and a fully saturated one has a zero.
_SMALLEST_SHARE = 1e-6


def as_light(illuminants: Tensor) -> Tensor:
    """Makes of any colours illuminants of which an error can be taken.

    Args:
        illuminants: Estimates or truths, linear RGB of shape (N, 3).

    Returns:
        The same, components below 1e-6 of the largest taken as that. One without a positive component, which an
        ordinary network may give, says nothing and counts as grey: ones. One that is not a number stays that.
    """
    largest = illuminants.amax(dim=1, keepdim=True)
    return torch.where(largest <= 0, 1.0, illuminants.maximum(_SMALLEST_SHARE * largest))


def reproduction_angular_error(
    estimate: Tensor,
    truth: Tensor,
    *,
    ratio: Literal["estimate_over_truth", "truth_over_estimate"] = "estimate_over_truth",
) -> Tensor:
    """Angle between a white surface, corrected by the estimate, and true white (Eq. 29).

    Args:
        estimate: Estimated illuminants, linear RGB of shape (N, 3).
        truth: True illuminants, linear RGB of shape (N, 3), strictly positive.
        ratio: "estimate_over_truth" is Eq. 29 as printed in the paper. "truth_over_estimate" is the definition of
            Finlayson, Zakizadeh and Gijsenij (TPAMI 2016), the colour that the surface really has after correction; it
            needs strictly positive estimates.

    Returns:
        Degrees, shape (N,).

    Raises:
        ValueError: If the shapes or the ratio are wrong; if a truth (or an estimate in the denominator) has a component
            that is not strictly positive; if an estimate is zero or not finite. The message lists the rows.
    """
    _require_comparable(estimate, truth)
    _reject_rows("truth", "components that are not strictly positive", (truth <= 0).any(dim=1))
    if ratio == "estimate_over_truth":
        white = estimate / truth
    elif ratio == "truth_over_estimate":
        _reject_rows("estimate", "components that are not strictly positive", (estimate <= 0).any(dim=1))
        white = truth / estimate
    else:
        raise ValueError(f"Unknown ratio {ratio!r}; choose estimate_over_truth or truth_over_estimate.")
    return angle_to_neutral(white)


def angle_to_neutral(colors: Tensor) -> Tensor:
    """Angle between colours and grey, differentiable and without checks, which read from the device: for training.

    Args:
        colors: Linear RGB of shape (N, 3), not zero.

    Returns:
        Degrees, shape (N,).
    """
    return _angle_in_degrees(colors, torch.ones_like(colors))


def recovery_angular_error(estimate: Tensor, truth: Tensor) -> Tensor:
    """Angle between the estimated and the true illuminant.

    Args:
        estimate: Estimated illuminants, linear RGB of shape (N, 3).
        truth: True illuminants, linear RGB of shape (N, 3).

    Returns:
        Degrees, shape (N,).

    Raises:
        ValueError: If the shapes are wrong, or an illuminant is zero or not finite. The message lists the rows.
    """
    _require_comparable(estimate, truth)
    return _angle_in_degrees(estimate, truth)


def _angle_in_degrees(a: Tensor, b: Tensor) -> Tensor:
    dtype = torch.promote_types(a.dtype, b.dtype)
    a, b = _scaled(a.to(dtype)), _scaled(b.to(dtype))
    sine = torch.linalg.vector_norm(torch.linalg.cross(a, b, dim=1), dim=1)
    return torch.rad2deg(torch.atan2(sine, (a * b).sum(dim=1)))


def _scaled(vectors: Tensor) -> Tensor:
    # Products of very small or large components would leave the range of float32. The angle does not depend on the
    # scale, so neither does its gradient.
    return vectors / vectors.detach().abs().amax(dim=1, keepdim=True)


def _require_comparable(estimate: Tensor, truth: Tensor) -> None:
    for name, illuminants in (("estimate", estimate), ("truth", truth)):
        if illuminants.ndim != 2 or illuminants.shape[1] != 3:
            raise ValueError(f"{name} must have shape (N, 3), but its shape is {tuple(illuminants.shape)}.")
        # The angle of a zero vector would come out as a perfect 0 degrees.
        undefined = (illuminants == 0).all(dim=1) | ~illuminants.isfinite().all(dim=1)
        _reject_rows(name, "no direction (all zero, infinite or NaN)", undefined)
    if len(estimate) != len(truth):
        raise ValueError(f"There are {len(estimate)} estimates, but {len(truth)} true illuminants.")


def _reject_rows(name: str, problem: str, bad: Tensor) -> None:
    if bool(bad.any()):
        rows = bad.nonzero().flatten().tolist()
        listed = ", ".join(map(str, rows[:10])) + (", ..." if len(rows) > 10 else "")
        raise ValueError(f"{name} has {problem} in {len(rows)} of {len(bad)} rows: {listed}. Leave these rows out.")
