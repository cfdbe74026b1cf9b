"""Released weights: safetensors files with what they are written into them, checked against a list of digests."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
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


class LoadedWeights(NamedTuple):
    """What was loaded: the facts in the file, and its SHA-256."""

    facts: dict[str, Any]
    sha256: str


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
) -> LoadedWeights:
    """Load weights into ``network`` and return the facts and the digest of their file.

    It is read once for all three: beside a living training its place may get another file at any time.

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
    _require_file(path)
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    if (path.parent / DIGESTS).exists():
        _check_digest(path, sha256)
    try:
        weights = load(content)
    except SafetensorError as error:
        raise WeightsError(f"{path} is not a file of weights: {error}") from error
    facts = _facts(content)
    check(facts)
    network.load_state_dict(weights)
    return LoadedWeights(facts, sha256)


def read_facts(path: Path) -> dict[str, Any]:
    """Return the facts in a file of weights.

    Raises:
        FileNotFoundError: if there is no such file.
        WeightsError: if it is not a safetensors file.
    """
    _require_file(path)
    try:
        with safe_open(path, "pt") as file:
            facts: dict[str, Any] = json.loads((file.metadata() or {}).get("facts", "{}"))
    except SafetensorError as error:
        raise WeightsError(f"{path} is not a file of weights: {error}") from error
    return facts


def _require_file(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(f"there are no weights at {path}")
    if not path.is_file():
        raise WeightsError(f"{path} is no file; give a file of weights, such as {path / 'weights.safetensors'}")


def _facts(content: bytes) -> dict[str, Any]:
    """The facts in a safetensors file that is sound: in its header, JSON behind its length in eight bytes."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    facts: dict[str, Any] = json.loads(header.get("__metadata__", {}).get("facts", "{}"))
    return facts


def _check_digest(path: Path, sha256: str) -> None:
    listed, sums = read_digests(path.parent).get(path.name), path.parent / DIGESTS
    if listed is None:
        raise WeightsError(f"{path} is not in {sums}: it is not a released file; release it, or move it elsewhere")
    if listed != sha256:
        raise WeightsError(f"{path} is damaged: its SHA-256 is not the one in {sums}; restore the file")


def read_digests(directory: Path) -> dict[str, str]:
    """Return file name -> SHA-256 of the list in ``directory``, as ``sha256sum`` writes it, empty where there is none.

    Raises:
        WeightsError: if a line is none of such a list; names it.
    """
    path = directory / DIGESTS
    digests: dict[str, str] = {}
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], 1):
        if not line.strip():
            continue
        entry = re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line)
        if entry is None:
            raise WeightsError(f"line {number} of {path} is not a SHA-256 and a file's name; restore the list")
        digests[entry[2]] = entry[1]
    return digests


def add_digest(path: Path) -> None:
    """Enter a file into the list of digests beside it."""
    digests = read_digests(path.parent) | {path.name: file_sha256(path)}
    lines = [f"{digest}  {name}\n" for name, digest in sorted(digests.items())]
    replace_file(path.parent / DIGESTS, "".join(lines).encode())
