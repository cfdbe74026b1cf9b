import pytest

from offset_equivariant.data import cifar10, load_cifar10, load_dataset, synthetic_images


def test_cifar10_and_its_options(miniature, tmp_path):
    miniature.put(cifar10.NPM, tmp_path)
    data = load_dataset("cifar10", "test", [tmp_path], download=False)
    assert data.sha256 == load_cifar10("test", [tmp_path]).sha256


def test_synthetic_and_its_options():
    data = load_dataset("synthetic", "test", [], n_test=6, seed=3)
    assert data.sha256 == synthetic_images("test", n_test=6, seed=3).sha256


def test_unknown_name_lists_the_valid_ones():
    with pytest.raises(
        ValueError,
        match="no data set 'cifar100'; valid names are cifar10, ilsvrc12, imagenet_synthetic, imagenette, syn",
    ):
        load_dataset("cifar100", "train", [])


def test_unknown_option_is_named():
    with pytest.raises(TypeError, match="n_trian"):
        load_dataset("synthetic", "train", [], n_trian=5)
