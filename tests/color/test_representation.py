from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from offset_equivariant.color import AbsoluteClipping, RelativeClipping
from offset_equivariant.color.channel_statistics import channel_statistics
from offset_equivariant.color.representation import Representation, decode_srgb
from offset_equivariant.data import load_dataset

DATASETS = Path(__file__).resolve().parents[2] / "conf" / "dataset"
MEAN, STD = (0.5, 1.0, 2.0), (0.25, 0.5, 2.0)
SPACES = {
    "srgb": ("srgb", None),
    "log_rgb_absolute": ("log_rgb", AbsoluteClipping(2e-4)),
    "log_rgb_relative": ("log_rgb", RelativeClipping(1e-3, 2e-4)),
}


def gamma_off(value: float) -> float:
    """IEC 61966-2-1, one number at a time."""
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4


def gamma_on(value: float) -> float:
    return 12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055


@pytest.fixture
def linear() -> torch.Tensor:
    images = torch.rand(2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images[0, 1, 0] = 0
    images[0, 0, 1, 1] = 1e-4
    images[1, 2] = 0
    return images


def test_srgb_is_gamma_encoded_and_normalised(linear):
    found = Representation("srgb", MEAN, STD)(linear)
    for index, value in np.ndenumerate(linear.numpy()):
        channel = index[1]
        assert found[index].item() == pytest.approx((gamma_on(value) - MEAN[channel]) / STD[channel], rel=1e-12)


def test_log_rgb_with_absolute_clipping(linear):
    found = Representation("log_rgb", MEAN, STD, AbsoluteClipping(2e-4))(linear)
    for index, value in np.ndenumerate(linear.numpy()):
        expected = (-np.log(max(value, 2e-4)) - MEAN[index[1]]) / STD[index[1]]
        assert found[index].item() == pytest.approx(expected, rel=1e-12)


def test_log_rgb_with_relative_clipping(linear):
    found = Representation("log_rgb", MEAN, STD, RelativeClipping(1e-2, 3e-4))(linear)
    for index, value in np.ndenumerate(linear.numpy()):
        image, channel = index[:2]
        threshold = 1e-2 * linear[image, channel].mean().item() or 3e-4
        expected = (-np.log(max(value, threshold)) - MEAN[channel]) / STD[channel]
        assert found[index].item() == pytest.approx(expected, rel=1e-12)


def test_precision_of_the_input_is_kept(linear):
    for dtype in (torch.float32, torch.float64):
        for space, clipping in SPACES.values():
            assert Representation(space, MEAN, STD, clipping)(linear.to(dtype)).dtype == dtype


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rgb", MEAN, STD), "'rgb' is not one of srgb, linear, log_rgb"),
        (("log_rgb", MEAN, STD), "log_rgb needs one"),
        (("srgb", MEAN, STD, AbsoluteClipping()), "do not fit"),
        (("srgb", MEAN[:2], STD), "must be as many"),
        (("srgb", MEAN, (1.0, 0.0, 1.0)), "std positive"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Representation(*arguments)


def test_decoding_of_all_8_bit_values():
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    found = decode_srgb(values)
    assert found.dtype == torch.float32 and found.shape == values.shape
    expected = torch.tensor([gamma_off(v / 255) for v in range(256)], dtype=torch.float64).float()
    assert torch.equal(found.flatten(), expected)


def direct_statistics(images: np.ndarray, space: str) -> tuple[np.ndarray, np.ndarray]:
    """NumPy over all pixels at once, in double precision from the start."""
    srgb = images.astype(np.float64) / 255
    if space == "srgb":
        return srgb.mean((0, 2, 3)), srgb.std((0, 2, 3))
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    threshold = 2e-4 if space == "log_rgb_absolute" else 1e-3 * linear.mean((2, 3), keepdims=True)
    log_rgb = -np.log(np.maximum(linear, threshold))
    return log_rgb.mean((0, 2, 3)), log_rgb.std((0, 2, 3))


@pytest.mark.parametrize("name", SPACES)
def test_channel_statistics_against_numpy(name):
    images = torch.randint(0, 256, (25, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[:, 0] //= 8
    space, clipping = SPACES[name]
    for batch_size in (25, 10):
        mean, std = channel_statistics(images, space, clipping, batch_size)
        expected_mean, expected_std = direct_statistics(images.numpy(), name)
        np.testing.assert_allclose(mean, expected_mean, rtol=1e-12)
        np.testing.assert_allclose(std, expected_std, rtol=1e-12)


def printed(settings: dict, name: str) -> dict[str, list[float]]:
    return settings["statistics"][name]


def recomputed(images: torch.Tensor, name: str) -> dict[str, list[float]]:
    space, clipping = SPACES[name]
    mean, std = channel_statistics(images, space, clipping)
    return {"mean": [round(value, 4) for value in mean], "std": [round(value, 4) for value in std]}


@pytest.mark.parametrize("name", SPACES)
def test_statistics_of_the_synthetic_images(name):
    settings = yaml.safe_load((DATASETS / "synthetic.yaml").read_text())
    images = load_dataset("synthetic", "train", [], **settings["options"]).images
    assert printed(settings, name) == recomputed(images, name)


@pytest.mark.parametrize("name", SPACES)
def test_statistics_of_cifar10(name, real_cifar10):
    settings = yaml.safe_load((DATASETS / "cifar10.yaml").read_text())
    assert printed(settings, name) == recomputed(real_cifar10["train"].images, name)


def test_srgb_input_is_the_stored_image():
    """What Pillow reads, scaled to [0, 1] and normalised, as every other implementation does it."""
    stored = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5)
    images = torch.from_numpy(np.asarray(stored).copy()).permute(2, 0, 1)[None]
    found = Representation("srgb", MEAN, STD)(decode_srgb(images))[0]
    expected = (np.asarray(stored) / 255 - MEAN) / STD
    np.testing.assert_allclose(found.permute(1, 2, 0).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("name", SPACES)
def test_bytes_are_converted_as_their_linear_values_are(name):
    representation = Representation(SPACES[name][0], MEAN, STD, SPACES[name][1])
    shuffled = [torch.randperm(256, generator=torch.Generator().manual_seed(channel)) for channel in range(3)]
    images = torch.stack(shuffled).reshape(1, 3, 16, 16).to(torch.uint8).repeat(2, 1, 1, 1)
    images[1, 1] = 0
    found = representation.from_srgb_bytes(images)
    torch.testing.assert_close(found, representation(decode_srgb(images)), rtol=1e-6, atol=1e-6)
    assert found.dtype == torch.float32
    assert found[0].unique().numel() > 600
