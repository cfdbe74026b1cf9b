import pytest

from offset_equivariant.reporting.paper import PAPER, paper_value


@pytest.mark.parametrize(
    ("table", "metric", "differences"),
    [  # Original minus equivariant, worked out by hand from the printed tables.
        (1, "error_percent", (-0.21, 3.75, 19.71)),
        (2, "error_percent", (-0.26, 1.17, 5.46)),
        (3, "median_reproduction_error_degrees", (-0.10, 9.20, 26.86)),
        (4, "psnr_db", (-0.02, -0.24, -0.73)),
    ],
)
def test_values_of_the_tables(table, metric, differences):
    def at(row, s):
        return paper_value(table, row, metric, s).value

    assert [at("original", s) - at("equivariant", s) for s in (0.0, 0.5, 0.9)] == pytest.approx(differences)


def test_sums_over_the_comparison_rows():
    def total(table, row):
        return sum(v.value for v in PAPER if (v.table, v.row) == (table, row))

    assert total(1, "preprocessing") == pytest.approx(29.62)
    assert total(1, "augmentation") == pytest.approx(31.01)
    assert total(2, "preprocessing") == pytest.approx(76.80)
    assert total(2, "augmentation") == pytest.approx(91.21)


def test_table_goes_before_text_and_text_fills_in():
    assert paper_value(1, "equivariant", "error_percent", 0.0).source == "Table 1"
    assert paper_value(1, "equivariant", "error_percent", 1.0).value == 28.17
    assert {v.value for v in PAPER if v.source == "Section 4.1.1"} == {8.83, 9.38, 28.17}
    assert paper_value(1, "equivariant", "error_percent", 0.3) is None
    assert paper_value(1, "equivariant_relative", "error_percent", 0.0) is None


@pytest.mark.parametrize(
    ("table", "row", "metric", "parameters"),
    [
        (1, "original", "error_percent", 270_410),
        (1, "equivariant", "error_percent", 267_294),
        (2, "equivariant", "error_percent", 28_800_000),
        (3, "original", "median_reproduction_error_degrees", 206_345),
        (3, "equivariant", "median_reproduction_error_degrees", 196_668),
        (4, "original", "psnr_db", 71_140_000),
        (4, "equivariant", "psnr_db", 69_940_000),
    ],
)
def test_parameters(table, row, metric, parameters):
    assert paper_value(table, row, metric, 0.5).parameters == parameters


def test_decimals_are_those_printed():
    assert paper_value(1, "original", "error_percent", 0.9).decimals == 1
    assert paper_value(1, "augmentation", "error_percent", 0.0).printed == "9.20"


def test_no_value_is_typed_twice():
    keys = [(v.table, v.row, v.metric, v.saturation, v.source) for v in PAPER]
    assert len(set(keys)) == len(keys) == 40
