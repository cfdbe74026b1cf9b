"""Reproduce a table of the paper: evaluate released weights, or train first, then render table and figures.

    python scripts/reproduce.py table1 --from released

Trainings that were begun go on from their last checkpoint; those that are over are only evaluated.
"""

from __future__ import annotations

import argparse
import logging
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig

from offset_equivariant import provenance
from offset_equivariant.__main__ import EXPLAINED_ERRORS, run_configuration
from offset_equivariant.composition import composed_words, plain_settings
from offset_equivariant.inventory import DATASETS, LONG, experiments_on, seeds_of
from offset_equivariant.panels import PANELS, draw_panel
from offset_equivariant.reporting.descriptions import find_table
from offset_equivariant.reporting.figures import render_figures
from offset_equivariant.reporting.records import (
    Record,
    find_records,
    load_outcomes,
    read_record,
    record_path,
)
from offset_equivariant.reporting.summary import track_table
from offset_equivariant.reporting.tables import build_table, render_markdown, write_tables
from offset_equivariant.reporting.tracking import make_tracker
from offset_equivariant.runs import Run, released_weights_path
from offset_equivariant.training.stopping import TrainingInterruptedError
from offset_equivariant.training.weights import read_digests

ROOT = provenance.repository_root()
RELEASED = ROOT / "results"
#: Where results go by themselves: a table of one's own trainings is not a mean with the released ones.
FOLDERS = {"released": "runs/reproduction", "scratch": "runs/from_scratch"}
#: What a table's presets are called in conf/train, before the preset's own name.
PRESETS = {"table1": "", "table2": "imagenet_", "table3": "nus_", "table4": "inpainting_"}


def main(words: list[str] | None = None, settings: Sequence[str] = ()) -> int:
    """Run the command line; 0 if every row whose weights are released could be had, 1 if not or if there is none, 2 if
    one failed.

    What fails before any row was evaluated ends it; later, the other rows are evaluated and rendered all the same.
    ``settings`` are further words for the entry point.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = parse_arguments(words, settings)
    records: list[Record] = []
    committed: list[Record | None] = []
    absent: list[AbsentRow] = []
    failed = False
    for row in rows_of(arguments):
        composed = compose_row(row, arguments)
        if composed.weights is not None and not Path(composed.weights).exists():
            absent.append(absent_row(row, composed, arguments))
            continue
        # Read before: the results may be written where the committed ones are.
        path = record_path(RELEASED, Run(plain_settings(composed)).config.record_name, row.seed)
        before = read_record(path) if path.exists() else None
        try:
            record = run_configuration(composed)
        except TrainingInterruptedError as interruption:
            print(interruption, file=sys.stderr)
            return interruption.exit_status
        except Exception as error:
            if not isinstance(error, EXPLAINED_ERRORS):
                traceback.print_exc()
            print(f"{row.experiment}, seed {row.seed}: {error}", file=sys.stderr)
            if not records:
                return 2
            failed = True
            continue
        assert record is not None
        records.append(record)
        committed.append(before)
    if records:
        try:
            draw_images(arguments, {record.experiment: record.seed for record in reversed(records)})
        finally:  # the figures need the images, but the table does not
            render(Path(arguments.results), arguments)
            compare_with_committed(records, committed)
    for missing in absent:
        print(missing.message, file=sys.stderr)
    if not records:
        table = RELEASED / "tables" / f"{arguments.table}.md"
        print(f"nothing was evaluated; what was measured before is in {table}", file=sys.stderr)
    return 2 if failed else int(not records or any(missing.released for missing in absent))


class Row(NamedTuple):
    """A row of the table at one seed; ``preset`` is its training's, None for the experiment's own."""

    experiment: str
    seed: int
    preset: str | None = None


class AbsentRow(NamedTuple):
    """A row that was not evaluated; ``released`` says whether its weights should have been there."""

    message: str
    released: bool


def absent_row(row: Row, composed: DictConfig, arguments: argparse.Namespace) -> AbsentRow:
    """Say how the weights of a row can be had, and how those that were measured are recognised."""
    run = Run(plain_settings(composed))
    command = " ".join(["python -m offset_equivariant", *row_words(row, arguments)])
    advice = f"train them with FROM=scratch, or this row alone with\n  {command}"
    record = record_path(RELEASED, run.config.experiment, row.seed)
    if not record.exists() or is_released(Path(composed.weights)):
        return AbsentRow(f"missing row {row.experiment}: no weights are released at {composed.weights}; {advice}", True)
    digest = read_record(record).checkpoint_sha256
    return AbsentRow(
        f"row {row.experiment} was not evaluated: its weights are too large to be released; {advice}\n"
        f"  The committed record is of weights with SHA-256 {digest}; a file of your own training has another, as it "
        "also holds when and how it was trained.",
        False,
    )


def rows_of(arguments: argparse.Namespace) -> list[Row]:
    """Return the rows at the seed asked for, or 0; of released networks at every seed that is released too.

    Those of released networks include the ones of the paper's length, unless a preset is asked for.
    """
    names = experiments_on(arguments.table, arguments.dataset)
    rows = [Row(name, arguments.seed or 0, arguments.preset) for name in names]
    if arguments.source == "scratch":
        return rows
    found = []
    for row in rows:
        others = seeds_of(arguments.table, row.experiment)[1:] if arguments.seed is None else ()
        found += [row, *released_rows(row, others, arguments)]
    for row in rows:
        if row.experiment in LONG and arguments.preset is None:
            found += released_rows(row._replace(preset=LONG[row.experiment]), [row.seed], arguments)
    return found


def released_rows(row: Row, seeds: Sequence[int], arguments: argparse.Namespace) -> list[Row]:
    """Return a row at those of the seeds whose weights are in the list of released ones."""
    if not seeds:
        return []
    experiment = found_experiment(row, arguments)
    released = [seed for seed in seeds if is_released(released_weights_path(RELEASED, experiment, seed))]
    return [row._replace(seed=seed) for seed in released]


def is_released(weights: Path) -> bool:
    """Whether a file is in the list of released weights beside it."""
    return weights.name in read_digests(weights.parent)


def parse_arguments(words: list[str] | None, settings: Sequence[str] = ()) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=list(PRESETS))
    parser.add_argument("--from", dest="source", choices=["released", "scratch"], default="released")
    parser.add_argument("--preset", choices=["fast", "paper", "smoke"], help="default: that of the experiments")
    parser.add_argument("--seed", type=int, help="default: every seed that is released; 0 to train")
    folders = " or ".join(f"{folder} ({source})" for source, folder in FOLDERS.items())
    parser.add_argument("--results", help=f"where records, tables and figures are written; default: {folders}")
    parser.add_argument("--logger", choices=["wandb", "none"], default="wandb")
    parser.add_argument(
        "--dataset",
        help="of table2: imagenette, the default, or ilsvrc12; of table4: facades, the default, or paris_street_view",
    )
    arguments = parser.parse_args(words)
    arguments.settings = list(settings)
    arguments.results = arguments.results or FOLDERS[arguments.source]
    arguments.dataset = arguments.dataset or DATASETS[arguments.table][0]
    if arguments.dataset not in DATASETS[arguments.table]:
        parser.error(f"{arguments.table} is measured on {' or '.join(DATASETS[arguments.table])}")
    preset = ROOT / "conf" / "train" / f"{PRESETS[arguments.table]}{arguments.preset}.yaml"
    if arguments.preset is not None and not preset.exists():
        parser.error(f"{arguments.table} has no preset {arguments.preset}: there is no {preset.relative_to(ROOT)}")
    return arguments


def row_words(row: Row, arguments: argparse.Namespace) -> list[str]:
    """Return the words of the command line that are one row at one seed."""
    preset = [] if row.preset is None else [f"train={PRESETS[arguments.table]}{row.preset}"]
    return [f"experiment={row.experiment}", *preset, f"seed={row.seed}"]


def compose_row(row: Row, arguments: argparse.Namespace) -> DictConfig:
    """Compose the configuration of one row at one seed, for the released weights or, without, those of its own run."""
    overrides = [
        *row_words(row, arguments),
        f"logger={arguments.logger}",
        f"paths.results='{arguments.results}'",
    ]
    overrides += arguments.settings
    composed = composed_words(overrides)
    if arguments.source == "scratch":
        return composed
    run = Run(plain_settings(composed))
    weights, own = released_weights_path(RELEASED, run.config.experiment, row.seed), run.weights_path
    # Where no weights were released, those of the row's own training will do.
    use_own = own.exists() and not is_released(weights)
    given = [] if use_own or composed.train.steps == 0 else [f"weights='{weights}'"]
    return composed_words([*overrides, "mode=evaluate", *given])


def draw_images(arguments: argparse.Namespace, evaluated: dict[str, int]) -> None:
    """Draw the table's figure of images, if it has one and all of its networks were evaluated."""
    panel = PANELS.get(arguments.dataset)
    if panel is None:
        return
    rows = {shown: Row(name, 0, arguments.preset) for shown, name in panel.items()}
    absent = [row.experiment for row in rows.values() if found_experiment(row, arguments) not in evaluated]
    if absent:
        print(f"the figure of images is not drawn without {', '.join(absent)}", file=sys.stderr)
        return
    runs = {shown: open_run(row, arguments, evaluated) for shown, row in rows.items()}
    draw_panel(arguments.table, runs, Path(arguments.results) / "figures")


def found_experiment(row: Row, arguments: argparse.Namespace) -> str:
    """Return the name of a row's experiment with its preset, which is the same for every seed."""
    return Run(plain_settings(compose_row(row, arguments))).config.experiment


def open_run(row: Row, arguments: argparse.Namespace, evaluated: dict[str, int]) -> Run:
    """Return the run of a row at the seed that was evaluated."""
    seed = evaluated[found_experiment(row, arguments)]
    return Run(plain_settings(compose_row(row._replace(seed=seed), arguments)))


def render(results: Path, arguments: argparse.Namespace) -> None:
    """Write tables and figures, show the table, and mirror both to the tracker."""
    paths = [*write_tables(results), *render_figures(results)]
    description = find_table(int(arguments.table.removeprefix("table")))
    number = description.number
    records = find_records(results, number)
    table = build_table(description, records, outcomes=load_outcomes(results, records))
    tracker = make_tracker(
        arguments.logger,
        project="offset-equivariant",
        name=f"table{number}",
        group="reproduction",
        config=vars(arguments),
        directory=results,
    )
    try:
        track_table(tracker, results, number)
    finally:
        tracker.finish()
    print(render_markdown(table))
    print("\n".join(f"wrote {path}" for path in paths))


def compare_with_committed(records: Sequence[Record], committed: Sequence[Record | None]) -> None:
    """Say how far the numbers are from those committed for the same weights."""
    for record, other in zip(records, committed, strict=True):
        if other is None or other.checkpoint_sha256 != record.checkpoint_sha256:
            continue
        assert record.table is not None
        description = find_table(record.table)
        values, before = record.metrics[description.metric], other.metrics[description.metric]
        furthest = max(abs(values[s] - before[s]) for s in values.keys() & before.keys())
        name = f"{record.experiment}, seed {record.seed}"
        print(f"{name}: largest difference from the committed record {furthest:.2f} {description.unit}")


if __name__ == "__main__":
    sys.exit(main())
