"""The paper's own values, typed once.

Source: M. Cotogni and C. Cusano, *Offset equivariant networks and their applications*, Neurocomputing 502 (2022),
Tables 1 to 4 and the text of Section 4.
"""

from dataclasses import dataclass

#: Saturations of the test illuminant that the paper's tables have.
TABLE_SATURATIONS = (0.0, 0.5, 0.9)


@dataclass(frozen=True)
class PaperValue:
    """One number of the paper.

    Attributes:
        table: Table that the number belongs to, 1 to 4.
        row: Its row, in the paper's words, in lower case.
        metric: What was measured: "error_percent" (%), "median_reproduction_error_degrees" (degrees), "psnr_db" (dB).
        saturation: Saturation of the test illuminant.
        printed: The value as printed, with the paper's decimals.
        printed_parameters: The number of parameters as printed.
        source: Where the value stands.
        note: What the reader should know about it.
    """

    table: int
    row: str
    metric: str
    saturation: float
    printed: str
    printed_parameters: str
    source: str
    note: str = ""

    @property
    def value(self) -> float:
        """The value, in the unit of the metric."""
        return float(self.printed)

    @property
    def decimals(self) -> int:
        """Number of decimals that the paper prints."""
        return len(self.printed.partition(".")[2])

    @property
    def parameters(self) -> int:
        """The number of parameters; rounded where the paper prints millions."""
        number, millions, _ = self.printed_parameters.partition("M")
        return round(float(number) * 1e6) if millions else int(number)


def _row(table: int, row: str, metric: str, parameters: str, *printed: str, note: str = "") -> tuple[PaperValue, ...]:
    return tuple(
        PaperValue(table, row, metric, saturation, text, parameters, f"Table {table}", note)
        for saturation, text in zip(TABLE_SATURATIONS, printed, strict=True)
    )


_ERROR, _ANGLE, _PSNR = "error_percent", "median_reproduction_error_degrees", "psnr_db"
_EXTRA_PARAMETERS = "the preprocessing network's 54 million parameters are not counted"

PAPER: tuple[PaperValue, ...] = (
    *_row(1, "original", _ERROR, "270410", "8.67", "12.6", "29.0"),
    *_row(1, "preprocessing", _ERROR, "270410", "9.19", "9.43", "11.0", note=_EXTRA_PARAMETERS),
    *_row(1, "augmentation", _ERROR, "270410", "9.20", "9.91", "11.9"),
    *_row(1, "equivariant", _ERROR, "267294", "8.88", "8.85", "9.29"),
    *_row(2, "original", _ERROR, "25.6M", "24.59", "26.09", "31.17"),
    *_row(2, "preprocessing", _ERROR, "25.6M", "24.95", "25.32", "26.53", note=_EXTRA_PARAMETERS),
    *_row(2, "augmentation", _ERROR, "25.6M", "28.09", "29.21", "33.91", note="jitter tuned for CIFAR-10"),
    *_row(2, "equivariant", _ERROR, "28.8M", "24.85", "24.92", "25.71"),
    *_row(3, "original", _ANGLE, "206345", "1.93", "11.5", "30.3"),
    *_row(3, "equivariant", _ANGLE, "196668", "2.03", "2.30", "3.44"),
    *_row(4, "original", _PSNR, "71.14M", "17.65", "18.44", "19.05"),
    *_row(4, "equivariant", _PSNR, "69.94M", "17.67", "18.68", "19.78"),
    # Said in the text only, or otherwise than in the table.
    PaperValue(
        *(1, "equivariant", _ERROR, 0.0, "8.83", "267294", "Section 4.1.1"),
        note="the table has 8.88; 'the same error rate (±0.2%)' up to S = 0.8",
    ),
    PaperValue(1, "equivariant", _ERROR, 0.9, "9.38", "267294", "Section 4.1.1", "the table has 9.29"),
    PaperValue(1, "equivariant", _ERROR, 1.0, "28.17", "267294", "Section 4.1.1", "not shown in Figure 2"),
    PaperValue(2, "equivariant", _ERROR, 0.8, "24.83", "28.8M", "Section 4.1.2", "±0.3, up to S = 0.8"),
)


def paper_value(table: int, row: str, metric: str, saturation: float) -> PaperValue | None:
    """Return the paper's value, the table's where table and text differ, or None where the paper has none."""
    wanted = (table, row, metric)
    matches = [v for v in PAPER if (v.table, v.row, v.metric) == wanted and abs(v.saturation - saturation) < 1e-9]
    return min(matches, key=lambda v: not v.source.startswith("Table"), default=None)
