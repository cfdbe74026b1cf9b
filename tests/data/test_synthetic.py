import math

import pytest
import torch

from offset_equivariant.data import pixels_sha256, synthetic_images


def classes_from_spectrum(images: torch.Tensor) -> torch.Tensor:
    """Classes of the ten-class data set, read off the strongest frequency of each image's power spectrum."""
    size = images.shape[-1]
    window = torch.hann_window(size)[:, None] * torch.hann_window(size)
    centred = images.double() - images.double().mean((2, 3), keepdim=True)
    power = torch.fft.fft2(centred * window, s=(128, 128)).abs().square().sum(1)[:, :, :64]
    strongest = power.flatten(1).argmax(1)
    row, column = torch.fft.fftfreq(128)[strongest // 64], (strongest % 64) / 128
    wavelength = 1 / torch.hypot(row, column)
    orientation = torch.rad2deg(torch.atan2(row.abs(), column))
    return 2 * (orientation / 22.5).round().long() + (wavelength > math.sqrt(3.5 * 8)).long()


@pytest.mark.parametrize("flipped", [False, True])
def test_class_is_orientation_and_wavelength_even_when_flipped(flipped):
    data = synthetic_images("test", n_test=300)
    images = data.images.flip(-1) if flipped else data.images
    assert (classes_from_spectrum(images) == data.labels).float().mean() > 0.99


def test_colour_says_nothing_about_the_class():
    data = synthetic_images("train", n_train=4000)
    colours = data.images.double().mean((2, 3))
    per_class = torch.stack([colours[data.labels == k].mean(0) for k in range(10)])
    # Mean colours are uniform over 95 levels: the mean of 400 has a standard error of 95 / sqrt(12 * 400) = 1.4.
    assert (per_class - colours.mean(0)).abs().max() < 4 * 1.4


def test_shape_balance_and_marks():
    data = synthetic_images("train", n_train=23, classes=4, size=16)
    assert data.images.shape == (23, 3, 16, 16)
    assert sorted(data.labels.bincount().tolist()) == [5, 6, 6, 6]
    assert len(data.classes) == 4
    assert (data.name, data.split, data.synthetic) == ("synthetic", "train", True)
    assert data.sha256 == pixels_sha256(data.images)
    assert data.images.double().std((2, 3)).min() > 10


def test_seed_and_split_decide_everything():
    def images(split="train", seed=0):
        return synthetic_images(split, n_train=8, n_test=8, seed=seed)

    assert torch.equal(images().images, images().images)
    assert torch.equal(images().labels, images().labels)
    assert len({images(split, seed).sha256 for split in ("train", "test") for seed in (0, 1)}) == 4


@pytest.mark.parametrize(
    "arguments", [{"n_train": 0}, {"n_test": 0}, {"classes": 1}, {"size": 7}, {"seed": -1}], ids=str
)
def test_arguments_out_of_range(arguments):
    with pytest.raises(ValueError, match=f"{next(iter(arguments))} must be at least"):
        synthetic_images("train", **arguments)


def test_unknown_split():
    with pytest.raises(ValueError, match="'val'; valid splits are train, test"):
        synthetic_images("val")
