"""One image under light of growing saturation, its centre filled by several methods (Figure 8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from offset_equivariant.color.illuminants import apply_illuminant, random_illuminants
from offset_equivariant.color.representation import decode_srgb
from offset_equivariant.color.srgb import linear_to_srgb
from offset_equivariant.data.photo_images import PhotoImages
from offset_equivariant.evaluation.shown import SATURATIONS, srgb_bytes
from offset_equivariant.reporting.image_panel import ImagePanel
from offset_equivariant.tasks.inpainting import centre_of, with_centre
from offset_equivariant.tasks.inpainting_evaluation import Filler, psnr

#: What the hole is shown as, linear RGB.
_HOLE = 1.0


def fill_panel(
    fillers: Mapping[str, Filler],
    photos: PhotoImages,
    number: int,
    *,
    seed: int,
    saturations: Sequence[float] = SATURATIONS,
    checkpoint_sha256: Mapping[str, str],
) -> ImagePanel:
    """Fill the centre of one image under illuminants of growing saturation.

    The hue is the one that the sweep gives this image. The values are PSNRs of the centre in sRGB, as in Table 4.

    Args:
        fillers: by the title to show.
        photos: the test images, 128 x 128 pixels, on the CPU.
        number: of the image.
        seed: of the hues.
        saturations: one column each.
        checkpoint_sha256: digests of the networks' weights, by title.
    """
    linear = decode_srgb(photos.images[number : number + 1])
    rows: dict[str, list[Tensor]] = {"input": [], **{title: [] for title in fillers}, "truth": []}
    values: dict[str, list[float]] = {title: [] for title in fillers}
    for saturation in saturations:
        lit = apply_illuminant(linear, random_illuminants(seed, [number], saturation))
        rows["input"].append(with_centre(lit, torch.full_like(centre_of(lit), _HOLE)))
        for title, filler in fillers.items():
            centre = filler(lit)
            rows[title].append(with_centre(lit, centre))
            values[title].append(psnr(linear_to_srgb(centre), linear_to_srgb(centre_of(lit))).item())
        rows["truth"].append(lit)
    return ImagePanel(
        name=f"{photos.name}, {photos.names[number]}",
        saturations=tuple(saturations),
        images={title: np.concatenate([srgb_bytes(image) for image in shown]) for title, shown in rows.items()},
        values={title: np.array(found, dtype=np.float32) for title, found in values.items()},
        unit=" dB",
        checkpoint_sha256=dict(checkpoint_sha256),
    )
