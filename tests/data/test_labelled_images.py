import hashlib
from dataclasses import replace

import pytest
import torch

from offset_equivariant.data import LabelledImages, pixels_sha256


@pytest.fixture
def data() -> LabelledImages:
    images = torch.arange(4 * 3 * 2 * 2, dtype=torch.uint8).reshape(4, 3, 2, 2)
    labels = torch.tensor([0, 1, 2, 1])
    return LabelledImages("toy", "train", images, labels, ("a", "b", "c"), pixels_sha256(images), True)


def test_digest_takes_pixels_channels_last():
    images = torch.tensor([[[[1, 2]], [[3, 4]], [[5, 6]]]], dtype=torch.uint8)  # two pixels: (1, 3, 5) and (2, 4, 6)
    assert pixels_sha256(images) == hashlib.sha256(bytes([1, 3, 5, 2, 4, 6])).hexdigest()
    assert pixels_sha256(images.contiguous(memory_format=torch.channels_last)) == pixels_sha256(images)


def test_subset_keeps_the_order_asked_for_and_has_its_own_digest(data):
    for indices in ([3, 0], torch.tensor([3, 0]), torch.tensor([3, 0], dtype=torch.int32)):
        part = data.subset(indices)
        assert torch.equal(part.images, torch.stack([data.images[3], data.images[0]]))
        assert part.labels.tolist() == [1, 0]
        assert part.sha256 == pixels_sha256(part.images) != data.sha256
        assert (part.name, part.split, part.classes, part.synthetic) == ("toy", "train", ("a", "b", "c"), True)
    assert len(data.subset([])) == 0
    assert len(data) == 4


def test_subset_refuses_what_is_not_an_index(data):
    with pytest.raises(TypeError, match=r"torch\.bool.*boolean mask"):
        data.subset(data.labels == 1)
    with pytest.raises(TypeError, match="one-dimensional"):
        data.subset(torch.zeros(1, 1, dtype=torch.int64))
    for indices in ([4], [-1]):
        with pytest.raises(IndexError, match="0 to 3"):
            data.subset(indices)


def test_to_moves_images_and_labels(data):
    moved = data.subset([]).to("meta")  # a tensor on "meta" has no values that could be checked
    assert moved.images.device.type == moved.labels.device.type == "meta"
    assert moved.sha256 == data.subset([]).sha256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(4, 3, 2, 2)}, "images must be uint8"),
        ({"images": torch.zeros(4, 2, 2, 3, dtype=torch.uint8)}, r"\(N, 3, H, W\).*\(4, 2, 2, 3\)"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"labels must be int64 of shape \(4,\)"),
        ({"labels": torch.zeros(4, dtype=torch.uint8)}, r"got torch\.uint8"),
        ({"labels": torch.zeros(4, dtype=torch.int64, device="meta")}, "labels are on meta and images on cpu"),
        ({"labels": torch.tensor([0, 1, 2, 3])}, r"0 to 2 \(there are 3 classes\), got 0 to 3"),
        ({"labels": torch.tensor([0, -1, 2, 1])}, "got -1 to 2"),
    ],
)
def test_inconsistent_data_is_refused(data, change, message):
    with pytest.raises(ValueError, match=message):
        replace(data, **change)
