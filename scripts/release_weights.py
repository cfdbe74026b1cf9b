"""Copy finished runs' weights into results/checkpoints, and enter them into its list of digests.

    python scripts/release_weights.py runs/table1_original/seed=0 ...

Evaluate them afterwards: ``make reproduce-table1 RESULTS=results`` writes the records that belong to the files.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from safetensors import safe_open

from offset_equivariant.provenance import repository_root
from offset_equivariant.runs import released_weights_path
from offset_equivariant.storage import replace_file
from offset_equivariant.training.weights import add_digest


def release(run: Path, results: Path) -> Path:
    """Copy one run's weights.

    Raises:
        FileNotFoundError: if the run has no weights yet.
        ValueError: if its training is not over, or ran on uncommitted changes.
    """
    source = run / "weights.safetensors"
    if not source.exists():
        raise FileNotFoundError(f"{source} is not there: the training has not ended")
    with safe_open(source, "pt") as file:
        facts = json.loads(file.metadata()["facts"])
    if facts["steps"] < facts["total_steps"] or facts["dirty"]:
        raise ValueError(f"{source}: step {facts['steps']} of {facts['total_steps']}, dirty: {facts['dirty']}")
    target = released_weights_path(results, facts["experiment"], facts["seed"])
    replace_file(target, source.read_bytes())
    add_digest(target)
    return target


def main() -> None:
    """Release the runs named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    for run in parser.parse_args().runs:
        print(release(run, repository_root() / "results"))


if __name__ == "__main__":
    main()
