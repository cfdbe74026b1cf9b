"""The record of a recipe search: every combination that was tried, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offset_equivariant.reporting.markdown import markdown_rows
from offset_equivariant.reporting.records import Record, find_records
from offset_equivariant.storage import replace_file


@dataclass(frozen=True)
class SearchDescription:
    """What a search was for.

    Attributes:
        subject: What was chosen.
        metric: What decided.
        heading: Its name for readers, with the unit.
        settings: Title of each column -> setting of the recipe, or of its ``inpainting``, or of the model's ``options``
            or ``family_options``, or of the strategy or its ``jitter``.
        largest: Whether its largest value is the best, not its smallest.
        decided_at: Saturations over whose mean the metric decides.
        note: What a reader of the runs must know beside; empty for nothing.
    """

    subject: str
    metric: str
    heading: str
    settings: Mapping[str, str]
    largest: bool = False
    decided_at: tuple[str, ...] = ("0.0",)
    note: str = ""


#: By the name of the folder below ``results``.
SEARCHES = {
    "search": SearchDescription(
        "the recipe of `train=fast`",
        "error_percent",
        "Error (%)",
        {"Learning rate": "learning_rate", "Weight decay": "weight_decay", "Epochs": "epochs"},
    ),
    "search_nus": SearchDescription(
        "the recipe of `train=nus_fast`",
        "median_reproduction_error_degrees",
        "Median error (°)",
        {
            "Constraint": "constraint",
            "Learning rate": "learning_rate",
            "Weight decay": "weight_decay",
            "Batch": "batch_size",
            "Smallest crop": "smallest_crop",
            "Epochs": "epochs",
        },
    ),
    "search_inpainting": SearchDescription(
        "the recipe of `train=inpainting_fast`",
        "psnr_db",
        "PSNR (dB)",
        {
            "Learning rate": "learning_rate",
            "Discriminator's": "discriminator_learning_rate",
            "Batch": "batch_size",
            "Initial γ": "initial_gain",
            "Epochs": "epochs",
        },
        largest=True,
        note="Without an initial γ (–): the original network as it is, whose γ begin at 1; of the equivariant network, "
        "an earlier generator, whose γ began at 1, too, and whose fill was not yet cut at the brightest visible pixel. "
        "Runs of 60 and of 150 epochs are of two series, not to be compared with one another.",
    ),
    "search_jitter": SearchDescription(
        "the strengths of `strategy=augmentation`",
        "error_percent",
        "Error (%)",
        {
            "Brightness": "brightness",
            "Contrast": "contrast",
            "Saturation": "saturation",
            "Hue": "hue",
            "Epochs": "epochs",
        },
        decided_at=("0.0", "0.5", "0.9"),
    ),
    "search_illuminants": SearchDescription(
        "the largest saturation of `strategy=augmentation_illuminants`",
        "error_percent",
        "Error (%)",
        {"Largest saturation": "illuminant_saturation", "Epochs": "epochs"},
        decided_at=("0.0", "0.5", "0.9"),
    ),
}


def render_search(records: Iterable[Record], description: SearchDescription) -> str:
    """Return every run of the search, best first within each family of layers, by the metric where it decides.

    Raises:
        ValueError: if a run was not measured on validation images: test images must not choose a recipe.
    """
    runs = list(records)
    for run in runs:
        if not run.dataset.endswith("_validation"):
            raise ValueError(f"{run.experiment} was measured on {run.dataset}, not on validation images")
    sign = -1 if description.largest else 1
    decided_at = description.decided_at

    def score(run: Record) -> float:
        values = run.metrics[description.metric]
        return sign * sum(values[s] for s in decided_at) / len(decided_at)

    order = sorted(runs, key=lambda run: (run.row, score(run)))
    header = ["Family", *description.settings, f"{description.heading} at S = 0.0", "0.5", "0.9", "Commit"]
    rule = ["---", *["--:"] * (len(header) - 2), "---"]
    n = sorted({run.n for run in runs})
    return "\n".join(
        [
            f"# Search for {description.subject}",
            "",
            f"Measured on {', '.join(map(str, n))} images held out of the training set; one run each, seed 0. "
            f"Best first within each family, {_where(decided_at)}. {description.note}".rstrip(),
            "",
            markdown_rows([header, *(_line(run, description) for run in order)], rule),
            "",
        ]
    )


def write_searches(results: Path) -> list[Path]:
    """Write ``search.md`` into every folder of ``SEARCHES`` that has records, and return the paths."""
    paths = []
    for name, description in SEARCHES.items():
        if records := find_records(results / name):
            replace_file(results / name / "search.md", render_search(records, description).encode())
            paths.append(results / name / "search.md")
    return paths


def _line(run: Record, description: SearchDescription) -> list[str]:
    model, recipe = run.config.get("model", {}), run.config["train"]
    options = {**model.get("family_options", {}), **model.get("options", {})}
    strategy = run.config.get("strategy", {})
    known = {**options, **strategy, **(strategy.get("jitter") or {}), **(recipe.get("inpainting") or {}), **recipe}
    chosen = [_shown(known.get(name)) for name in description.settings.values()]
    values = run.metrics[description.metric]
    measured = [f"{values[s]:.2f}" if s in values else "–" for s in ("0.0", "0.5", "0.9")]
    marks = f" ({', '.join(run.flags)})" if run.flags else ""
    return [run.row + marks, *chosen, *measured, run.training_commits[0][:8]]


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _where(saturations: tuple[str, ...]) -> str:
    return f"at S = {saturations[0]}" if len(saturations) == 1 else f"by the mean over S = {', '.join(saturations)}"
