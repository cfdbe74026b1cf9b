"""Render tables, figures and the README's numbers from the committed records."""

from __future__ import annotations

from offset_equivariant.provenance import repository_root
from offset_equivariant.reporting.ablations import write_ablations
from offset_equivariant.reporting.figures import render_figures
from offset_equivariant.reporting.reproduction import write_reproduction
from offset_equivariant.reporting.search import write_searches
from offset_equivariant.reporting.tables import update_readme, write_tables


def main() -> None:
    """Write everything that the records decide."""
    results = repository_root() / "results"
    paths = [*write_tables(results), *render_figures(results), *write_searches(results)]
    paths += write_ablations(results)
    paths.append(write_reproduction(repository_root()))
    update_readme(repository_root() / "README.md", results)
    print("\n".join(f"wrote {path}" for path in [*paths, repository_root() / "README.md"]))


if __name__ == "__main__":
    main()
