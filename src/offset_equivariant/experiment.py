"""One experiment: configuration -> task -> training -> saturation sweep -> record."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from offset_equivariant import provenance
from offset_equivariant.building import (
    Images,
    balancing_weights,
    build_evaluation,
    build_network,
    choose_device,
    headline_metric,
    load_split,
    memory_format,
    plan_training,
)
from offset_equivariant.config import ConfigError, ExperimentConfig
from offset_equivariant.evaluation.sweep import Evaluation, sweep
from offset_equivariant.reporting.records import (
    Record,
    read_record,
    record_path,
    require_place,
    saturation_key,
    save_evaluation,
)
from offset_equivariant.reporting.summary import track_table
from offset_equivariant.reporting.tracking import Tracker
from offset_equivariant.runs import Run, RunDirectoryError, Weights
from offset_equivariant.settings import differing_settings, recorded_settings
from offset_equivariant.storage import remove_unfinished, replace_file
from offset_equivariant.tasks.task import Watch
from offset_equivariant.training.checkpoint import seed_everything
from offset_equivariant.training.cross_validation import parameters_of_one
from offset_equivariant.training.loop import FitSettings, fit, journal_lines
from offset_equivariant.training.ranks import first_rank_first, is_first, ranks
from offset_equivariant.training.weights import BALANCING_WEIGHTS

log = logging.getLogger(__name__)


def run_experiment(run: Run, tracker: Tracker) -> Record | None:
    """Train, evaluate, or both, as the setting ``mode`` says.

    A run that was trained already, in part or whole, goes on from where it stands. Several ranks do it together, see
    :mod:`offset_equivariant.training.ranks`; the first writes.

    Args:
        run: what to run.
        tracker: where progress and results are shown beside the run's own files.

    Returns:
        the record as written to the results folder; None where nothing was evaluated.

    Raises:
        RunDirectoryError: if the run's directory holds another run.
        FileNotFoundError: if there is nothing to evaluate, or no data.
        ConfigError: if several ranks cannot run it together.
        RecordError: if the record would lose numbers, see :func:`~.reporting.records.require_place`.
    """
    config = run.config
    if ranks() > 1 and config.task != "recognition":
        raise ConfigError(f"{config.experiment} runs in one process: start it without torchrun")
    device = choose_device(config.runtime.device)
    if config.runtime.threads is not None:
        torch.set_num_threads(config.runtime.threads)
    seed_everything(config.seed)
    balancing_weights(config)  # for its error, which is to be found before all images of a large set are
    network = build_network(config).to(device).to(memory_format=memory_format(config, device))
    if config.trains:
        with run.claimed():
            if is_first():
                for folder in (run.directory, run.checkpoints.directory):
                    remove_unfinished(folder)
            train(run, network, device, tracker)
    if config.mode == "train":
        if not config.trains:
            log.info("%s learns nothing: there is nothing to train", config.experiment)
        return None
    weights = first_rank_first(lambda: run.find_weights(network))
    done = None if config.mode == "evaluate" else finished_record(run, weights)
    if done is not None:
        log.info("the evaluation is complete: %s seed %d was measured by this code", done.experiment, done.seed)
        return done
    return evaluate(run, network, weights, device, tracker)


def finished_record(run: Run, weights: Weights) -> Record | None:
    """Return the record of these weights, if this commit has measured them at all the saturations asked for."""
    path = record_path(Path(run.config.paths.results), run.config.record_name, run.config.seed)
    if run.dirty or not path.exists():
        return None
    record = read_record(path)
    same = (
        record.commit == run.commit
        and not record.dirty
        and record.checkpoint_sha256 == weights.sha256
        and not differing_settings(record.config, recorded_settings(run.settings))
        and _balancing_sha256(run.config).items() <= record.data_sha256.items()
        and not record.lacking(run.config.distortion.values())
    )
    return record if same else None


def train(run: Run, network: nn.Module, device: torch.device, tracker: Tracker) -> None:
    """Train to the end, or take up a training where it stands, and write the run's weights."""
    saved = run.saved_state(network)
    if saved is not None:
        _require_same_balancing(run.config, f"the run in {run.directory}", saved.notes)
    if saved is not None and saved.step >= saved.notes["total_steps"]:
        log.info("the training in %s is complete: all %d steps were taken", run.directory, saved.step)
        run.write_weights(network, saved)
        return
    if saved is None and run.has_final_weights():
        log.info("the training in %s is complete: its weights are there, though its checkpoints are not", run.directory)
        return
    recipe = run.config.train
    if run.config.mode == "both":
        # For its errors, which are to be found before any work.
        first_rank_first(lambda: load_split(run.config, "evaluation"))
    images = first_rank_first(lambda: load_split(run.config, "train")).to(device)
    if saved is not None:
        _require_same_images(run, saved.notes, images)
    plan = plan_training(run.config, network, images)
    if plan.watch is not None and saved is not None:
        for scalars in journal_lines(run.directory, saved.step):
            plan.watch.recall(scalars, scalars["step"])
    steps = plan.total_steps
    state = fit(
        plan.task,
        run.directory,
        FitSettings(steps, plan.schedule, recipe.log_every, recipe.checkpoint_seconds, run.config.runtime.progress),
        notes={
            "commits": [run.commit],
            "dirty": run.dirty,
            "devices": [provenance.device_description(device)],
            "data_sha256": images.sha256,
            "total_steps": steps,
        }
        | _balancing_sha256(run.config),
        on_log=partial(_show_progress, run.directory, plan.watch, tracker),
    )
    run.write_weights(network, state)


def _show_progress(
    directory: Path, watch: Watch | None, tracker: Tracker, scalars: Mapping[str, float], step: int
) -> None:
    """Track the scalars of a training, say what its watch warns of, and keep its pictures in the run's directory."""
    tracker.log({f"train/{name}": value for name, value in scalars.items()}, step)
    if watch is None:
        return
    seen = watch(scalars, step)
    for warning in seen.warnings:
        log.warning(warning)
    for name, picture in seen.pictures.items():
        pixels = picture.permute(1, 2, 0).numpy()
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, "png")
        replace_file(directory / name / f"step-{step:08d}.png", content.getvalue())
        tracker.picture(f"train/{name}", pixels, step)


def evaluate(run: Run, network: nn.Module, weights: Weights, device: torch.device, tracker: Tracker) -> Record:
    """Sweep over the saturations and write the record, merged with what it held of other saturations."""
    config = run.config
    _require_same_balancing(config, f"the weights {weights.path}", weights.facts)
    images = first_rank_first(lambda: load_split(config, "evaluation")).to(device)

    def progress(batches: Sequence[Tensor]) -> Iterable[Tensor]:
        shown = config.runtime.progress and is_first()
        return tqdm(batches, desc=f"evaluate {config.experiment}", disable=None if shown else True)

    planned = make_record(run, network, weights, images, Evaluation({}, {}, len(images)), 0.0, device)
    require_place(Path(config.paths.results), planned, map(saturation_key, config.distortion.values()))
    started = time.perf_counter()
    evaluation = sweep(
        build_evaluation(config, network, images),
        config.distortion.values(),
        seed=config.distortion.seed,
        batch_size=config.runtime.evaluation_batch_size,
        progress=progress,
    )
    seconds = time.perf_counter() - started
    record = make_record(run, network, weights, images, evaluation, seconds, device)
    # The record of the run: not of other weights, nor of an evaluation in other light.
    own = config.weights is None and config.record_name == config.experiment
    copy = run.directory / "record.json" if own else None
    if not is_first():
        return record
    record = save_evaluation(Path(config.paths.results), record, _by_key(evaluation.outcomes), copy)
    _track(tracker, record, *headline_metric(config))
    try:
        if record.table is not None:
            track_table(tracker, Path(config.paths.results), record.table)
    except ValueError as error:  # of another record: this one is written
        log.warning("the table is not tracked: %s", error)
    return record


def make_record(
    run: Run,
    network: nn.Module,
    weights: Weights,
    images: Images,
    evaluation: Evaluation,
    seconds: float,
    device: torch.device,
) -> Record:
    """Tie an evaluation to everything that its numbers come from."""
    config, facts = run.config, weights.facts
    recorded = recorded_settings(run.settings)
    return Record(
        experiment=config.record_name,
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
        parameters=parameters_of_one(network),
        config=recorded,
        config_sha256=provenance.config_sha256(recorded),
        commit=run.commit,
        dirty=run.dirty,
        training_commits=list(facts["commits"]),
        training_dirty=facts["dirty"],
        steps=facts["steps"],
        total_steps=facts["total_steps"],
        checkpoint_sha256=weights.sha256,
        data_sha256=({"train": facts["train_data_sha256"]} if facts["steps"] else {})
        | {images.split: images.sha256}
        | _balancing_sha256(config),
        environment=provenance.environment(device, getattr(images, "note", "")),
        train_seconds=facts["train_seconds"],
        # Weights that were trained before these facts were kept have none.
        training_devices=list(facts.get("devices", [])),
        training_means=dict(facts.get("last_means", {})),
        evaluate_seconds=round(seconds, 1),
    )


def _balancing_sha256(config: ExperimentConfig) -> dict[str, str]:
    """Digest of the network that balances the images' colours: they are others with another network."""
    weights = balancing_weights(config)
    return {} if weights is None else {BALANCING_WEIGHTS: provenance.file_sha256(weights)}


def _require_same_balancing(config: ExperimentConfig, what: str, facts: Mapping[str, Any]) -> None:
    """Check that images are balanced by the network that balanced them in training, where its digest is known.

    Raises:
        RunDirectoryError: if they are not.
    """
    now = _balancing_sha256(config)
    if BALANCING_WEIGHTS in facts and now and facts[BALANCING_WEIGHTS] != now[BALANCING_WEIGHTS]:
        raise RunDirectoryError(
            f"{what} learned from images that another network balanced: its digest was {facts[BALANCING_WEIGHTS][:8]}, "
            f"that of strategy.weights = {config.strategy.weights} is {now[BALANCING_WEIGHTS][:8]}. Give the network "
            "that was there, or train anew under another name="
        )


def _require_same_images(run: Run, notes: Mapping[str, Any], images: Images) -> None:
    """Check that a run goes on with the images that it began with.

    Raises:
        RunDirectoryError: if it would not.
    """
    before = notes.get("data_sha256", images.sha256)
    if before != images.sha256:
        raise RunDirectoryError(
            f"the run in {run.directory} learned from other images of {run.config.dataset.name}: their digest was "
            f"{before[:8]}, that of those now found is {images.sha256[:8]}. Give the paths.data= that it began with, "
            "or train anew under another name="
        )


def _track(tracker: Tracker, record: Record, metric: str, unit: str) -> None:
    """Show a record's metrics: a table with a row a saturation, and the curve of one of them over the saturation."""
    saturations = list(record.metrics[metric])
    columns = ["experiment", "seed", "saturation", *record.metrics]
    tracker.table(
        "saturation_sweep",
        columns,
        [[record.experiment, record.seed, float(s), *(m[s] for m in record.metrics.values())] for s in saturations],
    )
    tracker.curves(
        f"{metric}_over_saturation",
        [float(s) for s in saturations],
        {record.experiment: list(record.metrics[metric].values())},
        "saturation",
        f"{metric} ({unit}) over the saturation of the illuminant",
    )


def _by_key(outcomes: Mapping[str, Mapping[float, Any]]) -> dict[str, dict[str, Any]]:
    return {name: {saturation_key(s): values for s, values in by_s.items()} for name, by_s in outcomes.items()}
