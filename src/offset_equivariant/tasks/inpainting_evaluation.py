"""Judging what an inpainting method puts into the centre of images under coloured light (Section 4.3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from offset_equivariant.color.illuminants import apply_illuminant
from offset_equivariant.color.representation import decode_srgb
from offset_equivariant.color.srgb import linear_to_srgb, srgb_to_linear
from offset_equivariant.data.photo_images import PhotoImages
from offset_equivariant.tasks.inpainting import HoleFilling, centre_of, visible_pixels, with_centre

#: From linear RGB ``(N, 3, 128, 128)``, whose centre is not looked at, to a centre, linear RGB in 0 to 1,
#: ``(N, 3, 64, 64)``.
Filler = Callable[[Tensor], Tensor]

#: Names of the methods of :func:`classical_filler`.
CLASSICAL_METHODS = ("mean_colour", "telea", "navier_stokes")
_OPENCV_METHODS = {"telea": cv2.INPAINT_TELEA, "navier_stokes": cv2.INPAINT_NS}
#: Pixels around each one that OpenCV's methods look at.
_OPENCV_RADIUS = 3.0

#: Root mean square difference between a fill and the fill without illuminant, recoloured, in 8-bit levels of sRGB. Zero
#: for an equivariant method.
CHANGE = "fill_change_levels"
#: Of a root mean square difference of 0.0026 levels of 255; what is closer counts as much. A fill that is right to all
#: digits, as a black photo's can be, has no finite ratio.
LARGEST_PSNR_DB = 100.0
#: Smallest component of an illuminant that is divided by: what it has extinguished cannot be brought back.
_SMALLEST_LIGHT = 1e-6


def network_filler(network: nn.Module, filling: HoleFilling) -> Filler:
    """Return the method that a network is, in evaluation mode."""
    return partial(_fill, network, filling)


@torch.no_grad()
def _fill(network: nn.Module, filling: HoleFilling, linear: Tensor) -> Tensor:
    network.eval()
    inputs = filling.inputs(linear)
    return filling.linear(network(inputs), inputs)


def classical_filler(method: str) -> Filler:
    """Return a method that learns nothing.

    ``mean_colour``: the mean of the visible pixels, in sRGB. ``telea`` (Telea 2004) and ``navier_stokes`` (Bertalmio et
    al. 2001): OpenCV's, on 8-bit sRGB.

    Raises:
        ValueError: for another name, listing the valid ones.
    """
    if method not in CLASSICAL_METHODS:
        raise ValueError(f"method {method!r} is not one of {', '.join(CLASSICAL_METHODS)}")
    return _fill_with_mean if method == "mean_colour" else partial(_fill_with_opencv, _OPENCV_METHODS[method])


def _fill_with_mean(linear: Tensor) -> Tensor:
    mean = linear_to_srgb(visible_pixels(linear)).mean((2, 3), keepdim=True)
    return srgb_to_linear(mean).expand_as(centre_of(linear))


def _fill_with_opencv(method: int, linear: Tensor) -> Tensor:
    images = (linear_to_srgb(linear) * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    hole = with_centre(torch.zeros(linear.shape[2:], dtype=torch.uint8), torch.tensor(1, dtype=torch.uint8)).numpy()
    filled = np.stack([cv2.inpaint(np.ascontiguousarray(image), hole, _OPENCV_RADIUS, method) for image in images])
    return centre_of(decode_srgb(torch.from_numpy(filled).permute(0, 3, 1, 2)).to(linear))


@dataclass(frozen=True)
class _OpenBatch:
    """Test images on their way through the sweep: linear RGB, and the fill in the light as it was."""

    linear: Tensor
    reference: Tensor


class InpaintingEvaluation:
    """Quality of the centres under a given illuminant, for :func:`offset_equivariant.evaluation.sweep.sweep`.

    Outcomes of each image, of the 64 x 64 centre, on values in 0 to 1 that are not rounded:

    - ``psnr_db``: peak signal-to-noise ratio in sRGB (Table 4), at most ``LARGEST_PSNR_DB``, and ``psnr_linear_db`` in
      linear RGB. Both rise with the saturation for every method, since the images become darker.
    - ``psnr_undone_db``: in sRGB, the fill divided by the known illuminant against the centre without illuminant. It
      does not depend on the illuminant if the method is equivariant.
    - ``ssim``: structural similarity in sRGB.
    - ``fill_change_levels``: see ``CHANGE``.

    ``summaries`` has the mean of each, and the largest change as ``largest_fill_change_levels``.

    Args:
        filler: see ``Filler``.
        images: test photos of 128 x 128 pixels, on the device.
    """

    #: Outcomes whose per-image values are kept beside the record.
    kept_outcomes: tuple[str, ...] = ("psnr_db", "psnr_undone_db")

    def __init__(self, filler: Filler, images: PhotoImages) -> None:
        self.images = len(images)
        self._filler = filler
        self._photos = images.images
        outcomes = ("psnr_db", "psnr_linear_db", "psnr_undone_db", "ssim", CHANGE)
        self.summaries: dict[str, tuple[str, Callable[[npt.NDArray[Any]], float]]] = {
            outcome: (outcome, _mean) for outcome in outcomes
        }
        self.summaries[f"largest_{CHANGE}"] = (CHANGE, _largest)

    def open_batch(self, indices: Tensor) -> _OpenBatch:
        """Decode photos, and fill them in the light as it was."""
        linear = decode_srgb(self._photos[indices.to(self._photos.device)])
        batch = _OpenBatch(linear, torch.empty(0))
        return replace(batch, reference=self._filler(linear))

    def measure(self, batch: _OpenBatch, illuminants: Tensor) -> dict[str, Tensor]:
        """Return the outcomes of each image under its illuminant, ``(N, 3)``, linear RGB."""
        linear = apply_illuminant(batch.linear, illuminants)
        fill, truth = self._filler(linear), centre_of(linear)
        encoded = linear_to_srgb(fill)
        recoloured = linear_to_srgb(apply_illuminant(batch.reference, illuminants))
        undone = apply_illuminant(fill, 1 / illuminants.clamp(min=_SMALLEST_LIGHT)).clamp(0, 1)
        return {
            "psnr_db": psnr(encoded, linear_to_srgb(truth)),
            "psnr_linear_db": psnr(fill, truth),
            "psnr_undone_db": psnr(linear_to_srgb(undone), linear_to_srgb(centre_of(batch.linear))),
            "ssim": _ssim(encoded, linear_to_srgb(truth)),
            CHANGE: 255 * (encoded - recoloured).square().mean((1, 2, 3)).sqrt(),
        }


def psnr(images: Tensor, truth: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each image, in dB, at most ``LARGEST_PSNR_DB``.

    Both are ``(N, C, H, W)``, with a peak of 1.
    """
    values = peak_signal_noise_ratio(images, truth, data_range=1.0, reduction="none", dim=(1, 2, 3))
    assert isinstance(values, Tensor)
    return values.clamp(max=LARGEST_PSNR_DB)


def _ssim(images: Tensor, truth: Tensor) -> Tensor:
    values = structural_similarity_index_measure(images, truth, data_range=1.0, reduction="none")
    assert isinstance(values, Tensor)
    return values


def _mean(values: npt.NDArray[Any]) -> float:
    return float(values.mean(dtype=np.float64))


def _largest(values: npt.NDArray[Any]) -> float:
    return float(values.max())
