"""One experiment: configuration -> task -> training -> saturation sweep -> record."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from offset_equivariant import provenance
from offset_equivariant.color import BALANCING_METHODS, ColorJitter, balance, make_clipping
from offset_equivariant.color.representation import Representation
from offset_equivariant.config import TRAINING_SECTIONS, ConfigError, ExperimentConfig, JitterConfig, experiment_config
from offset_equivariant.data import LabelledImages, data_directories, load_dataset
from offset_equivariant.evaluation.sweep import Evaluation, sweep
from offset_equivariant.models.resnet import CifarResNet
from offset_equivariant.nn.families import FAMILIES
from offset_equivariant.reporting.records import Record, saturation_key, save_evaluation, write_record
from offset_equivariant.reporting.storage import locked, replace_file
from offset_equivariant.reporting.summary import track_table
from offset_equivariant.reporting.tracking import Tracker
from offset_equivariant.tasks.recognition import (
    Augmentation,
    InputPipeline,
    RecognitionEvaluation,
    RecognitionTraining,
)
from offset_equivariant.training.checkpoint import Checkpoints, seed_everything
from offset_equivariant.training.loop import FitSettings, fit
from offset_equivariant.training.schedules import make_schedule
from offset_equivariant.training.weights import load_weights, save_weights

log = logging.getLogger(__name__)

#: Settings that say where and how to compute or what to do, and so are not part of what a number is a result of.
_UNRECORDED = ("mode", "weights", "runtime", "logger", "paths")
#: Settings among those of the training that do not change what is learned: how often a run is looked at or saved,
#: where its data come from, and what other families of layers would be given.
_IRRELEVANT_TO_TRAINING = {"train": ("by_family", "log_every", "checkpoint_seconds"), "dataset": ("download",)}


class RunDirectoryError(RuntimeError):
    """A run's directory holds a run with other settings, or is in use by another process."""


@dataclass(frozen=True)
class Weights:
    """Weights to evaluate: the file, its digest, and how they came about."""

    path: Path
    sha256: str
    facts: Mapping[str, Any]


def run_directory(config: ExperimentConfig) -> Path:
    """Return the directory of a run, decided by the configuration alone."""
    return Path(config.paths.runs) / config.experiment / f"seed={config.seed}"


def released_weights_path(results: Path, experiment: str, seed: int) -> Path:
    """Return where the weights of an experiment are released."""
    return results / "checkpoints" / f"{experiment}-seed{seed}.safetensors"


def run(settings: Mapping[str, Any], tracker: Tracker) -> Record | None:
    """Train, evaluate, or both, as ``settings["mode"]`` says.

    A run that was trained already, in part or whole, goes on from where it stands.

    Args:
        settings: the resolved configuration, plain dictionaries, lists and values.
        tracker: where progress and results are shown beside the run's own files.

    Returns:
        the record as written to the results folder; None where nothing was evaluated.

    Raises:
        ConfigError: for a wrong setting, before anything else.
        RunDirectoryError: if the run's directory holds another run.
        FileNotFoundError: if there is nothing to evaluate, or no data.
    """
    config = experiment_config(settings)
    directory = run_directory(config)
    device = choose_device(config.runtime.device)
    if config.runtime.threads is not None:
        torch.set_num_threads(config.runtime.threads)
    seed_everything(config.seed)
    network = build_network(config)
    network = network.to(device).to(memory_format=_memory_format(config))
    if config.mode in ("train", "both"):
        with _sole_use(directory):
            _claim(directory, settings)
            train(config, settings, network, directory, device, tracker)
    if config.mode == "train":
        return None
    weights = find_weights(config, settings, network, directory)
    return evaluate(config, settings, network, weights, device, tracker)


def build_network(config: ExperimentConfig) -> nn.Module:
    """Build the network with its initial weights, drawn from torch's global generator."""
    family = FAMILIES[config.model.family](**config.model.family_options)
    depth = int(config.model.architecture.removeprefix("resnet"))
    return CifarResNet(depth, config.dataset.classes, family)


def build_pipeline(config: ExperimentConfig) -> InputPipeline:
    """Build the conversion from linear RGB to the network's input."""
    settings = config.model.representation
    statistics = config.dataset.statistics[settings.statistics]
    clipping = None if settings.clipping is None else make_clipping(settings.clipping, **settings.clipping_options)
    representation = Representation(settings.space, tuple(statistics["mean"]), tuple(statistics["std"]), clipping)
    if config.strategy.balancing is None:
        return InputPipeline(representation)
    return InputPipeline(representation, partial(_balanced, method=config.strategy.balancing))


def _balanced(linear: Tensor, method: str) -> Tensor:
    return balance(linear, BALANCING_METHODS[method](linear))


def check_components(config: ExperimentConfig) -> None:
    """Build whatever needs no data, and throw it away: a wrong option shows before any work.

    Raises:
        ConfigError: names the group of settings, and says what is wrong with it.
    """
    schedule, jitter = config.train.schedule, config.strategy.jitter
    components: dict[str, Callable[[], object]] = {
        "model": lambda: build_network(config),
        "model.representation": lambda: build_pipeline(config),
        "train.schedule": lambda: make_schedule(schedule.name, 1, **schedule.options),
        "strategy.jitter": lambda: None if jitter is None else _color_jitter(jitter),
    }
    for name, build in components.items():
        try:
            build()
        except (TypeError, ValueError, KeyError) as error:
            raise ConfigError(f"{name}: {error}") from error


def _color_jitter(jitter: JitterConfig) -> ColorJitter:
    return ColorJitter(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)


def load_split(config: ExperimentConfig, split: str) -> LabelledImages:
    """Load the training images (``train``), or those to evaluate on (``evaluation``).

    With ``dataset.validation_images`` = n, the evaluation is on n training images, always the same, which the training
    then does without: the test images stay unseen while a recipe is chosen.
    """
    held_out = config.dataset.validation_images
    source = "test" if split == "evaluation" and not held_out else "train"
    options = dict(config.dataset.options)
    if config.dataset.name == "cifar10":
        options["download"] = config.dataset.download
    images = load_dataset(config.dataset.name, source, data_directories(config.paths.data), **options)  # type: ignore[arg-type]
    if not held_out:
        return images
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(images)))
    return images.subset(order[:held_out] if split == "evaluation" else order[held_out:])


def train(
    config: ExperimentConfig,
    settings: Mapping[str, Any],
    network: nn.Module,
    directory: Path,
    device: torch.device,
    tracker: Tracker,
) -> None:
    """Train to the end, or take up a training where it stands, and write ``weights.safetensors`` into its directory."""
    saved = Checkpoints(directory / "checkpoints").latest()
    if saved is not None and saved["step"] >= saved["notes"]["total_steps"]:
        log.info("the training in %s is complete: all %d steps were taken", directory, saved["step"])
        network.load_state_dict(saved["modules"]["network"])
        _write_weights(config, settings, network, directory, saved["step"], saved["seconds"], saved["notes"])
        return
    images = load_split(config, "train").to(device)
    task = build_training(config, network, images)
    total_steps = config.train.total_steps(task.steps_per_epoch)
    schedule = make_schedule(config.train.schedule.name, total_steps, **config.train.schedule.options)
    commit, dirty = provenance.commit()
    state = fit(
        task,
        directory,
        FitSettings(
            total_steps, schedule, config.train.log_every, config.train.checkpoint_seconds, config.runtime.progress
        ),
        device=device,
        notes={"commits": [commit], "dirty": dirty, "data_sha256": images.sha256, "total_steps": total_steps},
        on_log=lambda scalars, step: tracker.log({f"train/{name}": value for name, value in scalars.items()}, step),
    )
    _write_weights(config, settings, network, directory, state.step, state.seconds, state.notes)


def build_training(config: ExperimentConfig, network: nn.Module, images: LabelledImages) -> RecognitionTraining:
    """Build the training task of a network on images, both on the device."""
    recipe, jitter = config.train, config.strategy.jitter
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
    )
    return RecognitionTraining(
        network,
        optimizer,
        images,
        build_pipeline(config),
        Augmentation(
            recipe.crop_padding,
            recipe.flip,
            None if jitter is None else _color_jitter(jitter),
        ),
        batch_size=recipe.batch_size,
        seed=config.seed,
        label_smoothing=recipe.label_smoothing,
        autocast=None if config.runtime.autocast is None else getattr(torch, config.runtime.autocast),
        channels_last=config.runtime.channels_last,
        forward=torch.compile(network) if config.runtime.compile else None,
    )


def find_weights(config: ExperimentConfig, settings: Mapping[str, Any], network: nn.Module, directory: Path) -> Weights:
    """Load the weights to evaluate into ``network``.

    Those that ``weights`` names, else those of the run: of its end, or where it is not over, of its last checkpoint.

    Raises:
        FileNotFoundError: if there are none.
        RunDirectoryError: if they were trained with other settings than the configuration's.
    """
    path = directory / "weights.safetensors" if config.weights is None else Path(config.weights)
    if config.weights is None:
        state = Checkpoints(directory / "checkpoints").latest()
        if state is not None:
            # Before the weights are written anew, with these settings as theirs.
            _claim(directory, settings)
            network.load_state_dict(state["modules"]["network"])
            _write_weights(config, settings, network, directory, state["step"], state["seconds"], state["notes"])
        elif not path.exists():
            raise FileNotFoundError(
                f"there is nothing to evaluate in {directory}; train first (mode=train), or give weights=<file>"
            )
    facts = load_weights(network, path)
    _require_same(f"the weights {path}", facts.get("config", {}), _training_settings(settings))
    return Weights(path, provenance.file_sha256(path), facts)


def _write_weights(
    config: ExperimentConfig,
    settings: Mapping[str, Any],
    network: nn.Module,
    directory: Path,
    step: int,
    seconds: float,
    notes: Mapping[str, Any],
) -> None:
    facts = {
        "experiment": config.experiment,
        "row": config.row,
        "preset": config.train.preset,
        "seed": config.seed,
        "steps": step,
        "total_steps": notes["total_steps"],
        "train_seconds": round(seconds, 1),
        "commits": notes["commits"],
        "dirty": notes["dirty"],
        "train_data_sha256": notes["data_sha256"],
        "config": _training_settings(settings),
    }
    save_weights(network, directory / "weights.safetensors", facts)


def evaluate(
    config: ExperimentConfig,
    settings: Mapping[str, Any],
    network: nn.Module,
    weights: Weights,
    device: torch.device,
    tracker: Tracker,
) -> Record:
    """Sweep over the saturations and write the record, merged with what it held of other saturations."""
    images = load_split(config, "evaluation").to(device)
    task = RecognitionEvaluation(
        network,
        images,
        build_pipeline(config),
        requantize=config.distortion.requantize,
        channels_last=config.runtime.channels_last,
    )

    def progress(batches: Sequence[Tensor]) -> Iterable[Tensor]:
        bar = tqdm(batches, desc=f"evaluate {config.experiment}", disable=None if config.runtime.progress else True)
        return bar

    started = time.perf_counter()
    evaluation = sweep(
        task,
        config.distortion.values(),
        seed=config.distortion.seed,
        batch_size=config.runtime.evaluation_batch_size,
        progress=progress,
    )
    seconds = time.perf_counter() - started
    record = make_record(config, settings, network, weights, images, evaluation, seconds, device)
    record = save_evaluation(Path(config.paths.results), record, _by_key(evaluation.outcomes))
    if config.weights is None:
        write_record(record, run_directory(config) / "record.json")
    _track(tracker, record)
    if record.table is not None:
        track_table(tracker, Path(config.paths.results), record.table)
    return record


def make_record(
    config: ExperimentConfig,
    settings: Mapping[str, Any],
    network: nn.Module,
    weights: Weights,
    images: LabelledImages,
    evaluation: Evaluation,
    seconds: float,
    device: torch.device,
) -> Record:
    """Tie an evaluation to everything that its numbers come from."""
    commit, dirty = provenance.commit()
    recorded = {name: value for name, value in settings.items() if name not in _UNRECORDED}
    recorded["distortion"] = {k: v for k, v in settings["distortion"].items() if k not in ("saturation", "saturations")}
    facts = weights.facts
    return Record(
        experiment=config.experiment,
        table=config.table,
        row=config.row,
        dataset=config.dataset_label,
        preset=config.train.preset,
        seed=config.seed,
        complete=facts["steps"] >= facts["total_steps"],
        metrics={
            name: {saturation_key(s): value for s, value in by_s.items()} for name, by_s in evaluation.metrics.items()
        },
        n=evaluation.images,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        config=recorded,
        config_sha256=provenance.config_sha256(recorded),
        commit=commit,
        dirty=dirty,
        training_commits=list(facts["commits"]),
        training_dirty=facts["dirty"],
        steps=facts["steps"],
        total_steps=facts["total_steps"],
        checkpoint_sha256=weights.sha256,
        data_sha256={"train": facts["train_data_sha256"], images.split: images.sha256},
        environment=provenance.environment(device),
        train_seconds=facts["train_seconds"],
        evaluate_seconds=round(seconds, 1),
    )


def _track(tracker: Tracker, record: Record) -> None:
    """Show a record's metrics: a table with a row a saturation, and each metric's curve over the saturation."""
    saturations = list(record.metrics["error_percent"])
    columns = ["experiment", "seed", "saturation", *record.metrics]
    tracker.table(
        "saturation_sweep",
        columns,
        [[record.experiment, record.seed, float(s), *(m[s] for m in record.metrics.values())] for s in saturations],
    )
    tracker.curves(
        "error_over_saturation",
        [float(s) for s in saturations],
        {record.experiment: list(record.metrics["error_percent"].values())},
        "saturation",
        "Test error (%) over the saturation of the illuminant",
    )


def choose_device(name: str) -> torch.device:
    """Return the device of that name; ``auto`` takes CUDA, then MPS, then the CPU.

    Raises:
        RuntimeError: if that device is not there.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if not available[name]:
        raise RuntimeError(f"runtime.device = {name} is not available here; use runtime.device=auto")
    return torch.device(name)


def _memory_format(config: ExperimentConfig) -> torch.memory_format:
    return torch.channels_last if config.runtime.channels_last else torch.contiguous_format


def _by_key(outcomes: Mapping[str, Mapping[float, Any]]) -> dict[str, dict[str, Any]]:
    return {name: {saturation_key(s): values for s, values in by_s.items()} for name, by_s in outcomes.items()}


def _training_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of the settings that decides what is learned, as JSON would give it back."""
    chosen = {name: settings[name] for name in TRAINING_SECTIONS}
    for section, irrelevant in _IRRELEVANT_TO_TRAINING.items():
        chosen[section] = {k: v for k, v in chosen[section].items() if k not in irrelevant}
    plain: dict[str, Any] = json.loads(json.dumps(chosen))
    return plain


def _claim(directory: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings into a new run's directory, or check that those of an old run are the same."""
    path = directory / "config.json"
    if path.exists():
        _require_same(f"the run in {directory}", json.loads(path.read_text()), _training_settings(settings))
    else:
        replace_file(path, (json.dumps(_training_settings(settings), indent=1, sort_keys=True) + "\n").encode())


def _require_same(what: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    before, now = _flat(old), _flat(new)
    differences = [
        f"{name}: {before.get(name, 'absent')!r} there, {now.get(name, 'absent')!r} now"
        for name in sorted(before.keys() | now.keys())
        if before.get(name, "absent") != now.get(name, "absent")
    ]
    if differences:
        raise RunDirectoryError(
            f"{what} belongs to other settings ({'; '.join(differences)}). Give the experiment another name=, another "
            "paths.runs=, or remove what is there"
        )


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _sole_use(directory: Path) -> Any:
    """Hold the run's directory for this process alone; a second one waits until the first is done."""
    return locked(directory / ".lock")
