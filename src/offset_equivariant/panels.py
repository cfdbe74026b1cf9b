"""The figures that show images (3, 6 and 8): which networks of a table they are of, and which images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar, cast

from torch import nn

from offset_equivariant.building import build_evaluation, build_network, inpainting, load_split
from offset_equivariant.building.common import build_representation
from offset_equivariant.data.illuminant_images import IlluminantImages
from offset_equivariant.data.labelled_images import LabelledImages
from offset_equivariant.data.photo_images import PhotoImages
from offset_equivariant.evaluation.corrections import correction_panel
from offset_equivariant.evaluation.fills import fill_panel
from offset_equivariant.evaluation.panel import first_of_each_class, prediction_panel
from offset_equivariant.reporting.image_panel import write_image_panel
from offset_equivariant.reporting.predictions import write_panel
from offset_equivariant.runs import Run
from offset_equivariant.tasks.illuminant_estimation import network_estimator
from offset_equivariant.tasks.recognition_evaluation import RecognitionEvaluation

#: Data set -> title to show -> experiment.
PANELS: dict[str, dict[str, str]] = {
    "cifar10": {"original": "table1_original", "equivariant": "table1_equivariant"},
    "nus": {
        "original": "table3_original",
        "equivariant": "table3_equivariant",
        "equivariant, filled": "table3_equivariant_filled",
    },
    "paris_street_view": {
        "original": "table4_original",
        "equivariant": "table4_equivariant",
        "equivariant, relative clipping": "table4_equivariant_relative",
    },
    "facades": {
        "original, small": "table4_facades_small_original",
        "equivariant, small": "table4_facades_small_equivariant",
        "equivariant, relative clipping, small": "table4_facades_small_equivariant_relative",
    },
}
#: Table -> file of its figure of images, without its suffix.
FIGURES = {"table1": "figure3", "table3": "figure6", "table4": "figure8"}
#: Number of Figure 8's image among the test images.
_FIGURE8_IMAGE = 0

T = TypeVar("T")


def draw_panel(table: str, runs: Mapping[str, Run], figures: Path) -> None:
    """Show images to the networks of a panel, by title, and write what they make of them.

    Args:
        table: the table's name.
        runs: evaluations, whose weights are there.
        figures: folder to write the file of :data:`FIGURES` into, with the suffix ``.npz``.
    """
    _DRAW[table](runs, figures / f"{FIGURES[table]}.npz")


def _draw_predictions(runs: Mapping[str, Run], path: Path) -> None:
    """Classify the first test images of three classes."""
    images = cast(LabelledImages, load_split(_one_of(runs).config, "evaluation"))
    networks, digests = _loaded(
        runs, lambda run, network: cast(RecognitionEvaluation, build_evaluation(run.config, network, images))
    )
    seed, indices = _one_of(runs).config.distortion.seed, first_of_each_class(images.labels, 3)
    panel = prediction_panel(networks, images, indices, seed=seed, checkpoint_sha256=digests)
    write_panel(panel, path)


def _draw_corrections(runs: Mapping[str, Run], path: Path) -> None:
    """Correct the first of the test images."""
    images = cast(IlluminantImages, load_split(_one_of(runs).config, "evaluation"))
    estimators, digests = _loaded(
        runs, lambda run, network: network_estimator(network, build_representation(run.config))
    )
    seed = _one_of(runs).config.distortion.seed
    panel = correction_panel(estimators, images, 0, seed=seed, checkpoint_sha256=digests)
    write_image_panel(panel, path)


def _draw_fills(runs: Mapping[str, Run], path: Path) -> None:
    """Fill the centre of one of the test images."""
    photos = cast(PhotoImages, load_split(_one_of(runs).config, "evaluation"))
    fillers, digests = _loaded(runs, lambda run, network: inpainting.build_filler(run.config, network))
    seed = _one_of(runs).config.distortion.seed
    panel = fill_panel(fillers, photos, _FIGURE8_IMAGE, seed=seed, checkpoint_sha256=digests)
    write_image_panel(panel, path)


_DRAW: dict[str, Callable[[Mapping[str, Run], Path], None]] = {
    "table1": _draw_predictions,
    "table3": _draw_corrections,
    "table4": _draw_fills,
}


def _one_of(runs: Mapping[str, Run]) -> Run:
    """Any of them: images and hues are the same for all."""
    return next(iter(runs.values()))


def _loaded(runs: Mapping[str, Run], make: Callable[[Run, nn.Module], T]) -> tuple[dict[str, T], dict[str, str]]:
    """Make something of each run's trained network; also return the digests of the weights."""
    made, digests = {}, {}
    for title, run in runs.items():
        network = build_network(run.config)
        digests[title] = run.find_weights(network).sha256
        made[title] = make(run, network)
    return made, digests
