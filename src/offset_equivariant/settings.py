"""Configurations as flat settings, to be compared: dotted name -> value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Settings that change nothing that is learned or measured, in whatever section: how often a run is looked at or saved,
#: and where its data come from.
INDIFFERENT = ("checkpoint_seconds", "log_every", "download")
#: Settings that say where and how to compute or what to do, and so are not part of what a number is a result of.
_UNRECORDED = ("mode", "weights", "runtime", "logger", "paths")

#: Preset that tries out whether all works: it measures nothing.
SMOKE = "smoke"
#: In the name of a preset that something was changed of, before a digest of what it was.
CHANGED = "_changed_"


def is_recipe(preset: str) -> bool:
    """Whether a preset is a recipe as it is meant, whose numbers may stand beside the paper's as its experiment's."""
    return preset != SMOKE and CHANGED not in preset


def flat_settings(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a configuration's settings by their dotted names."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            flat |= flat_settings(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def recorded_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return, of an experiment's settings, those that a record's numbers are a result of.

    Without the saturations: which were measured is what the metrics say, and jobs of one each make one record.
    """
    recorded = {name: value for name, value in settings.items() if name not in _UNRECORDED}
    recorded["distortion"] = {k: v for k, v in recorded["distortion"].items() if k not in ("saturation", "saturations")}
    return recorded


def decisive_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a configuration decides a result, flat.

    A setting that is null is as good as none: it came later, and means what was done before it came.
    """
    return {
        name: value
        for name, value in flat_settings(config).items()
        if value is not None and name.rpartition(".")[2] not in INDIFFERENT
    }


def differing_settings(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the decisive settings in which two configurations differ, sorted: dotted name -> value in each.

    A value is None where its configuration lacks the setting.
    """
    ours, theirs = decisive_settings(first), decisive_settings(second)
    pairs = {name: (ours.get(name), theirs.get(name)) for name in sorted(ours.keys() | theirs.keys())}
    return {name: (a, b) for name, (a, b) in pairs.items() if a != b}
