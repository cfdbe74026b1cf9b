import hashlib
import io
import logging
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from offset_equivariant.color import AbsoluteClipping, RelativeClipping
from offset_equivariant.color.channel_statistics import ChannelStatistics, byte_histograms
from offset_equivariant.config import check_arguments
from offset_equivariant.data import ilsvrc12
from offset_equivariant.data.ilsvrc12 import ILSVRC12, load_ilsvrc12
from offset_equivariant.data.image_files import ImageDataError
from offset_equivariant.data.image_folders import Published, read_image_folder, wnids_sha256
from offset_equivariant.data.imagenette import CLASSES, IMAGENETTE, load_imagenette
from offset_equivariant.data.locations import DataNotFoundError, data_directories
from offset_equivariant.data.streaming import StreamedImages
from offset_equivariant.provenance import repository_root

WNIDS = ("n00000001", "n00000002", "n00000009")
TOY = Published("toy", 3, {"train": 6, "test": 3}, wnids_sha256(WNIDS))


def encoded(seed=0, form="JPEG"):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def put_tree(root: Path, wnids=WNIDS, train=2, val=1) -> Path:
    for folder, count in (("train", train), ("val", val)):
        for wnid in wnids:
            (root / folder / wnid).mkdir(parents=True)
            for number in reversed(range(count)):
                (root / folder / wnid / f"{wnid}_{number}.JPEG").write_bytes(encoded(number))
    return root


def read(root, split="train", **options):
    return read_image_folder(root, TOY, split, shorter_side=8, size=8, progress=False, **options)


def test_images_are_listed_in_the_order_of_their_names(tmp_path):
    put_tree(tmp_path)
    (tmp_path / "train" / WNIDS[0] / ".hidden.JPEG").touch()
    (tmp_path / "train" / WNIDS[0] / "notes.txt").write_text("no image")
    (tmp_path / "train" / ".cache").mkdir()
    files = read(tmp_path)
    expected = [f"{wnid}/{wnid}_{number}.JPEG" for wnid in WNIDS for number in range(2)]
    assert [name.decode() for name in files.names] == expected
    assert files.path(3) == tmp_path / "train" / expected[3]
    assert files.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert files.wnids == WNIDS and (files.name, files.split, len(files)) == ("toy", "train", 6)
    assert read(tmp_path, "test").folder == tmp_path / "val"


def test_the_fingerprint_is_of_names_and_sizes(tmp_path):
    put_tree(tmp_path)
    files = read(tmp_path)
    lines = b"".join(
        f"{name.decode()}\0".encode() + str((tmp_path / "train" / name.decode()).stat().st_size).encode() + b"\n"
        for name in files.names
    )
    assert files.sha256 == hashlib.sha256(lines).hexdigest()
    with (tmp_path / "train" / WNIDS[1] / f"{WNIDS[1]}_0.JPEG").open("ab") as file:
        file.write(b"!")
    assert read(tmp_path).sha256 != files.sha256


def test_a_subset_of_files_has_a_fingerprint_of_its_own(tmp_path):
    files = read(put_tree(tmp_path))
    chosen = files.subset([5, 0])
    assert [chosen.path(i) for i in range(2)] == [files.path(5), files.path(0)]
    assert chosen.labels.tolist() == [2, 0]
    assert files.subset(range(6)).sha256 == files.sha256 != chosen.sha256 != files.subset([0, 5]).sha256
    with pytest.raises(IndexError, match="indices must lie in 0 to 5, got 0 to 6"):
        files.subset([0, 6])
    with pytest.raises(TypeError, match="turn a boolean mask into indices"):
        files.subset(torch.ones(6, dtype=torch.bool))


def test_contradictions_are_refused(tmp_path):
    files = read(put_tree(tmp_path))
    for changes, message in (
        ({"labels": files.labels[:5]}, "there are 6 names"),
        ({"labels": files.labels + 1}, r"labels must lie in 0 to 2 \(there are 3 classes\), got 1 to 3"),
        ({"classes": ("one",)}, "there are 1 classes, but 3 wnids"),
        ({"size": 9}, "size = 9 must be between 1 and shorter_side, which is 8"),
        ({"split": "val"}, "split is 'val'; valid splits are train, test"),
    ):
        with pytest.raises(ImageDataError, match=message):
            replace(files, **changes)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"train": 1}, "train holds 3 images, 6 are published. If copying.*dataset.options.subset=true"),
        ({"train": 3}, "train holds 9 images, more than the 6 published"),
        ({"train": 0}, "no images .* in the folders n00000001, n00000002, n00000009. If copying"),
        ({"wnids": WNIDS[:2]}, "holds 2 classes; toy has 3. If copying"),
        ({"wnids": (*WNIDS, "n00000010")}, "holds 4 classes; toy has 3.$"),
        ({"wnids": (*WNIDS[:2], "n00000003")}, "the folders are not called like the 3 classes of toy"),
        ({"wnids": ("cat", "dog")}, "holds no folders that are called like classes"),
    ],
)
def test_what_is_not_the_published_data_set_is_refused(tmp_path, tree, message):
    with pytest.raises(ImageDataError, match=message):
        read(put_tree(tmp_path, **tree))


def test_a_subset_is_accepted_where_one_is_meant(tmp_path):
    files = read(put_tree(tmp_path, WNIDS[1:], train=1), subset=True)
    assert files.labels.tolist() == [0, 1] and files.wnids == WNIDS[1:]
    with pytest.raises(ImageDataError, match="more than the 6 published"):
        read(put_tree(tmp_path / "more", train=3), subset=True)


def test_classes_that_differ_between_the_splits_are_named(tmp_path):
    put_tree(tmp_path)
    (tmp_path / "val" / WNIDS[2]).rename(tmp_path / "val" / "n00000007")
    with pytest.raises(ImageDataError, match="only train has n00000009, only val has n00000007; both must hold"):
        read(tmp_path)


def test_damaged_files_of_the_sample_are_all_named(tmp_path):
    put_tree(tmp_path)
    damaged = [tmp_path / "train" / wnid / f"{wnid}_1.JPEG" for wnid in WNIDS[:2]]
    damaged[0].write_bytes(encoded()[:-50])
    damaged[1].write_bytes(b"")
    with pytest.raises(ImageDataError, match=r"2 of 6 files of toy \(train\) that were tried are damaged") as caught:
        read(tmp_path)
    assert f"{damaged[0]} cannot be decoded" in str(caught.value) and f"{damaged[1]} is empty" in str(caught.value)
    assert len(read(tmp_path, sample=1)) == 6  # the first file alone


def test_ilsvrc12_in_folders(tmp_path):
    put_tree(tmp_path / "second" / "ilsvrc12")
    files = load_ilsvrc12("test", [tmp_path, tmp_path / "second"], subset=True, progress=False)
    assert (files.name, len(files), files.classes) == ("ilsvrc12", 3, WNIDS)
    assert (files.shorter_side, files.size) == (256, 224)
    with pytest.raises(ImageDataError, match="holds 3 classes; ilsvrc12 has 1000"):
        load_ilsvrc12("train", [tmp_path / "second"], progress=False)


def test_the_classes_of_ilsvrc12_are_named_in_the_order_of_their_wnids():
    names = ilsvrc12._class_names(tuple(f"n{k:08d}" for k in range(1000)))
    # Numbers of Imagenette's classes among those of ILSVRC-12.
    assert [names[k] for k in (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)] == list(CLASSES.values())
    assert sum(ILSVRC12.images.values()) == 1_331_167


def test_ilsvrc12_that_is_not_there(tmp_path):
    with pytest.raises(
        DataNotFoundError, match=r"ILSVRC2012_img_train\.tar in .*ilsvrc12\.\n.*ILSVRC2012_devkit_t12"
    ) as caught:
        load_ilsvrc12("train", [tmp_path])
    assert "OEN_DATA_DIR" in str(caught.value)


def tar(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def archives(tmp_path, monkeypatch):
    """ILSVRC-12 as its official archives, six and three images small; the development kit is read already."""
    root = tmp_path / "ilsvrc12"
    root.mkdir()
    torch.save(({wnid: (f"name of {wnid}",) for wnid in WNIDS}, [WNIDS[2], WNIDS[0], WNIDS[1]]), root / "meta.bin")
    inner = {f"{w}.tar": tar({f"{w}_{k}.JPEG": encoded(k) for k in range(2)}) for w in WNIDS}
    contents = {"train": tar(inner), "val": tar({f"ILSVRC2012_val_0000000{k}.JPEG": encoded(k) for k in (1, 2, 3)})}
    sums = {}
    for (split, content), name in zip(contents.items(), ilsvrc12.ARCHIVES.values(), strict=True):
        (root / name).write_bytes(content)
        sums[split] = (name, hashlib.md5(content).hexdigest())
    monkeypatch.setattr("torchvision.datasets.imagenet.ARCHIVE_META", sums)
    return root


def test_ilsvrc12_in_archives_is_unpacked_once(archives):
    before = {path.name for path in archives.iterdir()}
    files = {split: load_ilsvrc12(split, [archives.parent], subset=True, progress=False) for split in ("train", "test")}
    assert [name.decode() for name in files["train"].names] == [f"{w}/{w}_{k}.JPEG" for w in WNIDS for k in range(2)]
    places = [f"{w}/ILSVRC2012_val_0000000{k}.JPEG" for w, k in zip(WNIDS, (2, 3, 1), strict=True)]
    assert [name.decode() for name in files["test"].names] == places
    assert {path.name for path in archives.iterdir()} == before | {"train", "val", ".unpacking.lock"}
    for name in ilsvrc12.ARCHIVES.values():
        (archives / name).unlink()
    assert len(load_ilsvrc12("train", [archives.parent], subset=True, progress=False)) == 6


def test_what_a_killed_unpacking_has_left_is_removed(archives):
    left = archives / ".unpacking-abc" / "train"
    left.mkdir(parents=True)
    (left / "half.JPEG").write_bytes(b"half")
    (left.parent / "meta.bin").symlink_to(archives / "meta.bin")
    before = {path.name for path in archives.iterdir()} - {".unpacking-abc"}
    assert len(load_ilsvrc12("train", [archives.parent], subset=True, progress=False)) == 6
    assert {path.name for path in archives.iterdir()} == before | {"train", ".unpacking.lock"}


def test_archives_that_cannot_be_unpacked_where_they_lie(archives, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: path != archives)
    with pytest.raises(ImageDataError, match=r"train\.tar cannot be unpacked there: .* is not writable\. Unpack it"):
        load_ilsvrc12("train", [archives.parent], subset=True)


def test_a_damaged_archive_leaves_nothing_behind(archives):
    (archives / ilsvrc12.ARCHIVES["train"]).write_bytes(b"damaged")
    with pytest.raises(ImageDataError, match=r"ILSVRC2012_img_train\.tar could not be unpacked"):
        load_ilsvrc12("train", [archives.parent], subset=True)
    assert not (archives / "train").exists() and not list(archives.glob(".unpacking-*"))


def test_imagenette_is_found_by_size(tmp_path):
    for folder in ("imagenette2", "imagenette2-320"):
        put_tree(tmp_path / folder, tuple(CLASSES), 1, 1)
    any_size = load_imagenette("train", [tmp_path], subset=True, progress=False)
    assert any_size.folder == tmp_path / "imagenette2-320" / "train" and any_size.note == "Imagenette, images of 320px"
    assert any_size.wnids == tuple(CLASSES) and any_size.classes == tuple(CLASSES.values())
    full = load_imagenette("test", [tmp_path], variant="full", subset=True, progress=False)
    assert full.folder == tmp_path / "imagenette2" / "val"
    with pytest.raises(ImageDataError, match="train holds 10 images, 9,469 are published"):
        load_imagenette("train", [tmp_path], progress=False)
    with pytest.raises(DataNotFoundError, match=r"imagenette2-160.*downloading is switched off"):
        load_imagenette("train", [tmp_path], variant="160px", download=False)
    with pytest.raises(DataNotFoundError, match="the images of 128 pixels are not published; give variant=160px"):
        load_imagenette("train", [tmp_path], variant="128px")
    with pytest.raises(ValueError, match="variant is '64px'; valid variants are 128px, 160px"):
        load_imagenette("train", [tmp_path], variant="64px")


@pytest.mark.parametrize(("split", "there", "missing"), [("test", "train", "val"), ("train", "val", "train")])
@pytest.mark.parametrize("download", [True, False])
def test_half_a_copy_of_imagenette_is_refused(tmp_path, monkeypatch, split, there, missing, download):
    """And not completed by images of another size."""
    monkeypatch.setattr("torchvision.datasets.Imagenette", lambda *arguments, **options: pytest.fail("downloads"))
    for folder in ("imagenette128", "imagenette2-160"):
        root = tmp_path / folder
        root.mkdir()
        whole = put_tree(tmp_path / "whole" / folder, tuple(CLASSES), 1, 1)
        (whole / there).rename(root / there)
        said = rf"the folder {root / missing} of imagenette \({split}\) is missing; .*, remove {root} and do it again"
        with pytest.raises(ImageDataError, match=said):
            load_imagenette(split, [tmp_path], subset=True, download=download, progress=False)
        (root / there).rename(whole / there)
        root.rmdir()


def test_a_whole_copy_of_imagenette_comes_before_a_part(tmp_path):
    (put_tree(tmp_path / "imagenette128", tuple(CLASSES), 1, 1) / "val").rename(tmp_path / "elsewhere")
    assert load_imagenette("train", [tmp_path], subset=True, progress=False).note == "Imagenette, images of 128px"
    put_tree(tmp_path / "imagenette2", tuple(CLASSES), 1, 1)
    for split in ("train", "test"):
        assert load_imagenette(split, [tmp_path], subset=True, progress=False).note == "Imagenette, images of full"


def test_imagenette_is_downloaded_where_it_is_not_there(tmp_path, monkeypatch, caplog):
    asked = []

    def fetch(root, split, size, download):
        asked.append((split, size, download))
        put_tree(Path(root) / "imagenette2-160", tuple(CLASSES), 1, 1)

    monkeypatch.setattr("torchvision.datasets.Imagenette", fetch)
    caplog.set_level(logging.INFO)
    for split in ("train", "test"):
        files = load_imagenette(split, [tmp_path / "data", tmp_path], subset=True, progress=False)
        assert len(files) == 10 and files.note == "Imagenette, images of 160px"
    assert asked == [("train", "160px", True)]
    assert caplog.messages == [f"Downloading Imagenette (160px) into {tmp_path / 'data'}"]
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"imagenette2-160", ".imagenette.lock"}


def test_a_download_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    def fetch(root, split, size, download):
        (Path(root) / "imagenette2-160").mkdir()
        raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr("torchvision.datasets.Imagenette", fetch)
    with pytest.raises(DataNotFoundError, match="could not download it: File not found or corrupted"):
        load_imagenette("train", [tmp_path])
    assert [path.name for path in tmp_path.iterdir()] == [".imagenette.lock"]


def test_imagenette_where_nothing_can_be_written(tmp_path):
    (tmp_path / "data").write_text("no folder")
    with pytest.raises(DataNotFoundError, match=r"could not download it: .*exists.*\n.*paths\.data="):
        load_imagenette("train", [tmp_path / "data"])


def test_what_a_killed_download_has_left_is_removed(tmp_path, monkeypatch):
    (tmp_path / ".imagenette-abc" / "imagenette2-160").mkdir(parents=True)
    monkeypatch.setattr(
        "torchvision.datasets.Imagenette",
        lambda root, **_: put_tree(Path(root) / "imagenette2-160", tuple(CLASSES), 1, 1),
    )
    load_imagenette("train", [tmp_path], subset=True, progress=False)
    assert {path.name for path in tmp_path.iterdir()} == {"imagenette2-160", ".imagenette.lock"}


def configured(name):
    return yaml.safe_load((repository_root() / "conf" / "dataset" / f"{name}.yaml").read_text())


@pytest.mark.parametrize("loader", [load_ilsvrc12, load_imagenette])
def test_the_options_of_the_configuration_are_the_loaders(loader):
    name = loader.__name__.removeprefix("load_")
    options = configured(name)["options"]
    check_arguments(loader, options, "dataset.options", ("split", "directories", "download", "sample", "progress"))
    defaults = loader.__kwdefaults__
    assert options == {option: defaults[option] for option in options}


@pytest.fixture
def real_imagenette():
    try:
        return {
            s: load_imagenette(s, data_directories(), variant="128px", download=False, progress=False)
            for s in ("train", "test")
        }
    except DataNotFoundError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_statistics_of_imagenette(real_imagenette):
    spaces = {
        "srgb": ChannelStatistics("srgb"),
        "log_rgb_absolute": ChannelStatistics("log_rgb", AbsoluteClipping()),
        "log_rgb_relative": ChannelStatistics("log_rgb", RelativeClipping()),
    }
    for _, images, _ in StreamedImages(real_imagenette["train"], batch_size=250):
        histograms = byte_histograms(images)
        for statistics in spaces.values():
            statistics.update(histograms)
    for name, values in configured("imagenette")["statistics"].items():
        mean, std = spaces[name].result()
        np.testing.assert_allclose([mean, std], [values["mean"], values["std"]], atol=5.1e-5)


def test_the_real_imagenette(real_imagenette):
    files = real_imagenette
    assert {split: len(found) for split, found in files.items()} == IMAGENETTE.images
    assert files["train"].labels.bincount().tolist() == [963, 955, 993, 858, 941, 956, 961, 931, 951, 960]
    assert not set(files["train"].names.tolist()) & set(files["test"].names.tolist())
