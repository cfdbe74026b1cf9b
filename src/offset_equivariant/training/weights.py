"""Released weights: safetensors files with what they are written into them, checked against a list of digests."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import nn

from offset_equivariant.nn.constraint import remove_parametrizations_
from offset_equivariant.provenance import file_sha256
from offset_equivariant.storage import replace_file

#: Name of the list of digests beside the weights, in the format of ``sha256sum``.
DIGESTS = "SHA256SUMS"
#: Fact about weights that learned from images which another network balanced: the digest of that network's file.
BALANCING_WEIGHTS = "balancing_weights"


class WeightsError(ValueError):
    """A file of weights that cannot be used; says why, and what to do."""


def save_weights(network: nn.Module, path: Path, facts: Mapping[str, Any]) -> str:
    """Write the network's weights and buffers, constraints applied, and return the file's SHA-256.

    Args:
        network: what to save; parametrised layers are saved as plain ones.
        path: of the safetensors file.
        facts: written into the file's metadata: plain values.
    """
    # The projection's rounding depends on the layout in memory, and the file's digest on that.
    plain = copy.deepcopy(network).cpu().to(memory_format=torch.contiguous_format)
    remove_parametrizations_(plain)
    tensors = {name: tensor.contiguous() for name, tensor in plain.state_dict().items()}
    replace_file(path, save(tensors, {"facts": json.dumps(facts, sort_keys=True)}))
    return file_sha256(path)


def load_weights(
    network: nn.Module, path: Path, check: Callable[[Mapping[str, Any]], None] = lambda facts: None
) -> dict[str, Any]:
    """Load weights into ``network`` and return the facts in the file.

    Args:
        network: what to load into.
        path: of the safetensors file.
        check: refuses facts that do not fit, by an error of its own, before anything is loaded.

    Raises:
        FileNotFoundError: if there is no such file.
        WeightsError: if it is not a safetensors file, or if there is a ``SHA256SUMS`` beside it that lacks it or has
            another digest for it.
        RuntimeError: if the weights are of another network.
    """
    if path.is_file() and (path.parent / DIGESTS).exists():
        _check_digest(path)
    facts = read_facts(path)
    check(facts)
    network.load_state_dict(load_file(path))
    return facts


def read_facts(path: Path) -> dict[str, Any]:
    """Return the facts in a file of weights.

    Raises:
        FileNotFoundError: if there is no such file.
        WeightsError: if it is not a safetensors file.
    """
    if not path.exists():
        raise FileNotFoundError(f"there are no weights at {path}")
    if not path.is_file():
        raise WeightsError(f"{path} is no file; give a file of weights, such as {path / 'weights.safetensors'}")
    try:
        with safe_open(path, "pt") as file:
            facts: dict[str, Any] = json.loads((file.metadata() or {}).get("facts", "{}"))
    except SafetensorError as error:
        raise WeightsError(f"{path} is not a file of weights: {error}") from error
    return facts


def _check_digest(path: Path) -> None:
    listed, sums = read_digests(path.parent).get(path.name), path.parent / DIGESTS
    if listed is None:
        raise WeightsError(f"{path} is not in {sums}: it is not a released file; release it, or move it elsewhere")
    if listed != file_sha256(path):
        raise WeightsError(f"{path} is damaged: its SHA-256 is not the one in {sums}; restore the file")


def read_digests(directory: Path) -> dict[str, str]:
    """Return file name -> SHA-256 of the list in ``directory``, empty where there is none."""
    path = directory / DIGESTS
    if not path.exists():
        return {}
    return {name: digest for digest, name in (line.split(maxsplit=1) for line in path.read_text().splitlines())}


def add_digest(path: Path) -> None:
    """Enter a file into the list of digests beside it."""
    digests = read_digests(path.parent) | {path.name: file_sha256(path)}
    lines = [f"{digest}  {name}\n" for name, digest in sorted(digests.items())]
    replace_file(path.parent / DIGESTS, "".join(lines).encode())
