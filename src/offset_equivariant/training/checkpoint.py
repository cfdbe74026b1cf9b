"""Checkpoints from which a run goes on as if it had never stopped.

A checkpoint is a plain dictionary of tensors, numbers and strings: it loads with ``weights_only=True`` and runs no
code. It is written under a temporary name and renamed, so a crash leaves the one before it whole.
"""

from __future__ import annotations

import io
import logging
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from offset_equivariant.storage import replace_file
from offset_equivariant.tasks.task import Stateful

log = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """Checkpoints that cannot be read; says what to do."""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run, in one directory, the newest ``keep`` kept."""

    directory: Path
    keep: int = 2

    def paths(self) -> list[Path]:
        """Return the checkpoints there are, oldest first."""
        return sorted(self.directory.glob("step-*.pt"))

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Write ``state`` as the checkpoint of ``step`` and delete all but the newest ``keep``."""
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / f"step-{step:08d}.pt"
        content = io.BytesIO()
        torch.save(dict(state), content)
        replace_file(path, content.getvalue())
        for old in self.paths()[: -self.keep]:
            old.unlink()
        return path

    def latest(self) -> dict[str, Any] | None:
        """Load the newest readable checkpoint to the CPU, or None.

        One that cannot be read is named in a warning and passed over.

        Raises:
            CheckpointError: if there are checkpoints and all are damaged.
            OSError: if the file system does not give one.
        """
        paths = self.paths()
        for path in reversed(paths):
            try:
                state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
                return state
            except (OSError, MemoryError):  # say nothing of the checkpoint, which may well be whole
                raise
            except Exception as error:  # a damaged file fails in many ways, all of which mean the same
                log.warning("checkpoint %s cannot be read (%s); trying the one before it", path, error)
        if paths:
            raise CheckpointError(
                f"none of the checkpoints in {self.directory} can be read; remove the folder to begin anew"
            )
        return None


def random_states() -> dict[str, Any]:
    """Return the state of every global random number generator, as tensors and plain numbers.

    Of several GPUs, that of the current one: a process computes on one, and may go on where there are fewer.
    """
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
        "mps": [torch.mps.get_rng_state()] if torch.backends.mps.is_available() else [],
    }


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Put every global random number generator back to where :func:`random_states` found it.

    A device that is not here is passed over. Where there are states of several GPUs, as in older checkpoints, the
    current one gets its own.
    """
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] and torch.cuda.is_available():
        current = torch.cuda.current_device()
        torch.cuda.set_rng_state(states["cuda"][current if current < len(states["cuda"]) else 0].cpu())
    if states.get("mps") and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"][0].cpu())


def training_state(modules: Mapping[str, nn.Module], optimizers: Mapping[str, Stateful]) -> dict[str, Any]:
    """Return what a checkpoint holds of networks, optimisers and random number generators."""
    return {
        "modules": {name: module.state_dict() for name, module in modules.items()},
        "optimizers": {name: optimizer.state_dict() for name, optimizer in optimizers.items()},
        "random": random_states(),
    }


def restore_training_state(
    state: Mapping[str, Any], modules: Mapping[str, nn.Module], optimizers: Mapping[str, Stateful]
) -> None:
    """Put networks, optimisers and random number generators back to where :func:`training_state` found them."""
    for name, module in modules.items():
        module.load_state_dict(state["modules"][name])
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(state["optimizers"][name])
        if isinstance(optimizer, torch.optim.Optimizer):
            _lay_out_as_weights(optimizer)
    restore_random_states(state["random"])


def _lay_out_as_weights(optimizer: torch.optim.Optimizer) -> None:
    """Give what an optimiser keeps of each weight that weight's memory layout, which may be another than when saved.

    On the CPU, torch's fused optimisers pair elements by their place in memory, without a check.
    """
    for weight, kept in optimizer.state.items():
        for name, value in kept.items():
            if isinstance(value, torch.Tensor) and value.shape == weight.shape:
                kept[name] = torch.empty_like(weight, dtype=value.dtype, device=value.device).copy_(value)


def seed_everything(seed: int) -> None:
    """Seed every global random number generator: Python's, NumPy's and torch's, on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
