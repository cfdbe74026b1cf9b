"""What of the paper's results is reproduced: verdicts on its numbers and on what it claims, from the records.

A number is reproduced where the paper's lies in our 95 % interval. A table is ``reproduced`` where all of its numbers
are, ``partly`` where some are, or some of its claims hold, on the paper's data; on other data it is ``not yet``.
Unfinished trainings, those of uncommitted code and those of a changed recipe are shown as what they are, but count for
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from offset_equivariant.reporting.claims import CLAIMS, Claim, Finding
from offset_equivariant.reporting.comparison import Cell, Table, TableRow, build_table
from offset_equivariant.reporting.descriptions import TABLES
from offset_equivariant.reporting.markdown import markdown_rows
from offset_equivariant.reporting.paper import TABLE_SATURATIONS, PaperValue, paper_value
from offset_equivariant.reporting.records import (
    NOT_RECORDED,
    Record,
    find_records,
    load_outcomes,
    saturation_key,
    trained_at,
    trained_on,
)
from offset_equivariant.reporting.tables import replace_block
from offset_equivariant.storage import replace_file

#: The text speaks of saturations that the tables do not have.
SATURATIONS = tuple(s / 10 for s in range(11))
#: By the number of the table: why its numbers are not the paper's, as far as that is known.
_WHY = {
    1: "`train=fast` takes a fourteenth of the paper's steps, which leaves its rows behind the paper. With all of them "
    "(`train=paper`, one seed of the original and of the equivariant network) the equivariant network has the paper's "
    "errors at S = 0, 0.5 and 0.9; at S = 1, where a channel is gone, its error is far above the paper's after either "
    "training, for a reason that is open. The original is ahead of the paper's at S = 0; at S = 0.9 it is by no more "
    "than seeds of `train=fast` differ. In white light it is therefore further ahead of the equivariant network than "
    "in the paper; why is open, too ([more](DEVIATIONS.md#differences-from-the-papers-protocol)). What the paper shows "
    "of all four strategies was examined with `train=fast` alone.",
    2: "ILSVRC-12 is given out on registration, and 90 epochs of it need a GPU. Imagenette, ten of its classes, stands "
    "in for it, for eight epochs of small images, after which the equivariant network is far from done "
    "([more](DEVIATIONS.md#resnet-50-table-2)).",
    3: "The scenes are the paper's, but were reduced in another way, and the recipe, which the paper leaves to the "
    "source of its network, was searched for. What the paper shows the network where a pixel is unlit is open too; "
    "under coloured light those pixels, and the clipping of dark ones, are all that moves the equivariant network's "
    "estimate "
    "([more](DEVIATIONS.md#illuminant-estimation-table-3)). The paper may have computed its numbers by another ratio "
    "than that of its Eq. 29: with the usual one the original network is much nearer to them at S = 0.9 "
    "([both](../results/tables/table3.md), [more](DEVIATIONS.md#errata-of-the-paper-with-evidence)).",
    4: "Paris Street View is given out by its authors on request only. CMP facades, fewer than a tenth as many photos, "
    "stand in for it. Of which values its PSNR is, the paper does not say; here of sRGB, which decides whether the "
    "original network's rises ([more](DEVIATIONS.md#inpainting-table-4)).",
}


def examined_tables(results: Path) -> list[Table]:
    """Gather all tables of the paper, at every saturation that its text speaks of, for verdicts on them."""
    tables = []
    for description in TABLES:
        records = find_records(results, description.number)
        outcomes = load_outcomes(results, records)
        tables.append(build_table(description, records, saturations=SATURATIONS, outcomes=outcomes))
    return tables


def render_reproduction(tables: Sequence[Table]) -> str:
    """Return the verdicts on :func:`examined_tables`, as Markdown."""
    return "\n\n".join(_section(table) for table in tables) + "\n"


def write_reproduction(root: Path, tables: Sequence[Table]) -> Path:
    """Put :func:`render_reproduction` into docs/REPRODUCTION.md of the repository at ``root``, and return its path."""
    path = root / "docs" / "REPRODUCTION.md"
    text = replace_block(path.read_text(encoding="utf-8"), render_reproduction(tables))
    replace_file(path, text.encode())
    return path


@dataclass(frozen=True)
class Tally:
    """How much of a table is reproduced, by networks of one recipe.

    Attributes:
        numbers: of the paper's numbers, how many lie in our interval.
        expected: how many the paper's table has.
        claims: of the claims that were examined, how many hold.
        examined: how many were.
        measured: whether anything was, on the paper's data.
        preset: that of the recipe; empty without one.
        others: the same of other recipes, of which less holds.
    """

    numbers: int
    expected: int
    claims: int
    examined: int
    measured: bool
    preset: str = ""
    others: tuple[Tally, ...] = ()

    @property
    def verdict(self) -> str:
        """``reproduced``, ``partly`` or ``not yet``; see the module's description."""
        if self.expected and self.numbers == self.expected:
            return "reproduced"
        return "partly" if self.numbers or self.claims else "not yet"

    @property
    def summary(self) -> str:
        """What the verdict rests on, in a few words; of several recipes by each."""
        claims = f", {self.claims} of {self.examined} claims" if self.examined else ""
        text = f"{self.numbers} of its {self.expected} numbers{claims}"
        if self.others:
            text += f" with `train={self.preset}`"
        for other in self.others:
            text += f"; {other.numbers} and {other.claims} of {other.examined} with `train={other.preset}`"
        return text


def tally(table: Table) -> Tally:
    """Count what holds on the paper's own data, by the recipe of which most does: two recipes are nobody's table."""
    own = [row for row in table.rows if row.records and row.records[0].dataset == table.description.dataset]
    expected = len({key for row in table.rows for key in _printed(row)})
    tallies = []
    for (_, preset), rows in _by_preset([row for row in own if row.citable]).items():
        inside = {key for row in rows for key, cell in _printed(row).items() if paper_inside(cell)}
        findings = _findings(table, rows)
        holding = sum(finding.holds is True for _, finding in findings)
        tallies.append(Tally(len(inside), expected, holding, len(findings), measured=True, preset=preset))
    if not tallies:
        return Tally(0, expected, 0, 0, measured=bool(own))
    best, *others = sorted(tallies, key=lambda found: (found.numbers, found.claims, found.examined), reverse=True)
    return replace(best, others=tuple(others))


def _printed(row: TableRow) -> dict[tuple[str | None, float], Cell]:
    """The cells of a line that the paper's table has, by its row and saturation."""
    return {
        (row.description.paper_row, cell.saturation): cell
        for cell in row.cells
        if cell.paper is not None and cell.saturation in TABLE_SATURATIONS
    }


def paper_inside(cell: Cell) -> bool | None:
    """Whether the paper's number lies in our interval, as exactly as it was printed; None without either."""
    if cell.paper is None or cell.interval is None:
        return None
    half_a_digit = 0.5 * 10.0**-cell.paper.decimals
    return cell.interval[0] - half_a_digit <= cell.paper.value <= cell.interval[1] + half_a_digit


#: Whether a claim holds, for readers.
_SAID = {True: "yes", False: "**no**", None: "undecided"}


def _section(table: Table) -> str:
    description = table.description
    found = tally(table)
    blocks = [
        f"## Table {description.number}: {found.verdict}",
        f"{description.title}." + (f" Reproduced: {found.summary}." if found.measured and found.expected else ""),
        *([_WHY[description.number]] if description.number in _WHY else []),
    ]
    numbers = [["Strategy", "S", "Paper", "Ours, 95 % interval", "Difference", "Paper's inside"]]
    for row in table.rows:
        if row.records and row.records[0].dataset == description.dataset:
            title = _strategy(table, row)
            papers = [cell for cell in row.cells if cell.paper is not None]
            numbers += [_number(title, cell, description.decimals, counts=row.citable) for cell in papers]
    if len(numbers) > 1:
        blocks.append(markdown_rows(numbers))
    blocks += _on_other_data(table)
    for (dataset, preset), rows in _by_preset(table.rows).items():
        findings = _findings(table, rows)
        if findings:
            lines = [["The paper shows", f"Here, on {dataset}, `train={preset}`", "Holds"]]
            lines += [[claim.statement, finding.measured, _SAID[finding.holds]] for claim, finding in findings]
            blocks.append(markdown_rows(lines))
    if not any(row.records for row in table.rows):
        blocks.append(f"Nothing has been measured; `make reproduce-table{description.number}` does.")
        return "\n\n".join(blocks)
    runs = [_run(_strategy(table, row), description.metric, row.records) for row in table.rows if row.records]
    known = [column for column in runs[0] if any(run[column] != "–" for run in runs)]
    blocks += ["What was run:", markdown_rows([known, *([run[column] for column in known] for run in runs)])]
    return "\n\n".join(blocks)


def _on_other_data(table: Table) -> list[str]:
    """The paper's numbers beside those measured on other data, where they are all there is; nothing is concluded."""
    description = table.description
    own = {row.description.name for row in table.rows if row.records and row.records[0].dataset == description.dataset}
    lines = [["Strategy", "S", f"Paper, on {description.dataset}", "Ours, 95 % interval", "On", "Paper's inside"]]
    for row in table.rows:
        papers = row.description.paper_row
        if not row.records or papers is None or row.description.name in own or row.records[0].distorted_otherwise:
            continue
        for cell in row.cells:
            paper = paper_value(description.number, papers, description.metric, cell.saturation)
            if paper is not None and cell.ours is not None:
                ours = _with_interval(cell, description.decimals)
                printed = _as_printed(paper, cell.saturation)
                title, dataset = _strategy(table, row), row.records[0].dataset
                lines.append([title, saturation_key(cell.saturation), printed, ours, dataset, "other data"])
    return [markdown_rows(lines)] if len(lines) > 1 else []


def _by_preset(rows: Sequence[TableRow]) -> dict[tuple[str, str], list[TableRow]]:
    """The lines that can be held against one another: of one data set, trained alike, or not trained at all."""
    measured = [row for row in rows if row.records]
    keys = dict.fromkeys((r.records[0].dataset, r.records[0].preset) for r in measured if r.records[0].total_steps)
    return {
        key: [
            row
            for row in measured
            if row.records[0].dataset == key[0] and (row.records[0].preset == key[1] or not row.records[0].total_steps)
        ]
        for key in keys
    }


def _strategy(table: Table, row: TableRow) -> str:
    """A measured line's title, with its preset where that is not the usual one, and what a reader must be warned of."""
    title = row.description.title + table.preset_suffix(row)
    return f"{title} **[{', '.join(row.marks)}]**" if row.marks else title


def _findings(table: Table, rows: Sequence[TableRow]) -> list[tuple[Claim, Finding]]:
    """The paper's claims that can be examined on these rows: those whose own rows were all measured."""
    cells: dict[str, dict[float, Cell]] = {}
    for row in rows:
        # The paper's own rows, the first line of each.
        measured = {cell.saturation: cell for cell in row.cells if cell.ours is not None}
        papers = None if row.records[0].distorted_otherwise else row.description.paper_row
        if papers is not None and measured.keys() >= set(TABLE_SATURATIONS) and row.citable:
            cells.setdefault(papers, measured)
    every = {row.paper_row for row in table.description.rows if row.paper_row}
    claims = [claim for claim in CLAIMS.get(table.description.number, ()) if set(claim.rows or every) <= cells.keys()]
    return [(claim, claim.examine(cells)) for claim in claims]


def _number(title: str, cell: Cell, decimals: int, *, counts: bool) -> list[str]:
    """A line of the paper's numbers beside ours; one that does not count, see the module, gets no verdict."""
    assert cell.paper is not None
    difference = "–" if cell.difference is None else f"{cell.difference:+.{cell.paper.decimals}f}"
    said = {True: "yes", False: "no", None: "–"}[paper_inside(cell)] if counts else "not counted"
    printed = _as_printed(cell.paper, cell.saturation)
    return [title, saturation_key(cell.saturation), printed, _with_interval(cell, decimals), difference, said]


def _with_interval(cell: Cell, decimals: int) -> str:
    ours = "–" if cell.ours is None else f"{cell.ours:.{decimals}f}"
    if cell.interval is not None:
        ours += " [{:.{d}f}, {:.{d}f}]".format(*cell.interval, d=decimals)
    return ours


def _as_printed(paper: PaperValue, saturation: float) -> str:
    """The paper's value, with its place where that is not the table."""
    return paper.printed if saturation in TABLE_SATURATIONS else f"{paper.printed} ({paper.source})"


def _run(title: str, metric: str, records: Sequence[Record]) -> dict[str, str]:
    """Column -> what it says of a line, "–" where it has nothing to say."""
    first = records[0]
    hours = sum(record.train_seconds for record in records) / 3600
    fitted = [f"{r.training_means[metric]:.1f}" if metric in r.training_means else "–" for r in records]
    evaluated_on = dict.fromkeys(_evaluated_on(record) for record in records)
    learned = first.total_steps > 0
    return {
        "Strategy": title,
        "Images": f"{first.dataset}, {first.n:,}",
        "Preset": first.preset if learned else "–",
        "Steps": ", ".join(dict.fromkeys(f"{r.steps:,} of {r.total_steps:,}" for r in records)) if learned else "–",
        "Seeds": " ".join(str(record.seed) for record in records),
        "Error in training, last (%)": "–" if set(fitted) == {"–"} else " ".join(fitted),
        "Training, hours in all": f"{hours:.1f}" if learned else "–",
        "Trained on": "; ".join(trained_on(records)) if learned else "–",
        "Trained at": " ".join(trained_at(records)) or "–",
        "Evaluated on": "; ".join(evaluated_on),
    }


def _evaluated_on(record: Record) -> str:
    """The device and its threads, as trainings name theirs."""
    device, threads = record.environment.get("device_name"), record.environment.get("threads")
    if device is None:
        return NOT_RECORDED
    if record.environment.get("device") != "cpu":
        return str(device)
    named = "a CPU" if device == "cpu" else device  # the first records do not say which
    return f"{named}, {threads} thread{'' if threads == 1 else 's'}"
