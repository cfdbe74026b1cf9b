"""Configurations as flat settings, to be compared: dotted name -> value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Settings that do not change what is trained or measured.
_INDIFFERENT = ("checkpoint_seconds", "log_every", "download")


def flat_settings(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a configuration's settings by their dotted names."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            flat |= flat_settings(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def decisive_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a configuration decides a result, flat.

    A setting that is null is as good as none: it came later, and means what was done before it came.
    """
    return {
        name: value
        for name, value in flat_settings(config).items()
        if value is not None and name.rpartition(".")[2] not in _INDIFFERENT
    }
