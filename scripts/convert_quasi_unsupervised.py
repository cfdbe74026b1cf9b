"""Convert weights of quasi-unsupervised colour constancy from its authors' file, such as ilsvrc12-eg.pt.

    python scripts/convert_quasi_unsupervised.py ilsvrc12-eg.pt results/weights/quasi_unsupervised_ilsvrc12.safetensors

Then balance images with them: strategy=preprocessing_quasi_unsupervised strategy.weights=<the target>. No code in the
file is run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from offset_equivariant.training.authors_constancy import read_authors_file
from offset_equivariant.training.weights import save_weights


def main(words: list[str] | None = None) -> int:
    """Convert what the command line names; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the authors' file")
    parser.add_argument("target", type=Path, help="the safetensors file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the target if it is there already")
    arguments = parser.parse_args(words)
    try:
        if arguments.target.exists() and not arguments.overwrite:
            raise FileExistsError(f"{arguments.target} is there already; give --overwrite, or another target")
        network, facts = read_authors_file(arguments.source)
        digest = save_weights(network, arguments.target, facts)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    parameters = sum(parameter.numel() for parameter in network.parameters())
    size = network.image_size
    print(f"{arguments.target}: {parameters:,} parameters, for images of {size}x{size} pixels; SHA-256 {digest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
