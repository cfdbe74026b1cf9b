import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from offset_equivariant.reporting.comparison import build_table
from offset_equivariant.reporting.costs import Cost, Costs
from offset_equivariant.reporting.descriptions import TABLE1, RowDescription, TableDescription
from offset_equivariant.reporting.records import find_records, load_outcomes, outcomes_path, save_evaluation
from offset_equivariant.reporting.tables import (
    RESULTS_BEGIN,
    RESULTS_END,
    render_csv,
    render_markdown,
    render_tables,
    replace_block,
    tabulate,
    write_tables,
)
from offset_equivariant.statistics import paired_difference_interval

ERRORS = {"original": (4, 6, 7), "equivariant": (5, 5, 4)}  # of 8 images, at S = 0.0, 0.5, 0.9


def save(results, make_record, row, counts, **changes):
    keys = ("0.0", "0.5", "0.9")
    outcomes = {"error": {key: np.arange(8) < count for key, count in zip(keys, counts, strict=True)}}
    changes.setdefault("metrics", {"error_percent": {k: 12.5 * c for k, c in zip(keys, counts, strict=True)}})
    return save_evaluation(results, make_record(row, **changes), outcomes)


def built(results):
    records = find_records(results, 1)
    return build_table(TABLE1, records, outcomes=load_outcomes(results, records))


def lines(table, start="| "):
    return [line for line in render_markdown(table).splitlines() if line.startswith(start)]


def test_cells_hold_paper_ours_difference_and_interval(tmp_path, make_record):
    save(tmp_path, make_record, "original", ERRORS["original"])
    row = built(tmp_path).rows[0]
    cell = row.cells[1]
    assert (cell.paper.value, cell.ours, cell.difference) == (12.6, 75.0, pytest.approx(62.4))
    # Wilson's interval for 6 of 8, by its formula.
    z2, p, n = 1.959963984540054**2, 0.75, 8
    centre, half = (p + z2 / 2 / n) / (1 + z2 / n), np.sqrt(z2 * (p * (1 - p) / n + z2 / 4 / n**2)) / (1 + z2 / n)
    assert cell.interval == pytest.approx((100 * (centre - half), 100 * (centre + half)))
    assert lines(built(tmp_path))[1] == (
        "| Original | 270,410 | 270,410 | 8.67 | 50.00 [21.52, 78.48] | +41.33 | 12.6 | 75.00 [40.93, 92.85] | +62.4 "
        "| 29.0 | 87.50 [52.91, 97.76] | +58.5 | fast, seed 0, aaaaaaaa |"
    )


def test_rows_stand_in_fixed_order_and_missing_ones_are_not_run(tmp_path, make_record):
    for row in ("equivariant_relative", "augmentation"):
        save(tmp_path, make_record, row, ERRORS["equivariant"])
    table = built(tmp_path)
    assert [row.description.name for row in table.rows] == [row.name for row in TABLE1.rows]
    assert [bool(row.records) for row in table.rows] == [*[False] * 6, True, False, False, True]
    assert [row.cells[0].paper and row.cells[0].paper.value for row in table.rows] == [
        *(8.67, None, None, None, None, 9.19, 9.20, None, 8.88, None),
    ]
    text = lines(table)
    assert text[1] == "| Original | 270,410 | not run | 8.67 | – | – | 12.6 | – | – | 29.0 | – | – | – |"
    assert text[10].startswith("| Equivariant, relative clipping (ours) | – | 270,410 | – | 62.50 [")
    assert text[2] == "| Preprocessing (grey-world) | – | not run | – | – | – | – | – | – | – | – | – | – |"
    assert "| Preprocessing (quasi-unsupervised) ¹ |" in text[6] and "| Augmentation ² |" in text[7]
    assert "¹ By our own small network, trained on the training images of CIFAR-10" in render_markdown(table)
    assert "² Strengths chosen on 5,000 images held out of the training set" in render_markdown(table)


def test_footnote_is_about_the_network_that_balanced(make_record):
    def text(weights):
        config = {"strategy": {"weights": weights}}
        return render_markdown(build_table(TABLE1, [make_record("preprocessing_quasi_unsupervised", config=config)]))

    assert "¹ By our own small network" in text("results/checkpoints/quasi_unsupervised-seed0.safetensors")
    other = text("theirs.safetensors")
    assert "¹ The network that balances is that in theirs.safetensors." in other and "our own" not in other


def test_footnotes_may_be_many(make_record):
    names = [f"row{number}" for number in range(12)]
    rows = tuple(RowDescription(name, name.title(), None, f"Note of {name}.") for name in names)
    table = build_table(replace(TABLE1, rows=rows, baseline="row0", second_baseline=None), [make_record("row9")])
    text = render_markdown(table)
    assert "| Row9 ¹⁰ |" in text and "¹⁰ Note of row9." in text
    assert "¹ Note of row0." in text and "¹² Note of row11." in text


def test_differences_are_taken_to_the_equivariant_row_too(tmp_path, make_record):
    for row, counts in (("original", (1, 2, 3)), ("augmentation", (2, 2, 4)), ("equivariant", (4, 4, 4))):
        save(tmp_path, make_record, row, counts)
    rows = {row.description.name: row for row in built(tmp_path).rows}
    errors = {name: np.arange(8) < count for name, count in (("augmentation", 2), ("equivariant", 4))}
    expected = paired_difference_interval(100.0 * errors["augmentation"], 100.0 * errors["equivariant"])
    assert rows["augmentation"].cells[0].second_paired == pytest.approx(expected)
    assert rows["augmentation"].cells[0].second_paired[0] == -25.0
    assert rows["equivariant"].cells[0].second_paired is None
    line = next(line for line in render_csv(built(tmp_path)).splitlines() if line.startswith("Augmentation,"))
    header = render_csv(built(tmp_path)).splitlines()[0].split(",")
    assert line.split(",")[header.index("S0.0_minus_equivariant")] == "-25.0"


def test_several_seeds_give_mean_and_deviation(tmp_path, make_record):
    for seed, counts in enumerate([(1, 2, 3), (2, 2, 5), (3, 2, 4)]):
        save(tmp_path, make_record, "original", counts, seed=seed, training_commits=[f"commit{seed}" + "0" * 30])
    cells = built(tmp_path).rows[0].cells
    assert [(cell.ours, cell.std) for cell in cells] == [
        *((25.0, pytest.approx(12.5)), (25.0, 0.0), (50.0, pytest.approx(12.5)))
    ]
    # Of images, how often the three got each of the eight wrong; of seeds, Student's t of two degrees of freedom.
    each = np.array([100, 200 / 3, 100 / 3, 0, 0, 0, 0, 0])
    half = np.hypot(1.959963984540054 * each.std(ddof=1) / np.sqrt(8), 4.302652729749462 * 12.5 / np.sqrt(3))
    expected = 25 - half, 25 + half
    assert cells[0].interval == pytest.approx(expected)
    half = 1.959963984540054 * np.std([100, 100, 0, 0, 0, 0, 0, 0], ddof=1) / np.sqrt(8)
    assert cells[1].interval == pytest.approx((25 - half, 25 + half))
    line = lines(built(tmp_path))[1]
    assert f"| 25.00 ± 12.50 [{expected[0]:.2f}, {expected[1]:.2f}] | +16.33 |" in line
    assert line.endswith("| fast, seeds 0 1 2, commit00 commit10 commit20 |")


def test_value_that_one_seed_lacks_is_left_out(tmp_path, make_record):
    save(tmp_path, make_record, "original", (1, 2, 3))
    save(tmp_path, make_record, "original", (3, 2, 3), seed=1, metrics={"error_percent": {"0.0": 37.5}})
    assert [cell.ours for cell in built(tmp_path).rows[0].cells] == [25.0, None, None]


def test_presets_and_data_sets_have_lines_of_their_own(tmp_path, make_record):
    save(tmp_path, make_record, "original", (1, 2, 3))
    save(tmp_path, make_record, "original", (2, 2, 3), experiment="table1_original_paper", preset="paper")
    save(tmp_path, make_record, "original", (3, 2, 3), experiment="table1_original_a", dataset="synthetic")
    rows = built(tmp_path).rows[:3]
    assert [(r.records[0].dataset, r.records[0].preset, r.cells[0].ours) for r in rows] == [
        ("cifar10", "fast", 12.5),
        ("cifar10", "paper", 25.0),
        ("synthetic", "fast", 37.5),
    ]
    assert rows[2].cells[0].paper is None and rows[2].cells[0].difference is None
    assert lines(built(tmp_path))[2].startswith("| Original, `train=paper` | 270,410 | 270,410 | 8.67 | 25.00 [")
    assert lines(built(tmp_path))[3].startswith("| Original, on synthetic | – | 270,410 | – | 37.50 [")


def test_costs_are_those_of_the_usual_preset(tmp_path, make_record):
    save(tmp_path, make_record, "original", (1, 2, 3))
    changes = {"experiment": "table1_original_paper", "preset": "paper", "complete": False, "steps": 7}
    save(tmp_path, make_record, "original", (2, 2, 3), **changes)
    records = find_records(tmp_path)
    costs = Costs("cpu", 2, "0" * 40, False, {"original": Cost(270410, 0.5, 200.0, 100, 0.0)}, {})
    table = build_table(TABLE1, records, costs=costs)
    assert lines(table)[-1] == "| Original | – | 0.50 | 200 | – | – |"
    columns, rows = tabulate(table)
    assert [row[columns.index("step_ms")] for row in rows[:2]] == [200.0, None]


@pytest.mark.parametrize(
    ("settings", "differing"),
    [
        ({"train": {"lr": 0.2}, "seed": 1}, "train.lr"),
        ({"train": {"lr": 0.1}, "strategy": {"jitter": {"hue": 0.5}}, "seed": 1}, "strategy.jitter.hue"),
        ({"train": {"lr": 0.1, "log_every": 5, "steps": None}, "seed": 1}, None),
    ],
)
def test_seeds_of_different_settings_have_no_mean(make_record, settings, differing):
    records = [make_record("original"), make_record("original", 1, config=settings)]
    if differing is None:
        assert len(build_table(TABLE1, records).rows[0].records) == 2
        return
    with pytest.raises(ValueError, match=f"table1_original, seed 1: .* seed 0 in {differing};"):
        build_table(TABLE1, records)


@pytest.mark.parametrize("changes", [{"n": 7}, {"data_sha256": {"test": "d2", "train": "d0"}}])
def test_seeds_on_other_test_images_have_no_mean(make_record, changes):
    with pytest.raises(ValueError, match=r"table1_original, seed 1: .* seed 0 in test images;"):
        build_table(TABLE1, [make_record("original"), make_record("original", 1, **changes)])
    otherwise = make_record("original", 1, data_sha256={"test": "d1", "train": "d2"})
    assert len(build_table(TABLE1, [make_record("original"), otherwise]).rows[0].records) == 2


def test_what_needs_every_seeds_outcomes_is_left_out_where_one_has_none(tmp_path, make_record):
    for seed in (0, 1):
        save(tmp_path, make_record, "original", (2, 4, 6), seed=seed)
    complete = built(tmp_path).rows[0].cells[2]
    assert None not in (complete.interval, complete.shift, complete.growth)
    outcomes_path(tmp_path, "table1_original", 1).unlink()
    cell = built(tmp_path).rows[0].cells[2]
    assert (cell.ours, cell.interval, cell.shift, cell.growth) == (75.0, None, None, None)


def test_nothing_is_a_multiple_of_no_error_at_all(tmp_path, make_record):
    save(tmp_path, make_record, "original", (0, 4, 6))
    cell = built(tmp_path).rows[0].cells[2]
    assert cell.shift is not None and cell.shift[0] == 75.0 and cell.growth is None


def test_flagged_records_are_marked_in_their_row(tmp_path, make_record):
    save(tmp_path, make_record, "original", (1, 2, 3), complete=False, steps=7, training_dirty=True)
    assert lines(built(tmp_path))[1].startswith("| Original **[incomplete (7/100 steps), dirty training]** |")
    columns, rows = tabulate(built(tmp_path))
    assert rows[0][columns.index("marks")] == "incomplete (7/100 steps), dirty training"


def test_unfinished_trainings_are_compared_with_nothing(tmp_path, make_record):
    save(tmp_path, make_record, "original", (1, 2, 3))
    save(tmp_path, make_record, "equivariant", (1, 2, 3))
    assert "Unfinished" not in render_markdown(built(tmp_path))
    for unfinished in ("original", "equivariant"):
        save(tmp_path, make_record, unfinished, (1, 2, 3), complete=False, steps=7)
        table = built(tmp_path)
        assert [cell.paired for row in table.rows for cell in row.cells if row.records] == [None] * 6
        assert "Unfinished trainings say nothing of where they end, nor two of them of each" in render_markdown(table)
        save(tmp_path, make_record, unfinished, (1, 2, 3))
    assert all(cell.paired is not None for row in built(tmp_path).rows[1:] for cell in row.cells if row.records)


def test_paired_differences_are_taken_image_by_image_and_averaged_over_seeds(tmp_path, make_record):
    rng = np.random.default_rng(0)
    data = {(row, seed): rng.random(40) < 0.5 for row in ("original", "equivariant") for seed in (0, 1)}
    for (row, seed), errors in data.items():
        record = make_record(row, seed, n=40, metrics={"error_percent": {"0.5": float(100 * errors.mean())}})
        save_evaluation(tmp_path, record, {"error": {"0.5": errors}})
    rows = {row.description.name: row for row in built(tmp_path).rows}
    mean = {row: (data[row, 0].astype(float) + data[row, 1]) / 2 for row in ("original", "equivariant")}
    d = 100 * (mean["equivariant"] - mean["original"])
    of_seeds = [100 * (data["equivariant", k].mean() - data["original", k].mean()) for k in (0, 1)]
    half_of_seeds = 12.706204736432095 * np.std(of_seeds, ddof=1) / np.sqrt(2)  # Student's t of one degree of freedom
    half = np.hypot(1.959963984540054 * d.std(ddof=1) / np.sqrt(40), half_of_seeds)
    assert rows["equivariant"].cells[1].paired == pytest.approx((d.mean(), d.mean() - half, d.mean() + half))
    assert rows["equivariant"].cells[0].paired is None
    assert rows["original"].cells[1].paired is None


@pytest.mark.parametrize(
    "changes",
    [
        {"preset": "paper"},
        {"data_sha256": {"test": "x"}},
        {"dataset": "synthetic"},
        {"config": {"distortion": {"requantize": True}}},
        {"config": {"distortion": {"seed": 3}}},
    ],
)
def test_nothing_is_paired_with_other_images_presets_or_light(tmp_path, make_record, changes):
    save(tmp_path, make_record, "original", ERRORS["original"])
    save(tmp_path, make_record, "equivariant", ERRORS["equivariant"], **changes)
    assert {cell.paired for row in built(tmp_path).rows for cell in row.cells} == {None}


def test_posterior_change_is_the_largest_up_to_nine_tenths(tmp_path, make_record):
    metrics = {"error_percent": {"0.0": 50.0}, "posterior_change": {"0.0": 0.0, "0.4": 0.31, "0.9": 0.2, "1.0": 0.99}}
    save(tmp_path, make_record, "original", (4, 4, 4), metrics=metrics)
    metrics = {"error_percent": {"0.0": 50.0}, "posterior_change": {"0.9": 0.32}}
    save(tmp_path, make_record, "original", (4, 4, 4), seed=1, metrics=metrics)
    assert built(tmp_path).rows[0].invariance == 0.32
    assert lines(built(tmp_path), "| Original | 0.32 | – | – | – |")


def test_unknown_row_is_an_error_with_the_valid_ones(make_record):
    with pytest.raises(ValueError, match=r"table1_equivarient, seed 0: table 1 has no row 'equivarient'.*augmentation"):
        build_table(TABLE1, [make_record("equivarient")])


def test_csv_holds_the_same_values_unrounded(tmp_path, make_record):
    for row, counts in ERRORS.items():
        save(tmp_path, make_record, row, counts)
    rows = list(csv.DictReader(io.StringIO(render_csv(built(tmp_path)))))
    assert [row["row"] for row in rows] == [row.name for row in TABLE1.rows]
    equivariant = rows[8]
    assert (equivariant["parameters_paper"], equivariant["parameters_ours"]) == ("267294", "270410")
    assert (equivariant["S0.5_paper"], equivariant["S0.5_ours"], equivariant["S0.5_difference"]) == (
        "8.85",
        "62.5",
        "53.65",
    )
    assert (equivariant["S0.9_minus_baseline"], rows[0]["S0.9_minus_baseline"]) == ("-37.5", "")
    assert rows[5]["S0.0_ours"] == "" and rows[5]["S0.0_paper"] == "9.19"


def test_another_table_is_a_description_away(make_record):
    description = TableDescription(
        number=4,
        title="Inpainting",
        dataset="paris",
        metric="psnr_db",
        unit="dB",
        decimals=1,
        rows=(RowDescription("original", "Original", "original"), RowDescription("equivariant", "Eq", "equivariant")),
        statistic="mean",
        outcome="psnr",
        invariance="fill_change",
        invariance_title="Largest change of any fill",
        figure=7,
        figure_top=25.0,
        axis="PSNR (dB)",
    )
    values = {"original": (17.0, [16.0, 17.0, 18.0]), "equivariant": (18.5, [17.0, 18.5, 20.0])}
    records = [
        make_record(row, experiment=row, table=4, dataset="paris", n=3, metrics={"psnr_db": {"0.5": mean}})
        for row, (mean, _) in values.items()
    ]
    outcomes = {(row, 0): {"psnr": {"0.5": np.float32(images)}} for row, (_, images) in values.items()}
    table = build_table(description, [*records, make_record()], saturations=(0.5,), outcomes=outcomes)
    cell = table.rows[1].cells[0]
    half = 1.959963984540054 * 0.5 / np.sqrt(3)
    assert (cell.ours, cell.paired) == (18.5, pytest.approx((1.5, 1.5 - half, 1.5 + half)))
    assert cell.interval == pytest.approx((18.5 - 3 * half, 18.5 + 3 * half))
    assert "| Eq | 69.94M | 270,410 | 18.68 | 18.5 [16.8, 20.2] | -0.18 |" in render_markdown(table)
    assert "(dB, 95 % interval)" in render_markdown(table)


def test_written_tables_are_the_rendered_ones(tmp_path, make_record):
    assert render_tables(tmp_path) == {} and write_tables(tmp_path) == []
    save(tmp_path, make_record, "original", ERRORS["original"])
    rendered = render_tables(tmp_path)
    assert set(rendered) == {Path("tables/table1.md"), Path("tables/table1.csv")}
    assert {path.relative_to(tmp_path): path.read_text() for path in write_tables(tmp_path)} == rendered


@pytest.mark.parametrize(
    "text", ["", RESULTS_BEGIN, RESULTS_END, RESULTS_END + RESULTS_BEGIN, RESULTS_BEGIN * 2 + RESULTS_END]
)
def test_document_without_its_markers_is_an_error(text):
    with pytest.raises(ValueError, match="results:begin"):
        replace_block(text, "block")


def test_each_seed_is_shown_where_there_are_several(make_record):
    errors = {("original", 0): 30.41, ("original", 1): 35.0, ("equivariant", 0): 13.5}
    records = [make_record(*key, metrics={"error_percent": {"0.9": e}}) for key, e in errors.items()]
    table = build_table(TABLE1, records)
    block = render_markdown(table).partition("Each seed (%):\n\n")[2].splitlines()
    assert block[:3] == [
        "| Strategy | Seeds | S = 0.0 | S = 0.5 | S = 0.9 |",
        "|---|---:|---:|---:|---:|",
        "| Original | 0 1 | – | – | 30.41, 35.00 |",
    ]
    assert "| Equivariant | 0 |" not in "\n".join(block)  # one seed
    lines = list(csv.DictReader(io.StringIO(render_csv(table))))
    shown = {line["row"]: line["S0.9_by_seed"] for line in lines}
    assert (shown["original"], shown["equivariant"], shown["augmentation"]) == ("30.41 35", "13.5", "")


def test_table_does_not_depend_on_the_order_of_the_records(make_record):
    records = [make_record(row, seed) for row in ("original", "augmentation") for seed in (0, 1)]
    records += [replace(record, experiment=record.experiment + "_paper", preset="paper") for record in records]
    assert render_markdown(build_table(TABLE1, records[::-1])) == render_markdown(build_table(TABLE1, records))
