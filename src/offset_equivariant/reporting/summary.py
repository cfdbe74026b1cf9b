"""What all records of a table say together, shown by a tracker: the table, and its curves over the saturation."""

from __future__ import annotations

from pathlib import Path

from offset_equivariant.reporting.descriptions import find_table
from offset_equivariant.reporting.records import find_records, load_outcomes
from offset_equivariant.reporting.tables import build_table, tabulate
from offset_equivariant.reporting.tracking import NullTracker, Tracker


def track_table(tracker: Tracker, results: Path, number: int) -> None:
    """Log ``table<number>`` of the records in ``results``, and the curves of its figure.

    Curves are drawn over the saturations that all of them have.

    Raises:
        ValueError: if there is no such table.
    """
    description = find_table(number)
    if isinstance(tracker, NullTracker):  # which would throw away what takes bootstraps to compute
        return
    # Draws with matplotlib, which trainings without a tracker do without.
    from offset_equivariant.reporting.figures import table_curves

    records = find_records(results, number)
    table = build_table(description, records, outcomes=load_outcomes(results, records))
    tracker.table(f"table{number}", *tabulate(table))
    curves = [curve for curve in table_curves(description, records) if curve.records]
    shared = sorted(set.intersection(*(set(curve.saturations) for curve in curves))) if curves else []
    if shared:
        lines = {c.title: [m for s, m in zip(c.saturations, c.means, strict=True) if s in shared] for c in curves}
        title = f"{description.axis} over the saturation of the illuminant"
        tracker.curves(f"figure{description.figure}", shared, lines, "saturation", title)
