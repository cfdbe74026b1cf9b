"""Looking at the training of an inpainting network: what it fills, and whether it and its discriminator still learn."""

from __future__ import annotations

import math
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
#: How near to ln 2, the loss of guessing, and for how many looks in a row it may be.
UNDECIDED_WITHIN, UNDECIDED_LOOKS = 0.005, 10
#: How many times its lowest the reconstruction loss may be before the training counts as diverged.
DIVERGED_FACTOR = 4.0


class InpaintingWatch:
    """Draws a grid of samples every so many steps, and says once what goes wrong.

    That is a discriminator that knows every fill, or none, or a reconstruction loss far above what it has been. Losses
    that are not finite end the training elsewhere, see :func:`offset_equivariant.training.loop.fit`.

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
        self._lowest_loss = math.inf
        self._said: set[str] = set()
        self._undecided = 0

    def __call__(self, scalars: Mapping[str, float], step: int) -> Observation:
        """Look at the training after ``step`` steps: pictures are called ``samples``."""
        return Observation(self._warnings(scalars, step), {"samples": self.grid()} if self._due(step) else {})

    def recall(self, scalars: Mapping[str, float], step: int) -> None:
        """Take note of an earlier look, so that a training that was taken up again says and draws nothing twice."""
        self._warnings(scalars, step)
        self._due(step)

    def _warnings(self, scalars: Mapping[str, float], step: int) -> tuple[str, ...]:
        reconstruction, discriminator = scalars["reconstruction_loss"], scalars["discriminator_loss"]
        self._lowest_loss = min(self._lowest_loss, reconstruction)
        found = {}
        if discriminator < COLLAPSED_LOSS:
            found["collapsed"] = (
                f"step {step}: the discriminator's loss is {discriminator:.2g}, so it tells nearly every fill from the "
                "truth and teaches the network nothing any more; lower train.inpainting.discriminator_learning_rate"
            )
        undecided = abs(discriminator - math.log(2)) < UNDECIDED_WITHIN
        self._undecided = self._undecided + 1 if undecided else 0
        if self._undecided >= UNDECIDED_LOOKS:
            found["undecided"] = (
                f"step {step}: the discriminator's loss has stayed at ln 2, so it takes fills and truths for the same "
                "and teaches the network nothing; raise train.inpainting.discriminator_learning_rate"
            )
        if reconstruction > DIVERGED_FACTOR * self._lowest_loss:
            found["diverged"] = (
                f"step {step}: the reconstruction loss is {reconstruction:.2g}, but was {self._lowest_loss:.2g} "
                "already: the training diverges; lower train.learning_rate"
            )
        new = found.keys() - self._said
        self._said |= new
        return tuple(found[what] for what in sorted(new))

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
