"""Reproduce a table of the paper: evaluate released weights, or train first, then render table and figures.

    python scripts/reproduce.py table1 --from released

Trainings that were begun go on from their last checkpoint; those that are over are only evaluated.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from offset_equivariant import provenance
from offset_equivariant.__main__ import run_configuration
from offset_equivariant.building import build_evaluation, build_network, load_split
from offset_equivariant.config import ConfigError
from offset_equivariant.evaluation.panel import first_of_each_class, prediction_panel
from offset_equivariant.reporting.figures import render_figures
from offset_equivariant.reporting.predictions import write_panel
from offset_equivariant.reporting.records import (
    Record,
    RecordError,
    find_records,
    load_outcomes,
    read_record,
    record_path,
)
from offset_equivariant.reporting.summary import track_table
from offset_equivariant.reporting.tables import TABLE1, build_table, render_markdown, write_tables
from offset_equivariant.reporting.tracking import make_tracker
from offset_equivariant.runs import Run, RunDirectoryError, released_weights_path
from offset_equivariant.tasks.recognition import RecognitionEvaluation
from offset_equivariant.training.loop import TrainingInterruptedError

ROOT = provenance.repository_root()
RELEASED = ROOT / "results"
#: Rows of Figure 3, by the name to show.
PANEL = {"original": "table1_original", "equivariant": "table1_equivariant"}


def main(words: list[str] | None = None, settings: Sequence[str] = ()) -> int:
    """Run the command line; 0 if every row could be had. ``settings`` are further words for the entry point."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = parse_arguments(words)
    arguments.settings = list(settings)
    records: list[Record] = []
    missing: list[str] = []
    for name in experiments_of(arguments.table):
        composed = compose_experiment(name, arguments)
        if composed.weights is not None and not Path(composed.weights).exists():
            missing.append(f"{name}: no weights are released at {composed.weights}; train them with FROM=scratch")
            continue
        try:
            record = run_configuration(composed)
        except TrainingInterruptedError as interruption:
            print(interruption, file=sys.stderr)
            return interruption.exit_status
        except (ConfigError, RunDirectoryError, RecordError, FileNotFoundError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 2
        assert record is not None
        records.append(record)
    if records:
        draw_panel(arguments, {record.experiment for record in records})
        render(Path(arguments.results), arguments)
        compare_with_committed(records)
    for line in missing:
        print(f"missing row {line}", file=sys.stderr)
    return 1 if missing else 0


def experiments_of(table: str) -> list[str]:
    """Return the experiments that are rows of a table."""
    return sorted(path.stem for path in (ROOT / "conf" / "experiment").glob(f"{table}_*.yaml"))


def parse_arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=["table1"])
    parser.add_argument("--from", dest="source", choices=["released", "scratch"], default="released")
    parser.add_argument("--preset", choices=["fast", "paper", "smoke"], default="fast")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", default="runs/reproduction", help="where records, tables and figures are written")
    parser.add_argument("--logger", choices=["wandb", "none"], default="wandb")
    arguments = parser.parse_args(words)
    return arguments


def compose_experiment(name: str, arguments: argparse.Namespace) -> DictConfig:
    """Compose the configuration of one row."""
    overrides = [
        f"experiment={name}",
        f"train={arguments.preset}",
        f"seed={arguments.seed}",
        f"logger={arguments.logger}",
        f"paths.results='{arguments.results}'",
    ]
    if arguments.source == "released":
        suffix = "" if arguments.preset == "fast" else f"_{arguments.preset}"
        weights = released_weights_path(RELEASED, name + suffix, arguments.seed)
        overrides += ["mode=evaluate", f"weights='{weights}'"]
    overrides += arguments.settings
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", overrides)


def draw_panel(arguments: argparse.Namespace, evaluated: set[str]) -> None:
    """Classify Figure 3's images with the networks that were evaluated, where both are there."""
    networks: dict[str, RecognitionEvaluation] = {}
    digests: dict[str, str] = {}
    seed = 0
    for shown, name in PANEL.items():
        settings = cast(dict[str, Any], OmegaConf.to_container(compose_experiment(name, arguments), resolve=True))
        run = Run(settings)
        if run.config.experiment not in evaluated:
            return
        network = build_network(run.config)
        digests[shown] = run.find_weights(network).sha256
        images = load_split(run.config, "evaluation")
        networks[shown] = build_evaluation(run.config, network, images)
        seed = run.config.distortion.seed
    indices = first_of_each_class(images.labels, 3)
    panel = prediction_panel(networks, images, indices, seed=seed, checkpoint_sha256=digests)
    write_panel(panel, Path(arguments.results) / "figures" / "figure3.npz")


def render(results: Path, arguments: argparse.Namespace) -> None:
    """Write tables and figures, show the table, and mirror both to the tracker."""
    paths = [*write_tables(results), *render_figures(results)]
    records = find_records(results, TABLE1.number)
    table = build_table(TABLE1, records, outcomes=load_outcomes(results, records))
    tracker = make_tracker(
        arguments.logger,
        project="offset-equivariant",
        name=f"table{TABLE1.number}",
        group=f"table{TABLE1.number}",
        config=vars(arguments),
        directory=results,
    )
    try:
        track_table(tracker, results, TABLE1.number)
    finally:
        tracker.finish()
    print(render_markdown(table))
    print("\n".join(f"wrote {path}" for path in paths))


def compare_with_committed(records: list[Record]) -> None:
    """Say how far the numbers are from those committed for the same weights."""
    for record in records:
        path = record_path(RELEASED, record.experiment, record.seed)
        if not path.exists():
            continue
        committed = read_record(path)
        if committed.checkpoint_sha256 != record.checkpoint_sha256:
            continue
        errors, before = record.metrics["error_percent"], committed.metrics["error_percent"]
        furthest = max(abs(errors[s] - before[s]) for s in errors.keys() & before.keys())
        print(f"{record.experiment}: largest difference from the committed record {furthest:.2f} points")


if __name__ == "__main__":
    sys.exit(main())
