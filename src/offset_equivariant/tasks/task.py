"""The interfaces by which training, sweep and records know every task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy.typing as npt
from torch import Tensor, nn
from torch.optim import Optimizer


class Trainable(Protocol):
    """One training: networks, optimisers and what happens in a step."""

    batch_size: int

    def modules(self) -> Mapping[str, nn.Module]:
        """Every network that is trained, by name."""

    def optimizers(self) -> Mapping[str, Optimizer]:
        """Every optimiser, by name."""

    def training_step(self, step: int, learning_rate_factor: float) -> dict[str, Tensor]:
        """Take one optimisation step and return scalars to report, still on the device; ``loss`` must be among them."""


class Evaluable(Protocol):
    """One evaluation: what happens to test images under given illuminants."""

    #: Number of test images.
    images: int
    #: metric -> the outcome it summarises, and how.
    summaries: Mapping[str, tuple[str, Callable[[npt.NDArray[Any]], float]]]
    #: Outcomes whose per-image values are kept beside the record.
    kept_outcomes: tuple[str, ...]

    def open_batch(self, indices: Tensor) -> Any:
        """Prepare the test images of these numbers once for all their illuminants."""

    def measure(self, batch: Any, illuminants: Tensor) -> dict[str, Tensor]:
        """Return outcomes, one value an image each, under one illuminant an image, ``(N, 3)``."""
