import math

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp, kstest
from torchvision.transforms import v2

from offset_equivariant.data.cropping import RandomCrops, central_crop


def random_image(height, width, seed=0):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def boxes(crops, height, width, count=4000, seed=0):
    drawn = crops.draw(count, torch.Generator().manual_seed(seed))
    return np.array([crops.box(height, width, row) for row in drawn])


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 200), (64, 600)])
def test_boxes_are_distributed_like_torchvisions(height, width):
    ours = boxes(RandomCrops(), height, width)
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    transform = v2.RandomResizedCrop(224)
    parameters = [transform.make_params([image]) for _ in range(4000)]
    theirs = np.array([[p[key] for key in ("top", "left", "height", "width")] for p in parameters])
    for column in range(4):
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 0.01
    assert ks_2samp(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]).pvalue > 0.01


def test_area_and_ratio_are_uniform_where_every_crop_fits():
    crops = RandomCrops(area=(0.1, 0.5))
    height = width = 2000
    found = boxes(crops, height, width)
    area = found[:, 2] * found[:, 3] / (height * width)
    log_ratio = np.log(found[:, 3] / found[:, 2])
    assert kstest(area, "uniform", (0.1, 0.4)).pvalue > 0.01
    assert kstest(log_ratio, "uniform", (math.log(3 / 4), 2 * math.log(4 / 3))).pvalue > 0.01
    assert kstest((found[:, 0] + 0.5) / (height - found[:, 2] + 1), "uniform").pvalue > 0.01
    assert kstest((found[:, 1] + 0.5) / (width - found[:, 3] + 1), "uniform").pvalue > 0.01


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(10, 100, (0, 43, 10, 13)), (100, 10, (43, 0, 13, 10)), (1, 1, (0, 0, 1, 1)), (1, 400, (0, 199, 1, 1))],
)
def test_the_largest_central_crop_where_none_fits(height, width, expected):
    crops = RandomCrops(area=(1.0, 1.0))
    assert {tuple(box) for box in boxes(crops, height, width, 20)} == {expected}


def test_boxes_lie_in_the_image():
    for height, width in ((1, 1), (2, 3), (7, 1), (9, 31)):
        top, left, box_height, box_width = boxes(RandomCrops(), height, width, 300).T
        assert min(top.min(), left.min()) == 0 and min(box_height.min(), box_width.min()) >= 1
        assert (top + box_height <= height).all() and (left + box_width <= width).all()


def test_every_position_is_reached():
    found = boxes(RandomCrops(area=(0.25, 0.25), aspect_ratio=(1.0, 1.0)), 8, 8, 1000)
    assert set(found[:, 0]) == set(found[:, 1]) == set(range(5))


def test_a_crop_is_cut_out_resized_and_flipped():
    image = random_image(60, 90)
    crops = RandomCrops()
    drawn = crops.draw(40, torch.Generator().manual_seed(1))
    flipped = 0
    for row in drawn:
        top, left, height, width = crops.box(60, 90, row)
        cut = image[:, top : top + height, left : left + width].double()[None]
        expected = torch.nn.functional.interpolate(cut, (32, 32), mode="bilinear", antialias=True)[0]
        if row[-1] < 0.5:
            flipped += 1
            expected = expected.flip(2)
        found = crops.apply(image, 32, row)
        assert found.dtype == torch.uint8 and found.shape == (3, 32, 32)
        assert (found.double() - expected).abs().max() < 1.02  # rounded after each direction, and weights are too
    assert 10 < flipped < 30


def test_flips_can_be_left_out():
    image = random_image(16, 16)
    crops = RandomCrops(area=(1.0, 1.0), aspect_ratio=(1.0, 1.0), flip=False)
    for row in crops.draw(10, torch.Generator().manual_seed(0)):
        assert torch.equal(crops.apply(image, 16, row), image)


def test_half_of_the_images_are_flipped():
    drawn = RandomCrops().draw(10_000, torch.Generator().manual_seed(0))
    assert abs((drawn[:, -1] < 0.5).double().mean() - 0.5) < 0.015


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"area": (0.0, 1.0)}, "area"),
        ({"area": (0.5, 0.4)}, "area"),
        ({"area": (0.5, 1.1)}, "area"),
        ({"aspect_ratio": (2.0, 1.0)}, "aspect_ratio"),
        ({"aspect_ratio": (0.0, 1.0)}, "aspect_ratio"),
    ],
)
def test_impossible_ranges_are_refused(options, message):
    with pytest.raises(ValueError, match=f"{message} = "):
        RandomCrops(**options)


@pytest.mark.parametrize(
    ("height", "width", "long"), [(375, 500, 341), (500, 375, 341), (100, 130, 332), (256, 256, 256)]
)
def test_the_central_crop(height, width, long):
    image = random_image(height, width)
    sides = (256, long) if height <= width else (long, 256)
    resized = torch.nn.functional.interpolate(image.double()[None], sides, mode="bilinear", antialias=True)[0]
    top, left = (round((side - 224) / 2) for side in sides)
    found = central_crop(image, 256, 224)
    assert found.shape == (3, 224, 224)
    assert (found.double() - resized[:, top : top + 224, left : left + 224]).abs().max() < 1.02
