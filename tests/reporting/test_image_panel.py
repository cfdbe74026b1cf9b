import numpy as np
import pytest
import torch

from offset_equivariant.color import random_illuminants, srgb_to_linear
from offset_equivariant.data.nus_synthetic import synthetic_scenes
from offset_equivariant.evaluation.corrections import correction_panel
from offset_equivariant.reporting.image_panel import ImagePanel, image_figure, read_image_panel, write_image_panel
from offset_equivariant.tasks.illuminant_estimation import statistical_estimator

SATURATIONS = (0.0, 0.4, 0.8)


@pytest.fixture(scope="module")
def scenes():
    return synthetic_scenes(18, size=32)


@pytest.fixture(scope="module")
def panel(scenes):
    estimators = {"blind": lambda linear, folds: torch.ones(1, 3), "grey-world": statistical_estimator("grey_world")}
    digests = {"blind": "aa", "grey-world": "bb"}
    return correction_panel(estimators, scenes, 4, seed=2, saturations=SATURATIONS, checkpoint_sha256=digests)


def test_corrections_are_the_estimates_and_the_truth(scenes, panel):
    assert (
        list(panel.images) == ["input", "blind", "grey-world", "true light"]
        and panel.name == "nus_synthetic, synthetic_0004"
    )
    np.testing.assert_array_equal(panel.images["blind"], panel.images["input"])
    assert np.ptp(panel.values["grey-world"]) < 1e-3 < 1 < np.ptp(panel.values["blind"])
    # What the true light corrects looks the same under every light.
    corrected = panel.images["true light"].astype(int)
    assert np.abs(corrected - corrected[:1]).max() <= 2
    lit = scenes.images[4] * random_illuminants(2, torch.tensor([4]), 0.8)[0, :, None, None]
    shown = srgb_to_linear(torch.from_numpy(panel.images["input"][2] / 255.0)).permute(2, 0, 1)
    scale = lit.amax(0).flatten().quantile(0.98)
    torch.testing.assert_close(shown.to(lit.dtype), (lit / scale).clamp(max=1), atol=0.01, rtol=0)


def test_a_panel_is_read_as_it_was_written(panel, tmp_path):
    write_image_panel(panel, tmp_path / "a.npz")
    write_image_panel(read_image_panel(tmp_path / "a.npz"), tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    found = read_image_panel(tmp_path / "a.npz")
    assert (found.name, found.saturations, found.unit, found.checkpoint_sha256) == (
        panel.name,
        SATURATIONS,
        "°",
        panel.checkpoint_sha256,
    )
    np.testing.assert_array_equal(found.images["grey-world"], panel.images["grey-world"])


def test_the_figure_shows_every_image_with_its_error(panel):
    figure = image_figure(panel)
    assert len(figure.axes) == 4 * 3
    assert [axes.get_title() for axes in figure.axes[:3]] == ["S = 0.0", "S = 0.4", "S = 0.8"]
    assert [axes.get_ylabel() for axes in figure.axes[::3]] == list(panel.images)
    assert [axes.get_xlabel() for axes in figure.axes[3:6]] == [f"{error:.1f}°" for error in panel.values["blind"]]
    assert [axes.get_xlabel() for axes in figure.axes[9:]] == ["", "", ""]
    np.testing.assert_array_equal(figure.axes[7].images[0].get_array(), panel.images["grey-world"][1])


def test_wrong_shapes_are_refused(panel):
    with pytest.raises(ValueError, match="images of 'input' must be uint8"):
        ImagePanel("a", (0.0,), panel.images, {}, "°")
    with pytest.raises(ValueError, match="values of 'nobody'"):
        ImagePanel("a", SATURATIONS, panel.images, {"nobody": np.zeros(3, np.float32)}, "°")
