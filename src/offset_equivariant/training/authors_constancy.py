"""Weights of quasi-unsupervised colour constancy as its authors publish them, such as ``ilsvrc12-eg.pt``.

The file is a pickle of a dictionary: ``model``, the state of the network, ``args``, the command line of its training,
and what training goes on from. It is read without running any code in it: nothing but tensors, plain values and the
``Namespace`` of the command line is made.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offset_equivariant.models.quasi_unsupervised import QuasiUnsupervised
from offset_equivariant.provenance import file_sha256

#: What the network is shown (equalised intensity and gradient directions), and what is averaged (colours).
_CODES = {"input": "eg", "output": "c"}
#: Their names: a convolution and a transposed one around a nest of pairs of them, each inside the one before.
_NAME = re.compile(r"(?P<nest>(?:inner\.)*)(?P<part>conv|deconv|down|up)\.(?P<layer>[01])\.(?P<tensor>\w+)")


def read_authors_file(path: Path) -> tuple[QuasiUnsupervised, dict[str, Any]]:
    """Read a file of the authors', and return the network and the facts to be written with its weights.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds anything but tensors and plain values, or another network, or one that was trained on
            another coding of its input.
    """
    content = _load(path)
    arguments = vars(content["args"])
    for name, expected in _CODES.items():
        if arguments.get(name) != expected:
            raise ValueError(
                f"{path} was trained with --{name} {arguments.get(name)}; only --{name} {expected} can be converted"
            )
    weights: Mapping[str, Tensor] = content["model"]
    size = arguments.get("image_size")
    try:
        levels = 1 + max(name.count("inner.") for name in weights)
        options = {
            "levels": levels,
            "width": len(weights["conv.0.weight"]),
            "image_size": int(1 << levels if size is None else size),
        }
        network = QuasiUnsupervised(**options)
        network.load_state_dict({_translated(name, levels): tensor for name, tensor in weights.items()})
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path} holds another network than quasi-unsupervised colour constancy's: {error}") from error
    plain = {name: value for name, value in arguments.items() if isinstance(value, str | int | float | None)}
    source = {"file": path.name, "sha256": file_sha256(path), "arguments": plain}
    return network, {"config": {"model": {"architecture": "quasi_unsupervised", "options": options}}, "source": source}


def _load(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can fail in any way; whichever it is, the reason is passed on
        raise ValueError(f"{path} is not a file of tensors and plain values, and was not read: {error}") from error
    entries = content if isinstance(content, dict) else {}
    model, arguments = entries.get("model"), entries.get("args")
    if not (isinstance(model, Mapping) and isinstance(arguments, argparse.Namespace)):
        raise ValueError(f"{path} has not the entries model (weights) and args (command line) of the authors' files")
    if not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in model.items()):
        raise ValueError(f"{path}: its entry model is not made of named tensors")
    return entries


def _translated(name: str, levels: int) -> str:
    """Return this package's name of one of their tensors."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"unknown name {name}")
    level, part, layer = match["nest"].count("."), match["part"], match["layer"]
    if (level == 0) != (part in ("conv", "deconv")):
        raise ValueError(f"unknown name {name}")
    if part in ("conv", "down"):
        return f"down.{level}.{layer}.{match['tensor']}"
    number = levels - 1 - level
    return f"up.{number}.{match['tensor']}" if part == "deconv" else f"up.{number}.{layer}.{match['tensor']}"
