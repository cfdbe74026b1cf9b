"""``python -m offset_equivariant.correct`` on small photos, with networks of few steps and with simple estimators."""

import numpy as np
import pytest
import torch
from PIL import Image

from offset_equivariant import photo_commands
from offset_equivariant.building.illuminant_estimation import load_estimators
from offset_equivariant.color import grey_world, linear_to_srgb, srgb_to_linear
from offset_equivariant.correct import correct_photo, estimate_illuminant, main
from offset_equivariant.data.photos import Photo, PhotoError, read_photo
from offset_equivariant.experiment import run_experiment
from offset_equivariant.photo_commands import output_paths
from offset_equivariant.reporting.tracking import NullTracker
from offset_equivariant.runs import Run

LIGHT = np.array([1.0, 0.6, 0.3])


@pytest.fixture(scope="module")
def weights(make_settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    run = Run(
        make_settings(
            "experiment=table3_equivariant_filled", "train=nus_smoke", "train.epochs=null", "train.steps=3",
            "mode=train", "dataset.options.images=99", f"paths.runs={folder}", "train.preset=smoke",
        )
    )  # fmt: skip
    run_experiment(run, NullTracker())
    return run.weights_path


@pytest.fixture(scope="module")
def scene():
    """Linear, (60, 90, 3), grey on average."""
    values = np.random.default_rng(0).uniform(0.02, 0.5, (6, 9, 3)).repeat(10, 0).repeat(10, 1)
    return values / values.mean((0, 1)) * 0.25


def as_photo(linear, encoding):
    top = 255 if encoding == "srgb" else 65535
    values = linear_to_srgb(torch.from_numpy(linear)).numpy() if encoding == "srgb" else linear
    return Photo((values * top).round().astype(np.uint8 if encoding == "srgb" else np.uint16))


def test_estimates_are_averaged_in_the_logarithm():
    image = torch.rand(3, 130, 70)
    given = [lambda x: torch.tensor([[1.0, 2.0, 4.0]]), lambda x: torch.tensor([[4.0, 2.0, 1.0]])]
    torch.testing.assert_close(estimate_illuminant(image, given), torch.full((3,), 3**-0.5))


def test_the_estimators_see_areas_averaged_and_scaled():
    image = torch.rand(3, 128, 256)

    def look(small):
        expected = image.reshape(3, 64, 2, 64, 4).mean((2, 4))
        torch.testing.assert_close(small[0], expected / expected.max())
        return torch.ones(1, 3)

    estimate_illuminant(image, [look])


@pytest.mark.parametrize("encoding", ["srgb", "linear"])
def test_the_light_is_divided_out(scene, encoding):
    corrected, estimate = correct_photo(as_photo(scene * LIGHT, encoding), [grey_world], encoding)
    np.testing.assert_allclose(estimate.numpy(), LIGHT / np.linalg.norm(LIGHT), atol=2e-3)
    values = torch.from_numpy(corrected.pixels / np.iinfo(corrected.pixels.dtype).max)
    linear = (srgb_to_linear(values) if encoding == "srgb" else values).numpy()
    level = np.exp(np.log(LIGHT).mean())
    np.testing.assert_allclose(linear, np.minimum(scene * level, 1), atol=0.006 if encoding == "srgb" else 1e-3)


def test_a_black_photo_is_refused():
    with pytest.raises(PhotoError, match="black"):
        correct_photo(Photo(np.zeros((8, 8, 3), np.uint8)), [grey_world], "srgb")


def test_a_channel_without_light_stays_black_and_does_not_count(scene):
    dark = scene * [1.0, 0.5, 0.0]
    corrected, estimate = correct_photo(as_photo(dark, "linear"), [lambda x: grey_world(x) + 1e-4], "linear")
    linear = corrected.pixels / 65535
    assert not linear[..., 2].any() and estimate[2] == 0
    np.testing.assert_allclose(linear[..., 0].mean(), linear[..., 1].mean(), rtol=0.01)
    np.testing.assert_allclose(linear[..., 0].mean(), 0.25 * 0.5**0.5, rtol=0.02)


@pytest.fixture(scope="module")
def estimators(weights):
    return load_estimators(weights)[0]


@pytest.mark.parametrize("hidden", [0, 37, 255], ids=["black", "of a colour", "white"])
def test_invisible_margins_have_no_influence(scene, estimators, hidden):
    visible = as_photo(scene * LIGHT, "srgb")
    _, expected = correct_photo(visible, estimators, "srgb")
    pixels = np.full((2 * 60, 2 * 90, 3), np.array([hidden, 255 - hidden, hidden], np.uint8))
    alpha = np.zeros((2 * 60, 2 * 90), np.uint8)
    pixels[20:80, 50:140], alpha[20:80, 50:140] = visible.pixels, 255
    corrected, estimate = correct_photo(Photo(pixels, alpha), estimators, "srgb")
    assert torch.equal(estimate, expected) and np.array_equal(corrected.alpha, alpha)


def test_invisible_pixels_have_no_influence(scene, estimators):
    """Wherever they are: an estimate is that of the photo with holes without a measurement."""
    alpha = np.full((64, 64), 255, np.uint8)
    alpha[10:30, 20:25], alpha[50:, 40:] = 0, 0
    pixels = as_photo((scene * LIGHT)[np.arange(64) % 60, :64], "srgb").pixels
    estimates = [
        correct_photo(Photo(np.where(alpha[..., None] > 0, pixels, np.uint8(hidden)), alpha), estimators, "srgb")[1]
        for hidden in (0, 90, 255)
    ]
    assert torch.equal(estimates[0], estimates[1]) and torch.equal(estimates[0], estimates[2])
    unlit = torch.from_numpy(np.where(alpha[..., None] > 0, pixels / 255.0, 0)).float()
    torch.testing.assert_close(estimates[0], estimate_illuminant(srgb_to_linear(unlit.permute(2, 0, 1)), estimators))


def test_pixels_weigh_as_much_as_they_are_opaque():
    image, alpha = torch.rand(3, 128, 256), torch.rand(128, 256)
    alpha[:2, 4:8] = 0

    def look(small):
        weights = alpha.reshape(64, 2, 64, 4)
        expected = (image.reshape(3, 64, 2, 64, 4) * weights).sum((2, 4)) / weights.sum((1, 3))
        expected[:, 0, 1] = 0
        torch.testing.assert_close(small[0], expected / expected.max())
        return torch.ones(1, 3)

    estimate_illuminant(image, [look], alpha=alpha)


def test_what_is_black_or_transparent_where_it_is_visible_is_refused(scene):
    pixels = as_photo(scene, "srgb").pixels
    with pytest.raises(PhotoError, match="all of the photo is transparent: there is no light"):
        correct_photo(Photo(pixels, np.zeros((60, 90), np.uint8)), [grey_world], "srgb")
    alpha = np.full((60, 90), 255, np.uint8)
    alpha[:, 45:] = 0
    pixels[:, :45] = 0
    with pytest.raises(PhotoError, match="the photo is black"):
        correct_photo(Photo(pixels, alpha), [grey_world], "srgb")


def test_an_estimate_that_is_no_light_is_refused(scene):
    with pytest.raises(PhotoError, match="is no light; use the weights of an equivariant network"):
        correct_photo(as_photo(scene, "linear"), [lambda x: torch.tensor([[0.5, -0.1, 0.2]])], "linear")


def test_photos_of_one_scene_under_two_lights_become_the_same(scene, weights, tmp_path, capsys):
    """Equivariance, from file to file, with networks that are trained badly."""
    for name, light in (("white", np.ones(3)), ("red", LIGHT)):
        exif = Image.Exif()
        exif[271] = "Maker"
        Image.fromarray(as_photo(scene * light, "srgb").pixels).save(tmp_path / f"{name}.png", exif=exif)
    assert main([str(tmp_path / "white.png"), str(tmp_path / "red.png"), "--weights", str(weights)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and all("illuminant (" in line and "_corrected.png" in line for line in said)
    white, red = (read_photo(tmp_path / f"{name}_corrected.png") for name in ("white", "red"))
    # But for the level, which follows the estimate's, and 8 bits.
    a, b = (srgb_to_linear(torch.from_numpy(x.pixels / 255.0)).numpy() for x in (white, red))
    unclipped = (a < 0.98).all(2) & (b < 0.98).all(2)
    ratio = b[unclipped].mean(0) / a[unclipped].mean(0)
    assert unclipped.mean() > 0.5 and np.ptp(ratio) / ratio.mean() < 0.03
    with Image.open(tmp_path / "red_corrected.png") as image:
        assert image.getexif()[271] == "Maker" and image.size == (90, 60)


def test_files_that_fail_are_named_and_the_others_go_on(scene, weights, tmp_path, capsys):
    Image.fromarray(as_photo(scene, "srgb").pixels).save(tmp_path / "good.jpg")
    (tmp_path / "bad.jpg").write_text("no image")
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "black.png")
    names = [str(tmp_path / name) for name in ("bad.jpg", "good.jpg", "black.png")]
    assert main([*names, "-o", str(tmp_path / "out"), "--weights", str(weights)]) == 1
    said = capsys.readouterr()
    assert "bad.jpg is not an image" in said.err and "black.png: the photo is black" in said.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good_corrected.jpg"]
    assert main([names[1], "-o", str(tmp_path / "out"), "--weights", str(weights)]) == 1
    assert "is there already; give --overwrite" in capsys.readouterr().err
    assert main([names[1], "-o", str(tmp_path / "out"), "--weights", str(weights), "--overwrite"]) == 0
    assert main([names[1], "-o", str(tmp_path / "x.tif"), "--weights", str(weights)]) == 0
    assert main([names[1], "-o", str(tmp_path / "new"), "--weights", str(weights)]) == 0
    assert (tmp_path / "new" / "good_corrected.jpg").exists()


@pytest.mark.parametrize("name", ["result.bmp", "result.JPGG", "photos.2024"])
def test_an_output_of_an_unknown_format_is_refused(tmp_path, name):
    photos, output = [tmp_path / "a.jpg", tmp_path / "b.png"], tmp_path / name
    known = ".jpg, .jpeg, .png, .tif, .tiff, .webp"
    for given in (photos, photos[:1]):
        with pytest.raises(
            PhotoError, match=rf"{name}: unknown format '\{output.suffix}'; give .* ends in {known}, or"
        ):
            output_paths(given, output, "corrected")
    output.mkdir()
    assert output_paths(photos, output, "corrected") == [output / "a_corrected.jpg", output / "b_corrected.png"]


def test_what_cannot_begin_is_said(tmp_path, weights, capsys, monkeypatch):
    photos = [str(tmp_path / "a.jpg"), str(tmp_path / "b.jpg")]
    assert main([*photos, "-o", str(tmp_path / "one.jpg"), "--weights", str(weights)]) == 2
    assert "one.jpg is one file, and there are several photos" in capsys.readouterr().err
    same = [str(tmp_path / "a" / "x.jpg"), str(tmp_path / "b" / "x.jpg")]
    assert main([*same, "-o", str(tmp_path / "out"), "--overwrite", "--weights", str(weights)]) == 2
    assert "two of the photos would be written to" in capsys.readouterr().err
    assert main([str(tmp_path / "a.gif"), "--weights", str(weights)]) == 2
    assert "unknown format '.gif'" in capsys.readouterr().err
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(photo_commands, "repository_root", lambda: tmp_path)
        assert main(photos) == 2
    assert "train them with `python -m offset_equivariant experiment=table3" in capsys.readouterr().err
    assert main([*photos, "--weights", str(tmp_path)]) == 2
    assert main([*photos, "--weights", str(tmp_path / "none.safetensors")]) == 2
    assert "there are no weights at" in capsys.readouterr().err
    (tmp_path / "text.safetensors").write_text("no weights")
    assert main([*photos, "--weights", str(tmp_path / "text.safetensors")]) == 2
    assert "is not a file of weights" in capsys.readouterr().err
