"""Render every table and figure from the records that are there, and say which are missing and how to have them.

    python scripts/reproduce_all.py [--run missing]

Trains and evaluates nothing, and computes no images of Figures 3, 6 and 8, unless asked: with --run missing, all that
is missing and whose data are there; what has none is listed, and is no failure. Data are looked for in OEN_DATA_DIR,
else in data/ of the current directory.

Tables are rendered from the records in results/; of those that were made in runs/results, runs/reproduction or
runs/from_scratch and are missing there, it says how they are brought there, which --run missing does. Of the searches
for recipes, which make no row of a table, the records that are there are rendered, and none is said to be missing.
"""

from __future__ import annotations

import argparse
import logging
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from offset_equivariant import provenance
from offset_equivariant.__main__ import EXPLAINED_ERRORS, run_configuration
from offset_equivariant.composition import composed_words, plain_settings
from offset_equivariant.data import DataNotFoundError
from offset_equivariant.inventory import DATASETS, MissingRecord, missing_records
from offset_equivariant.panels import FIGURES, PANELS, draw_panel
from offset_equivariant.reporting.descriptions import TABLES
from offset_equivariant.reporting.records import find_records
from offset_equivariant.reporting.rendering import render_all
from offset_equivariant.reporting.summary import track_table
from offset_equivariant.reporting.tracking import make_tracker
from offset_equivariant.runs import Run, released_weights_path
from offset_equivariant.training.stopping import TrainingInterruptedError


def main(words: list[str] | None = None, root: Path | None = None, settings: Sequence[str] = ()) -> int:
    """Run the command line for the repository at ``root``; 0 if all that was asked for and has data could be done."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", choices=["missing"], help="train and evaluate what is missing first")
    parser.add_argument("--logger", choices=["wandb", "none"], default="wandb")
    arguments = parser.parse_args(words)
    root = root or provenance.repository_root()
    results = root / "results"
    elsewhere = [root / "runs" / name for name in ("results", "reproduction", "from_scratch")]
    logging.info("looking for what is missing")
    missing = missing_records(results, settings, elsewhere)
    failures: list[str] = []
    without_data: list[str] = []
    if arguments.run is not None:
        try:
            failures, without_data = run_all(missing, arguments.logger, root / "runs")
        except TrainingInterruptedError as interruption:
            print(interruption, file=sys.stderr)
            return interruption.exit_status
        draw_missing(results, failures, without_data)
        missing = missing_records(results, settings, elsewhere)
    paths = render_all(root)
    track(results, arguments.logger, root / "runs" / "reproduction")
    print("\n".join(f"wrote {path}" for path in paths))
    print(listing(missing, missing_figures(results)))
    if without_data:
        print("\n".join(["Not made, since their data are not here:", *without_data]))
    print("\n".join(failures), file=sys.stderr)
    return 1 if failures else 0


def run_all(missing: Sequence[MissingRecord], logger: str, runs: Path) -> tuple[list[str], list[str]]:
    """Make the records that are missing, with trainings below ``runs``.

    Returns:
        why some could not be made; and of which the data are not here, with where they are to be had.
    """
    failures, without_data = [], []
    for record in missing:
        if record.made is not None:
            record.adopt()
            continue
        try:
            run_configuration(composed_words([f"paths.runs='{runs}'", *record.job, f"logger={logger}"]))
        except DataNotFoundError as error:
            without_data.append(f"  {record.name}, seed {record.seed}: {error}")
        except Exception as error:
            if not isinstance(error, EXPLAINED_ERRORS):
                traceback.print_exc()
            failures.append(f"{record.name}, seed {record.seed}: {error}")
    return failures, without_data


def missing_figures(results: Path) -> list[str]:
    """Return the tables whose figure of images (3, 6 or 8) has not been drawn into ``results``."""
    return [table for table, name in FIGURES.items() if not (results / "figures" / f"{name}.npz").exists()]


def draw_missing(results: Path, failures: list[str], without_data: list[str]) -> None:
    """Draw the missing figures of images from released networks; what cannot be drawn is added to the two lists."""
    for table in missing_figures(results):
        try:
            runs = {title: released_run(name) for title, name in PANELS[DATASETS[table][0]].items()}
            draw_panel(table, runs, results / "figures")
        except DataNotFoundError as error:
            without_data.append(f"  {FIGURES[table]}: {error}")
        except EXPLAINED_ERRORS as error:
            failures.append(f"{FIGURES[table]}: {error}")


def released_run(name: str) -> Run:
    """Return the evaluation of an experiment's released weights, of its first seed."""
    weights = released_weights_path(provenance.repository_root() / "results", name, 0)
    return Run(
        plain_settings(composed_words([f"experiment={name}", "seed=0", "mode=evaluate", f"weights='{weights}'"]))
    )


def track(results: Path, logger: str, directory: Path) -> None:
    """Show all tables and curves in one run of the tracker."""
    commit, _ = provenance.commit()
    tracker = make_tracker(
        logger,
        project="offset-equivariant",
        name="reproduction",
        group="reproduction",
        config={"commit": commit, "records": sorted(f"{r.experiment}-seed{r.seed}" for r in find_records(results))},
        directory=directory,
    )
    try:
        for table in TABLES:
            track_table(tracker, results, table.number)
    finally:
        tracker.finish()


def listing(missing: Sequence[MissingRecord], figures: Sequence[str]) -> str:
    """Return which records, and which tables' figures of images, are missing, and the commands that make them."""
    if not missing and not figures:
        return "nothing is missing"
    lines = [
        f"missing: records {len(missing)}, figures of images {len(figures)}; the commands that make them, with the "
        "data of docs/DATA.md:"
    ]
    groups: dict[str, list[str]] = {"Made here, to be copied:": [], "Without training:": [], "By training:": []}
    made, evaluated, trained = groups.values()
    for record in missing:
        group = made if record.made is not None else trained if record.trains else evaluated
        group.append(_line(record))
    groups["Figures, with their table:"] = [
        f"  make reproduce-{table} RESULTS=results  # {FIGURES[table]}" for table in figures
    ]
    for title, commands in groups.items():
        lines += [title, *commands] if commands else []
    return "\n".join(lines)


def _line(record: MissingRecord) -> str:
    return f"  {record.command}" + (f"  # there is one, but: {record.why}" if record.why else "")


if __name__ == "__main__":
    sys.exit(main())
