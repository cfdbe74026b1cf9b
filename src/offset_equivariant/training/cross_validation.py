"""Cross-validation as one training of several networks, one after the other, and one evaluation of them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, cast

from torch import Tensor, nn

from offset_equivariant.tasks.task import Stateful, Trainable
from offset_equivariant.training.schedules import Schedule


class CrossValidated(nn.Module):
    """One network a fold. Each image is given to that of its own fold, which was trained without it.

    Args:
        build: makes one network, with initial weights of its own at each call.
        folds: how many.
    """

    def __init__(self, build: Callable[[], nn.Module], folds: int) -> None:
        super().__init__()
        self.networks = nn.ModuleList(build() for _ in range(folds))

    def forward(self, x: Tensor, folds: Tensor) -> Tensor:
        """Map images ``(N, ...)`` and the fold of each, ``(N,)`` integers, to outputs ``(N, ...)``.

        Raises:
            ValueError: if there is no network of a fold.
        """
        present = folds.unique().tolist()
        if not present or min(present) < 0 or max(present) >= len(self.networks):
            raise ValueError(f"folds {present} are not all among the {len(self.networks)} that networks were built for")
        outputs: Tensor | None = None
        for fold in present:
            chosen = (folds == fold).nonzero().flatten().to(x.device)
            found = cast(Tensor, self.networks[fold](x[chosen]))
            if outputs is None:
                outputs = found.new_empty((len(x), *found.shape[1:]))
            outputs[chosen] = found
        assert outputs is not None
        return outputs


class FoldTraining(Trainable, Protocol):
    """A training of one fold's network, which knows how long an epoch is."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which the training images are seen once."""


class CrossValidationTraining:
    """The folds' trainings, one after the other, as one.

    Args:
        network: what all of them train.
        folds: one training for each of the network's parts.
        steps: of each fold.
    """

    def __init__(self, network: CrossValidated, folds: Sequence[FoldTraining], steps: Sequence[int]) -> None:
        if not len(network.networks) == len(folds) == len(steps):
            raise ValueError(
                f"{len(network.networks)} networks, {len(folds)} trainings and {len(steps)} lengths differ"
            )
        self.batch_size = folds[0].batch_size
        self._network = network
        self._folds = list(folds)
        self._steps = list(steps)

    @property
    def total_steps(self) -> int:
        """Steps of all folds."""
        return sum(self._steps)

    def modules(self) -> Mapping[str, nn.Module]:
        return {"network": self._network}

    def optimizers(self) -> Mapping[str, Stateful]:
        return {f"fold{i}": optimizer for i, fold in enumerate(self._folds) for optimizer in fold.optimizers().values()}

    def training_step(self, step: int, learning_rate_factor: float) -> dict[str, Tensor]:
        """Take the next step of the fold whose turn it is."""
        fold, own = self._locate(step)
        return self._folds[fold].training_step(own, learning_rate_factor)

    def schedule(self, make: Callable[[int], Schedule]) -> Schedule:
        """Return the learning rates of all steps: each fold has a schedule of its own, made for its number of steps."""
        schedules = [make(steps) for steps in self._steps]

        def factor(step: int) -> float:
            fold, own = self._locate(step)
            return schedules[fold](own)

        return factor

    def _locate(self, step: int) -> tuple[int, int]:
        for fold, steps in enumerate(self._steps):
            if step < steps:
                return fold, step
            step -= steps
        raise IndexError(f"there are only {self.total_steps} steps")


def parameters_of_one(network: nn.Module) -> int:
    """Return the number of parameters, of a cross-validated network those of one fold's."""
    one = network.networks[0] if isinstance(network, CrossValidated) else network
    assert isinstance(one, nn.Module)
    return sum(parameter.numel() for parameter in one.parameters())
