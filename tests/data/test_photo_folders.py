import sys

import numpy as np
import pytest
import torch
from PIL import Image

from offset_equivariant.data import pixels_sha256
from offset_equivariant.data.locations import DataNotFoundError, data_directories
from offset_equivariant.data.photo_folders import (
    check_photo_options,
    load_facades,
    load_paris_street_view,
    read_folder,
)
from offset_equivariant.data.photo_images import PhotoDataError

ORIENTATION = 274


def random_pixels(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def put(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def channels_last(images):
    return images.permute(0, 2, 3, 1).numpy()


def read_one(folder, side, split="test"):
    """The only photo in a folder, (H, W, 3)."""
    found = read_folder(folder, "toy", split, side, split == "test", progress=False)
    assert len(found) == 1
    return channels_last(found.images)[0]


def test_training_photos_are_cropped_to_the_common_size(tmp_path):
    photos = [random_pixels(8, width, width) for width in (13, 11, 16)]
    for number, pixels in enumerate(photos):
        put(tmp_path / f"{number}.png", pixels)
    found = read_folder(tmp_path, "toy", "train", 8, square=False, progress=False)
    expected = np.stack([photos[0][:, 1:12], photos[1], photos[2][:, 2:13]])
    assert np.array_equal(channels_last(found.images), expected)
    assert (found.name, found.split, found.synthetic) == ("toy", "train", False)
    assert found.names == ("0.png", "1.png", "2.png")
    assert found.sha256 == pixels_sha256(torch.from_numpy(expected).permute(0, 3, 1, 2))


def test_upright_and_lying_photos_have_their_shorter_side_in_common(tmp_path):
    lying, upright = random_pixels(8, 12), random_pixels(11, 8)
    put(tmp_path / "a.png", lying)
    put(tmp_path / "b.png", upright)
    found = channels_last(read_folder(tmp_path, "toy", "train", 8, square=False, progress=False).images)
    assert np.array_equal(found, np.stack([lying[:, 2:10], upright[1:9]]))


@pytest.mark.parametrize(("height", "width", "crop"), [(6, 11, np.s_[:, 2:8]), (9, 6, np.s_[1:7])])
def test_test_photos_are_the_central_square(tmp_path, height, width, crop):
    pixels = random_pixels(height, width)
    put(tmp_path / "a.png", pixels)
    assert np.array_equal(read_one(tmp_path, 6), pixels[crop])


@pytest.mark.parametrize(("height", "width", "resized"), [(30, 47, (12, 19)), (50, 32, (19, 12)), (7, 8, (12, 14))])
def test_the_shorter_side_is_resized_and_antialiased(tmp_path, height, width, resized):
    pixels = 64 + random_pixels(height, width) // 2  # nothing overshoots, which Pillow would clip in between
    put(tmp_path / "a.png", pixels)
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    expected = torch.nn.functional.interpolate(planes, resized, mode="bicubic", antialias=True)
    found = read_one(tmp_path, 12, "train")
    # Pillow computes in integers, and rounds between the two directions.
    np.testing.assert_allclose(found, expected[0].permute(1, 2, 0).numpy(), rtol=0, atol=1.5)


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_photos_are_turned_upright(tmp_path, orientation, turns):
    pixels, exif = random_pixels(8, 12), Image.Exif()
    exif[ORIENTATION] = orientation
    put(tmp_path / "a.png", pixels, exif=exif)
    assert np.array_equal(read_one(tmp_path, 8, "train"), np.rot90(pixels, turns))


def grey(pixels):
    return pixels[..., :1].repeat(3, 2)


def palette(path, pixels):
    image = Image.fromarray(pixels).quantize(64)  # as many colours as pixels
    image.save(path, transparency=bytes(range(64)))


MODES = {
    "grey": (lambda path, pixels: Image.fromarray(pixels[..., 0]).save(path), grey),
    "grey and alpha": (lambda path, pixels: Image.fromarray(pixels[..., :2]).save(path), grey),
    "alpha": (lambda path, pixels: Image.fromarray(np.dstack([pixels, pixels[..., 0]])).save(path), np.asarray),
    "transparent palette": (palette, np.asarray),
    "two levels": (
        lambda path, pixels: Image.fromarray(pixels[..., 0] > 127).save(path),
        lambda pixels: grey(np.where(pixels > 127, 255, 0)),
    ),
    "colour profile": (
        lambda path, pixels: Image.fromarray(pixels).save(path, icc_profile=b"another space"),
        np.asarray,
    ),
}


@pytest.mark.parametrize("mode", MODES)
def test_colour_modes(tmp_path, mode):
    write, expected = MODES[mode]
    pixels = random_pixels(8, 8)
    write(tmp_path / "a.png", pixels)
    assert np.array_equal(read_one(tmp_path, 8), expected(pixels))


def test_cmyk(tmp_path):
    inks = np.empty((16, 16, 4), np.uint8)
    inks[:] = (0, 200, 100, 0)
    Image.fromarray(inks, "CMYK").save(tmp_path / "a.jpg", quality=100)
    assert np.abs(read_one(tmp_path, 16).astype(int) - [255, 55, 155]).max() <= 2


def test_names_decide_what_is_read_and_in_which_order(tmp_path):
    for number, name in enumerate(("b.JPG", "a10.Png", "a2.jpeg", ".hidden.png")):
        put(tmp_path / name, np.full((4, 4, 3), 10 * number, np.uint8))
    (tmp_path / "notes.txt").write_text("no photo")
    (tmp_path / "folder.png").mkdir()
    found = read_folder(tmp_path, "toy", "test", 4, square=True, progress=False)
    assert found.names == ("a10.Png", "a2.jpeg", "b.JPG")
    assert found.images[:, 0, 0, 0].tolist() == [10, 20, 0]


def test_photos_of_subfolders_are_found_where_they_are_asked_for(tmp_path):
    names = ("b/1.png", "b/deeper/0.JPG", "a/1.png", "c.png", ".hidden/1.png", "a/.hidden.png")
    for number, name in enumerate(names):
        put(tmp_path / name, np.full((4, 4, 3), 10 * number, np.uint8))
    (tmp_path / "a" / "folder.png").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "b")
    found = read_folder(tmp_path, "toy", "test", 4, square=True, progress=False, subfolders=True)
    assert found.names == ("a/1.png", "b/1.png", "b/deeper/0.JPG", "c.png")
    assert found.images[:, 0, 0, 0].tolist() == [20, 0, 10, 30]
    assert read_folder(tmp_path, "toy", "test", 4, square=True, progress=False).names == ("c.png",)


def truncated(path):
    put(path, random_pixels(64, 64))
    path.write_bytes(path.read_bytes()[:-500])


DAMAGES = {
    "truncated.jpg": (truncated, "truncated"),
    "truncated.png": (truncated, "truncated"),
    "text.jpg": (lambda path: path.write_text("no photo"), "cannot identify"),
    "empty.png": (lambda path: path.write_bytes(b""), "cannot identify"),
    "deep.png": (
        lambda path: Image.fromarray(np.zeros((8, 8), np.uint16)).save(path),
        "its mode is I;16; convert it to 8 bits a channel",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_file_that_cannot_be_used_is_named(tmp_path, name):
    put(tmp_path / "a.png", random_pixels(64, 64))
    damage, reason = DAMAGES[name]
    damage(tmp_path / name)
    with pytest.raises(PhotoDataError, match=f"{name} cannot be read as a photo: .*{reason}"):
        read_folder(tmp_path, "toy", "test", 8, square=True, progress=False)


def test_a_folder_without_photos(tmp_path):
    with pytest.raises(PhotoDataError, match=r"holds no photos; their names must end in \.jpg, \.jpeg, \.png"):
        read_folder(tmp_path, "toy", "test", 8, square=True)


LOADERS = {
    "facades": (load_facades, "facades/train/a.jpg", "facades/test/b.jpg", (144, 155)),
    "paris_street_view": (
        load_paris_street_view,
        "paris_street_view/paris_train_original/a.JPG",
        "paris_street_view/paris_eval_gt/001_im.png",
        (350, 376),
    ),
}


@pytest.mark.parametrize("name", LOADERS)
def test_the_data_sets_lie_where_their_loaders_look(tmp_path, name):
    load, train, test, size = LOADERS[name]
    put(tmp_path / "second" / train, random_pixels(200, 215))
    put(tmp_path / "second" / test, random_pixels(200, 215, seed=1))
    (tmp_path / "first" / train).parent.mkdir(parents=True)  # an empty folder is passed over
    directories = [tmp_path / "none", tmp_path / "first", tmp_path / "second"]
    found = {split: load(split, directories, progress=False) for split in ("train", "test")}
    assert [(photos.name, photos.split) for photos in found.values()] == [(name, "train"), (name, "test")]
    assert found["train"].images.shape == (1, 3, *size) and found["train"].names[0] == train.split("/")[-1]
    assert found["test"].images.shape == (1, 3, 128, 128) and found["test"].names[0] == test.split("/")[-1]
    smaller = [load(split, directories, shorter_side=40, size=32, progress=False) for split in ("train", "test")]
    assert [photos.images.shape[2:] for photos in smaller] == [(40, 43), (32, 32)]


def test_photos_that_are_not_there(tmp_path):
    directories = [tmp_path / "one", tmp_path / "two"]
    with pytest.raises(DataNotFoundError) as missing:
        load_facades("test", directories)
    said = str(missing.value)
    assert f"{tmp_path}/one/facades/test, {tmp_path}/two/facades/test" in said
    assert "https://cmp.felk.cvut.cz/~tylecr1/facade/" in said and "OEN_DATA_DIR or paths.data=" in said
    with pytest.raises(DataNotFoundError, match=r"two/paris_street_view/paris_train_original\.\nAsk the authors"):
        load_paris_street_view("train", directories)


@pytest.mark.parametrize("load", [load_facades, load_paris_street_view])
def test_arguments_are_checked_before_anything_is_read(load):
    with pytest.raises(ValueError, match="'val'; valid splits are train, test"):
        load("val", [])
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        load("train", [], size=0)
    with pytest.raises(ValueError, match="shorter_side must be at least size, which is 128, got 127"):
        load("test", [], shorter_side=127)


def test_a_shorter_side_of_the_size_is_enough():
    check_photo_options(shorter_side=128, size=128)


def test_progress(tmp_path, capsys, monkeypatch):
    put(tmp_path / "a.png", random_pixels(8, 8))
    read_folder(tmp_path, "toy", "test", 8, square=True)
    assert capsys.readouterr().err == ""  # into a file, as in a batch job
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    read_folder(tmp_path, "toy", "test", 8, square=True, progress=False)
    assert capsys.readouterr().err == ""
    read_folder(tmp_path, "toy", "test", 8, square=True)
    assert "read toy test: 100%" in capsys.readouterr().err


def test_the_facades_themselves():
    try:
        train, test = (load_facades(split, data_directories(), progress=False) for split in ("train", "test"))
    except DataNotFoundError:
        pytest.skip("the facades are not in the data directories")
    assert train.images.shape == (506, 3, 144, 144) and test.images.shape == (100, 3, 128, 128)
    assert (train.names[0], test.names[-1]) == ("cmp_test_1.jpg", "cmp_val_99.jpg")
    assert test.images.float().mean((0, 2, 3)).tolist() == pytest.approx([122.4, 116.5, 106.8], abs=0.5)
