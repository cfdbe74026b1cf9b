"""What the paper's tables show, and what its text says of them, as statements that can be examined on other numbers.

The paper says most of it in words or in numbers of its own; bounds that are not of a section cited beside them, "more
than triples" for instance, are round ones that its numbers keep.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from offset_equivariant.reporting.comparison import Cell
from offset_equivariant.reporting.tables import signed_interval


@dataclass(frozen=True)
class Finding:
    """Whether a claim of the paper holds here (None: the numbers do not decide it), and the numbers that say so."""

    holds: bool | None
    measured: str


#: Row of the paper -> saturation -> cell; those of the paper's tables are always among them.
Cells = Mapping[str, Mapping[float, Cell]]
Examination = Callable[[Cells], Finding]
#: What a difference of two decimal numbers may be off by.
_ROUNDING = 1e-9
#: Without the per-image outcomes beside the records, or without a seed that two rows share.
_UNKNOWN = "no interval, as outcomes of images are missing"


@dataclass(frozen=True)
class Claim:
    """What a table of the paper shows, or the text says of it, in words.

    Attributes:
        statement: What it shows.
        examine: To the finding, from the cells of ``rows``, all measured.
        rows: The paper's rows that it is about; empty for all of the table's.
    """

    statement: str
    examine: Examination
    rows: tuple[str, ...] = ()


def _value(cells: Cells, row: str, s: float) -> float:
    value = cells[row][s].ours
    assert value is not None
    return value


def _grows(row: str, factor: float, *, at_least: bool) -> Examination:
    """Whether a row's value at S = 0.9 is at least, or at most, so many times that at S = 0.

    By the interval of how many times it is: undecided where ``factor`` lies in it.
    """

    def examine(cells: Cells) -> Finding:
        before, after = _value(cells, row, 0.0), _value(cells, row, 0.9)
        growth = cells[row][0.9].growth
        if growth is None:
            return Finding(None, f"{before:.2f} → {after:.2f}; {_UNKNOWN}")
        times, low, high = growth
        held, denied = (low >= factor, high < factor) if at_least else (high <= factor, low > factor)
        holds = True if held else False if denied else None
        return Finding(holds, f"{before:.2f} → {after:.2f}, {times:.2f} times [{low:.2f}, {high:.2f}]")

    return examine


def _as_good(s: float, sign: int, within: float) -> Examination:
    """Whether the equivariant network is better than the original or behind it by at most so much.

    By the interval of their paired difference: undecided where ``within`` lies in it. ``sign`` is 1 where small values
    are good, -1 where large ones are.
    """

    def examine(cells: Cells) -> Finding:
        paired = cells["equivariant"][s].paired
        if paired is None:
            difference = _value(cells, "equivariant", s) - _value(cells, "original", s)
            return Finding(None, f"difference {difference:+.2f}; {_UNKNOWN}")
        best, worst = sorted((sign * paired[1], sign * paired[2]))
        holds = True if worst <= within else False if best > within else None
        return Finding(holds, f"difference {signed_interval(paired)}")

    return examine


def _best(s: float, sign: int) -> Examination:
    """Whether the equivariant network is the best of the paper's rows; ``sign`` as in :func:`_as_good`.

    Undecided where the interval of its paired difference to the best of the others holds zero, or where that
    difference, over the seeds that both have, and the means over all seeds contradict each other.
    """

    def examine(cells: Cells) -> Finding:
        values = {row: _value(cells, row, s) for row in cells}
        ranked = sorted(values, key=lambda row: sign * values[row])
        rival = next(row for row in ranked if row != "equivariant")
        measured = ", ".join(f"{row} {values[row]:.2f}" for row in ranked)
        # To the original, the difference is the equivariant network's own.
        paired = cells["equivariant"][s].paired if rival == "original" else cells[rival][s].second_paired
        if paired is None:
            return Finding(None, f"{measured}; {_UNKNOWN}")
        named = "equivariant minus original" if rival == "original" else f"{rival} minus equivariant"
        measured += f"; {named}: {signed_interval(paired)}"
        ahead = ranked[0] == "equivariant"
        says_ahead = (sign * paired[0] < 0) == (rival == "original")
        decided = not paired[1] <= 0 <= paired[2] and says_ahead == ahead
        return Finding(ahead if decided else None, measured)

    return examine


def _behind(s: float, sign: int) -> Examination:
    """Whether the equivariant network is behind the original; ``sign`` as in :func:`_as_good`.

    By the interval of their paired difference: undecided where zero lies in it.
    """

    def examine(cells: Cells) -> Finding:
        measured = f"original {_value(cells, 'original', s):.2f}, equivariant {_value(cells, 'equivariant', s):.2f}"
        paired = cells["equivariant"][s].paired
        if paired is None:
            return Finding(None, f"{measured}; {_UNKNOWN}")
        measured += f"; equivariant minus original: {signed_interval(paired)}"
        low, high = sorted((sign * paired[1], sign * paired[2]))
        return Finding(True if low > 0 else False if high < 0 else None, measured)

    return examine


def _rises(rows: tuple[str, ...], s: float) -> Examination:
    """Whether all these rows have larger values at ``s`` than at S = 0, by the intervals of their shifts."""

    def examine(cells: Cells) -> Finding:
        said, shifts = [], []
        for row in rows:
            shift = cells[row][s].shift
            values = f"{row} {_value(cells, row, 0.0):.2f} → {_value(cells, row, s):.2f}"
            if shift is None:
                return Finding(None, f"{values}; {_UNKNOWN}")
            said.append(f"{values}, {signed_interval(shift)}")
            shifts.append(shift)
        if any(high < 0 for _, _, high in shifts):
            return Finding(False, "; ".join(said))
        return Finding(True if all(low > 0 for _, low, _ in shifts) else None, "; ".join(said))

    return examine


def _steady(row: str, up_to: float, tolerance: float) -> Examination:
    """Whether a row's value stays within a tolerance of that at S = 0, at every saturation measured up to another.

    By the intervals of how far it is from it: undecided where one of them reaches over the tolerance, and where the
    last saturation was not measured.
    """

    def examine(cells: Cells) -> Finding:
        if up_to not in cells[row]:
            return Finding(None, f"not measured at S = {up_to}")
        coloured = [cell for s, cell in cells[row].items() if 0 < s <= up_to]
        white = _value(cells, row, 0.0)
        values = [white, *(_value(cells, row, cell.saturation) for cell in coloured)]
        measured = f"{min(values):.2f} to {max(values):.2f}, at {len(values)} saturations"
        shifts = [cell.shift for cell in coloured if cell.shift is not None]
        if len(shifts) < len(coloured):
            return Finding(None, f"{measured}; {_UNKNOWN}")
        furthest = max(shifts, key=lambda shift: max(-shift[1], shift[2]))
        measured += f"; furthest from S = 0, by its interval: {signed_interval(furthest)}"
        allowed = tolerance + _ROUNDING
        if any(low > allowed or high < -allowed for _, low, high in shifts):
            return Finding(False, measured)
        return Finding(True if max(-furthest[1], furthest[2]) <= allowed else None, measured)

    return examine


_ORIGINAL, _OURS, _BOTH = ("original",), ("equivariant",), ("original", "equivariant")


def _same_up_to_08(within: float, section: str) -> Claim:
    statement = f"Up to S = 0.8 the equivariant network's error is the same, within {within} points ({section})"
    return Claim(statement, _steady("equivariant", 0.8, within), _OURS)


def _original_steady_up_to_03(section: str) -> Claim:
    statement = f"Up to S = 0.3 the original's error is nearly the same, within 0.3 points ({section})"
    return Claim(statement, _steady("original", 0.3, 0.3), _ORIGINAL)


_GREW_LITTLE = Claim(
    "Coloured light, S = 0.9, adds less than a tenth to that of the equivariant network",
    _grows("equivariant", 1.1, at_least=False),
    _OURS,
)
_RECOGNITION = (
    _GREW_LITTLE,
    Claim(
        "Without coloured light the equivariant network is as good as the original, within 0.3 points",
        _as_good(0.0, 1, 0.3),
        _BOTH,
    ),
    Claim("Under coloured light, S = 0.5, it has the smallest error of the four strategies", _best(0.5, 1)),
    Claim("Under coloured light, S = 0.9, it has the smallest error of the four strategies", _best(0.9, 1)),
)
#: By the number of the table.
CLAIMS: Mapping[int, tuple[Claim, ...]] = {
    1: (
        Claim(
            "Coloured light, S = 0.9, more than triples the original's error",
            _grows("original", 3, at_least=True),
            _ORIGINAL,
        ),
        _original_steady_up_to_03("Section 4.1.1"),
        _same_up_to_08(0.2, "Section 4.1.1"),
        *_RECOGNITION,
    ),
    2: (
        Claim(
            "Coloured light, S = 0.9, adds more than a quarter to the original's error",
            _grows("original", 1.25, at_least=True),
            _ORIGINAL,
        ),
        _original_steady_up_to_03("Section 4.1.2"),
        _same_up_to_08(0.3, "Section 4.1.2"),
        *_RECOGNITION,
    ),
    3: (
        Claim(
            "Coloured light, S = 0.9, makes the original's error more than ten times as large",
            _grows("original", 10, at_least=True),
            _ORIGINAL,
        ),
        Claim("Without coloured light the original network has the slightly smaller error", _behind(0.0, 1), _BOTH),
        Claim(
            "Coloured light, S = 0.9, does not double that of the equivariant network",
            _grows("equivariant", 2, at_least=False),
            _OURS,
        ),
        Claim("Under coloured light, S = 0.9, the equivariant network has the smaller error", _best(0.9, 1)),
    ),
    4: (
        Claim(
            "Without coloured light the equivariant network is as good as the original, within 0.1 dB",
            _as_good(0.0, -1, 0.1),
            _BOTH,
        ),
        Claim("Coloured light, S = 0.9, raises the PSNR of both (Section 4.3.1)", _rises(_BOTH, 0.9), _BOTH),
        Claim("Under coloured light, S = 0.9, the equivariant network fills better", _best(0.9, -1)),
    ),
}
