import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from offset_equivariant.data.decoding import decode_image_file
from offset_equivariant.data.image_files import ImageFileError


def photo(height=24, width=40, seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (6, 10, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def put(path, image, form="JPEG", **options):
    image.save(path, form, **options)
    return path


def by_pillow(path):
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 20}, {"subsampling": 0}])
def test_a_jpeg_has_pillows_pixels(tmp_path, options):
    path = put(tmp_path / "a.JPEG", photo(), **options)
    found = decode_image_file(path)
    assert found.dtype == torch.uint8 and found.shape == (3, 24, 40)
    assert torch.equal(found, by_pillow(path))
    assert (found.float().mean((1, 2)) - torch.from_numpy(np.array(photo()).mean((0, 1)))).abs().max() < 4


def test_decoding_warns_of_nothing(tmp_path, warnings_of_test):
    decode_image_file(put(tmp_path / "a.JPEG", photo()))
    assert not warnings_of_test()


def test_cmyk_is_converted_to_the_colours_that_it_shows(tmp_path):
    path = put(tmp_path / "a.JPEG", photo().convert("CMYK"), quality=95, subsampling=0)
    with Image.open(path) as image:
        assert image.mode == "CMYK"
    found = decode_image_file(path)
    assert torch.equal(found, by_pillow(path))
    original = torch.from_numpy(np.array(photo())).permute(2, 0, 1)
    assert (found.float() - original.float()).abs().mean() < 6


def test_grey_becomes_three_equal_channels(tmp_path):
    path = put(tmp_path / "a.JPEG", photo().convert("L"))
    found = decode_image_file(path)
    with Image.open(path) as image:
        assert image.mode == "L"
        assert torch.equal(found, torch.from_numpy(np.array(image)).expand(3, -1, -1))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "1"])
def test_a_png_that_is_called_jpeg(tmp_path, mode):
    image = photo().convert(mode)
    found = decode_image_file(put(tmp_path / "n02105855_2933.JPEG", image, "PNG"))
    assert np.array_equal(found.permute(1, 2, 0).numpy(), np.array(image.convert("RGB")))


def test_transparent_palettes_are_converted_without_a_warning(tmp_path, warnings_of_test):
    image = photo().convert("P")
    found = decode_image_file(put(tmp_path / "a.JPEG", image, "PNG", transparency=bytes(range(256))))
    assert np.array_equal(found.permute(1, 2, 0).numpy(), np.array(image.convert("RGB")))
    assert not warnings_of_test()


def test_exif_orientation_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    assert decode_image_file(put(tmp_path / "a.JPEG", photo(), exif=exif)).shape == (3, 24, 40)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("part", [0.5, 0.95])
def test_a_file_that_is_cut_off_is_named(tmp_path, mode, part):
    path = put(tmp_path / "cut.JPEG", photo(200, 300).convert(mode))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(ImageFileError, match=r"cut\.JPEG cannot be decoded as an image \(\d+ bytes\): .*truncated"):
        decode_image_file(path)


def test_a_png_that_is_cut_off_is_named(tmp_path):
    buffer = io.BytesIO()
    photo(100, 100).save(buffer, "PNG")
    (tmp_path / "cut.JPEG").write_bytes(buffer.getvalue()[:-3000])
    with pytest.raises(ImageFileError, match=r"cut\.JPEG cannot be decoded as an image"):
        decode_image_file(tmp_path / "cut.JPEG")


def test_other_files_are_named(tmp_path):
    (tmp_path / "empty.JPEG").touch()
    (tmp_path / "text.JPEG").write_text("<html>not found</html>")
    put(tmp_path / "deep.JPEG", Image.fromarray(np.full((4, 4), 60_000, np.uint16)), "PNG")
    for name, problem in (
        ("empty", "is empty"),
        ("text", "cannot identify image file"),
        ("deep", "its mode is I;16; convert it to 8 bits"),
        ("absent", "cannot be read: No such file"),
    ):
        with pytest.raises(ImageFileError, match=rf"{name}\.JPEG.*{problem}"):
            decode_image_file(tmp_path / f"{name}.JPEG")


def test_accepting_files_that_are_cut_off_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(RuntimeError, match="LOAD_TRUNCATED_IMAGES is set"):
        decode_image_file(put(tmp_path / "a.JPEG", photo()))
