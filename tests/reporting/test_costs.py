"""What strategies cost: arithmetic, file, and columns of the table."""

import csv
import io
from dataclasses import replace

import pytest

from offset_equivariant.reporting.comparison import build_table
from offset_equivariant.reporting.costs import Cost, Costs, costs_path, read_costs, tabulate_costs, write_costs
from offset_equivariant.reporting.descriptions import TABLE1
from offset_equivariant.reporting.tables import render_csv, render_markdown

COSTS = Costs(
    device="cpu-some-2t",
    threads=2,
    commit="0123456789abcdef",
    dirty=False,
    rows={
        "original": Cost(1000, 0.5, 200.0, 100, 0.0),
        "preprocessing_quasi_unsupervised": Cost(3500, 0.75, 210.0, 100, 9.0),
        "equivariant": Cost(990, 1.0, 320.0, 100, 0.0),
        "augmentation_illuminants": Cost(1000, 0.5, 199.4, 100, 0.0, search_steps=50),
    },
    details={"rounds": 3},
)


def test_training_time_counts_what_comes_before_the_first_step():
    row = "preprocessing_quasi_unsupervised"
    assert COSTS.rows[row].training_seconds == pytest.approx(9 + 21)
    assert COSTS.extra_training_percent(row, "original") == pytest.approx(50)  # 30 s for 20 s
    assert COSTS.extra_parameters(row, "original") == 2500 and COSTS.extra_parameters("equivariant", "original") == -10


def test_file_gives_back_what_was_written(tmp_path):
    assert read_costs(tmp_path, 1) is None
    write_costs(COSTS, costs_path(tmp_path, 1))
    assert read_costs(tmp_path, 1) == COSTS


def test_damaged_file_is_named(tmp_path):
    write_costs(COSTS, costs_path(tmp_path, 1))
    path = costs_path(tmp_path, 1)
    path.write_text(path.read_text().replace('"steps"', '"stops"'))
    with pytest.raises(ValueError, match=r"table1.json: is not a file of costs .*stops.*; run make costs"):
        read_costs(tmp_path, 1)


def test_lines_of_the_table():
    titles = {"original": "Original", "augmentation": "A", "augmentation_illuminants": "I", "equivariant": "Eq"}
    caption, lines = tabulate_costs(COSTS, titles, "original")
    assert "cpu-some-2t, 2 threads, commit 01234567. " in caption
    assert lines[1:] == [
        ["Original", "–", "0.50", "200", "–", "–"],
        ["I", "+0", "0.50", "199", "+0 %", "+50 %"],  # 9.97 s of search for a training of 20 s
        ["Eq", "-10", "1.00", "320", "+60 %", "–"],
    ]
    assert "uncommitted" in tabulate_costs(replace(COSTS, dirty=True), {}, "original")[0]


def test_table_has_them_as_columns(make_record):
    table = build_table(TABLE1, [make_record("original"), make_record("augmentation")], costs=COSTS)
    rows = {row["row"]: row for row in csv.DictReader(io.StringIO(render_csv(table)))}
    names = ("extra_parameters", "inference_ms", "step_ms", "extra_training_percent", "search_percent")
    assert [rows["equivariant"][name] for name in names] == ["-10", "1.0", "320.0", "60.0", "0.0"]
    assert [rows["augmentation"][name] for name in names] == [""] * 5
    assert "| Equivariant | -10 | 1.00 | 320 | +60 % | – |" in render_markdown(table)


def test_recovery_stands_beside_the_error_it_leads_to(make_record):
    keys = ("0.0", "0.3", "0.5", "0.7", "0.9", "1.0")
    metrics = {
        "error_percent": {key: 10.0 + i for i, key in enumerate(keys)},
        "median_recovery_error_degrees": {key: 1.0 + i for i, key in enumerate(keys)},
    }
    records = [make_record("original"), make_record("preprocessing_max_rgb", metrics=metrics)]
    text = render_markdown(build_table(TABLE1, records))
    (line,) = (line for line in text.splitlines() if "(max-RGB)" in line and "1.00" in line)
    assert line.split(" | ")[1:5] == ["1.00", "10.00", "2.00", "11.00"]
    assert not any("–" in line for line in text.partition("Colour balancing")[2].splitlines())  # the original has none
    (header,) = (line for line in text.splitlines() if "S = 0.3: angle" in line)
    assert len(header.split(" | ")) == len(line.split(" | ")) == 13
