import pytest

from offset_equivariant.data import (
    DATASETS,
    FILE_DATASETS,
    cifar10,
    describe_dataset,
    load_cifar10,
    load_dataset,
    synthetic_images,
)


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


@pytest.mark.parametrize("name", [*DATASETS, *FILE_DATASETS])
def test_every_data_set_has_a_description(name):
    assert set(describe_dataset(name).images) == {"train", "test"}


@pytest.mark.parametrize("registry", [DATASETS, FILE_DATASETS])
def test_a_data_set_without_a_description_is_named(registry, monkeypatch):
    monkeypatch.setitem(registry, "new", lambda split, directories: None)
    with pytest.raises(NotImplementedError, match="the data set 'new' has no description; add it to describe_dataset"):
        describe_dataset("new")
