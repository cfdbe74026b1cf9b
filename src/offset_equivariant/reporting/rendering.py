"""Rendering everything that the records decide, into the results folder, the README and docs/REPRODUCTION.md."""

from __future__ import annotations

from pathlib import Path

from offset_equivariant.reporting.ablations import write_ablations
from offset_equivariant.reporting.figures import render_figures
from offset_equivariant.reporting.readme import update_readme
from offset_equivariant.reporting.reproduction import examined_tables, write_reproduction
from offset_equivariant.reporting.search import write_searches
from offset_equivariant.reporting.tables import write_tables


def render_all(root: Path) -> list[Path]:
    """Write all tables and figures of the repository at ``root``, and return the paths.

    Raises:
        ValueError: if the README or docs/REPRODUCTION.md have no place for them.
    """
    results = root / "results"
    paths = [*write_tables(results), *render_figures(results), *write_searches(results), *write_ablations(results)]
    examined = examined_tables(results)
    paths.append(write_reproduction(root, examined))
    update_readme(root / "README.md", results, examined)
    return [*paths, root / "README.md"]
