"""From a checked configuration to networks, data and tasks.

Each task has a module of its own here; these functions ask the one that the configuration needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import nn

from offset_equivariant.building import illuminant_estimation, inpainting, quasi_unsupervised, recognition
from offset_equivariant.building.common import PlannedTraining, balancing_weights, build_schedule, choose_device
from offset_equivariant.config import ConfigError, ExperimentConfig, check_arguments
from offset_equivariant.data import data_directories
from offset_equivariant.nn.families import FAMILIES
from offset_equivariant.performance.settings import Setting
from offset_equivariant.reporting.descriptions import find_row
from offset_equivariant.tasks.task import Evaluable
from offset_equivariant.training.schedules import SCHEDULES

__all__ = [
    "Images",
    "balancing_weights",
    "build_evaluation",
    "build_network",
    "check_components",
    "choose_device",
    "headline_metric",
    "load_split",
    "memory_format",
    "plan_training",
    "runtime_setting",
]


class Images(Protocol):
    """What every data set says of itself."""

    @property
    def split(self) -> str:
        """Which images these are."""

    @property
    def sha256(self) -> str:
        """Digest of the images: of pixels in memory, of names and sizes of files."""

    def __len__(self) -> int:
        """How many."""

    def to(self, device: Any) -> Any:
        """The same images on a device."""


class TaskBuilder(Protocol):
    """What a task's module has. ``images`` are those that its own ``load_split`` gives."""

    #: Name of the metric by which a run is judged, and its unit.
    HEADLINE: tuple[str, str]

    def check_options(self, config: ExperimentConfig) -> dict[str, Callable[[], object]]:
        """Return, by group of settings, functions that fail where the group cannot be used."""

    def build_network(self, config: ExperimentConfig) -> nn.Module: ...

    def plan_training(self, config: ExperimentConfig, network: nn.Module, images: Any) -> PlannedTraining: ...

    def build_evaluation(self, config: ExperimentConfig, network: nn.Module, images: Any) -> Evaluable: ...

    def load_split(self, config: ExperimentConfig, split: str) -> Any: ...

    def runtime_setting(self, config: ExperimentConfig, device: torch.device) -> Setting: ...


_BUILDERS = {
    "recognition": recognition,
    "illuminant_estimation": illuminant_estimation,
    "inpainting": inpainting,
    "colour_constancy": quasi_unsupervised,
}


def _builder(config: ExperimentConfig) -> TaskBuilder:
    return cast(TaskBuilder, _BUILDERS[config.task])


def build_network(config: ExperimentConfig) -> nn.Module:
    """Build the network with its initial weights, drawn from torch's global generator."""
    return _builder(config).build_network(config)


def plan_training(config: ExperimentConfig, network: nn.Module, images: Any) -> PlannedTraining:
    """Build the training of a network on images, both on the device."""
    return _builder(config).plan_training(config, network, images)


def build_evaluation(config: ExperimentConfig, network: nn.Module, images: Any) -> Evaluable:
    """Build the evaluation of a network on images, both on the device."""
    return _builder(config).build_evaluation(config, network, images)


def load_split(config: ExperimentConfig, split: str) -> Images:
    """Load the images to train on (``train``), or those to evaluate on (``evaluation``).

    Where a recipe is chosen, both are training images: the test images stay unseen.
    """
    images: Images = _builder(config).load_split(config, split)
    return images


def headline_metric(config: ExperimentConfig) -> tuple[str, str]:
    """Return the name of the metric by which a run of this task is judged, and its unit."""
    return _builder(config).HEADLINE


def runtime_setting(config: ExperimentConfig, device: torch.device) -> Setting:
    """Return layout and compilation: those configured, else what the task's module takes for the fastest."""
    return _builder(config).runtime_setting(config, device)


def memory_format(config: ExperimentConfig, device: torch.device) -> torch.memory_format:
    """Return the layout that networks and batches have in memory."""
    return torch.channels_last if runtime_setting(config, device).channels_last else torch.contiguous_format


def check_components(config: ExperimentConfig) -> None:
    """Build whatever needs no data, and throw it away: a wrong option shows before any work.

    Raises:
        ConfigError: names the group of settings, and says what is wrong with it.
    """
    schedule = config.train.schedule
    check_arguments(FAMILIES[config.model.family], config.model.family_options, "model.family_options")
    check_arguments(SCHEDULES[schedule.name], schedule.options, "train.schedule.options", ("total_steps",))
    components: dict[str, Callable[[], object]] = {
        **_builder(config).check_options(config),
        "train.schedule": lambda: build_schedule(config, 1)(0),
        "paths.data": lambda: data_directories(config.paths.data),
        "runtime.device": lambda: choose_device(config.runtime.device),
        "table, row": lambda: None if config.table is None else find_row(config.table, config.row),
    }
    for name, build in components.items():
        try:
            build()
        except ConfigError:
            raise
        except (TypeError, ValueError, KeyError, RuntimeError) as error:
            raise ConfigError(f"{name}: {error}") from error
