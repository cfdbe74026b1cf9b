"""Where a number comes from: commit, configuration, weights, environment."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

#: What decides a result; a change elsewhere, as in the results themselves, does not make a tree dirty.
DECISIVE_PATHS = ("src", "conf", "scripts", "pyproject.toml", "requirements.lock")
_LIBRARIES = ("torch", "torchvision", "numpy", "hydra-core", "omegaconf")


def repository_root() -> Path:
    """Return the folder that holds ``src/offset_equivariant``: the repository, in an editable install."""
    return Path(__file__).resolve().parents[2]


def commit() -> tuple[str, bool]:
    """Return the commit of the code that runs, and whether it has changes that are not committed.

    ("unknown", True) where there is no repository to ask: without git, where git refuses, or in an installed copy, even
    one that lies in a repository of something else.
    """
    head, _, root = (_git("rev-parse", "HEAD", "--show-toplevel") or "").rstrip("\n").partition("\n")
    if not head or Path(root).resolve() != repository_root():
        return "unknown", True
    changes = _git("status", "--porcelain", "--", *DECISIVE_PATHS)
    return head, changes is None or bool(changes.strip())


def _git(*arguments: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", *arguments], cwd=repository_root(), capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout


def config_sha256(config: Mapping[str, Any]) -> str:
    """Return the digest of a configuration, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def device_name(device: torch.device) -> str:
    """Return the name of the GPU, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine() or "cpu"


def device_description(device: torch.device) -> str:
    """Return the name of the GPU, or of the processor with the number of threads that compute."""
    threads = torch.get_num_threads()
    computing = f", {threads} thread{'' if threads == 1 else 's'}" if device.type == "cpu" else ""
    return device_name(device) + computing


def environment(device: torch.device, images: str = "") -> dict[str, Any]:
    """Return versions of Python and the libraries, the platform, and the device.

    Args:
        device: where it is computed.
        images: which copy of a data set was found, where there are several, see ``ImageFiles.note``; returned as
            ``images``, unless it is empty.
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device.type,
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        **{name: metadata.version(name) for name in _LIBRARIES},
        **({"images": images} if images else {}),
    }
