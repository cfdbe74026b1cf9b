"""Looking at the training of an inpainting network: what it fills, and whether its discriminator still teaches it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchvision.utils import make_grid

from offset_equivariant.color.representation import decode_srgb
from offset_equivariant.color.srgb import linear_to_srgb
from offset_equivariant.tasks.inpainting import HoleFilling, centre_of, with_centre
from offset_equivariant.tasks.inpainting_evaluation import network_filler
from offset_equivariant.tasks.task import Observation

#: Loss of a discriminator below which it tells nearly every fill from a real centre, and its gradients vanish.
COLLAPSED_LOSS = 0.01


class InpaintingWatch:
    """Draws a grid of samples every so many steps, and says once that the discriminator has collapsed.

    Args:
        network: that is trained.
        filling: what it is shown, and what its outputs mean.
        photos: uint8 ``(N, 3, 128, 128)``, sRGB, on the device: training images, never test images.
        sample_steps: steps between two grids, which come at the first look after them; None for no grids.
    """

    def __init__(self, network: nn.Module, filling: HoleFilling, photos: Tensor, sample_steps: int | None) -> None:
        self._filler = network_filler(network, filling)
        self._linear = decode_srgb(photos)
        self._sample_steps = sample_steps
        self._last_sampled: int | None = None
        self._warned = False

    def __call__(self, scalars: Mapping[str, float], step: int) -> Observation:
        """Look at the training after ``step`` steps: pictures are called ``samples``."""
        return Observation(self._warnings(scalars, step), {"samples": self.grid()} if self._due(step) else {})

    def _warnings(self, scalars: Mapping[str, float], step: int) -> tuple[str, ...]:
        loss = scalars["discriminator_loss"]
        if self._warned or loss >= COLLAPSED_LOSS:
            return ()
        self._warned = True
        return (
            f"step {step}: the discriminator's loss is {loss:.2g}, so it tells nearly every fill from the truth and "
            "teaches the network nothing any more; lower train.inpainting.discriminator_learning_rate",
        )

    def _due(self, step: int) -> bool:
        if self._sample_steps is None:
            return False
        interval = step // self._sample_steps
        due = interval > 0 and interval != self._last_sampled
        self._last_sampled = interval
        return due

    def grid(self) -> Tensor:
        """Draw the photos without their centres, filled, and as they were, a row each: uint8 ``(3, H, W)``."""
        rows = (
            with_centre(self._linear, torch.zeros_like(centre_of(self._linear))),
            with_centre(self._linear, self._filler(self._linear)),
            self._linear,
        )
        grid = make_grid(linear_to_srgb(torch.cat(rows)).clamp(0, 1), nrow=len(self._linear), pad_value=1.0)
        drawn: Tensor = (grid * 255).round().byte().cpu()
        return drawn
