"""Gathering a table of the paper: the paper's values, ours, their intervals and paired differences.

A table is a :class:`TableDescription`: to have another of the paper's tables, add one to :data:`TABLES`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offset_equivariant.reporting.paper import PaperValue, paper_value
from offset_equivariant.reporting.records import Outcomes, Record, saturation_key
from offset_equivariant.reporting.statistics import mean_and_std, paired_difference_interval, proportion_interval


@dataclass(frozen=True)
class RowDescription:
    """A row: its name in the records, its name for readers, and the paper's row that it is compared with.

    ``footnote`` says what the comparison with the paper's row leaves out.
    """

    name: str
    title: str
    paper_row: str | None
    footnote: str = ""


@dataclass(frozen=True)
class TableDescription:
    """What a table shows.

    Attributes:
        number: Number of the table in the paper.
        title: Title for readers.
        dataset: The table's own data set; the paper's values are compared with records of it alone.
        metric: Metric of the records, "error_percent" for instance.
        unit: Unit of the metric and of the differences.
        decimals: Decimals shown.
        rows: The rows in order.
        is_proportion: Whether the metric is a percentage of the test images, and so has a binomial interval.
        outcome: Per-image outcome whose mean, times ``outcome_scale``, is the metric; None if there is none
            (a median has none), and then no paired differences.
        outcome_scale: See ``outcome``.
        baseline: Row that the paired differences are taken to.
    """

    number: int
    title: str
    dataset: str
    metric: str
    unit: str
    decimals: int
    rows: tuple[RowDescription, ...]
    is_proportion: bool = False
    outcome: str | None = None
    outcome_scale: float = 1.0
    baseline: str = "original"


_OTHER_ALGORITHM = "The paper's preprocessing is another algorithm, quasi-unsupervised colour constancy."
TABLE1 = TableDescription(
    number=1,
    title="ResNet-20 on the CIFAR-10 test images, test error (%)",
    dataset="cifar10",
    metric="error_percent",
    unit="%",
    decimals=2,
    rows=(
        RowDescription("original", "Original", "original"),
        RowDescription("preprocessing_grey_world", "Preprocessing (grey-world)", "preprocessing", _OTHER_ALGORITHM),
        RowDescription(
            "preprocessing_shades_of_grey", "Preprocessing (shades-of-grey)", "preprocessing", _OTHER_ALGORITHM
        ),
        RowDescription("preprocessing_quasi_unsupervised", "Preprocessing (quasi-unsupervised)", "preprocessing"),
        RowDescription("augmentation", "Augmentation", "augmentation"),
        RowDescription("equivariant", "Equivariant", "equivariant"),
        RowDescription("equivariant_relative", "Equivariant, relative clipping (ours)", None),
    ),
    is_proportion=True,
    outcome="error",
    outcome_scale=100.0,
)
TABLES: tuple[TableDescription, ...] = (TABLE1,)


@dataclass(frozen=True)
class Cell:
    """One row under one saturation: the paper's value and ours (None where there is none), in the table's unit.

    ``std`` is over seeds; ``interval`` and ``paired`` (difference to the baseline, low, high) are 95 % intervals over
    the test images.
    """

    saturation: float
    paper: PaperValue | None
    ours: float | None
    std: float | None
    interval: tuple[float, float] | None
    paired: tuple[float, float, float] | None

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's."""
        return None if self.paper is None or self.ours is None else self.ours - self.paper.value


@dataclass(frozen=True)
class TableRow:
    """One line: the seeds of one experiment (no records: not run), its cells, and its measured invariance.

    ``posterior_change`` is the largest change of any posterior over saturations up to 0.9, None if not measured.
    """

    description: RowDescription
    records: tuple[Record, ...]
    cells: tuple[Cell, ...]
    posterior_change: float | None


@dataclass(frozen=True)
class Table:
    """A table ready to be rendered."""

    description: TableDescription
    saturations: tuple[float, ...]
    rows: tuple[TableRow, ...]


def find_table(number: int) -> TableDescription:
    """Return the description of a table.

    Raises:
        ValueError: if there is no such table, listing those that there are.
    """
    table = next((table for table in TABLES if table.number == number), None)
    if table is None:
        raise ValueError(f"there is no table {number}, only {', '.join(str(table.number) for table in TABLES)}")
    return table


def find_row(number: int, name: str) -> RowDescription:
    """Return the description of a row of a table.

    Raises:
        ValueError: if there is no such table or row, listing those that there are.
    """
    table = find_table(number)
    row = next((row for row in table.rows if row.name == name), None)
    if row is None:
        raise ValueError(f"table {number} has no row {name!r}, only {', '.join(row.name for row in table.rows)}")
    return row


def group_records(
    description: TableDescription, records: Iterable[Record]
) -> list[tuple[RowDescription, tuple[Record, ...]]]:
    """Group a table's records into lines, one per row, preset and data set, in the table's order.

    A row without records gives one empty group.

    Raises:
        ValueError: If a record's row is none of the table's.
    """
    mine = [record for record in records if record.table == description.number]
    names = [row.name for row in description.rows]
    for record in mine:
        if record.row not in names:
            raise ValueError(
                f"record {record.experiment}, seed {record.seed}: table {description.number} has no row "
                f"{record.row!r}; its rows are {', '.join(names)}"
            )
    groups = []
    for row in description.rows:
        lines: dict[tuple[bool, str, str, str], list[Record]] = {}
        for r in sorted((r for r in mine if r.row == row.name), key=lambda r: r.seed):
            lines.setdefault((r.dataset != description.dataset, r.dataset, r.experiment, r.preset), []).append(r)
        groups += [(row, tuple(lines[key])) for key in sorted(lines)] or [(row, ())]
    return groups


def build_table(
    description: TableDescription,
    records: Sequence[Record],
    saturations: Sequence[float] = (0.0, 0.5, 0.9),
    outcomes: Mapping[tuple[str, int], Outcomes] | None = None,
) -> Table:
    """Gather a table from records.

    Args:
        description: What the table shows.
        records: Records; those of other tables are passed over.
        saturations: Its columns.
        outcomes: Per-image outcomes by experiment and seed, for the paired differences.
    """
    groups = group_records(description, records)
    baselines = [group for row, group in groups if row.name == description.baseline and group]
    rows = []
    for row, group in groups:
        baseline = next((b for b in baselines if row.name != description.baseline and _comparable(b, group)), ())
        cells = tuple(_cell(description, row, group, baseline, s, outcomes or {}) for s in saturations)
        changes = [
            change
            for record in group
            for saturation, change in record.metrics.get("posterior_change", {}).items()
            if float(saturation) <= 0.9
        ]
        rows.append(TableRow(row, group, cells, max(changes, default=None)))
    return Table(description, tuple(saturations), tuple(rows))


def build_table1(
    records: Sequence[Record],
    saturations: Sequence[float] = (0.0, 0.5, 0.9),
    outcomes: Mapping[tuple[str, int], Outcomes] | None = None,
) -> Table:
    """Gather Table 1 (:func:`build_table` with :data:`TABLE1`)."""
    return build_table(TABLE1, records, saturations, outcomes)


def _comparable(baseline: tuple[Record, ...], group: tuple[Record, ...]) -> bool:
    """Whether two groups were measured on the same images, with the same preset."""
    if not baseline or not group:
        return False
    a, b = baseline[0], group[0]
    return all(getattr(a, name) == getattr(b, name) for name in ("dataset", "preset", "n", "data_sha256"))


def _cell(
    description: TableDescription,
    row: RowDescription,
    group: tuple[Record, ...],
    baseline: tuple[Record, ...],
    saturation: float,
    outcomes: Mapping[tuple[str, int], Outcomes],
) -> Cell:
    key = saturation_key(saturation)
    own_dataset = all(record.dataset == description.dataset for record in group)
    paper = None
    if row.paper_row is not None and own_dataset:
        paper = paper_value(description.number, row.paper_row, description.metric, saturation)
    values = [record.metrics.get(description.metric, {}).get(key) for record in group]
    measured = [value for value in values if value is not None]
    if not measured or len(measured) < len(values):  # a mean over some of the seeds would be compared with one over all
        return Cell(saturation, paper, None, None, None, None)
    ours, std = mean_and_std(measured)
    interval = None
    if description.is_proportion and len(group) == 1:
        low, high = proportion_interval(round(ours / 100 * group[0].n), group[0].n)
        interval = (100 * low, 100 * high)
    return Cell(saturation, paper, ours, std, interval, _paired(description, group, baseline, key, outcomes))


def _paired(
    description: TableDescription,
    group: tuple[Record, ...],
    baseline: tuple[Record, ...],
    key: str,
    outcomes: Mapping[tuple[str, int], Outcomes],
) -> tuple[float, float, float] | None:
    """Difference to the baseline, per image averaged over the seeds that both have; None without outcomes."""

    def of(record: Record) -> NDArray[Any] | None:
        return outcomes.get((record.experiment, record.seed), {}).get(description.outcome or "", {}).get(key)

    theirs = {record.seed: of(record) for record in baseline}
    pairs = [(mine, theirs.get(r.seed)) for r in group if (mine := of(r)) is not None]
    both = [(a, b) for a, b in pairs if b is not None]
    if not both:
        return None
    first, second = (np.mean([pair[i] for pair in both], axis=0) * description.outcome_scale for i in (0, 1))
    return paired_difference_interval(first, second)
