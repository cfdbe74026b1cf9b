"""Copy finished runs' weights into results/checkpoints, and enter them into its list of digests.

    python scripts/release_weights.py [--replace] runs/table1_original/seed=0 ...

Evaluate them afterwards: ``make reproduce-table1 RESULTS=results`` writes the records that belong to the files.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from offset_equivariant.provenance import repository_root
from offset_equivariant.runs import released_weights_path
from offset_equivariant.storage import replace_file
from offset_equivariant.training.weights import WeightsError, add_digest, read_facts


def release(run: Path, results: Path, *, replace: bool = False) -> Path:
    """Copy one run's weights, over other ones that were released only with ``replace``.

    Raises:
        FileExistsError: if there are other weights of that name and ``replace`` is false.
        FileNotFoundError: if the run has no weights yet.
        ValueError: if its training is not over, or ran on uncommitted changes.
        WeightsError: if its file of weights is damaged, or not of a run.
    """
    source = run / "weights.safetensors"
    if not source.exists():
        raise FileNotFoundError(f"{source} is not there: the training has not ended")
    facts = read_facts(source)
    if not facts:
        raise WeightsError(f"{source} does not say how it was trained")
    if facts["steps"] < facts["total_steps"] or facts["dirty"]:
        raise ValueError(f"{source}: step {facts['steps']} of {facts['total_steps']}, dirty: {facts['dirty']}")
    target = released_weights_path(results, facts["experiment"], facts["seed"])
    contents = source.read_bytes()
    if target.exists() and target.read_bytes() != contents and not replace:
        raise FileExistsError(
            f"{target} is another network, which records belong to: use the new one from where it is "
            f"(weights={source}), or give --replace and evaluate again what uses it"
        )
    replace_file(target, contents)
    add_digest(target)
    return target


def main() -> int:
    """Release the runs named on the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--replace", action="store_true", help="put them over weights that were released before")
    arguments = parser.parse_args()
    try:
        for run in arguments.runs:
            print(release(run, repository_root() / "results", replace=arguments.replace))
    except (FileExistsError, FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
