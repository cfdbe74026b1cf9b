import pytest
import torch

from offset_equivariant.color import grey_world, recovery_angular_error
from offset_equivariant.data.illuminant_images import fingerprint
from offset_equivariant.data.nus import CAMERAS
from offset_equivariant.data.nus_synthetic import synthetic_scenes


@pytest.fixture(scope="module")
def scenes():
    return synthetic_scenes(90, size=32)


def test_scenes_are_labelled_as_made_up_and_laid_out_as_nus(scenes):
    assert scenes.synthetic and scenes.name == "nus_synthetic" and scenes.size == 32
    assert torch.equal(scenes.images.amax((1, 2, 3)), torch.ones(90))
    black = (scenes.images == 0).all(1).sum((1, 2))
    assert (black == (32 // 6) * (32 // 8)).all()  # the rectangle in place of the chart
    assert scenes.cameras[:10] == (*CAMERAS, CAMERAS[0])
    assert scenes.folds.bincount().tolist() == [30, 30, 30]
    assert scenes.sha256 == fingerprint(scenes.images, scenes.illuminants)


def test_an_image_depends_on_the_seed_and_its_number_alone(scenes):
    fewer, other = synthetic_scenes(9, size=32), synthetic_scenes(9, size=32, seed=1)
    assert torch.equal(fewer.images, scenes.images[:9]) and torch.equal(fewer.illuminants, scenes.illuminants[:9])
    assert (other.images - fewer.images).abs().amax((1, 2, 3)).min() > 0.1
    assert len({tuple(light) for light in scenes.illuminants.tolist()}) == 90


def test_the_scenes_tell_of_their_light(scenes):
    error = recovery_angular_error(grey_world(scenes.images).double(), scenes.illuminants)
    neutral = recovery_angular_error(torch.ones(90, 3, dtype=torch.float64), scenes.illuminants)
    assert error.median() < 6 < 12 < neutral.median()


@pytest.mark.parametrize(("name", "value"), [("images", 8), ("size", 15), ("seed", -1)])
def test_arguments_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be at least .*, got {value}"):
        synthetic_scenes(**{name: value})
