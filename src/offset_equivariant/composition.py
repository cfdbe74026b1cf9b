"""From what Hydra composes to a checked run. Beside the entry point, the only module that knows Hydra."""

from __future__ import annotations

import functools
import logging
import re
import sys
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue, OmegaConfBaseException

from offset_equivariant import provenance
from offset_equivariant.building import check_components
from offset_equivariant.config import TASKS, ConfigError, Task, task_of
from offset_equivariant.data import FILE_DATASETS
from offset_equivariant.runs import Run
from offset_equivariant.settings import CHANGED, INDIFFERENT, SMOKE

log = logging.getLogger(__name__)

# The presets in conf/hydra/launcher have the names of the plugins' own settings, of which Hydra fills in what a preset
# does not say, and warns that it will not always. The presets are complete without.
warnings.filterwarnings("ignore", r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema", UserWarning)

CONFIGURATION = provenance.repository_root() / "conf"
#: What the presets of the data sets of Table 2 are called in conf/train, before the preset's own name.
_IMAGENET = "imagenet_"
#: What a task's other presets are called.
_PRESET_PREFIXES: dict[Task, str] = {
    "recognition": "",
    "illuminant_estimation": "nus_",
    "inpainting": "inpainting_",
    "colour_constancy": "quasi_",
}
#: A setting that an experiment's name says, as in ``original_lr${train.learning_rate}``.
_IN_NAME = re.compile(r"\$\{(?:oc\.select:)?([\w.]+)")


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
    _name_changed_preset(settings)
    return settings


def _name_changed_preset(settings: dict[str, Any]) -> None:
    """Give a training whose settings are not those of its experiment and preset another preset's name.

    Its numbers would otherwise stand as those of the experiment. The name ends in a digest of what was changed, so
    that two different changes have two names. A smoke test has only one: it measures nothing.

    Raises:
        ConfigError: if the settings claim to be a row of a table under a name that is no experiment's.
    """
    name, preset = settings["name"], settings["train"]["preset"]
    experiment, said = _experiment_of(settings)
    if settings["table"] is not None and experiment != name:
        raise ConfigError(
            f"name = {name!r} is no experiment of conf/experiment; give table=null with a name of its own"
        )
    dataset = settings["dataset"]["name"]
    task = task_of(dataset, settings["model"]["architecture"]) if dataset in TASKS else "recognition"
    group = (_IMAGENET if dataset in FILE_DATASETS else _PRESET_PREFIXES[task]) + preset
    if preset == SMOKE or not (CONFIGURATION / "train" / f"{group}.yaml").exists():
        return
    words = [f"train={group}", *([f"experiment={experiment}"] if experiment else [])]
    meant = OmegaConf.to_container(composed_words(words), resolve=False)
    assert isinstance(meant, dict)
    sections = ("table", "row", "dataset", "model", "strategy", "train") if experiment else ("train",)
    changed = {s: _differences(settings[s], meant[s], said, s) for s in sections if settings[s] != meant[s]}
    changed = {section: difference for section, difference in changed.items() if difference != {}}
    if changed:
        settings["train"]["preset"] += f"{CHANGED}{provenance.config_sha256(changed)[:6]}"


def _experiment_of(settings: Mapping[str, Any]) -> tuple[str | None, tuple[str, ...]]:
    """Return the file in conf/experiment that settings have their name from, and which settings that name says.

    None for a name of their own. What Hydra was told to choose is not among the settings.
    """
    name = settings["name"]
    if (CONFIGURATION / "experiment" / f"{name}.yaml").exists():
        return name, ()
    for experiment, pattern in _names_with_settings().items():
        try:
            if OmegaConf.create({**settings, "name": pattern}).name == name:
                return experiment, tuple(_IN_NAME.findall(pattern))
        except InterpolationResolutionError:  # of a setting that there is not
            continue
    return None, ()


@functools.cache
def _names_with_settings() -> dict[str, str]:
    """File in conf/experiment -> name of the experiment, not resolved; of those whose names say some settings."""
    names = {path.stem: _unresolved_name(path) for path in sorted((CONFIGURATION / "experiment").glob("*.yaml"))}
    return {experiment: name for experiment, name in names.items() if _IN_NAME.search(name)}


def _unresolved_name(path: Path) -> str:
    content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    return str(content.get("name", "")) if isinstance(content, dict) else ""


def _differences(given: Any, meant: Any, free: tuple[str, ...], path: str) -> Any:
    """Return what was given where it is not what was meant, key by key, without the settings ``free``.

    Nested as the settings are, unlike what :func:`~.settings.differing_settings` returns: its digest is part of names.
    """
    if not isinstance(given, dict) or not isinstance(meant, dict):
        return given
    found = {}
    for name in {**meant, **given}:
        ours, theirs, dotted = given.get(name), meant.get(name), f"{path}.{name}"
        if ours == theirs or name in INDIFFERENT or dotted in free:
            continue
        difference = _differences(ours, theirs, free, dotted)
        if difference or not (isinstance(ours, dict) and isinstance(theirs, dict)):
            found[name] = difference
    return found


def composed_words(words: list[str]) -> DictConfig:
    """Compose the repository's configuration from a command line's words, inside an application of Hydra's or not."""
    if GlobalHydra.instance().is_initialized():
        return compose("config", words)
    with initialize_config_dir(str(CONFIGURATION), version_base="1.3"):
        return compose("config", words)


class CheckEveryJob(Callback):
    """Checks the settings of all jobs of a multirun before its first one starts: ``hydra.callbacks`` names it.

    Only of Hydra's own sweeper is it known beforehand what the jobs will be. With another, each job is checked when
    its turn comes.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """End the process, with status 2, if a job is wrong: Hydra makes a warning of a callback's exception."""
        launcher = config.hydra.launcher["_target_"]
        _require_launcher(launcher)
        if not config.hydra.sweeper["_target_"].endswith(BasicSweeper.__name__):
            return
        try:
            jobs = _words_of_jobs(config)
        except HydraException as error:
            log.error("%s", error)
            sys.exit(2)
        # Slurm's jobs run on other machines; each finds out for itself whether its own has the device.
        there = ["runtime.device=auto"] if launcher.endswith(".SlurmLauncher") else []
        for number, words in enumerate(jobs):
            try:
                checked_run(compose(config.hydra.job.config_name, [*words, *there]))
            except (ConfigError, HydraException, OmegaConfBaseException) as error:
                own = [word for word in words if any(word not in others for others in jobs)]
                log.error("job %d (%s): %s", number, " ".join(own), error)
                sys.exit(2)


def _require_launcher(target: str) -> None:
    """End the process, with status 2, if the launcher's plugin, ``hydra_plugins.<name>...``, is not installed."""
    package = ".".join(target.split(".")[:2])
    if package.startswith("hydra_plugins.") and not (find_spec("hydra_plugins") and find_spec(package)):
        log.error("%s is not installed; install it with: pip install -e '.[cluster]'", package.partition(".")[2])
        sys.exit(2)


def _words_of_jobs(config: DictConfig) -> list[list[str]]:
    """Return the command line of each job, as Hydra's own sweeper will make them."""
    given = [f"{name}={value}" for name, value in (config.hydra.sweeper.params or {}).items()]
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())  # for glob(...)
    words = parser.parse_overrides([*given, *config.hydra.overrides.task])
    (jobs,) = BasicSweeper.split_arguments(words, max_batch_size=None)
    return jobs
