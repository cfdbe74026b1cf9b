"""Tables of results as Markdown and CSV.

What the tables show is gathered in :mod:`~offset_equivariant.reporting.comparison`.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from offset_equivariant.reporting.comparison import Cell, Table, TableRow, build_table
from offset_equivariant.reporting.costs import COST_COLUMNS, read_costs, tabulate_costs
from offset_equivariant.reporting.descriptions import TABLE1, TABLE3, TABLES, Supplement, TableDescription
from offset_equivariant.reporting.markdown import markdown_rows
from offset_equivariant.reporting.records import find_records, load_outcomes, saturation_key
from offset_equivariant.storage import replace_file

__all__ = [
    "RESULTS_BEGIN",
    "RESULTS_END",
    "TABLE1",
    "TABLE3",
    "TABLES",
    "Cell",
    "Supplement",
    "Table",
    "TableDescription",
    "TableRow",
    "build_table",
    "footnotes",
    "notes_below",
    "read_tables",
    "render_csv",
    "render_markdown",
    "render_tables",
    "replace_block",
    "strategy_title",
    "tabulate",
    "write_tables",
]

RESULTS_BEGIN, RESULTS_END = "<!-- results:begin -->", "<!-- results:end -->"
#: What a reader of a table with unfinished trainings must know.
UNFINISHED = (
    "Unfinished trainings say nothing of where they end, nor two of them of each other: errors fall where the learning "
    "rate does."
)


def tabulate(table: Table) -> tuple[list[str], list[list[str | int | float | None]]]:
    """Return column names and rows of unformatted values, as the CSV file and a tracker's table show them."""
    columns = ["strategy", "row", "experiment", "dataset", "preset", "seeds", "training_commits", "marks", "n"]
    columns += ["parameters_paper", "parameters_ours", table.description.invariance]
    for s in table.saturations:
        kinds = ["paper", "ours", "by_seed", "std", "low", "high", "difference"]
        kinds += ["minus_baseline", "paired_low", "paired_high"]
        columns += [f"S{saturation_key(s)}_{kind}" for kind in kinds]
        if table.description.second_baseline is not None:
            second = (f"minus_{table.description.second_baseline}", "second_low", "second_high")
            columns += [f"S{saturation_key(s)}_{kind}" for kind in second]
    if table.costs is not None:
        columns += COST_COLUMNS
    rows = []
    for row in table.rows:
        first = row.records[0] if row.records else None
        values: list[str | int | float | None] = [row.description.title, row.description.name]
        values += [first.experiment, first.dataset, first.preset] if first else [None, None, None]
        values += [_seeds(row), _commits(row), ", ".join(row.marks) or None, first.n if first else None]
        values += [
            next((c.paper.parameters for c in row.cells if c.paper), None),
            first.parameters if first else None,
            row.invariance,
        ]
        for cell in row.cells:
            values += [cell.paper.value if cell.paper else None, cell.ours]
            values += [" ".join(f"{value:.6g}" for value in cell.by_seed) or None, cell.std]
            values += [*(cell.interval or (None, None)), cell.difference, *(cell.paired or (None, None, None))]
            if table.description.second_baseline is not None:
                values += cell.second_paired or (None, None, None)
        if table.costs is not None:
            costs = table.costs.values(row.description.name, table.description.baseline)
            values += costs if _is_first(table, row) else (None,) * len(costs)
        rows.append([round(value, 6) if isinstance(value, float) else value for value in values])
    return columns, rows


def render_csv(table: Table) -> str:
    """Return the table as CSV; a cell without a value is empty."""
    columns, rows = tabulate(table)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def render_markdown(table: Table) -> str:
    """Return the table as Markdown under its title, with all further tables."""
    description, digits = table.description, table.description.decimals
    notes = footnotes(table)
    header = ["Strategy", "Parameters: paper", "ours"]
    for s in table.saturations:
        header += [f"S = {saturation_key(s)}: paper", "ours", "difference"]
    lines = [[*header, "Weights: preset, seed, commit"]]
    invariance = [["Strategy", description.invariance_title]]
    titles = {row.name: row.title for row in description.rows}
    baseline = description.baseline_title or titles[description.baseline]
    invariance[0] += [f"Minus {baseline}, S = {saturation_key(s)}" for s in table.saturations]
    second = description.second_baseline
    if second is not None:
        invariance[0] += [f"Minus {titles[second]}, S = {saturation_key(s)}" for s in table.saturations]
    for row in table.rows:
        title = strategy_title(table, row, notes)
        if not row.records:
            lines.append([title, _count(_paper_parameters(table, row)), "not run"])
            for cell in row.cells:
                lines[-1] += [cell.paper.printed if cell.paper else "–", "–", "–"]
            lines[-1].append("–")
            continue
        line = [title, _count(_paper_parameters(table, row)), _count(row.records[0].parameters)]
        for cell in row.cells:
            line += [cell.paper.printed if cell.paper else "–", _ours(cell, digits), _difference(cell)]
        lines.append([*line, _weights(row)])
        change = "–" if row.invariance is None else f"{row.invariance:.2g}"
        invariance.append([title, change, *(signed_interval(cell.paired, digits) for cell in row.cells)])
        if second is not None:
            invariance[-1] += [signed_interval(cell.second_paired, digits) for cell in row.cells]
    blocks = [f"# Table {description.number}: {description.title}", markdown_rows(lines)]
    blocks += notes_below(notes)
    blocks.append(_explanation(table))
    if any(cell != "–" for line in invariance[1:] for cell in line[1:]):
        unit = "percentage points" if description.unit == "%" else description.unit
        blocks += [
            "Invariance, and paired differences on the same images under the same illuminants, of those seeds that "
            f"both rows have ({unit}, 95 % interval):",
            markdown_rows(invariance),
        ]
    blocks += _by_seed(table, notes)
    for supplement in description.supplements:
        blocks += _supplement(table, supplement, notes)
    blocks += _costs(table, notes)
    return "\n\n".join(blocks) + "\n"


def render_tables(results: Path) -> dict[Path, str]:
    """Render every table that has records: path relative to ``results`` -> content."""
    rendered = {}
    for table in read_tables(results):
        stem = Path("tables") / f"table{table.description.number}"
        rendered[stem.with_suffix(".md")] = render_markdown(table)
        rendered[stem.with_suffix(".csv")] = render_csv(table)
    return rendered


def write_tables(results: Path) -> list[Path]:
    """Write what :func:`render_tables` renders below ``results``, and return the paths."""
    paths = []
    for relative, content in render_tables(results).items():
        path = results / relative
        replace_file(path, content.encode())
        paths.append(path)
    return paths


def replace_block(text: str, block: str, begin: str = RESULTS_BEGIN, end: str = RESULTS_END) -> str:
    """Return a document's ``text`` with ``block`` between its markers, by default those of results.

    Raises:
        ValueError: If the markers are not there once each, in order.
    """
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"text needs one line {begin!r} and after it one line {end!r}: add them")
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n{block}{end}{rest.partition(end)[2]}"


def read_tables(results: Path) -> list[Table]:
    """Gather every table of the paper that has records below ``results``."""
    tables = []
    for description in TABLES:
        if records := find_records(results, description.number):
            outcomes, costs = load_outcomes(results, records), read_costs(results, description.number)
            tables.append(build_table(description, records, outcomes=outcomes, costs=costs))
    return tables


def footnotes(table: Table) -> list[str]:
    """Return the footnotes of a table's rows, each once."""
    return list(dict.fromkeys(row.footnote for row in table.rows if row.footnote))


def notes_below(notes: Sequence[str]) -> list[str]:
    """Return footnotes with their marks, a paragraph each."""
    return [f"{_superscript(i)} {note}" for i, note in enumerate(notes)]


def strategy_title(table: Table, row: TableRow, notes: Sequence[str]) -> str:
    """Return a line's title, with its footnote's mark and what a reader of its numbers must be warned of."""
    title = _title(table, row, notes)
    return f"{title} **[{', '.join(row.marks)}]**" if row.marks else title


def _by_seed(table: Table, notes: Sequence[str]) -> list[str]:
    """What each seed gave, of the rows that have several; nothing where none has."""
    digits = table.description.decimals
    lines = [
        [strategy_title(table, row, notes), " ".join(str(record.seed) for record in row.records)]
        + [", ".join(f"{value:.{digits}f}" for value in cell.by_seed) or "–" for cell in row.cells]
        for row in table.rows
        if len(row.records) > 1
    ]
    if not lines:
        return []
    header = ["Strategy", "Seeds", *(f"S = {saturation_key(s)}" for s in table.saturations)]
    return [f"Each seed ({table.description.unit}):", markdown_rows([header, *lines])]


def _supplement(table: Table, supplement: Supplement, notes: Sequence[str]) -> list[str]:
    """A further table of the rows that have its metrics; nothing where none has."""
    lines = []
    for row in table.rows:
        values = [
            [record.metrics.get(metric, {}).get(saturation_key(s)) for record in row.records]
            for metric, s in supplement.columns.values()
        ]
        has_it = all(supplement.needs is None or supplement.needs in record.metrics for record in row.records)
        has_it &= not any(supplement.not_with in record.metrics for record in row.records)
        if row.records and has_it and any(None not in of_seeds for of_seeds in values):
            shown = [_mean(of_seeds, table.description.decimals) for of_seeds in values]
            lines.append([strategy_title(table, row, notes), *shown])
    if not lines:
        return []
    return [f"{supplement.title}:", markdown_rows([["Strategy", *supplement.columns], *lines])]


def _costs(table: Table, notes: Sequence[str]) -> list[str]:
    """What the strategies cost; nothing where that was not measured."""
    if table.costs is None:
        return []
    titles: dict[str, str] = {}
    for row in table.rows:  # timed with the usual preset, whose line is a row's first
        titles.setdefault(row.description.name, _title(table, row, notes))
    caption, lines = tabulate_costs(table.costs, titles, table.description.baseline)
    return [caption, markdown_rows(lines)]


def _mean(values: Sequence[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.{digits}f}" if len(known) == len(values) else "–"


def _weights(row: TableRow) -> str:
    """Where the weights come from; nothing for a method that learns nothing."""
    if row.records[0].total_steps == 0:
        return "–"
    return f"{row.records[0].preset}, {_seeds(row)}, {_commits(row)}"


def _paper_parameters(table: Table, row: TableRow) -> str | None:
    return next((cell.paper.printed_parameters for cell in row.cells if cell.paper), None)


def _seeds(row: TableRow) -> str | None:
    seeds = [str(record.seed) for record in row.records]
    return f"seed{'s' if len(seeds) > 1 else ''} {' '.join(seeds)}" if seeds else None


def _commits(row: TableRow) -> str | None:
    commits = dict.fromkeys(commit[:8] for record in row.records for commit in record.training_commits)
    return " ".join(commits) or None


def _is_first(table: Table, row: TableRow) -> bool:
    """Whether a line is the first of its row: where there are several presets, that of the usual one."""
    return next(other for other in table.rows if other.description == row.description) is row


def _title(table: Table, row: TableRow, notes: Sequence[str]) -> str:
    title = row.description.title
    elsewhere = any(other.records and other.description == row.description for other in table.rows)
    dataset = row.records[0].dataset if row.records else table.description.dataset
    if dataset != table.description.dataset or (not row.records and elsewhere):
        title += f", on {dataset}"
    if row.records:
        title += table.preset_suffix(row)
    if row.footnote:
        title += f" {_superscript(notes.index(row.footnote))}"
    return title


def _ours(cell: Cell, digits: int) -> str:
    if cell.ours is None:
        return "–"
    spread = "" if cell.std is None else f" ± {cell.std:.{digits}f}"
    interval = "" if cell.interval is None else " [{:.{d}f}, {:.{d}f}]".format(*cell.interval, d=digits)
    return f"{cell.ours:.{digits}f}{spread}{interval}"


def _difference(cell: Cell) -> str:
    """No more decimals than the paper has."""
    return "–" if cell.paper is None or cell.difference is None else f"{cell.difference:+.{cell.paper.decimals}f}"


def signed_interval(values: tuple[float, float, float] | None, digits: int = 2) -> str:
    """Return a difference with its interval's ends, all with their signs; a dash where there is none."""
    return "–" if values is None else "{:+.{d}f} [{:+.{d}f}, {:+.{d}f}]".format(*values, d=digits)


def _count(number: str | int | None) -> str:
    if number is None:
        return "–"
    return f"{int(number):,}" if str(number).isdigit() else str(number)


def _superscript(index: int) -> str:
    """The mark of the footnote with this index: ¹ of the first."""
    return str(index + 1).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _explanation(table: Table) -> str:
    counts = " or ".join(f"{n:,}" for n in sorted({record.n for row in table.rows for record in row.records}))
    spread = "[ ]: 95 % interval over the test images and, of several seeds, over seeds; "
    text = (
        f"S: saturation of the test illuminant. {counts} test images. {spread}±: standard deviation over seeds. "
        f"Difference: ours minus the paper's. {table.description.remark}"
    ).rstrip()
    return f"{text} {UNFINISHED}" if is_unfinished(table) else text


def is_unfinished(table: Table) -> bool:
    """Whether a line of the table is of a training that is not at its end."""
    return any(not record.complete for row in table.rows for record in row.records)
