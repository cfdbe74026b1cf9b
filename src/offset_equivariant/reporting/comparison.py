"""Gathering a table of the paper: the paper's values, ours, their intervals and paired differences.

A table is a :class:`TableDescription`: to have another of the paper's tables, add one to :data:`TABLES`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from offset_equivariant.data.nus import CAMERAS
from offset_equivariant.reporting.costs import Costs
from offset_equivariant.reporting.paper import PaperValue, paper_value
from offset_equivariant.reporting.records import Outcomes, Record, saturation_key
from offset_equivariant.reporting.statistics import (
    mean_and_std,
    median_interval,
    paired_difference_interval,
    paired_median_difference,
    proportion_interval,
    widened_by_seeds,
)


@dataclass(frozen=True)
class RowDescription:
    """A row: its name in the records, its name for readers, and the paper's row that it is compared with.

    ``footnote`` says what the comparison with the paper's row leaves out, or what is special; ``same_method`` is false
    where the paper's row is of another algorithm; ``curve`` says whether the table's figure shows the row. A row that
    is a ``variant_of`` another is drawn like it, but dashed; ``baseline`` is the row that its paired differences are
    taken to, None for the table's.
    """

    name: str
    title: str
    paper_row: str | None
    footnote: str = ""
    same_method: bool = True
    curve: bool = True
    variant_of: str | None = None
    baseline: str | None = None


@dataclass(frozen=True)
class Supplement:
    """A further table, of those rows that have its metrics.

    Attributes:
        title: What it shows.
        columns: Title of each column -> metric of the records, and saturation of the test illuminant.
        in_readme: Whether the README shows it.
        needs: Metric without which a row is left out; None: any of the columns is enough.
    """

    title: str
    columns: Mapping[str, tuple[str, float]]
    in_readme: bool = False
    needs: str | None = None


def _at(saturation: float, title: str, metrics: Mapping[str, str]) -> Supplement:
    """A further table of metrics (title -> metric) under one saturation."""
    return Supplement(
        f"{title}, S = {saturation_key(saturation)}",
        {heading: (metric, saturation) for heading, metric in metrics.items()},
    )


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
        statistic: What the metric is of the per-image outcomes: a "proportion" in per cent, their "median" or "mean".
        outcome: Per-image outcome that the metric summarises.
        invariance: Metric that says by how much any image's outcome moves, and would be zero for an invariant network.
        invariance_title: Its name for readers.
        figure: Number of the figure that shows the metric over the saturation.
        figure_top: Where that figure's axis ends, in ``unit``, unless a value at S = 0.9 or below needs more.
        axis: Label of that axis.
        figure_bottom: Where it begins.
        baseline: Row that the paired differences are taken to, but for rows that have one of their own.
        baseline_title: Its name for readers; empty for its own title.
        supplements: Further tables.
    """

    number: int
    title: str
    dataset: str
    metric: str
    unit: str
    decimals: int
    rows: tuple[RowDescription, ...]
    statistic: Literal["proportion", "median", "mean"]
    outcome: str
    invariance: str
    invariance_title: str
    figure: int
    figure_top: float
    axis: str
    figure_bottom: float = 0.0
    baseline: str = "original"
    baseline_title: str = ""
    supplements: tuple[Supplement, ...] = ()


def _recovery(metric: str, saturations: Sequence[float]) -> Supplement:
    """How well strategies that balance colours recover the light, beside what a metric of the table makes of it."""
    columns: dict[str, tuple[str, float]] = {}
    for s in saturations:
        columns[f"S = {saturation_key(s)}: angle"] = ("median_recovery_error_degrees", s)
        columns[f"S = {saturation_key(s)}: error"] = (metric, s)
    return Supplement(
        "Colour balancing: median angle (°) between the light put on an image, which counts as balanced before it, and "
        "the estimate divided out; and the test error (%) that this leads to",
        columns,
        in_readme=True,
        needs="median_recovery_error_degrees",
    )


def _statistical_preprocessing(method: str, title: str) -> RowDescription:
    return RowDescription(
        f"preprocessing_{method}",
        f"Preprocessing ({title})",
        "preprocessing",
        "The paper's preprocessing is another algorithm, quasi-unsupervised colour constancy.",
        same_method=False,
    )


_OWN_NETWORK = (
    "By our own small network, trained on the training images of CIFAR-10; the paper's was trained on ILSVRC-12."
)
TABLE1 = TableDescription(
    number=1,
    title="ResNet-20 on the CIFAR-10 test images, test error (%)",
    dataset="cifar10",
    metric="error_percent",
    unit="%",
    decimals=2,
    rows=(
        RowDescription("original", "Original", "original"),
        _statistical_preprocessing("grey_world", "grey-world"),
        _statistical_preprocessing("shades_of_grey", "shades-of-grey"),
        _statistical_preprocessing("max_rgb", "max-RGB"),
        _statistical_preprocessing("grey_edge", "grey-edge"),
        RowDescription(
            "preprocessing_quasi_unsupervised", "Preprocessing (quasi-unsupervised)", "preprocessing", _OWN_NETWORK
        ),
        RowDescription("augmentation", "Augmentation", "augmentation"),
        RowDescription("augmentation_illuminants", "Augmentation by random illuminants (ours)", None),
        RowDescription("equivariant", "Equivariant", "equivariant"),
        RowDescription("equivariant_relative", "Equivariant, relative clipping (ours)", None),
    ),
    statistic="proportion",
    outcome="error",
    invariance="posterior_change",
    invariance_title="Largest change of any posterior, S ≤ 0.9",
    figure=2,
    figure_top=35.0,
    axis="Test error (%)",
    supplements=(_recovery("error_percent", (0.0, 0.3, 0.5, 0.7, 0.9, 1.0)),),
)
_SMALL_BALANCER = (
    "The network that balances is a small one, trained on CIFAR-10, which looks at images reduced to 32 x 32 pixels; "
    "the paper's has 54 million parameters and was trained on ILSVRC-12."
)
TABLE2 = TableDescription(
    number=2,
    title="ResNet-50 on the ILSVRC-12 validation images, test error (%)",
    dataset="ilsvrc12",
    metric="error_percent",
    unit="%",
    decimals=2,
    rows=(
        RowDescription("original", "Original", "original"),
        RowDescription(
            "preprocessing_quasi_unsupervised", "Preprocessing (quasi-unsupervised)", "preprocessing", _SMALL_BALANCER
        ),
        RowDescription("augmentation", "Augmentation", "augmentation"),
        RowDescription("equivariant", "Equivariant", "equivariant"),
        RowDescription("equivariant_relative", "Equivariant, relative clipping (ours)", None),
    ),
    statistic="proportion",
    outcome="error",
    invariance="posterior_change",
    invariance_title="Largest change of any posterior, S ≤ 0.9",
    figure=4,
    figure_top=50.0,
    axis="Test error (%)",
    supplements=(
        *(
            _at(s, "Top-1 and top-5 error (%)", {"top-1": "error_percent", "top-5": "top5_error_percent"})
            for s in (0.0, 0.5, 0.9)
        ),
        _recovery("error_percent", (0.0, 0.5, 0.9)),
    ),
)
_REPRODUCTION = "reproduction_error_degrees"
_STATISTICS = {
    "mean": f"mean_{_REPRODUCTION}",
    "median": f"median_{_REPRODUCTION}",
    "trimean": f"trimean_{_REPRODUCTION}",
    "best 25 %": f"best_quarter_{_REPRODUCTION}",
    "worst 25 %": f"worst_quarter_{_REPRODUCTION}",
    "95th percentile": f"percentile_95_{_REPRODUCTION}",
    "median recovery error": "median_recovery_error_degrees",
    "median, Finlayson's ratio": "median_reproduction_error_finlayson_degrees",
}
_UNSEEN = "Each camera is tested by a network that never saw it; those of the other rows have seen all cameras."
TABLE3 = TableDescription(
    number=3,
    title="Color Cerberus on NUS, median reproduction angular error (°)",
    dataset="nus",
    metric=f"median_{_REPRODUCTION}",
    unit="°",
    decimals=2,
    rows=(
        RowDescription("original", "Original", "original"),
        RowDescription("equivariant", "Equivariant", "equivariant"),
        RowDescription("equivariant_filled", "Equivariant, unlit pixels filled (ours)", None),
        RowDescription("grey_world", "Grey-world", None),
        RowDescription("max_rgb", "Max-RGB", None),
        RowDescription("shades_of_grey", "Shades-of-grey", None),
        RowDescription("grey_edge", "Grey-edge, first order", None),
        RowDescription("original_unseen_camera", "Original, unseen camera", None, _UNSEEN, curve=False),
        RowDescription("equivariant_unseen_camera", "Equivariant, unseen camera", None, _UNSEEN, curve=False),
        RowDescription(
            "equivariant_filled_unseen_camera", "Equivariant, filled, unseen camera", None, _UNSEEN, curve=False
        ),
    ),
    statistic="median",
    outcome=_REPRODUCTION,
    invariance="reproduction_error_change_degrees",
    invariance_title="Largest change of any image's error, S ≤ 0.9",
    figure=5,
    figure_top=35.0,
    axis="Median reproduction angular error (°)",
    supplements=(
        _at(0.0, "Other statistics of the same errors (°)", _STATISTICS),
        _at(0.9, "Other statistics of the same errors (°)", _STATISTICS),
        _at(
            0.0,
            "Median reproduction angular error by camera (°)",
            {camera: f"median_{_REPRODUCTION}_{camera}" for camera in CAMERAS},
        ),
        _at(
            0.0,
            "Median reproduction angular error by test fold (°); the first fold's images did not choose the recipe",
            {f"fold {fold + 1}": f"median_{_REPRODUCTION}_fold{fold}" for fold in range(3)},
        ),
    ),
)
_SMALL = "A quarter of the width, whose weights are released."
_MEASURES = {
    "PSNR, sRGB": "psnr_db",
    "PSNR, linear RGB": "psnr_linear_db",
    "PSNR, illuminant undone": "psnr_undone_db",
    "SSIM": "ssim",
    "RMS change of the fill, 8-bit levels": "fill_change_levels",
}


def _small(row: str, title: str) -> RowDescription:
    return RowDescription(f"small_{row}", title, None, _SMALL, variant_of=row, baseline="small_original")


TABLE4 = TableDescription(
    number=4,
    title="Context Encoder, PSNR of the filled centre (dB)",
    dataset="paris_street_view",
    metric="psnr_db",
    unit="dB",
    decimals=2,
    rows=(
        RowDescription("original", "Original", "original"),
        RowDescription("equivariant", "Equivariant", "equivariant"),
        RowDescription("equivariant_relative", "Equivariant, relative clipping (ours)", None),
        RowDescription("small_original", "Original, small", None, _SMALL, variant_of="original"),
        _small("equivariant", "Equivariant, small"),
        _small("equivariant_relative", "Equivariant, relative clipping, small"),
        RowDescription("mean_colour", "Mean colour", None),
        RowDescription("telea", "Telea (2004)", None),
        RowDescription("navier_stokes", "Navier-Stokes (Bertalmio et al. 2001)", None),
    ),
    statistic="mean",
    outcome="psnr_db",
    invariance="largest_fill_change_levels",
    invariance_title="Largest RMS change of any image's fill, 8-bit levels, S ≤ 0.9",
    figure=7,
    figure_top=24.0,
    figure_bottom=8.0,
    axis="PSNR of the centre (dB)",
    baseline_title="Original (of its size)",
    supplements=tuple(_at(s, "Other measures of the same fills", _MEASURES) for s in (0.0, 0.5, 0.9)),
)
TABLES: tuple[TableDescription, ...] = (TABLE1, TABLE2, TABLE3, TABLE4)


@dataclass(frozen=True)
class Cell:
    """One row under one saturation: the paper's value and ours (None where there is none), in the table's unit.

    ``std`` is over seeds; ``interval`` and ``paired`` (difference to the baseline, low, high) are 95 % intervals over
    the test images and, where there are several, the seeds.
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

    ``invariance`` is the largest value of the table's ``invariance`` metric over saturations up to 0.9, None if not
    measured.
    """

    description: RowDescription
    records: tuple[Record, ...]
    cells: tuple[Cell, ...]
    invariance: float | None


@dataclass(frozen=True)
class Table:
    """A table ready to be rendered."""

    description: TableDescription
    saturations: tuple[float, ...]
    rows: tuple[TableRow, ...]
    costs: Costs | None = None


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
        named = row.baseline or description.baseline
        baselines = [other for r, other in groups if r.name == named != row.name and _comparable(other, group)]
        baseline = next(iter(baselines), ())
        cells = tuple(_cell(description, row, group, baseline, s, outcomes or {}) for s in saturations)
        changes = [
            change
            for record in group
            for saturation, change in record.metrics.get(description.invariance, {}).items()
            if float(saturation) <= 0.9
        ]
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


def build_table1(
    records: Sequence[Record],
    saturations: Sequence[float] = (0.0, 0.5, 0.9),
    outcomes: Mapping[tuple[str, int], Outcomes] | None = None,
) -> Table:
    """Gather Table 1 (:func:`build_table` with :data:`TABLE1`)."""
    return build_table(TABLE1, records, saturations, outcomes)


#: Digests that say nothing of the test images.
_NOT_TESTED_ON = ("train", "balancing_weights")


def _comparable(baseline: tuple[Record, ...], group: tuple[Record, ...]) -> bool:
    """Whether two groups were measured on the same images, with the same preset."""
    if not baseline or not group:
        return False
    a, b = baseline[0], group[0]
    digests = [
        {split: digest for split, digest in r.data_sha256.items() if split not in _NOT_TESTED_ON} for r in (a, b)
    ]
    return digests[0] == digests[1] and (a.dataset, a.preset, a.n) == (b.dataset, b.preset, b.n)


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
    intervals = [
        _interval(description, record, value, outcomes.get((record.experiment, record.seed), {}), key)
        for record, value in zip(group, measured, strict=True)
    ]
    known = [interval for interval in intervals if interval is not None]
    interval = None
    if len(known) == len(group):
        lows, highs = zip(*known, strict=True)
        interval = widened_by_seeds((float(np.mean(lows)), float(np.mean(highs))), measured)
    return Cell(saturation, paper, ours, std, interval, _paired(description, group, baseline, key, outcomes))


def _interval(
    description: TableDescription, record: Record, value: float, outcomes: Outcomes, key: str
) -> tuple[float, float] | None:
    """95 % interval of one seed over the test images; None without outcomes, where it needs them."""
    if description.statistic == "proportion":
        low, high = proportion_interval(round(value / 100 * record.n), record.n)
        return 100 * low, 100 * high
    values = outcomes.get(description.outcome, {}).get(key)
    if values is None:
        return None
    if description.statistic == "median":
        return median_interval(values)
    return paired_difference_interval(values, np.zeros(len(values)))[1:]


def _paired(
    description: TableDescription,
    group: tuple[Record, ...],
    baseline: tuple[Record, ...],
    key: str,
    outcomes: Mapping[tuple[str, int], Outcomes],
) -> tuple[float, float, float] | None:
    """Difference to the baseline on the same images, over the seeds that both have; None without outcomes."""

    def of(record: Record) -> NDArray[Any] | None:
        return outcomes.get((record.experiment, record.seed), {}).get(description.outcome, {}).get(key)

    untrained = all(record.total_steps == 0 for record in group)  # has one seed, and would have no other outcome
    theirs = {record.seed: of(record) for record in baseline}
    pairs = [(of(r), theirs[seed]) for r in group for seed in theirs if untrained or seed == r.seed]
    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    if not both:
        return None
    first, second = (np.stack([pair[i] for pair in both]) for i in (0, 1))
    if description.statistic == "median":
        difference, *interval = paired_median_difference(first, second)
        by_seed = np.median(first, axis=1) - np.median(second, axis=1)
    else:
        scale = 100 if description.statistic == "proportion" else 1
        difference, *interval = paired_difference_interval(scale * first.mean(0), scale * second.mean(0))
        by_seed = scale * (first.mean(1) - second.mean(1))
    return difference, *widened_by_seeds((interval[0], interval[1]), by_seed.tolist())
