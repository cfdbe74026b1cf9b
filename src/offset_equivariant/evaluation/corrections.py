"""One image under light of growing saturation, corrected by several networks (Figure 6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from offset_equivariant.color.angular_error import as_light, reproduction_angular_error
from offset_equivariant.color.illuminants import apply_illuminant, random_illuminants
from offset_equivariant.data.illuminant_images import IlluminantImages
from offset_equivariant.evaluation.shown import SATURATIONS, srgb_bytes
from offset_equivariant.reporting.image_panel import ImagePanel
from offset_equivariant.tasks.illuminant_estimation import Estimator

#: Share of an image's values that are shown as they are; what is brighter is shown white.
_SHOWN = 0.98


def correction_panel(
    estimators: Mapping[str, Estimator],
    images: IlluminantImages,
    number: int,
    *,
    seed: int,
    saturations: Sequence[float] = SATURATIONS,
    checkpoint_sha256: Mapping[str, str],
) -> ImagePanel:
    """Estimate and divide out the light of one image under illuminants of growing saturation.

    The hue is the one that the sweep gives this image. Every picture is scaled to the same brightness.

    Args:
        estimators: by the title to show.
        images: the test images, on the CPU.
        number: of the image.
        seed: of the hues.
        saturations: one column each.
        checkpoint_sha256: digests of the networks' weights, by title.
    """
    index = torch.tensor([number])
    rows: dict[str, list[Tensor]] = {"input": [], **{title: [] for title in estimators}, "true light": []}
    errors: dict[str, list[float]] = {title: [] for title in estimators}
    for saturation in saturations:
        illuminant = random_illuminants(seed, index, saturation)
        lit = apply_illuminant(images.images[index], illuminant)
        truth = as_light(images.illuminants[index] * illuminant.double())
        rows["input"].append(lit)
        for title, estimator in estimators.items():
            with torch.no_grad():
                estimate = as_light(estimator(lit, images.folds[index]).double())
            rows[title].append(lit / estimate[..., None, None].float())
            errors[title].append(reproduction_angular_error(estimate, truth).item())
        rows["true light"].append(lit / truth[..., None, None].float())
    return ImagePanel(
        name=f"{images.name}, {images.names[number]}",
        saturations=tuple(saturations),
        images={title: np.concatenate([_shown(image) for image in shown]) for title, shown in rows.items()},
        values={title: np.array(values, dtype=np.float32) for title, values in errors.items()},
        unit="°",
        checkpoint_sha256=dict(checkpoint_sha256),
    )


def _shown(linear: Tensor) -> npt.NDArray[np.uint8]:
    """As sRGB bytes, ``(1, H, W, 3)``, the brightness of its bright values made 1."""
    white = linear.amax(1).flatten().quantile(_SHOWN)
    return srgb_bytes(linear / white)
