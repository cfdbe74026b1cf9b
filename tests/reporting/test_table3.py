"""Table 3 and Figure 5, from records that are made up."""

import numpy as np
import pytest

from offset_equivariant.reporting.comparison import build_table
from offset_equivariant.reporting.descriptions import TABLE3
from offset_equivariant.reporting.figures import curves_csv, figure5
from offset_equivariant.reporting.tables import render_markdown, tabulate
from offset_equivariant.statistics import (
    STATISTICS,
    median_interval,
    paired_median_difference,
    paired_median_ratio,
    widened_by_seeds,
)

KEYS = ("0.0", "0.5", "0.9", "1.0")
ERROR = "reproduction_error_degrees"


@pytest.fixture
def found(make_record):
    """Records and outcomes of three rows: two seeds of the original, one of the equivariant, and grey-world."""
    rng = np.random.default_rng(0)
    records, outcomes = [], {}
    for row, seed, levels in (
        ("original", 0, (2.0, 10.0, 30.0, 60.0)),
        ("original", 1, (2.2, 12.0, 34.0, 62.0)),
        ("equivariant_filled", 0, (2.1, 2.1, 2.1, 2.3)),
        ("grey_world", 0, (3.0, 3.0, 3.0, 3.0)),
    ):
        errors = {
            key: rng.gamma(3.0, level / 3, 60).astype(np.float32) for key, level in zip(KEYS, levels, strict=True)
        }
        metrics = {f"{name}_{ERROR}": {k: of(e) for k, e in errors.items()} for name, of in STATISTICS.items()}
        metrics["reproduction_error_change_degrees"] = {"0.0": 0.0, "0.5": 0.25, "1.0": 50.0}
        metrics[f"median_{ERROR}_SonyA57"] = {"0.0": 1.75}
        trained = {} if row != "grey_world" else {"total_steps": 0, "steps": 0, "training_commits": []}
        name = f"table3_{row}"
        made = make_record(row, seed, experiment=name, table=3, dataset="nus", n=1_853, metrics=metrics, **trained)
        records.append(made)
        outcomes[name, seed] = {ERROR: errors}
    return records, outcomes


def test_cells_hold_medians_intervals_and_paired_differences(found):
    records, outcomes = found
    table = build_table(TABLE3, records, outcomes=outcomes)
    rows = {row.description.name: row for row in table.rows}
    of = {key: {k: v.astype(float) for k, v in o[ERROR].items()} for key, o in outcomes.items()}
    original = [np.median(of["table3_original", seed]["0.5"]) for seed in (0, 1)]
    cell = rows["original"].cells[1]
    assert (cell.ours, cell.std) == (pytest.approx(np.mean(original)), pytest.approx(np.std(original, ddof=1)))
    both = np.stack([of["table3_original", seed]["0.5"] for seed in (0, 1)])
    of_images = paired_median_difference(both, np.zeros_like(both))[1:]
    assert cell.interval == pytest.approx(widened_by_seeds(of_images, original))
    assert cell.paper.value == 11.5 and rows["original"].invariance == 0.25
    cell = rows["equivariant_filled"].cells[2]
    mine = of["table3_equivariant_filled", 0]["0.9"]
    assert cell.interval == pytest.approx(median_interval(mine))
    expected = paired_median_difference(mine[None], of["table3_original", 0]["0.9"][None])
    assert cell.paired == pytest.approx(expected)  # the seed that both have
    both = np.stack([of["table3_original", seed]["0.0"] for seed in (0, 1)])
    grey = of["table3_grey_world", 0]["0.0"]
    # Without training, compared with every seed.
    difference, *interval = paired_median_difference(np.stack([grey, grey]), both)
    by_seed = [np.median(grey) - np.median(seed) for seed in both]
    expected = difference, *widened_by_seeds(tuple(interval), by_seed)
    assert rows["grey_world"].cells[0].paired == pytest.approx(expected)


def test_shift_and_growth_are_of_medians(found):
    records, outcomes = found
    row = next(row for row in build_table(TABLE3, records, outcomes=outcomes).rows if row.records)
    of = [outcomes["table3_original", seed][ERROR] for seed in (0, 1)]
    before, after = (np.stack([errors[key] for errors in of]).astype(float) for key in ("0.0", "0.9"))
    medians = [np.median(values, axis=1) for values in (before, after)]
    cell = row.cells[2]
    for found_here, paired, by_seed in (
        (cell.shift, paired_median_difference, medians[1] - medians[0]),
        (cell.growth, paired_median_ratio, medians[1] / medians[0]),
    ):
        centre, *interval = paired(after, before)
        assert centre == pytest.approx(by_seed.mean())
        assert found_here == pytest.approx((centre, *widened_by_seeds(tuple(interval), by_seed.tolist())))


def test_rendered(found):
    records, outcomes = found
    table = build_table(TABLE3, records, outcomes=outcomes)
    text = render_markdown(table)
    assert "# Table 3: Color Cerberus on NUS" in text and "(°, 95 % interval)" in text
    assert "| Original | 206,345 | 270,410 | 1.93 |" in text
    (grey,) = (line for line in text.splitlines() if line.startswith("| Grey-world | – | 270,410"))
    assert grey.endswith("| – |")  # no weights
    mean = np.mean([r.metrics[f"mean_{ERROR}"]["0.0"] for r in records[:2]])
    assert "Other statistics of the same errors (°), S = 0.0:" in text and f"| Original | {mean:.2f} |" in text
    assert "by camera (°), S = 0.0:" in text and "| 1.75 |" in text
    assert "test fold" not in text  # no record says it
    columns, _ = tabulate(table)
    assert "reproduction_error_change_degrees" in columns


def test_figure5_draws_medians(found):
    records, _ = found
    axes = figure5(records).axes[0]
    assert axes.get_ylabel() == "Median reproduction angular error (°)"
    lines = {line.get_label(): line for line in axes.lines}
    expected = np.mean([list(r.metrics[f"median_{ERROR}"].values()) for r in records[:2]], axis=0)
    np.testing.assert_allclose(lines["Original"].get_ydata(), expected)
    hollow = [list(line.get_ydata()) for line in axes.lines if line.get_markerfacecolor() == "none"]
    assert [1.93, 11.5, 30.3] in hollow and [2.03, 2.30, 3.44] in hollow
    assert len(curves_csv(TABLE3, records).splitlines()) == 1 + 3 * 4


def test_cameras_that_nobody_trained_on_are_rows_but_no_curves(found, make_record):
    records, _ = found
    unseen = make_record(
        "original_unseen_camera", experiment="table3_original_unseen_camera", table=3, dataset="nus", n=1_853,
        metrics={f"median_{ERROR}": dict.fromkeys(KEYS, 7.5)},
    )  # fmt: skip
    text = render_markdown(build_table(TABLE3, [*records, unseen]))
    assert "| Original, unseen camera ¹ | – | 270,410 | – | 7.50 |" in text and "¹ Each camera is tested" in text
    assert "unseen" not in curves_csv(TABLE3, [*records, unseen])
