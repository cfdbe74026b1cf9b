"""Classifiers from files of weights answer as those that were evaluated."""

from pathlib import Path

import numpy as np
import pytest
import torch

from offset_equivariant.building.classifier import load_classifier
from offset_equivariant.color import srgb_to_linear
from offset_equivariant.reporting.predictions import read_panel
from offset_equivariant.runs import released_weights_path

RESULTS = Path(__file__).parents[1] / "results"


@pytest.mark.parametrize("row", ["original", "equivariant"])
def test_posteriors_are_those_of_figure_3(row):
    panel = read_panel(RESULTS / "figures" / "figure3.npz")
    classify = load_classifier(released_weights_path(RESULTS, f"table1_{row}", 0))
    images = torch.from_numpy(panel.images[:, 0]).permute(0, 3, 1, 2)
    found = classify(srgb_to_linear(images.float() / 255))
    np.testing.assert_allclose(found.numpy(), panel.posteriors[row][:, 0], atol=1e-4)


def test_a_balancing_strategy_is_part_of_the_function():
    classify = load_classifier(released_weights_path(RESULTS, "table1_preprocessing_grey_world", 0))
    linear = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.1
    light = torch.tensor([1.25, 1.0, 0.8])[:, None, None]
    # Grey-world divides the light out, which leaves the intensity as it is; nothing is clipped here.
    torch.testing.assert_close(classify(linear * light), classify(linear), rtol=0, atol=1e-4)


def test_other_networks_are_refused():
    with pytest.raises(ValueError, match=r"original-seed0.* holds no network of the architectures resnet8, resnet20"):
        load_classifier(released_weights_path(RESULTS, "table3_original", 0))
    with pytest.raises(FileNotFoundError, match="there are no weights at"):
        load_classifier(RESULTS / "none.safetensors")
