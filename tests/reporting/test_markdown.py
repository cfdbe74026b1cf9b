"""Tables of Markdown, byte by byte."""

import pytest

from offset_equivariant.reporting.markdown import markdown_rows

ROWS = [["Row", "S = 0.0", "S = 0.9"], ["a", "1", "2"], ("b", "3", "–")]


def test_the_first_column_is_set_to_the_left_and_the_others_to_the_right():
    assert markdown_rows(ROWS) == "| Row | S = 0.0 | S = 0.9 |\n|---|---:|---:|\n| a | 1 | 2 |\n| b | 3 | – |"
    assert markdown_rows([["alone"]]) == "| alone |\n|---|"


def test_columns_may_be_aligned_otherwise():
    assert (
        markdown_rows(ROWS[:2], ["---", "--:", " --- "])
        == "| Row | S = 0.0 | S = 0.9 |\n|---|--:| --- |\n| a | 1 | 2 |"
    )


@pytest.mark.parametrize(("rows", "rule"), [([*ROWS, ["c", "4"]], None), (ROWS, ["---"])])
def test_a_row_of_another_length_is_refused(rows, rule):
    with pytest.raises(ValueError, match=r"row \[.*\] has [12] cells, the header has 3: \['Row', 'S = 0\.0'"):
        markdown_rows(rows, rule)
