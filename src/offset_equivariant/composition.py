"""From what Hydra composes to a checked run. Beside the entry point, the only module that knows Hydra."""

from __future__ import annotations

import logging
import sys
from typing import Any, cast

from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from offset_equivariant import provenance
from offset_equivariant.building import check_components
from offset_equivariant.config import ConfigError
from offset_equivariant.runs import Run

log = logging.getLogger(__name__)

CONFIGURATION = provenance.repository_root() / "conf"


def checked_run(composed: DictConfig) -> Run:
    """Make the run of one composed configuration, all of its settings checked, nothing begun.

    Raises:
        ConfigError: for a missing or wrong setting.
    """
    run = Run(plain_settings(composed))
    check_components(run.config)
    return run


def plain_settings(composed: DictConfig) -> dict[str, Any]:
    """Return a composed configuration as dictionaries, lists and values.

    Raises:
        ConfigError: if a setting that has no default was not given.
    """
    try:
        settings = cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True, throw_on_missing=True))
    except MissingMandatoryValue as error:
        experiments = ", ".join(sorted(path.stem for path in (CONFIGURATION / "experiment").glob("*.yaml")))
        advice = f"experiment=<one of {experiments}>" if error.full_key in ("name", "row") else f"{error.full_key}="
        raise ConfigError(f"setting {error.full_key} has no value; give {advice}") from error
    _name_changed_preset(settings["train"])
    return settings


def _name_changed_preset(train: dict[str, Any]) -> None:
    """A preset with a setting changed is another one: its numbers must not stand under the preset's name."""
    path = CONFIGURATION / "train" / f"{train['preset']}.yaml"
    preset = OmegaConf.to_container(OmegaConf.load(path)) if path.exists() else {}
    assert isinstance(preset, dict)
    decisive = [name for name in preset if name in train and name not in ("log_every", "checkpoint_seconds")]
    if any(train[name] != preset[name] for name in decisive):
        train["preset"] += "_changed"


class CheckEveryJob(Callback):
    """Checks the settings of all jobs of a multirun before its first one starts: ``hydra.callbacks`` names it.

    Only of Hydra's own sweeper is it known beforehand what the jobs will be. With another, each job is checked when
    its turn comes.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """End the process, with status 2, if a job is wrong: Hydra makes a warning of a callback's exception."""
        if not config.hydra.sweeper["_target_"].endswith(BasicSweeper.__name__):
            return
        jobs = _words_of_jobs(config)
        for number, words in enumerate(jobs):
            try:
                checked_run(compose(config.hydra.job.config_name, words))
            except (ConfigError, HydraException, OmegaConfBaseException) as error:
                own = [word for word in words if any(word not in others for others in jobs)]
                log.error("job %d (%s): %s", number, " ".join(own), error)
                sys.exit(2)


def _words_of_jobs(config: DictConfig) -> list[list[str]]:
    """Return the command line of each job, as Hydra's own sweeper will make them."""
    given = [f"{name}={value}" for name, value in (config.hydra.sweeper.params or {}).items()]
    words = OverridesParser.create().parse_overrides([*given, *config.hydra.overrides.task])
    (jobs,) = BasicSweeper.split_arguments(words, max_batch_size=None)
    return jobs
