import numpy as np
import pytest
import torch

from offset_equivariant.color import AbsoluteClipping, FilledClipping, RelativeClipping
from offset_equivariant.color.channel_statistics import ChannelStatistics, LinearStatistics, byte_histograms
from offset_equivariant.color.representation import to_space
from offset_equivariant.color.srgb import srgb_to_linear


def random_bytes(*shape, seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_histograms_against_numpy(monkeypatch):
    monkeypatch.setattr("offset_equivariant.color.channel_statistics._AT_ONCE", 2 * 3 * 35)  # two images at once
    images = random_bytes(5, 7, 5, 3).permute(0, 3, 1, 2)
    images[2, 1] = 255
    found = byte_histograms(images)
    assert found.dtype == torch.int64 and found.shape == (5, 3, 256)
    for image, histograms in zip(images.numpy(), found.numpy(), strict=True):
        for channel, histogram in zip(image, histograms, strict=True):
            assert np.array_equal(histogram, np.bincount(channel.ravel(), minlength=256))
    assert found[2, 1, 255] == 35


def test_histograms_of_no_image_and_of_floats():
    assert byte_histograms(torch.empty(0, 3, 4, 4, dtype=torch.uint8)).shape == (0, 3, 256)
    with pytest.raises(TypeError, match="images must be uint8, but are"):
        byte_histograms(torch.rand(1, 3, 4, 4))


@pytest.mark.parametrize("clipping", [None, AbsoluteClipping(), RelativeClipping(), RelativeClipping(0.1, 0.5)])
def test_images_of_different_sizes_are_pooled_pixel_by_pixel(clipping):
    batches = [random_bytes(2, 3, 8, 9), random_bytes(3, 3, 4, 4, seed=1) // 16, random_bytes(1, 3, 20, 3, seed=2)]
    batches[1][0, 2] = 0  # an extinguished channel
    space = "srgb" if clipping is None else "log_rgb"
    statistics = ChannelStatistics(space, clipping)
    values = []
    for batch in batches:
        statistics.update(byte_histograms(batch))
        converted = to_space(srgb_to_linear(batch.double() / 255), space, clipping)
        values.append(converted.permute(1, 0, 2, 3).flatten(1))
    pooled = torch.cat(values, 1)
    mean, std = statistics.result()
    np.testing.assert_allclose(mean, pooled.mean(1), rtol=1e-12)
    np.testing.assert_allclose(std, pooled.std(1, correction=0), rtol=1e-11)


def test_what_cannot_be_computed_is_refused():
    with pytest.raises(ValueError, match="looks at pixels, not at values; give absolute or relative"):
        ChannelStatistics("log_rgb", FilledClipping())
    with pytest.raises(ValueError, match="there was no pixel"):
        ChannelStatistics("srgb").result()
    dark = LinearStatistics("log_rgb")
    dark.update(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match="there was no pixel"):
        dark.result()


@pytest.mark.parametrize("space", ["linear", "log_rgb"])
def test_linear_images_are_pooled_pixel_by_pixel(space):
    rng = np.random.default_rng(0)
    batches = [rng.uniform(0, 1, shape).astype(np.float32) for shape in ((2, 3, 8, 9), (3, 3, 4, 4))]
    batches[0][0, :, :3], batches[1][2, 1, 1] = 0, 0  # covered; without green
    statistics = LinearStatistics(space)
    for batch in batches:
        statistics.update(torch.from_numpy(batch))
    pixels = np.concatenate([batch.astype(np.float64).transpose(0, 2, 3, 1).reshape(-1, 3) for batch in batches])
    if space == "log_rgb":
        pixels = -np.log(pixels[pixels.min(1) > 0])
        assert len(pixels) == 2 * 72 - 27 + 3 * 16 - 4
    mean, std = statistics.result()
    np.testing.assert_allclose(mean, pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std(0), rtol=1e-11)
