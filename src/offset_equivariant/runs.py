"""A run and its directory: its settings, its weights, and how they came about."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from offset_equivariant import provenance
from offset_equivariant.config import TRAINING_SECTIONS, ExperimentConfig, experiment_config
from offset_equivariant.settings import INDIFFERENT, differing_settings
from offset_equivariant.storage import locked, replace_file
from offset_equivariant.training.checkpoint import Checkpoints
from offset_equivariant.training.loop import FitState, last_means
from offset_equivariant.training.ranks import first_rank_first, is_first
from offset_equivariant.training.weights import BALANCING_WEIGHTS, load_weights, read_facts, save_weights

log = logging.getLogger(__name__)


class RunDirectoryError(RuntimeError):
    """A run's directory, or a file of weights, belongs to other settings."""


@dataclass(frozen=True)
class Weights:
    """Weights to evaluate: the file (None where nothing is learned), its digest, and how they came about."""

    path: Path | None
    sha256: str
    facts: Mapping[str, Any]


def released_weights_path(results: Path, experiment: str, seed: int) -> Path:
    """Return where the weights of an experiment are released."""
    return results / "checkpoints" / f"{experiment}-seed{seed}.safetensors"


def run_directory(runs: Path, experiment: str, seed: int) -> Path:
    """Return the directory of a run below that of all runs."""
    return runs / experiment / f"seed={seed}"


@functools.cache
def code_version() -> tuple[str, bool]:
    """Return :func:`~offset_equivariant.provenance.commit`, asked once.

    The code that runs is the one that was loaded, whatever is committed while the runs of a process go on for days.
    Warns where a number cannot be traced to a commit.
    """
    commit, dirty = provenance.commit()
    if dirty:
        root = provenance.repository_root()
        known = f"differs from commit {commit[:8]}" if commit != "unknown" else "is of no commit that is known"
        log.warning(
            "the code in %s %s ('git status' there says why): what is trained or measured with it is marked so, and "
            "does not count as made",
            root,
            known,
        )
    return commit, dirty


class Run:
    """One experiment at one seed, and its directory, which the configuration alone decides.

    Args:
        settings: the resolved configuration, plain dictionaries, lists and values.

    Raises:
        ConfigError: for a wrong setting.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        self.config: ExperimentConfig = experiment_config(settings)
        self.directory = run_directory(Path(self.config.paths.runs), self.config.experiment, self.config.seed)
        self.checkpoints = Checkpoints(self.directory / "checkpoints")
        self.commit, self.dirty = code_version()
        self._claimed = False

    @property
    def weights_path(self) -> Path:
        """Where the weights of the run's end, or of its last evaluation, lie."""
        return self.directory / "weights.safetensors"

    @property
    def _settings_path(self) -> Path:
        return self.directory / "config.json"

    @property
    def training_settings(self) -> dict[str, Any]:
        """The part of the settings that decides what is learned, as JSON would give it back."""
        chosen = {name: self.settings[name] for name in TRAINING_SECTIONS}
        for section, settings in chosen.items():
            if isinstance(settings, Mapping):
                chosen[section] = {name: value for name, value in settings.items() if name not in INDIFFERENT}
        plain: dict[str, Any] = json.loads(json.dumps(chosen))
        return plain

    def sole_use(self) -> AbstractContextManager[None]:
        """Hold the directory for this process alone; a second one waits until the first is done."""
        return locked(self.directory / ".lock")

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the directory for this process, or of several ranks the first, as the run of these settings.

        A second process waits. Within this context it may be entered again.

        Raises:
            RunDirectoryError: if the run there has other settings, before waiting, perhaps for days, or after.
        """
        if self._claimed:
            yield
            return
        self.require_same_settings()
        with self.sole_use() if is_first() else nullcontext():
            first_rank_first(self.claim)
            self._claimed = True
            try:
                yield
            finally:
                self._claimed = False

    def require_same_settings(self) -> None:
        """Check that the settings in the run's directory, where there are some, are these.

        Raises:
            RunDirectoryError: if they are not; names the settings that differ.
        """
        if self._settings_path.exists():
            found = json.loads(self._settings_path.read_text())
            advice = "Give the experiment another name=, another paths.runs=, or remove what is there"
            _require_same(f"the run in {self.directory}", found, self.training_settings, advice)

    def claim(self) -> None:
        """Write the settings into a new run's directory, or check that those of an old run are the same.

        Raises:
            RunDirectoryError: if they are not; names the settings that differ.
        """
        self.require_same_settings()
        if not self._settings_path.exists():
            content = json.dumps(self.training_settings, indent=1, sort_keys=True) + "\n"
            replace_file(self._settings_path, content.encode())

    def saved_state(self, network: nn.Module) -> FitState | None:
        """Load the newest checkpoint's weights into ``network`` and return where the run stands; None if nowhere."""
        saved = self.checkpoints.latest()
        if saved is None:
            return None
        network.load_state_dict(saved["modules"]["network"])
        return FitState(saved["step"], saved["seconds"], saved["notes"])

    def has_final_weights(self) -> bool:
        """Whether the weights of the training's end lie in the run's directory."""
        if not self.weights_path.exists():
            return False
        facts = read_facts(self.weights_path)
        return bool(facts) and facts["steps"] >= facts["total_steps"]

    def write_weights(self, network: nn.Module, state: FitState) -> None:
        """Write the network's weights with the facts about them; of several ranks, the first does."""
        if not is_first():
            return
        config = self.config
        facts = {
            "experiment": config.experiment,
            "row": config.row,
            "preset": config.train.preset,
            "seed": config.seed,
            "steps": state.step,
            "total_steps": state.notes["total_steps"],
            "train_seconds": round(state.seconds, 1),
            "commits": state.notes["commits"],
            "dirty": state.notes["dirty"],
            "devices": state.notes.get("devices", []),
            "last_means": last_means(self.directory, state.step),
            "train_data_sha256": state.notes["data_sha256"],
            "config": self.training_settings,
        }
        if BALANCING_WEIGHTS in state.notes:
            facts[BALANCING_WEIGHTS] = state.notes[BALANCING_WEIGHTS]
        save_weights(network, self.weights_path, facts)

    def find_weights(self, network: nn.Module) -> Weights:
        """Load the weights to evaluate into ``network``.

        Those that ``weights`` names, else those of the run: of its end, or where it is not over, of its last
        checkpoint.

        Raises:
            FileNotFoundError: if there are none.
            RunDirectoryError: if they were trained with other settings than the configuration's.
            WeightsError: if their file is none of weights, or not the one in a ``SHA256SUMS`` beside it.
            RuntimeError: if they are of another network.
        """
        if self.config.train.steps == 0:
            return self._no_weights()
        path = self.weights_path if self.config.weights is None else Path(self.config.weights)
        if self.config.weights is None:
            if self.checkpoints.paths():
                # Before another network is loaded, or the weights are written anew, with these settings as theirs.
                self.claim()
            state = self.saved_state(network)
            if state is not None:
                self.write_weights(network, state)
            elif not path.exists():
                raise FileNotFoundError(
                    f"there is nothing to evaluate in {self.directory}; train first (mode=train), or give weights="
                )

        def check(facts: Mapping[str, Any]) -> None:
            advice = "Give the settings that they were trained with, or other weights="
            _require_same(f"the weights {path}", facts.get("config", {}), self.training_settings, advice)

        facts, sha256 = load_weights(network, path, check)
        return Weights(path, sha256, facts)

    def _no_weights(self) -> Weights:
        """What stands for the weights of a method that learns nothing."""
        facts = {"steps": 0, "total_steps": 0, "commits": [], "dirty": False, "train_seconds": 0.0}
        return Weights(None, "", facts)


def _require_same(what: str, old: Mapping[str, Any], new: Mapping[str, Any], advice: str) -> None:
    differing = differing_settings(old, new)
    differences = [f"{name}: {before!r} there, {now!r} now" for name, (before, now) in differing.items()]
    if differences:
        raise RunDirectoryError(f"{what} belongs to other settings ({'; '.join(differences)}). {advice}")
