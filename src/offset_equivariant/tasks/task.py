"""The interfaces by which training, sweep and records know every task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy.typing as npt
from torch import Tensor, nn


class Stateful(Protocol):
    """What a checkpoint can hold: an optimiser, for instance. Its state is of plain values and tensors."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state on."""


class Trainable(Protocol):
    """One training: networks, optimisers and what happens in a step."""

    batch_size: int

    def modules(self) -> Mapping[str, nn.Module]:
        """Every network that is trained, by name."""

    def optimizers(self) -> Mapping[str, Stateful]:
        """Every optimiser, by name, and whatever else has a state that the steps change."""

    def training_step(self, step: int, learning_rate_factor: float) -> dict[str, Tensor]:
        """Take one optimisation step and return scalars to report, still on the device; ``loss`` must be among them."""


@dataclass(frozen=True)
class Observation:
    """What a training shows of itself beside its scalars.

    Attributes:
        warnings: what seems to go wrong.
        pictures: uint8 ``(3, H, W)``, sRGB, by name.
    """

    warnings: tuple[str, ...] = ()
    pictures: Mapping[str, Tensor] = field(default_factory=dict)


class Watch(Protocol):
    """Looks at a training without changing it."""

    def __call__(self, scalars: Mapping[str, float], step: int) -> Observation:
        """Look at it after ``step`` steps; ``scalars`` are means since the last look."""

    def recall(self, scalars: Mapping[str, float], step: int) -> None:
        """Take note of what was looked at before the training was taken up again."""


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
