"""Figures, drawn from records: a table's metric over the saturation (Figures 2, 4, 5 and 7), and examples (3, 6 and 8).

Drawn with matplotlib's object interface: no display, no global state.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle, groupby
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from offset_equivariant.reporting.comparison import group_records
from offset_equivariant.reporting.descriptions import TABLE1, TABLE2, TABLE3, TABLE4, TABLES, TableDescription
from offset_equivariant.reporting.image_panel import image_figure, read_image_panel
from offset_equivariant.reporting.paper import TABLE_SATURATIONS, paper_value
from offset_equivariant.reporting.predictions import figure3, read_panel
from offset_equivariant.reporting.records import Record, find_records
from offset_equivariant.settings import is_recipe
from offset_equivariant.statistics import mean_and_std
from offset_equivariant.storage import replace_file

# Okabe and Ito's palette, which is told apart under the common forms of colour blindness, and where it ends two of
# Tol's muted colours; and a marker each.
_STYLES = {
    "original": ("#D55E00", "o"),
    "preprocessing_grey_world": ("#555555", "v"),
    "preprocessing_shades_of_grey": ("#CC79A7", "^"),
    "preprocessing_max_rgb": ("#882255", "<"),
    "preprocessing_grey_edge": ("#999933", ">"),
    "preprocessing_quasi_unsupervised": ("#E69F00", "D"),
    "augmentation": ("#009E73", "s"),
    "augmentation_illuminants": ("#000000", "p"),
    "equivariant": ("#0072B2", "P"),
    "equivariant_relative": ("#56B4E9", "X"),
    "equivariant_filled": ("#56B4E9", "X"),
    "grey_world": ("#555555", "v"),
    "shades_of_grey": ("#CC79A7", "^"),
    "max_rgb": ("#882255", "<"),
    "grey_edge": ("#999933", ">"),
    "mean_colour": ("#555555", "v"),
    "telea": ("#CC79A7", "^"),
    "navier_stokes": ("#E69F00", "D"),
}
#: Of rows that have none above, in turn: more of Tol's muted colours.
_OTHER_STYLES = (("#332288", "h"), ("#117733", "*"), ("#AA4499", "d"), ("#DDCC77", "8"), ("#CC6677", "H"))
_LINES = ("-", "--", ":", "-.")
#: Rows that are told apart from others by dashes too, or lie upon another.
_DASHED = ("preprocessing_", "grey_edge")
_HOLLOW: dict[str, Any] = {"markerfacecolor": "none", "markersize": 10, "markeredgewidth": 1.4, "linestyle": "none"}


@dataclass(frozen=True)
class Curve:
    """One curve: a table's metric over saturation, of all seeds of one row, preset and data set.

    ``style`` is the row whose colour and marker it has; ``line`` numbers the curves of one style. ``paper`` holds the
    paper's values of the row by saturation.
    """

    row: str
    style: str
    title: str
    records: tuple[Record, ...]
    saturations: tuple[float, ...]
    means: tuple[float, ...]
    stds: tuple[float | None, ...]
    paper: dict[float, float]
    line: int


def table_curves(description: TableDescription, records: Iterable[Record]) -> list[Curve]:
    """Gather the curves of a table's figure from its records; rows without records come without points.

    Of a row that has lines of finished trainings, those of unfinished ones are left to the table. A preset is named
    where it is not that of most finished trainings, or no recipe of an experiment.
    """
    groups = [(row, group) for row, group in group_records(description, records) if row.curve]
    finished = {row.name for row, group in groups if group and all(record.complete for record in group)}
    groups = [line for line in groups if line[0].name not in finished or all(r.complete for r in line[1])]
    presets = Counter(group[0].preset for row, group in groups if group and row.name in finished)
    usual = max(filter(is_recipe, presets), key=lambda preset: presets[preset], default=None)
    curves = []
    for _, same_row in groupby(groups, key=lambda line: line[0].name):
        for index, (row, group) in enumerate(same_row):
            by_seed = [record.metrics.get(description.metric, {}) for record in group]
            keys = sorted(set.intersection(*map(set, by_seed)), key=float) if by_seed else []
            spread = [mean_and_std([values[key] for values in by_seed]) for key in keys]
            marks = [f"train={group[0].preset}"] if group and group[0].preset != usual else []
            if group and group[0].dataset != description.dataset:
                marks.append(f"on {group[0].dataset}")
            marks += dict.fromkeys(flag for record in group for flag in record.flags)
            paper = {}
            if row.paper_row and index == 0:
                values = {
                    s: paper_value(description.number, row.paper_row, description.metric, s) for s in TABLE_SATURATIONS
                }
                paper = {s: value.value for s, value in values.items() if value}
            curves.append(
                Curve(
                    row=row.name,
                    style=row.variant_of or row.name,
                    title=", ".join([row.title, *marks]),
                    records=group,
                    saturations=tuple(float(key) for key in keys),
                    means=tuple(mean for mean, _ in spread),
                    stds=tuple(std for _, std in spread),
                    paper=paper,
                    line=index + (row.variant_of is not None),
                )
            )
    return curves


def curves_csv(description: TableDescription, records: Iterable[Record]) -> str:
    """Return the source data of a table's figure as CSV: one line per curve and saturation, in the table's unit."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "experiment", "dataset", "preset", "seeds", "saturation", "mean", "std", "paper"])
    for curve in table_curves(description, records):
        if not curve.records:
            continue
        first = curve.records[0]
        seeds = " ".join(str(record.seed) for record in curve.records)
        start = [curve.row, first.experiment, first.dataset, first.preset, seeds]
        for s, mean, std in zip(curve.saturations, curve.means, curve.stds, strict=True):
            # The paper's values stand beside what was measured on its own images alone.
            paper = curve.paper.get(s) if first.dataset == description.dataset else None
            writer.writerow([*start, s, round(mean, 6), None if std is None else round(std, 6), paper])
    return text.getvalue()


def figure2(records: Iterable[Record]) -> Figure:
    """Draw Figure 2: error rate over the saturation of the test illuminant, for every strategy of Table 1."""
    return curves_figure(TABLE1, records)


def figure4(records: Iterable[Record]) -> Figure:
    """Draw Figure 4: error rate over the saturation of the test illuminant, for every strategy of Table 2."""
    return curves_figure(TABLE2, records)


def figure5(records: Iterable[Record]) -> Figure:
    """Draw Figure 5: median angular error over the saturation of the test illuminant, for the rows of Table 3."""
    return curves_figure(TABLE3, records)


def figure7(records: Iterable[Record]) -> Figure:
    """Draw Figure 7: PSNR over the saturation of the test illuminant, for the rows of Table 4."""
    return curves_figure(TABLE4, records)


def curves_figure(description: TableDescription, records: Iterable[Record]) -> Figure:
    """Draw a table's metric over the saturation of the test illuminant.

    Bands are ± one standard deviation over seeds; hollow markers are the paper's values. The axis ends where the
    description says (or where S = 0.9 needs it): what lies beyond is written beside it. A second panel, where the
    description asks for one, is cut off where the curves but the baseline's end up to S = 0.9.
    """
    curves = table_curves(description, records)
    panels = 2 if description.enlarged else 1
    figure = Figure(figsize=(9.0, 4.6 * panels), layout="constrained")
    axes, *zoomed = figure.subplots(panels, squeeze=False)[:, 0]
    shown = [mean for c in curves for s, mean in zip(c.saturations, c.means, strict=True) if s <= 0.9]
    top = max([description.figure_top, *(1.05 * mean for mean in shown)])
    handles, beyond = [], []
    styles = _styles(description)
    for curve in curves:
        colour, marker = styles[curve.style]
        if curve.records:
            handles.append(_draw_curve(axes, curve, colour, marker))
            for panel in zoomed:
                _draw_curve(panel, curve, colour, marker)
            outside = [(s, m) for s, m in zip(curve.saturations, curve.means, strict=True) if m > top]
            beyond += [(s, f"{curve.title}: {mean:.1f}") for s, mean in outside]
        elif curve.paper:
            label = f"{curve.title}, paper only"
            handles.append(Line2D([], [], color=colour, marker=marker, label=label, **_HOLLOW))
        if curve.paper:
            for panel in (axes, *zoomed):
                panel.plot(
                    list(curve.paper), list(curve.paper.values()), color=colour, marker=marker, zorder=4, **_HOLLOW
                )
    elsewhere = any(record.dataset != description.dataset for curve in curves for record in curve.records)
    paper = "Paper (hollow markers)" + (f", on {description.dataset}" if elsewhere else "")
    handles.append(Line2D([], [], color="black", marker="o", label=paper, **_HOLLOW))
    _dress(axes, description.axis, (description.figure_bottom, top))
    for panel in zoomed:
        _dress(panel, f"{description.axis}, enlarged", _range(curves, description.baseline))
    # Long enough to show dashes as such.
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9, handlelength=3.2)
    if beyond:
        note = [Line2D([], [], linestyle="none", label=line) for line in _beyond(beyond, description.unit, panels)]
        legend = {"handlelength": 0, "handletextpad": 0, "labelcolor": "0.3", "labelspacing": 0.25}
        figure.legend(handles=note, loc="outside right lower", frameon=False, fontsize=8.5, **legend)
    return figure


def _styles(description: TableDescription) -> dict[str, tuple[str, str]]:
    """Colour and marker of each row, or of the row that it is a variant of."""
    names = dict.fromkeys(row.variant_of or row.name for row in description.rows)
    others = dict(zip([name for name in names if name not in _STYLES], cycle(_OTHER_STYLES), strict=False))
    return {name: _STYLES.get(name) or others[name] for name in names}


def _range(curves: Iterable[Curve], baseline: str) -> tuple[float, float] | None:
    """From the lowest point of all bands to the highest of those but the baseline's, up to S = 0.9, with a margin."""
    bands = [
        (mean - (std or 0.0), mean + (std or 0.0), curve.row)
        for curve in curves
        for s, mean, std in zip(curve.saturations, curve.means, curve.stds, strict=True)
        if s <= 0.9
    ]
    of_others = [high for _, high, row in bands if row != baseline]
    if not of_others:
        return None
    bottom, top = min(low for low, _, _ in bands), max(of_others)
    margin = 0.08 * (top - bottom) or 0.5
    return bottom - margin, top + margin


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write ``figure`` as ``stem``.svg and ``stem``.png, and return the paths.

    With the same libraries, the same figure gives the same bytes: no dates, no random identifiers. Text is written as
    outlines, so that it looks the same wherever the SVG is shown.
    """
    paths = []
    with matplotlib.rc_context({"svg.hashsalt": "offset-equivariant", "svg.fonttype": "path"}):
        for suffix, metadata in ((".svg", {"Date": None}), (".png", {"Software": None})):
            content = io.BytesIO()
            figure.savefig(content, format=suffix[1:], dpi=160, metadata=metadata)
            replace_file(stem.with_suffix(suffix), content.getvalue())
            paths.append(stem.with_suffix(suffix))
    return paths


def render_figures(results: Path) -> list[Path]:
    """Draw every figure whose data ``results`` holds into ``results``/figures, and return the paths.

    Figures 2, 4, 5 and 7 come from the records of Tables 1 to 4, with their source data as CSV beside them; Figures 3,
    6 and 8 from ``figure3.npz`` and so on.
    """
    folder, paths = results / "figures", []
    for description in TABLES:
        if records := find_records(results, description.number):
            stem = folder / f"figure{description.figure}"
            paths += save_figure(curves_figure(description, records), stem)
            replace_file(stem.with_suffix(".csv"), curves_csv(description, records).encode())
            paths.append(stem.with_suffix(".csv"))
    if (panel := folder / "figure3.npz").exists():
        paths += save_figure(figure3(read_panel(panel)), folder / "figure3")
    for name in ("figure6", "figure8"):
        if (panel := folder / f"{name}.npz").exists():
            paths += save_figure(image_figure(read_image_panel(panel)), folder / name)
    return paths


def _draw_curve(axes: Axes, curve: Curve, colour: str, marker: str) -> Line2D:
    (line,) = axes.plot(
        curve.saturations,
        curve.means,
        color=colour,
        marker=marker,
        markersize=5.5,
        linewidth=1.7,
        linestyle=_LINES[(curve.line + curve.style.startswith(_DASHED)) % len(_LINES)],
        label=curve.title,
        zorder=3,
    )
    band = [
        (s, m, std) for s, m, std in zip(curve.saturations, curve.means, curve.stds, strict=True) if std is not None
    ]
    if band:
        low, high = [m - std for _, m, std in band], [m + std for _, m, std in band]
        axes.fill_between([s for s, _, _ in band], low, high, color=colour, alpha=0.2, linewidth=0)
    return line


def _dress(axes: Axes, label: str, limits: tuple[float, float] | None) -> None:
    """Scales, grid and labels."""
    axes.set(xlim=(-0.02, 1.02), ylim=limits, xlabel="Saturation of the illuminant, S", ylabel=label)
    axes.set_xticks([tick / 10 for tick in range(11)])
    axes.grid(color="0.88")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _beyond(points: Sequence[tuple[float, str]], unit: str, panels: int) -> list[str]:
    axis = "axis" if panels == 1 else "upper axis"
    lines = []
    for saturation in sorted({s for s, _ in points}):
        lines += [f"Beyond the {axis}, at S = {saturation} ({unit}):", *(text for s, text in points if s == saturation)]
    return lines
