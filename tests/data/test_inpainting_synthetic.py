import pytest
import torch

from offset_equivariant.data import pixels_sha256
from offset_equivariant.data.inpainting_synthetic import check_drawn_facades, drawn_facades


@pytest.fixture(scope="module")
def fronts():
    return drawn_facades("test", n_test=32)


def test_fronts_are_labelled_as_made_up(fronts):
    assert (fronts.name, fronts.split, fronts.synthetic) == ("inpainting_synthetic", "test", True)
    assert fronts.images.shape == (32, 3, 128, 128) and fronts.names[:2] == ("test_0000", "test_0001")
    assert fronts.sha256 == pixels_sha256(fronts.images)


def test_sizes_and_numbers_by_split():
    sizes = {"n_train": 3, "n_test": 2, "shorter_side": 20, "size": 16}
    assert drawn_facades("train", **sizes).images.shape == (3, 3, 20, 20)
    assert drawn_facades("test", **sizes).images.shape == (2, 3, 16, 16)


def test_an_image_depends_on_the_seed_the_split_and_its_number_alone(fronts):
    assert torch.equal(drawn_facades("test", n_test=3, n_train=1, shorter_side=130).images, fronts.images[:3])
    others = [drawn_facades("test", n_test=3, seed=1), drawn_facades("train", n_train=3, shorter_side=128)]
    pixels = torch.cat([fronts.images, *(other.images for other in others)]).float().flatten(1)
    assert torch.pdist(pixels / 255, p=1).min() / pixels.shape[1] > 0.05  # no two of them look alike


def test_the_middle_is_no_plain_surface_and_goes_on_like_its_surroundings(fronts):
    """A copy of what stands beside, above or below the middle explains most of it, its mean colour much less."""
    images = fronts.images.float()
    middle = images[:, :, 32:96, 32:96]
    plain = (middle - middle.mean((2, 3), keepdim=True)).square().mean((1, 2, 3))
    shifts = [shift for distance in range(12, 33) for shift in (-distance, distance)]
    beside = [images[:, :, 32:96, 32 + shift : 96 + shift] for shift in shifts]
    above_and_below = [images[:, :, 32 + shift : 96 + shift, 32:96] for shift in shifts]
    errors = torch.stack([(copy - middle).square().mean((1, 2, 3)) for copy in beside + above_and_below])
    assert plain.sqrt().min() > 10
    assert (errors.amin(0) / plain).median() < 0.4


def test_sky_above_and_pavement_below(fronts):
    sky, pavement = fronts.images[:, :, :2].double(), fronts.images[:, :, -2:].double()
    for surface in (sky, pavement):
        assert surface.std((2, 3)).max() < 6  # plain, but for the noise
    assert (sky.mean((2, 3))[:, 2] > sky.mean((2, 3))[:, 0]).all()  # bluer than red
    assert (pavement.mean((2, 3)) - pavement.mean((1, 2, 3))[:, None]).abs().max() < 2  # grey


@pytest.mark.parametrize(("name", "value"), [("n_train", 0), ("n_test", 0), ("size", 15), ("seed", -1)])
def test_arguments_out_of_range_are_refused(name, value):
    for check in (check_drawn_facades, lambda **options: drawn_facades("train", **options)):
        with pytest.raises(ValueError, match=f"{name} must be at least .*, got {value}"):
            check(**{name: value})


def test_training_images_hold_a_crop():
    with pytest.raises(ValueError, match="shorter_side must be at least size, which is 128, got 100"):
        check_drawn_facades(shorter_side=100)


def test_unknown_split():
    with pytest.raises(ValueError, match="'val'; valid splits are train, test"):
        drawn_facades("val")
