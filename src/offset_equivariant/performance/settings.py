"""The fastest setting of a layer family on this device, from what ``make benchmark`` measured."""

from __future__ import annotations

import json
import logging
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

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
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{_processor()} {torch.get_num_threads()}t"
    return re.sub(r"[^a-z0-9]+", "-", f"{device.type} {name}".lower()).strip("-")


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def benchmark_path(results: Path, device: torch.device) -> Path:
    """Return where the measurements of this device are kept."""
    return results / "benchmarks" / f"{device_slug(device)}.json"


def fastest_setting(family: str, steps: int, device: torch.device, results: Path) -> Setting:
    """Return the setting whose compilation and ``steps`` training steps together take the least time.

    Args:
        family: ``conventional`` or ``offset_equivariant``.
        steps: of the whole training.
        device: where.
        results: folder with the measurements; without those of this device, ``UNMEASURED`` is returned.
    """
    path = benchmark_path(results, device)
    if not path.exists():
        return UNMEASURED
    measured = [row for row in json.loads(path.read_text())["settings"] if row["family"] == family]
    if not measured:
        return UNMEASURED
    best = min(measured, key=lambda row: training_seconds(row, steps))
    return Setting(best["channels_last"], best["compile"])


def training_seconds(row: dict[str, Any], steps: int) -> float:
    """Time that a training takes by one row of the table of settings."""
    return float(row["compile_seconds"]) + steps * float(row["step_ms"]["median"]) / 1000


class CompiledOrEager:
    """A network compiled by ``torch.compile``, or as it is where that fails; which is said once."""

    def __init__(self, network: nn.Module) -> None:
        self._network: Callable[[Tensor], Tensor] = network
        self._compiled: Callable[[Tensor], Tensor] | None = torch.compile(network)

    def __call__(self, x: Tensor) -> Tensor:
        if self._compiled is not None:
            try:
                return self._compiled(x)
            except torch._dynamo.exc.TorchDynamoException as error:
                reason = " ".join(str(error).split())[:200]
                log.warning("torch.compile failed (%s); going on without it", reason)
                self._compiled = None
        return self._network(x)
