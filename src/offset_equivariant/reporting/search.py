"""The record of a recipe search: every combination that was tried, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from offset_equivariant.reporting.records import Record, find_records
from offset_equivariant.storage import replace_file

_HEADER = (
    "| Family | Learning rate | Weight decay | Epochs | Error (%) at S = 0.0 | 0.5 | 0.9 | Commit |\n"
    "|---|--:|--:|--:|--:|--:|--:|---|"
)


def render_search(records: Iterable[Record]) -> str:
    """Return every run of the search, best first within each family of layers, by the error at S = 0.

    Raises:
        ValueError: if a run was not measured on validation images: test images must not choose a recipe.
    """
    runs = list(records)
    for run in runs:
        if not run.dataset.endswith("_validation"):
            raise ValueError(f"{run.experiment} was measured on {run.dataset}, not on validation images")
    order = sorted(runs, key=lambda run: (run.row, run.metrics["error_percent"]["0.0"]))
    lines = [_line(run) for run in order]
    n = sorted({run.n for run in runs})
    return "\n".join(
        [
            "# Search for the recipe of `train=fast`",
            "",
            f"Error on {', '.join(map(str, n))} images held out of the training set; one run each, seed 0. "
            "Best first within each family.",
            "",
            _HEADER,
            *lines,
            "",
        ]
    )


def write_search(folder: Path) -> list[Path]:
    """Write ``folder/search.md`` of the records below ``folder``, where there are any, and return the paths."""
    records = find_records(folder)
    if not records:
        return []
    replace_file(folder / "search.md", render_search(records).encode())
    return [folder / "search.md"]


def _line(run: Record) -> str:
    recipe, errors = run.config["train"], run.metrics["error_percent"]
    shown = " | ".join(f"{errors[s]:.2f}" if s in errors else "–" for s in ("0.0", "0.5", "0.9"))
    marks = f" ({', '.join(run.flags)})" if run.flags else ""
    return (
        f"| {run.row}{marks} | {recipe['learning_rate']:g} | {recipe['weight_decay']:g} | {recipe['epochs']:g} "
        f"| {shown} | {run.training_commits[0][:8]} |"
    )
