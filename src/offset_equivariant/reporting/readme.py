"""What the README shows of the results: the answer in a few sentences, and the tables in short.

The tables with intervals, parameters and paired differences are those of :mod:`~offset_equivariant.reporting.tables`.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path

from offset_equivariant.performance.report import ratio as time_ratio
from offset_equivariant.reporting.ablations import FOLDER
from offset_equivariant.reporting.comparison import Cell, Table, TableRow
from offset_equivariant.reporting.costs import Costs
from offset_equivariant.reporting.markdown import markdown_rows
from offset_equivariant.reporting.records import read_record, record_path, saturation_key
from offset_equivariant.reporting.reproduction import Tally, tally
from offset_equivariant.reporting.tables import (
    UNFINISHED,
    footnotes,
    is_unfinished,
    notes_below,
    read_tables,
    replace_block,
    signed_interval,
    strategy_title,
)
from offset_equivariant.storage import replace_file

ANSWER_BEGIN, ANSWER_END = "<!-- answer:begin -->", "<!-- answer:end -->"
#: Names of Table 1's rows in a sentence.
_ORIGINAL, _OURS, _EXACT = "original", "equivariant", "equivariant_relative"
_BALANCED, _AUGMENTED = "preprocessing_grey_world", "augmentation_illuminants"
#: Records of ablations that it tells of, and their seed.
_ABLATED_SEED = 0
_BRIGHTNESS = "ablation_grey_world_brightness_brief"


def render_answer(results: Path, examined: Sequence[Table]) -> str:
    """Return what the records answer in a few sentences, as Markdown; a sentence whose rows are missing is left out.

    Args:
        results: the folder of the records.
        examined: all of its tables, for the verdicts, see :func:`~.reproduction.examined_tables`.
    """
    tables = read_tables(results)
    table = next((table for table in tables if table.description.number == 1), None)
    trained = [] if table is None else [rows for rows in _finished(table) if {_ORIGINAL, _OURS} <= rows.keys()]
    sentences = []
    if table is not None and trained:
        usual, *others = trained
        sentences += [_robustness(usual, others), _price(table, usual, others, results)]
        if {_BALANCED, _AUGMENTED} <= usual.keys():
            sentences.append(_alternatives(usual))
        if _EXACT in usual:
            sentences.append(_guarantee(usual, others, results / FOLDER))
    if tables:
        verdicts = ", ".join(f"Table {table.description.number} {_counted(tally(table))}" for table in examined)
        sentences.append(f"[What is reproduced of the paper](docs/REPRODUCTION.md): {verdicts}.")
    points = textwrap.TextWrapper(
        120, initial_indent="- ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
    return "".join(f"{points.fill(sentence)}\n" for sentence in sentences)


def _finished(table: Table) -> list[dict[str, TableRow]]:
    """Lines of the table's own data set that may be cited, by row, for each preset: the most usual one first."""
    of_presets: dict[str, dict[str, TableRow]] = {}
    for row in table.rows:
        of_own_data = row.citable and row.records[0].dataset == table.description.dataset
        if of_own_data and all(cell.ours is not None for cell in row.cells):
            of_presets.setdefault(row.records[0].preset, {}).setdefault(row.description.name, row)
    return sorted(of_presets.values(), key=len, reverse=True)


def _value(row: TableRow, s: float) -> str:
    return f"{_cell(row, s).ours:.2f}"


def _with_interval(row: TableRow, s: float) -> str:
    interval = _cell(row, s).interval
    return _value(row, s) + ("" if interval is None else " [{:.2f}, {:.2f}]".format(*interval))


def _cell(row: TableRow, s: float) -> Cell:
    return next(cell for cell in row.cells if cell.saturation == s)


def _counted(found: Tally) -> str:
    """A verdict, with what it rests on."""
    basis = found.summary if found.measured else "not measured on the paper's data"
    return f"{found.verdict} ({basis})"


def _robustness(rows: dict[str, TableRow], others: Sequence[dict[str, TableRow]]) -> str:
    text = (
        "On CIFAR-10, light of saturation S = 0.9, whose weakest channel is a tenth of its strongest, takes an "
        f"ordinary ResNet-20's error from {_percent(rows[_ORIGINAL])}, and the equivariant one's from "
        f"{_percent(rows[_OURS])} ({_training(rows)})."
    )
    for of in others:
        text += f" The two are {_percent(of[_ORIGINAL])} and {_percent(of[_OURS])} with {_training(of)}."
    original, ours = (" to ".join(_papers(rows[name], s) for s in (0.0, 0.9)) for name in (_ORIGINAL, _OURS))
    return f"{text} In the paper: {original} % and {ours} %."


def _training(rows: dict[str, TableRow]) -> str:
    first, seeds = rows[_OURS].records[0], min(len(rows[name].records) for name in (_ORIGINAL, _OURS))
    over_images = ", so intervals over images alone" if seeds == 1 else ""
    return f"{_preset(rows)}: {first.total_steps:,} steps, {_seeds(seeds)}{over_images}"


def _preset(rows: dict[str, TableRow]) -> str:
    return f"`train={rows[_OURS].records[0].preset}`"


def _percent(row: TableRow) -> str:
    return f"{_value(row, 0.0)} to {_with_interval(row, 0.9)} %"


def _papers(row: TableRow, s: float) -> str:
    paper = _cell(row, s).paper
    return "–" if paper is None else paper.printed


def _price(table: Table, rows: dict[str, TableRow], others: Sequence[dict[str, TableRow]], results: Path) -> str:
    differences = [f"{signed_interval(_cell(of[_OURS], 0.0).paired)} points ({_preset(of)})" for of in (rows, *others)]
    text = f"In white light the equivariant network minus the ordinary one is {' and '.join(differences)}"
    ratios = _times_as_long(table.costs, results / "benchmarks")
    if ratios:
        steps, inferences = (f"{min(of):.1f} to {max(of):.1f}" for of in zip(*ratios, strict=True))
        text += (
            f"; in batches of such images its training step takes {steps} times as long, its inference {inferences} "
            "times, on [the CPUs it was timed on](docs/PERFORMANCE.md)"
        )
    return f"{text}."


def _times_as_long(costs: Costs | None, benchmarks: Path) -> list[tuple[float, float]]:
    """How many times as long a training step, and inference, of the equivariant network takes, wherever timed."""
    ratios = []
    if costs is not None and {_ORIGINAL, _OURS} <= costs.rows.keys():
        original, ours = costs.rows[_ORIGINAL], costs.rows[_OURS]
        ratios.append((ours.step_ms / original.step_ms, ours.inference_ms / original.inference_ms))
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(benchmarks.glob("*.json"))]
    return ratios + [(time_ratio(of, "training"), time_ratio(of, "inference")) for of in found]


def _alternatives(rows: dict[str, TableRow]) -> str:
    ways = [rows[_BALANCED], rows[_AUGMENTED]]
    errors = [f"{_value(way, 0.0)} and {_value(way, 0.9)} %" for way in ways]
    differences = [
        " and ".join(signed_interval(_cell(way, s).second_paired) for way in ways) + f" points at {s:g}"
        for s in (0.0, 0.9)
    ]
    return (
        f"Two simpler ways, at S = 0 and 0.9 with {_preset(rows)}: balancing every image by "
        f"grey-world, which learns nothing, {errors[0]}; training under random illuminants, {errors[1]}. Theirs minus "
        f"the equivariant network's: {differences[0]}, {differences[1]}."
    )


def _guarantee(rows: dict[str, TableRow], others: Sequence[dict[str, TableRow]], ablations: Path) -> str:
    change = {name: f"{rows[name].invariance:.2g}" for name in (_EXACT, _OURS)}
    otherwise = ", ".join(f"{_preset(of)}: {of[_OURS].invariance:.2g}" for of in others)
    text = (
        f"Up to S = 0.9 no single posterior changes by more than {change[_EXACT]} with relative clipping (ours, "
        f"{_value(rows[_EXACT], 0.9)} %, {_seeds(len(rows[_EXACT].records))}), and by up to {change[_OURS]} with the "
        "paper's" + (f" ({otherwise})" if otherwise else "")
    )
    rounded = [_largest_change(ablations, f"table1_{name}_requantized") for name in (_EXACT, _OURS)]
    if None not in rounded:
        text += (
            f"; once images are rounded to 8 bits under that light, as photos are, by up to {rounded[0]:.2g} and "
            f"{rounded[1]:.2g} ({_preset(rows)}, seed {_ABLATED_SEED}; [ablations](results/ablations/ablations.md))"
        )
    if _BALANCED in rows:
        text += f". Grey-world leaves up to {rows[_BALANCED].invariance:.2g}"
        if (fixed := _largest_change(ablations, _BRIGHTNESS)) is not None:
            text += (
                "; with all images scaled to one brightness it is as exact, before rounding "
                f"({fixed:.2g}; one short training)"
            )
    return f"{text}."


def _largest_change(folder: Path, experiment: str) -> float | None:
    """The largest change of a posterior up to S = 0.9 in a record of ``folder``, None if it is not there."""
    path = record_path(folder, experiment, _ABLATED_SEED)
    return read_record(path).largest("posterior_change") if path.exists() else None


def readme_block(results: Path) -> str:
    """Return the Markdown that stands between the README's markers of the results."""
    return "\n".join(_short(table) for table in read_tables(results)) or "No results have been recorded yet.\n"


def _short(table: Table) -> str:
    """One table as far as it fits a page's width."""
    description, notes = table.description, footnotes(table)
    header = ["Strategy", *(f"S = {saturation_key(s)}" for s in table.saturations), description.invariance_title]
    lines = [[*header, "Trained"]]
    for row in table.rows:
        change = "–" if row.invariance is None else f"{row.invariance:.2g}"
        cells = [_short_cell(cell, description.decimals) for cell in row.cells]
        lines.append([strategy_title(table, row, notes), *cells, change, _trained(row)])
    number = description.number
    counts = " or ".join(f"{n:,}" for n in sorted({record.n for row in table.rows for record in row.records}))
    explanation = (
        f"{counts} test images; in brackets the paper's number; ± standard deviation over seeds. "
        f"[Intervals, paired differences, parameters, commits](results/tables/table{number}.md). {_times(table)}"
    )
    if is_unfinished(table):
        explanation = f"{UNFINISHED}\n\n{explanation}"
    blocks = [f"### Table {number}: {description.title}", markdown_rows(lines)]
    return "\n\n".join([*blocks, *notes_below(notes), explanation]) + "\n"


def _times(table: Table) -> str:
    """How long one training of the table took, and one evaluation, from the fastest to the slowest, and all of each."""
    records = [record for row in table.rows for record in row.records]
    finished = [record for record in records if not record.flags]
    trained: dict[str, list[float]] = {}
    for record in finished:
        if record.total_steps:
            trained.setdefault(record.preset, []).append(record.train_seconds)
    evaluated = [record.evaluate_seconds for record in finished or records]
    texts = [
        f"one training {f'with `train={preset}` ' if len(trained) > 1 else ''}took {_taken(seconds)}"
        for preset, seconds in trained.items()
    ]
    text = "; ".join([*texts, *([f"one evaluation took {_taken(evaluated)}"] if evaluated else [])])
    return f"{text[:1].upper()}{text[1:]} ([on what](docs/REPRODUCTION.md))."


def _taken(seconds: Sequence[float]) -> str:
    return f"{_minutes(seconds)} minutes, all {len(seconds)} together {_in_all(sum(seconds))}"


def _in_all(seconds: float) -> str:
    return f"{seconds / 3600:.0f} hours" if seconds >= 2 * 3600 else f"{_minutes([seconds])} minutes"


def _minutes(seconds: Sequence[float]) -> str:
    minutes = (min(seconds) / 60, max(seconds) / 60)
    low, high = (f"{value:.0f}" if value >= 10 else f"{value:.2g}" for value in minutes)
    return low if low == high else f"{low} to {high}"


def _short_cell(cell: Cell, digits: int) -> str:
    ours = "–" if cell.ours is None else f"{cell.ours:.{digits}f}"
    spread = "" if cell.std is None else f" ± {cell.std:.{digits}f}"
    return ours + spread + (f" ({cell.paper.printed})" if cell.paper else "")


def _trained(row: TableRow) -> str:
    if not row.records:
        return "not run"
    if row.records[0].total_steps == 0:
        return "–"
    return f"{row.records[0].preset}, {_seeds(len(row.records))}"


def _seeds(count: int) -> str:
    return f"{count} seed{'' if count == 1 else 's'}"


def update_readme(path: Path, results: Path, examined: Sequence[Table]) -> None:
    """Put :func:`render_answer` and :func:`readme_block` between their markers of the README at ``path``.

    Raises:
        ValueError: If markers are missing.
    """
    try:
        text = render_readme(path.read_text(encoding="utf-8"), results, examined)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    replace_file(path, text.encode())


def render_readme(text: str, results: Path, examined: Sequence[Table]) -> str:
    """Return a README's ``text`` with what the records say between its markers.

    Raises:
        ValueError: If markers are missing.
    """
    text = replace_block(text, render_answer(results, examined), ANSWER_BEGIN, ANSWER_END)
    return replace_block(text, readme_block(results))
