"""Render tables, figures and the README's numbers from the committed records."""

from __future__ import annotations

import argparse

from offset_equivariant.provenance import repository_root
from offset_equivariant.reporting.rendering import render_all

if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    print("\n".join(f"wrote {path}" for path in render_all(repository_root())))
