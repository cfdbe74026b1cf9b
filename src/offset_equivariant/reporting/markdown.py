"""Tables as Markdown, for whatever renders documents."""

from collections.abc import Sequence


def markdown_rows(rows: Sequence[Sequence[str]], rule: Sequence[str] | None = None) -> str:
    """Return a table of Markdown, without a newline at its end.

    Args:
        rows: Cells; the first row is the header.
        rule: Cells of the line under the header, which align the columns; None: the first to the left, the others to
            the right.

    Raises:
        ValueError: If a row, or the rule, has not as many cells as the header.
    """
    header = rows[0]
    if rule is None:
        rule = ["---"] + ["---:"] * (len(header) - 1)
    for line in (*rows, rule):
        if len(line) != len(header):
            raise ValueError(f"row {list(line)} has {len(line)} cells, the header has {len(header)}: {list(header)}")
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], f"|{'|'.join(rule)}|", *lines[1:]])
