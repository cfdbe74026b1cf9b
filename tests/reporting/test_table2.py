"""Table 2 and Figure 4: the paper's values on ILSVRC-12, ours on Imagenette."""

import numpy as np
import pytest

from offset_equivariant.reporting.comparison import build_table
from offset_equivariant.reporting.descriptions import TABLE2
from offset_equivariant.reporting.figures import curves_csv, figure4
from offset_equivariant.reporting.tables import render_markdown

ERRORS = {
    "original": {"0.0": 25.0, "0.5": 37.5, "0.9": 50.0},
    "preprocessing_quasi_unsupervised": {"0.0": 25.0, "0.5": 25.0, "0.9": 37.5},
    "equivariant_relative": dict.fromkeys(("0.0", "0.5", "0.9"), 25.0),
}


def measured(make_record, row, dataset):
    metrics = {"error_percent": ERRORS[row], "top5_error_percent": {s: e / 2 for s, e in ERRORS[row].items()}}
    name, n = f"table2_{dataset}_{row}", {"imagenette": 3_925, "ilsvrc12": 50_000}[dataset]
    return make_record(row, experiment=name, table=2, dataset=dataset, metrics=metrics, n=n, parameters=23_528_522)


@pytest.fixture
def records(make_record):
    return [measured(make_record, row, "imagenette") for row in ERRORS]


def cells_of(records):
    lines = render_markdown(build_table(TABLE2, records)).split("S: saturation of the test illuminant")[0].splitlines()
    return {line.split(" | ")[0].removeprefix("| "): line.split(" | ") for line in lines if line.startswith("| ")}


def test_the_papers_column_is_of_ilsvrc12_and_ours_says_that_it_is_not(records):
    cells = cells_of(records)
    assert cells["Original, on ilsvrc12"][1:6] == ["25.6M", "not run", "24.59", "–", "–"]
    assert cells["Preprocessing (quasi-unsupervised), on ilsvrc12 ¹"][3::3][:3] == ["24.95", "25.32", "26.53"]
    assert cells["Augmentation ²"][3::3][:3] == ["28.09", "29.21", "33.91"]
    assert cells["Equivariant"][3::3][:3] == ["24.85", "24.92", "25.71"]
    ours = cells["Original, on imagenette"]
    assert ours[1:4] == ["–", "23,528,522", "–"] and ours[4].startswith("25.00 [") and ours[5] == "–"
    assert "Equivariant, relative clipping (ours), on imagenette" in cells


def test_on_ilsvrc12_both_stand_on_one_line(records, make_record):
    cells = cells_of([*records, measured(make_record, "original", "ilsvrc12")])
    assert cells["Original"][3] == "24.59" and cells["Original"][5] == "+0.41"
    assert "Original, on imagenette" in cells and "Original, on ilsvrc12" not in cells


def test_top_5_errors_and_the_small_balancer_are_said(records):
    text = render_markdown(build_table(TABLE2, records))
    assert "Top-1 and top-5 error (%), S = 0.9:" in text
    assert "| Original, on imagenette | 50.00 | 25.00 |" in text
    assert "¹ The network that balances is a small one, trained on CIFAR-10" in text


def test_figure4(records):
    lines = {line.get_label(): line for line in figure4(records).axes[0].lines}
    np.testing.assert_allclose(lines["Original, on imagenette"].get_ydata(), [25.0, 37.5, 50.0])
    csv = curves_csv(TABLE2, records)
    assert "original,table2_imagenette_original,imagenette,fast,0,0.5,37.5,," in csv
