"""Measure the error of equivariance in every precision, and render its table in docs/PERFORMANCE.md.

    python scripts/measure_precision.py

Writes results/precision.json. A minute on a CPU.
"""

from __future__ import annotations

import argparse
import json

import torch

from offset_equivariant import provenance
from offset_equivariant.performance.precision import OFFSET, make_subjects, measure_all, write_precision
from offset_equivariant.storage import replace_file


def main() -> None:
    """Measure, keep, and render."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    root = provenance.repository_root()
    commit, dirty = provenance.commit()
    found = {
        "commit": commit,
        "dirty": dirty,
        "environment": provenance.environment(torch.device("cpu")),
        "offset": OFFSET,
        "errors": measure_all(make_subjects(root / "results")),
    }
    path = root / "results" / "precision.json"
    replace_file(path, (json.dumps(found, indent=1) + "\n").encode())
    print(f"wrote {path} and {write_precision(root, found)}")


if __name__ == "__main__":
    main()
