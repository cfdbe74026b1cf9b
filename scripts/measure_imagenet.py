"""Measure what Table 2 costs: reading images from files, and training steps of ResNet-50; estimate GPU-hours.

    python scripts/measure_imagenet.py

Reads Imagenette with one thread, as conf/dataset/imagenette.yaml has it and enlarged to the size of ILSVRC-12's images,
and writes results/costs/imagenet.json and imagenet.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from offset_equivariant import provenance
from offset_equivariant.data import data_directories, load_dataset
from offset_equivariant.data.image_files import ImageFiles
from offset_equivariant.performance.image_files import enlarged_copies, images_per_second
from offset_equivariant.performance.imagenet_cost import NETWORKS, operations, render_costs, step_seconds
from offset_equivariant.performance.settings import device_slug
from offset_equivariant.storage import replace_file

ROOT = provenance.repository_root()
READ = 100
"""Images of a batch that is read."""


def main() -> None:
    """Measure, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8, help="images of a training step")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions, of which the medians are taken")
    parser.add_argument("--output", default=str(ROOT / "results" / "costs"), help="folder to write into")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    options = OmegaConf.load(ROOT / "conf" / "dataset" / "imagenette.yaml").options
    files = load_dataset("imagenette", "train", data_directories(), **options, download=False)
    assert isinstance(files, ImageFiles)
    commit, dirty = provenance.commit()
    found: dict[str, Any] = {
        "commit": commit,
        "dirty": dirty,
        "processor": device_slug(torch.device("cpu")),
        "threads": 1,
        "torch": torch.__version__,
        "images": f"{files.note}, to crops of {files.size} pixels",
        "reading": images_per_second(files, READ, arguments.rounds),
        "large": read_enlarged(files, arguments.rounds),
        "batch": arguments.batch,
        "operations": {network: operations(network) for network in NETWORKS},
        "step_seconds": step_seconds(arguments.batch, rounds=arguments.rounds),
    }
    folder = Path(arguments.output)
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "imagenet.json", (json.dumps(found, indent=1) + "\n").encode())
    replace_file(folder / "imagenet.md", render_costs(found).encode())
    print(render_costs(found))


def read_enlarged(files: ImageFiles, rounds: int) -> dict[str, Any]:
    """Measure how fast files of the size of ILSVRC-12's are read, one more batch than is measured."""
    with tempfile.TemporaryDirectory(prefix="imagenet-enlarged-") as folder:
        copies = enlarged_copies(files, Path(folder), READ * (rounds + 1))
        return {
            "images": f"{copies.note}, to crops of {copies.size} pixels (evaluation: shorter side "
            f"{copies.shorter_side}, its centre)",
            "reading": images_per_second(copies, READ, rounds),
        }


if __name__ == "__main__":
    main()
