"""Make the small images of NUS from its official files: nine cameras' PNGs and <Camera>_gt.mat (Cheng et al. 2014).

    python scripts/prepare_nus.py FOLDER data/nus64/nus64.npz

Cameras that are not in FOLDER are left out. A call that was interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from offset_equivariant.data.nus_preparation import PreparationError, kept_folder, prepare


def main(words: list[str] | None = None) -> int:
    """Prepare what the command line names; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the official files")
    parser.add_argument("target", type=Path, help="the file to write, nus<size>/nus<size>.npz in a data directory")
    parser.add_argument("--size", type=int, default=64, help="height and width in pixels")
    parser.add_argument("--workers", type=int, help="processes; by default one a core")
    arguments = parser.parse_args(words)
    try:
        count = prepare(
            arguments.folder,
            arguments.target,
            size=arguments.size,
            workers=arguments.workers,
            progress=lambda done, total: tqdm(done, total=total, unit="image"),
        )
    except (PreparationError, OSError) as error:
        print(error, file=sys.stderr)
        if kept_folder(arguments.target, arguments.size).exists():
            print("What was prepared is kept beside the target; the same command goes on from there.", file=sys.stderr)
        return 1
    print(f"{arguments.target}: {count} images of {arguments.size}x{arguments.size} pixels")
    return 0


if __name__ == "__main__":
    sys.exit(main())
