"""Gathering a table of the paper: the paper's values, ours, their intervals and paired differences.

What the tables show is described in :mod:`~offset_equivariant.reporting.descriptions`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offset_equivariant.reporting.costs import Costs
from offset_equivariant.reporting.descriptions import RELEASED_BALANCING, RowDescription, TableDescription
from offset_equivariant.reporting.paper import TABLE_SATURATIONS, PaperValue, paper_value
from offset_equivariant.reporting.records import Outcomes, Record, saturation_key
from offset_equivariant.settings import differing_settings, is_recipe
from offset_equivariant.statistics import (
    mean_and_std,
    median_interval,
    paired_difference_interval,
    paired_mean_ratio,
    paired_median_difference,
    paired_median_ratio,
    proportion_interval,
    widened_by_seeds,
)


@dataclass(frozen=True)
class Cell:
    """One row under one saturation: the paper's value and ours (None where there is none), in the table's unit.

    ``by_seed`` has what each seed gave, and ``std`` is over them; ``interval``, ``paired`` (difference to the baseline,
    low, high) and ``second_paired`` (to the second baseline) are 95 % intervals over the test images and, where there
    are several, the seeds. So are ``shift``, how far ours is from the same row's at S = 0, and ``growth``, how many
    times that it is; both of the paper's rows alone, under coloured light.
    """

    saturation: float
    paper: PaperValue | None
    ours: float | None
    std: float | None
    interval: tuple[float, float] | None
    paired: tuple[float, float, float] | None
    second_paired: tuple[float, float, float] | None = None
    shift: tuple[float, float, float] | None = None
    growth: tuple[float, float, float] | None = None
    by_seed: tuple[float, ...] = ()

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's."""
        return None if self.paper is None or self.ours is None else self.ours - self.paper.value


@dataclass(frozen=True)
class TableRow:
    """One line: the seeds of one experiment (no records: not run), its cells, and its measured invariance.

    ``invariance`` is the largest value of the table's ``invariance`` metric over saturations up to 0.9, None if not
    measured.
    """

    description: RowDescription
    records: tuple[Record, ...]
    cells: tuple[Cell, ...]
    invariance: float | None

    @property
    def marks(self) -> tuple[str, ...]:
        """What a reader of the line's numbers must be warned of, see :attr:`Record.flags`."""
        return tuple(dict.fromkeys(flag for record in self.records for flag in record.flags))

    @property
    def citable(self) -> bool:
        """Whether its numbers count as the row's: of finished trainings of committed code, with an unchanged recipe."""
        return bool(self.records) and not self.marks and is_recipe(self.records[0].preset)

    @property
    def footnote(self) -> str:
        """The description's, which holds for the released balancing network; with another one, that one's name."""
        for record in self.records:
            weights = (record.config.get("strategy") or {}).get("weights")
            if weights not in (None, RELEASED_BALANCING):
                return f"The network that balances is that in {weights}."
        return self.description.footnote


@dataclass(frozen=True)
class Table:
    """A table ready to be rendered."""

    description: TableDescription
    saturations: tuple[float, ...]
    rows: tuple[TableRow, ...]
    costs: Costs | None = None

    def preset_suffix(self, line: TableRow) -> str:
        """Return what tells a measured line from an earlier one of its row and data set: preset, light, or nothing.

        A preset that is no recipe of an experiment is always named, even where it stands alone.
        """
        dataset, preset = line.records[0].dataset, line.records[0].preset
        of_row = [other.records[0] for other in self.rows if other.description == line.description and other.records]
        usual = next((r.preset for r in of_row if r.dataset == dataset and is_recipe(r.preset)), None)
        otherwise = line.records[0].distorted_otherwise
        return ("" if preset == usual else f", `train={preset}`") + (f", {otherwise}" if otherwise else "")


def group_records(
    description: TableDescription, records: Iterable[Record]
) -> list[tuple[RowDescription, tuple[Record, ...]]]:
    """Group a table's records into lines, one per row, preset and data set, in the table's order.

    A row without records gives one empty group.

    Raises:
        ValueError: If a record's row is none of the table's, or if seeds of one line were trained with other settings.
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
        for line in lines.values():
            _require_same_settings(line)
        groups += [(row, tuple(lines[key])) for key in sorted(lines)] or [(row, ())]
    return groups


def _require_same_settings(line: Sequence[Record]) -> None:
    """Refuse to put seeds side by side, or to take their mean, that differ in more than the seed."""
    for record in line[1:]:
        differing = list(differing_settings(*({**r.config, "seed": None} for r in (line[0], record))))
        if (record.n, _tested_on(record)) != (line[0].n, _tested_on(line[0])):
            differing.append("test images")
        if differing:
            raise ValueError(
                f"record {record.experiment}, seed {record.seed}: its settings are not those of seed {line[0].seed} in "
                f"{', '.join(differing)}; train and evaluate both with the same ones, or remove one of the records"
            )


def build_table(
    description: TableDescription,
    records: Sequence[Record],
    saturations: Sequence[float] = TABLE_SATURATIONS,
    outcomes: Mapping[tuple[str, int], Outcomes] | None = None,
    costs: Costs | None = None,
) -> Table:
    """Gather a table from records.

    Args:
        description: What the table shows.
        records: Records; those of other tables are passed over.
        saturations: Its columns.
        outcomes: Per-image outcomes by experiment and seed, for the paired differences.
        costs: What its strategies cost, where that was measured.
    """
    groups = _with_papers_own(description, group_records(description, records))
    rows = []
    for row, group in groups:
        baselines = [
            _baseline(groups, row, group, named)
            for named in (row.baseline or description.baseline, description.second_baseline)
        ]
        cells = tuple(_cell(description, row, group, baselines, s, outcomes or {}) for s in saturations)
        changes = [change for r in group if (change := r.largest(description.invariance)) is not None]
        rows.append(TableRow(row, group, cells, max(changes, default=None)))
    return Table(description, tuple(saturations), tuple(rows), costs)


def _with_papers_own(
    description: TableDescription, groups: Sequence[tuple[RowDescription, tuple[Record, ...]]]
) -> list[tuple[RowDescription, tuple[Record, ...]]]:
    """Put an empty group before those of a row that has none of the table's data set: a line for the paper's values."""
    own = {row.name for row, group in groups if not group or group[0].dataset == description.dataset}
    result: list[tuple[RowDescription, tuple[Record, ...]]] = []
    for row, group in groups:
        if row.paper_row is not None and row.name not in own:
            own.add(row.name)
            result.append((row, ()))
        result.append((row, group))
    return result


def _baseline(
    groups: Sequence[tuple[RowDescription, tuple[Record, ...]]],
    row: RowDescription,
    group: tuple[Record, ...],
    named: str | None,
) -> tuple[Record, ...]:
    """The records of the row called ``named`` that a group's differences are taken to; none for the row itself."""
    fitting = (other for r, other in groups if r.name == named != row.name and _comparable(other, group))
    return next(fitting, ())


#: Digests that say nothing of the test images.
_NOT_TESTED_ON = ("train", "balancing_weights")


def _comparable(baseline: tuple[Record, ...], group: tuple[Record, ...]) -> bool:
    """Whether two groups were measured on the same images under the same light, with the same preset, at their end.

    Of two unfinished trainings the one with more steps is ahead for that alone.
    """
    if not baseline or not group or not all(record.complete for record in (*baseline, *group)):
        return False
    a, b = ((r.dataset, r.preset, r.n, r.distorted_otherwise, _tested_on(r)) for r in (baseline[0], group[0]))
    return a == b


def _tested_on(record: Record) -> dict[str, str]:
    """Digests of the test images."""
    return {split: digest for split, digest in record.data_sha256.items() if split not in _NOT_TESTED_ON}


def _cell(
    description: TableDescription,
    row: RowDescription,
    group: tuple[Record, ...],
    baselines: Sequence[tuple[Record, ...]],
    saturation: float,
    outcomes: Mapping[tuple[str, int], Outcomes],
) -> Cell:
    key = saturation_key(saturation)
    as_in_the_paper = all(r.dataset == description.dataset and not r.distorted_otherwise for r in group)
    paper = None
    if row.paper_row is not None and as_in_the_paper:
        paper = paper_value(description.number, row.paper_row, description.metric, saturation)
    values = [record.metrics.get(description.metric, {}).get(key) for record in group]
    measured = [value for value in values if value is not None]
    if not measured or len(measured) < len(values):  # a mean over some of the seeds would be compared with one over all
        return Cell(saturation, paper, None, None, None, None)
    ours, std = mean_and_std(measured)
    for record, value in zip(group, measured, strict=True):
        _require_own_outcomes(description, record, value, outcomes, key)
    interval = _interval(description, group, measured, key, outcomes)
    paired, second = (_paired(description, group, baseline, key, outcomes) for baseline in baselines)
    shift, growth = _since_white(description, row, group, key, outcomes)
    return Cell(saturation, paper, ours, std, interval, paired, second, shift, growth, tuple(measured))


def _require_own_outcomes(
    description: TableDescription,
    record: Record,
    value: float,
    outcomes: Mapping[tuple[str, int], Outcomes],
    key: str,
) -> None:
    """Refuse per-image outcomes that do not give the record's own number: a killed job may leave those of others."""
    found = _outcome(description, record, key, outcomes)
    if found is None:
        return
    summary = float(np.median(found) if description.statistic == "median" else np.mean(found))
    summary *= 100 if description.statistic == "proportion" else 1
    if not np.isclose(summary, value, rtol=1e-5, atol=1e-8):
        raise ValueError(
            f"record {record.experiment}, seed {record.seed}: {description.metric} at S = {key} is {value:g}, but its "
            f"per-image outcomes give {summary:g}; evaluate it again, at all saturations"
        )


def _interval(
    description: TableDescription,
    group: tuple[Record, ...],
    values: Sequence[float],
    key: str,
    outcomes: Mapping[tuple[str, int], Outcomes],
) -> tuple[float, float] | None:
    """95 % interval over the test images and, of several seeds, over seeds; None without the outcomes that it needs."""
    if len(group) == 1 and description.statistic == "proportion":
        low, high = proportion_interval(round(values[0] / 100 * group[0].n), group[0].n)
        return 100 * low, 100 * high
    found = [of for record in group if (of := _outcome(description, record, key, outcomes)) is not None]
    if len(found) < len(group):
        return None
    if len(group) == 1 and description.statistic == "median":
        return median_interval(found[0])
    of_seeds = np.stack(found)
    _, low, high = _difference(description, of_seeds, np.zeros_like(of_seeds, dtype=np.float64))
    return low, high


def _paired(
    description: TableDescription,
    group: tuple[Record, ...],
    baseline: tuple[Record, ...],
    key: str,
    outcomes: Mapping[tuple[str, int], Outcomes],
) -> tuple[float, float, float] | None:
    """Difference to the baseline on the same images, over the seeds that both have; None without outcomes."""

    def of(record: Record) -> NDArray[Any] | None:
        return _outcome(description, record, key, outcomes)

    untrained = all(record.total_steps == 0 for record in group)  # has one seed, and would have no other outcome
    theirs = {record.seed: of(record) for record in baseline}
    pairs = [(of(r), theirs[seed]) for r in group for seed in theirs if untrained or seed == r.seed]
    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    if not both:
        return None
    return _difference(description, *_stacked(both))


def _since_white(
    description: TableDescription,
    row: RowDescription,
    group: tuple[Record, ...],
    key: str,
    outcomes: Mapping[tuple[str, int], Outcomes],
) -> tuple[tuple[float, float, float] | None, tuple[float, float, float] | None]:
    """A row's ``shift`` and ``growth``, see :class:`Cell`; None without all outcomes, or where they do not exist."""
    white = saturation_key(0.0)
    if row.paper_row is None or key == white:
        return None, None
    pairs = [tuple(_outcome(description, r, k, outcomes) for k in (key, white)) for r in group]
    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    if len(both) < len(pairs):
        return None, None
    coloured, before = _stacked(both)
    shift = _difference(description, coloured, before)
    of_medians = description.statistic == "median"
    by_seed = [np.median(values, axis=1) if of_medians else values.mean(1) for values in (coloured, before)]
    if not by_seed[1].all():
        return shift, None
    growth, *interval = (paired_median_ratio if of_medians else paired_mean_ratio)(coloured, before)
    return shift, (growth, *widened_by_seeds((interval[0], interval[1]), (by_seed[0] / by_seed[1]).tolist()))


def _outcome(
    description: TableDescription, record: Record, key: str, outcomes: Mapping[tuple[str, int], Outcomes]
) -> NDArray[Any] | None:
    """What became of each image, shape (n,); None where it was not kept."""
    return outcomes.get((record.experiment, record.seed), {}).get(description.outcome, {}).get(key)


def _stacked(pairs: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The first of each seed's pair, shape (seeds, n), and the second."""
    return np.stack([a for a, _ in pairs]), np.stack([b for _, b in pairs])


def _difference(description: TableDescription, first: NDArray[Any], second: NDArray[Any]) -> tuple[float, float, float]:
    """Difference of the metric of two outcomes, shape (seeds, n), on the same images, with its interval."""
    if description.statistic == "median":
        difference, *interval = paired_median_difference(first, second)
        by_seed = np.median(first, axis=1) - np.median(second, axis=1)
    else:
        scale = 100 if description.statistic == "proportion" else 1
        difference, *interval = paired_difference_interval(scale * first.mean(0), scale * second.mean(0))
        by_seed = scale * (first.mean(1) - second.mean(1))
    return difference, *widened_by_seeds((interval[0], interval[1]), by_seed.tolist())
