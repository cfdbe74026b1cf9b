"""The fastest setting of a layer family on this device, from what ``make benchmark`` measured."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from offset_equivariant.provenance import device_name

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setting:
    """Layout in memory, and whether the network is compiled."""

    channels_last: bool
    compile: bool


#: Where nothing was measured: the layout that convolutions like on CPUs and GPUs, and no waiting for a compiler.
UNMEASURED = Setting(channels_last=True, compile=False)


def device_slug(device: torch.device) -> str:
    """Return a name for this device that can be a file's."""
    name = device_name(device) + ("" if device.type == "cuda" else f" {torch.get_num_threads()}t")
    return re.sub(r"[^a-z0-9]+", "-", f"{device.type} {name}".lower()).strip("-")


def benchmark_path(results: Path, device: torch.device) -> Path:
    """Return where the measurements of this device are kept."""
    return results / "benchmarks" / f"{device_slug(device)}.json"


def fastest_setting(
    family: str,
    steps: int,
    device: torch.device,
    results: Path,
    *,
    channels_last: bool | None = None,
    compile: bool | None = None,
) -> Setting:
    """Return the setting whose compilation and ``steps`` training steps together take the least time.

    Args:
        family: ``conventional`` or ``offset_equivariant``.
        steps: of the whole training.
        device: where.
        results: folder with the measurements; without those of this device, ``UNMEASURED`` counts.
        channels_last: what is decided already, or None.
        compile: likewise.
    """
    asked = {"channels_last": channels_last, "compile": compile}
    decided: dict[str, bool] = {name: value for name, value in asked.items() if value is not None}
    path = benchmark_path(results, device)
    rows = json.loads(path.read_text())["settings"] if path.exists() else []
    rows = [row for row in rows if row["family"] == family and decided.items() <= row.items()]
    if not rows:
        return replace(UNMEASURED, **decided)
    best = min(rows, key=lambda row: (training_seconds(row, steps), row["step_ms"]["median"]))
    return Setting(best["channels_last"], best["compile"])


def training_seconds(row: dict[str, Any], steps: int) -> float:
    """Time that a training takes by one row of the table of settings."""
    return float(row["compile_seconds"]) + steps * float(row["step_ms"]["median"]) / 1000


class CompiledOrEager:
    """A network compiled by ``torch.compile``, or as it is where that fails; which is said once.

    The first call tries the compiled network, gradients included, and throws the result away: what fails then is not
    in the middle of a training step. An error that is the network's own shows again without the compiler.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._chosen: Callable[[Tensor], Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self._chosen is None:
            self._chosen = self._tried(x)
        return self._chosen(x)

    def _tried(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        buffers = {name: buffer.clone() for name, buffer in self._network.named_buffers()}
        weights = [parameter for parameter in self._network.parameters() if parameter.requires_grad]
        devices = [x.device] if x.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices):
                compiled: Callable[[Tensor], Tensor] = torch.compile(self._network)
                scores = compiled(x)
                if weights and torch.is_grad_enabled():
                    torch.autograd.grad(scores.float().sum(), weights, allow_unused=True)
        except Exception as error:  # a compiler fails in many ways, all of which mean the same
            reason = " ".join((str(error) or type(error).__name__).split())[:200]
            log.warning("torch.compile failed (%s); going on without it", reason)
            return self._network
        finally:
            with torch.no_grad():
                for name, buffer in self._network.named_buffers():
                    buffer.copy_(buffers[name])
        return compiled
