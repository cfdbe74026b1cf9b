from dataclasses import replace

import pytest
import torch

from offset_equivariant.data import pixels_sha256
from offset_equivariant.data.photo_images import PhotoDataError, PhotoImages


@pytest.fixture
def photos() -> PhotoImages:
    images = torch.arange(3 * 3 * 2 * 4, dtype=torch.uint8).reshape(3, 3, 2, 4)
    return PhotoImages("toy", "train", images, ("a.png", "b.png", "c.png"), pixels_sha256(images), False)


def test_subset_keeps_the_order_asked_for_and_has_its_own_digest(photos):
    for indices in ([2, 0], torch.tensor([2, 0]), torch.tensor([2, 0], dtype=torch.int32)):
        part = photos.subset(indices)
        assert torch.equal(part.images, torch.stack([photos.images[2], photos.images[0]]))
        assert part.names == ("c.png", "a.png")
        assert part.sha256 == pixels_sha256(part.images) != photos.sha256
        assert (part.name, part.split, part.synthetic) == ("toy", "train", False)
    assert photos.subset(range(3)).sha256 == photos.sha256
    assert (len(photos), len(photos.subset([]))) == (3, 0)


def test_subset_refuses_what_is_no_index(photos):
    with pytest.raises(TypeError, match=r"boolean mask into indices with mask\.nonzero"):
        photos.subset(torch.tensor([True, False, True]))
    with pytest.raises(IndexError, match="3"):
        photos.subset([3])


def test_to_moves_the_images_and_nothing_else(photos):
    moved = photos.to("meta")
    assert moved.images.device.type == "meta"
    assert (moved.names, moved.sha256) == (photos.names, photos.sha256)


@pytest.mark.parametrize("split", ["train", "test", "validation"])
def test_splits(photos, split):
    assert replace(photos, split=split).split == split


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "val"}, "split is 'val'; valid splits are train, test, validation"),
        ({"images": torch.zeros(3, 3, 2, 4)}, r"must be uint8 of shape \(N, 3, H, W\), got torch\.float32"),
        ({"images": torch.zeros(3, 2, 4, 3, dtype=torch.uint8)}, r"got torch\.uint8 of \(3, 2, 4, 3\)"),
        ({"images": torch.zeros(3, 2, 4, dtype=torch.uint8)}, r"of \(3, 2, 4\)"),
        ({"names": ("a.png", "b.png")}, "there are 3 images, but 2 names"),
        ({"names": ("a.png", "b.png", "a.png")}, r"more than one image of the name a\.png"),
    ],
)
def test_inconsistent_data_is_refused(photos, change, message):
    with pytest.raises(PhotoDataError, match=message):
        replace(photos, **change)
