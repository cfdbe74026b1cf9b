"""The script that computes a data set's statistics, against float64 on the same images."""

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torchvision.transforms.v2.functional import resize

from offset_equivariant.config import TASKS
from offset_equivariant.data.imagenet_synthetic import load_imagenet_synthetic
from offset_equivariant.data.inpainting_synthetic import drawn_facades
from offset_equivariant.data.nus_synthetic import synthetic_scenes
from offset_equivariant.data.synthetic import synthetic_images
from offset_equivariant.provenance import repository_root

ROOT = repository_root()


@pytest.fixture
def printed_statistics(load_script, capsys):
    """What the script says of the images, and the statistics that it prints."""
    script = load_script("compute_statistics")

    def statistics(*words: str) -> tuple[str, dict[str, dict[str, list[float]]]]:
        script.main(words)
        printed = capsys.readouterr().out
        return printed.splitlines()[0], yaml.safe_load(printed)["statistics"]

    return statistics


def assert_statistics(found: dict[str, list[float]], pixels: np.ndarray) -> None:
    """Those of float64 values (N, 3), in the four decimals that are printed."""
    np.testing.assert_allclose(found["mean"], pixels.mean(0), rtol=0, atol=5.1e-5)
    np.testing.assert_allclose(found["std"], pixels.std(0), rtol=0, atol=5.1e-5)


def linear_of(srgb: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1, of bytes."""
    values = srgb / 255.0
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def assert_srgb_statistics(found: dict[str, dict[str, list[float]]], images: list[np.ndarray]) -> None:
    """Of images (H, W, 3) of bytes, in sRGB, where it was asked for, and in log RGB with either clipping."""
    linear = [linear_of(image) for image in images]
    assert_statistics(found["log_rgb_absolute"], -np.log(np.maximum(2e-4, np.concatenate(flat(linear)))))
    relative = [np.maximum(image, 1e-3 * image.mean((0, 1))) for image in linear]
    assert_statistics(found["log_rgb_relative"], -np.log(np.concatenate(flat(relative))))
    if "srgb" in found:
        assert_statistics(found["srgb"], np.concatenate(flat(images)) / 255.0)


def flat(images: list[np.ndarray]) -> list[np.ndarray]:
    return [image.reshape(-1, 3) for image in images]


def channels_last(images: torch.Tensor) -> list[np.ndarray]:
    return list(images.permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize("name", ["synthetic", "imagenet_synthetic"])
def test_statistics_are_those_of_the_configuration(printed_statistics, name):
    _, found = printed_statistics(name)
    configured = yaml.safe_load((ROOT / "conf" / "dataset" / f"{name}.yaml").read_text())
    assert found == configured["statistics"]


def test_statistics_of_files_are_streamed(printed_statistics):
    words = ("n_train=23", "shorter_side=40", "size=30")
    said, found = printed_statistics("imagenet_synthetic", words[0], "--workers", "1", *words[1:])
    expected = "# Of the 23 training images of imagenet_synthetic: of each, resized to 40, the central 30 x 30 pixels."
    assert said == expected
    files = load_imagenet_synthetic("train", [], n_train=23, shorter_side=40, size=30)
    shown = []
    for index in range(len(files)):
        image = torch.from_numpy(np.array(Image.open(files.path(index)))).permute(2, 0, 1)
        scale = 40 / min(image.shape[1:])
        resized = resize(image, [int(side * scale) for side in image.shape[1:]], antialias=True)
        top, left = (round((side - 30) / 2) for side in resized.shape[1:])
        shown.append(resized[:, top : top + 30, left : left + 30].permute(1, 2, 0).numpy())
    assert set(found) == {"srgb", "log_rgb_absolute", "log_rgb_relative"}
    assert_srgb_statistics(found, shown)


def test_statistics_of_linear_images_are_over_all_folds_and_lit_pixels(printed_statistics):
    said, found = printed_statistics("nus_synthetic", "images=18", "size=24")
    assert said == "# Of all 18 images of nus_synthetic, 24 x 24 pixels."
    pixels = np.concatenate(flat(channels_last(synthetic_scenes(18, 24).images))).astype(np.float64)
    lit = pixels[pixels.min(1) > 0]
    assert len(lit) == len(pixels) - 18 * 4 * 3  # each has a dark patch of a sixth by an eighth
    assert set(found) == {"linear", "log_rgb"}
    assert_statistics(found["linear"], pixels)
    assert_statistics(found["log_rgb"], -np.log(lit))


def test_statistics_of_photos(printed_statistics, tmp_path):
    said, found = printed_statistics("inpainting_synthetic", "n_train=5", "shorter_side=130")
    assert said == "# Of the 5 training images of inpainting_synthetic, 130 x 130 pixels."
    assert found.pop("srgb_unit") == {"mean": [0.5] * 3, "std": [0.5] * 3}  # a range, which is kept
    assert set(found) == {"log_rgb_absolute", "log_rgb_relative"}
    assert_srgb_statistics(found, channels_last(drawn_facades("train", n_train=5, shorter_side=130).images))

    for number, pixels in enumerate(channels_last(synthetic_images("train", n_train=12).images)):
        (tmp_path / str(number % 2)).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / str(number % 2) / f"{number}.png")
    said, found = printed_statistics("photo_folder", f"folder={tmp_path}", "size=32")
    assert said == "# Of all 12 images of photo_folder, 32 x 32 pixels."
    assert set(found) == {"srgb", "log_rgb_absolute", "log_rgb_relative"}
    assert_srgb_statistics(found, channels_last(synthetic_images("train", n_train=12).images))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nus_synthetic", "sice=3"), "unknown setting dataset.options.sice; valid ones are images, size, seed"),
        (("synthetic", "n_train=many"), "dataset.options.n_train = 'many' must be a whole number"),
        (("cifar10", "train"), "'train' is no option of the data set; give key=value"),
        (("photo_folder",), "photo_folder needs the option folder; give folder="),
        (("photo_folder", "folder=nothing"), "nothing holds no photos"),
        (("imagenet_synthetic", "size=80"), "shorter_side must be at least size, which is 80, got 72"),
    ],
)
def test_statistics_that_cannot_be_computed(load_script, words, message, capsys):
    with pytest.raises(SystemExit) as end:
        load_script("compute_statistics").main(words)
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_statistics_can_be_asked_of_every_data_set():
    assert set(TASKS) == {path.stem for path in (ROOT / "conf" / "dataset").glob("*.yaml")}
