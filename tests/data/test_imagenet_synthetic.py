import numpy as np
import pytest

from offset_equivariant.data import describe_dataset
from offset_equivariant.data.decoding import decode_image_file
from offset_equivariant.data.imagenet_synthetic import load_imagenet_synthetic


def test_drawn_files_are_what_is_described():
    described = describe_dataset("imagenet_synthetic", n_train=30, n_test=20)
    assert described.classes == 10
    for split, count in described.images.items():
        files = load_imagenet_synthetic(split, [], n_train=30, n_test=20, progress=False)
        assert (files.name, files.split, len(files), files.synthetic) == ("imagenet_synthetic", split, count, True)
        assert files.labels.bincount().tolist() == [count // 10] * 10
        shapes = {tuple(decode_image_file(files.path(index)).shape[1:]) for index in range(count)}
        assert len(shapes) > 10 and all(64 <= side <= 80 for shape in shapes for side in shape)


def test_the_same_is_drawn_again():
    first, second = (load_imagenet_synthetic("train", [], n_train=30 + more, n_test=20) for more in (0, 10))
    assert first.sha256 != second.sha256 and first.folder != second.folder
    again = load_imagenet_synthetic("train", [], n_train=30, n_test=20, size=32)
    assert again.sha256 == first.sha256 and np.array_equal(again.names, first.names)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="n_test must be at least 10, one image a class, got 9"):
        load_imagenet_synthetic("train", [], n_test=9)
    with pytest.raises(ValueError, match="shorter_side must be at least size"):
        load_imagenet_synthetic("train", [], size=100)
