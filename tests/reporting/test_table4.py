"""Table 4 and Figure 7: networks of two sizes, on photos that are not the paper's."""

import numpy as np
import pytest

from offset_equivariant.reporting.comparison import build_table
from offset_equivariant.reporting.descriptions import TABLE4
from offset_equivariant.reporting.figures import figure7
from offset_equivariant.reporting.tables import render_markdown

#: PSNR of each of four images, by row, at S = 0 and S = 0.9.
PSNR = {
    "original": ([18.0, 16.0, 20.0, 14.0], [12.0, 10.0, 14.0, 8.0]),
    "equivariant": ([17.0, 17.0, 19.0, 15.0], [19.0, 19.0, 21.0, 17.0]),
    "small_original": ([16.0, 16.0, 18.0, 12.0], [11.0, 9.0, 13.0, 7.0]),
    "small_equivariant": ([17.5, 16.5, 19.5, 12.5], [19.0, 18.0, 20.0, 15.0]),
}


@pytest.fixture
def records(make_record):
    def measured(row):
        values = dict(zip(("0.0", "0.9"), PSNR[row], strict=True))
        metrics = {
            "psnr_db": {key: float(np.mean(psnr)) for key, psnr in values.items()},
            "largest_fill_change_levels": dict.fromkeys(values, 0.25),
        }
        return make_record(row, experiment=f"table4_{row}", table=4, dataset="facades", metrics=metrics, n=4)

    return [measured(row) for row in PSNR]


@pytest.fixture
def outcomes():
    return {
        (f"table4_{row}", 0): {"psnr_db": {"0.0": np.array(first), "0.9": np.array(last)}}
        for row, (first, last) in PSNR.items()
    }


def test_differences_are_to_the_original_of_the_same_size(records, outcomes):
    table = build_table(TABLE4, records, (0.0, 0.9), outcomes)
    paired = {row.description.name: [cell.paired for cell in row.cells] for row in table.rows if row.records}
    assert paired["original"] == [None, None]
    assert [found[0] for found in paired["equivariant"]] == pytest.approx([0.0, 8.0])
    assert [found[0] for found in paired["small_original"]] == pytest.approx([-1.5, -1.0])
    assert [found[0] for found in paired["small_equivariant"]] == pytest.approx([1.0, 8.0])
    # Symmetric: an interval of the mean of 1.5, 0.5, 1.5, 0.5.
    _, low, high = paired["small_equivariant"][0]
    assert low < 1.0 < high and high - 1.0 == pytest.approx(1.0 - low)
    text = render_markdown(table)
    assert "Minus Original (of its size), S = 0.9" in text and "Equivariant, small, on facades" in text


def test_the_papers_values_stand_on_lines_of_their_own(records):
    lines = render_markdown(build_table(TABLE4, records)).split("S: saturation of the test illuminant")[0].splitlines()
    cells = {line.split(" | ")[0].removeprefix("| "): line.split(" | ") for line in lines if line.startswith("| ")}
    original, equivariant = (cells[f"{name}, on paris_street_view"] for name in ("Original", "Equivariant"))
    assert (original[2], equivariant[2]) == ("not run", "not run")
    assert (original[3], original[6], original[9]) == ("17.65", "18.44", "19.05")
    assert (equivariant[3], equivariant[6], equivariant[9]) == ("17.67", "18.68", "19.78")
    assert cells["Original, on facades"][3:6] == ["–", "17.00", "–"]


def test_figure7_draws_variants_alike_but_dashed(records):
    figure = figure7(records)
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    for title in ("Original", "Equivariant"):
        large, small = lines[f"{title}, on facades"], lines[f"{title}, small, on facades"]
        assert large.get_color() == small.get_color() and large.get_marker() == small.get_marker()
        assert (large.get_linestyle(), small.get_linestyle()) == ("-", "--")
    np.testing.assert_allclose(lines["Equivariant, small, on facades"].get_ydata(), [16.5, 18.0])
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "Paper (hollow markers), on paris_street_view" in labels
