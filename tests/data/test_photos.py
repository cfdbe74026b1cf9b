import io
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from offset_equivariant.data.photos import Photo, PhotoError, read_photo, write_photo

MAKE, ORIENTATION, EXPOSURE, LATITUDE = 271, 274, 33434, 2


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 65536, (24, 36, 3), dtype=np.uint16)


def exif_bytes(orientation=6):
    exif = Image.Exif()
    exif[MAKE] = "Maker"
    exif[ORIENTATION] = orientation
    exif.get_ifd(34665)[EXPOSURE] = 0.25
    exif.get_ifd(34853)[LATITUDE] = (45.0, 11.0, 7.0)
    return exif.tobytes().removeprefix(b"Exif\0\0")


def told(data):
    exif = Image.Exif()
    exif.load(b"Exif\0\0" + data)
    latitude = tuple(map(float, exif.get_ifd(34853)[LATITUDE]))
    return exif.get(MAKE), exif.get(ORIENTATION), float(exif.get_ifd(34665)[EXPOSURE]), latitude


EVERYTHING = ("Maker", 6, 0.25, (45.0, 11.0, 7.0))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff"])
def test_eight_bits_without_loss(tmp_path, pixels, suffix):
    photo = Photo((pixels >> 8).astype(np.uint8), exif=exif_bytes(orientation=1), profile=b"a profile")
    write_photo(photo, path := tmp_path / f"photo{suffix}")
    found = read_photo(path)
    assert np.array_equal(found.pixels, photo.pixels) and found.bits == 8
    assert told(found.exif) in (upright := ("Maker", 1, *EVERYTHING[2:]), ("Maker", None, *upright[2:]))
    assert found.profile == b"a profile"


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_eight_bits_with_loss(tmp_path, suffix):
    ramp = np.stack(np.meshgrid(np.arange(64), np.arange(48), indexing="xy"), -1).astype(np.uint8) * 3
    photo = Photo(np.dstack([ramp, ramp[..., :1]]), exif=exif_bytes())
    write_photo(photo, path := tmp_path / f"photo{suffix}")
    found = read_photo(path)
    assert np.abs(found.pixels.astype(int) - photo.pixels).mean() < 3
    assert told(found.exif) == EVERYTHING


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_without_loss(tmp_path, pixels, suffix):
    write_photo(Photo(pixels, exif=exif_bytes()), path := tmp_path / f"photo{suffix}")
    found = read_photo(path)
    assert np.array_equal(found.pixels, pixels) and found.bits == 16 and found.alpha is None
    assert told(found.exif) == EVERYTHING
    write_photo(found, other := tmp_path / f"other{'.tif' if suffix == '.png' else '.png'}")
    again = read_photo(other)
    assert np.array_equal(again.pixels, pixels) and told(again.exif) == EVERYTHING


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_stay_as_they_are_stored_and_orientation_is_kept(tmp_path, pixels, suffix, orientation):
    write_photo(Photo(pixels, exif=exif_bytes(orientation)), path := tmp_path / f"photo{suffix}")
    found = read_photo(path)
    assert np.array_equal(found.pixels, pixels) and told(found.exif)[1] == orientation


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_seen_upright_whatever_its_orientation(pixels, orientation):
    photo = Photo((pixels >> 8).astype(np.uint8), exif=exif_bytes(orientation))
    image = Image.fromarray(photo.pixels)
    image.getexif()[ORIENTATION] = orientation
    assert np.array_equal(photo.upright, np.asarray(ImageOps.exif_transpose(image)))
    assert np.shares_memory(photo.upright, photo.pixels)
    assert Photo(pixels).upright.shape == pixels.shape


@pytest.mark.parametrize(
    "layout", [{}, {"tile": (16, 16)}, {"compression": "zlib", "predictor": True}, {"rowsperstrip": 5}], ids=str
)
@pytest.mark.parametrize("orientation", [1, 6])
def test_layout_of_an_eight_bit_tiff_is_not_copied(tmp_path, pixels, layout, orientation):
    """Such as its width, where the pixels that Pillow gives are turned."""
    shown, path = (pixels >> 8).astype(np.uint8), tmp_path / "a.tif"
    tags = [(MAKE, "s", 0, "Maker", True), (ORIENTATION, "H", 1, orientation, True)]
    tifffile.imwrite(path, shown, photometric="rgb", extratags=tags, **layout)
    found = read_photo(path)
    assert np.array_equal(found.upright, shown if orientation == 1 else np.rot90(shown, -1))
    for suffix in (".tif", ".png"):
        write_photo(found, other := tmp_path / f"b{suffix}")
        again = read_photo(other)
        assert np.array_equal(again.upright, found.upright)
        with Image.open(other) as image:
            assert image.getexif()[MAKE] == "Maker" and (suffix == ".tif" or 256 not in image.getexif())


def test_data_of_a_deep_png_that_cannot_be_written_are_said(tmp_path, pixels):
    with pytest.raises(PhotoError, match="colour profile intact"):
        write_photo(Photo(pixels, profile=b"a profile"), tmp_path / "a.png")


@pytest.mark.parametrize("bits", [8, 16])
def test_damaged_exif_data_that_cannot_be_written_are_said(tmp_path, pixels, bits):
    photo = Photo(pixels if bits == 16 else (pixels >> 8).astype(np.uint8), exif=b"damaged exif data")
    with pytest.raises(PhotoError, match=r"a\.tif: .* its EXIF data: not a TIFF file"):
        write_photo(photo, tmp_path / "a.tif")
    assert not list(tmp_path.iterdir())


def test_tiffs_of_other_layouts(tmp_path, pixels):
    tifffile.imwrite(tmp_path / "planes.tif", np.moveaxis(pixels, -1, 0), photometric="rgb", planarconfig="separate")
    tifffile.imwrite(tmp_path / "big-endian.tif", pixels, photometric="rgb", byteorder=">")
    for name in ("planes", "big-endian"):
        assert np.array_equal(read_photo(tmp_path / f"{name}.tif").pixels, pixels)
    written = tmp_path / "a.tif"
    write_photo(Photo(pixels, exif=exif_bytes(orientation=1)), written)
    assert np.array_equal(cv2.imread(str(written), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | 128)[..., ::-1], pixels)


def test_transparency_is_kept(tmp_path, pixels):
    for suffix, deep in ((".png", True), (".tif", True), (".png", False)):
        shown = pixels if deep else (pixels >> 8).astype(np.uint8)
        write_photo(Photo(shown, alpha=shown[..., 1]), path := tmp_path / f"photo{deep}{suffix}")
        found = read_photo(path)
        assert np.array_equal(found.pixels, shown) and np.array_equal(found.alpha, shown[..., 1])


def test_what_a_tiff_says_of_itself_is_kept(tmp_path, pixels):
    tags = [(MAKE, "s", 0, "Maker", True), (274, "H", 1, 6, True)]
    tifffile.imwrite(
        tmp_path / "a.tif", pixels, photometric="rgb", software="Exporter", iccprofile=b"icc", extratags=tags
    )
    write_photo(read_photo(tmp_path / "a.tif"), tmp_path / "b.tif")
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        found = {tag.code: tag.value for tag in file.pages[0].tags}
    assert (found[MAKE], found[274], found[305], found[34675]) == ("Maker", 6, "Exporter", b"icc")


def test_a_palette_is_resolved(tmp_path, pixels):
    image = Image.fromarray((pixels >> 8).astype(np.uint8)).quantize(16)
    image.save(tmp_path / "a.png")
    assert np.array_equal(read_photo(tmp_path / "a.png").pixels, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("bits", [8, 16])
def test_a_transparent_colour_is_transparency(tmp_path, pixels, bits):
    shown = pixels if bits == 16 else (pixels >> 8).astype(np.uint8)
    shown[3, 5:9] = colour = np.array([1, 0, 1]) * np.iinfo(shown.dtype).max
    encoded = cv2.imencode(".png", shown[..., ::-1])[1].tobytes()
    chunk = b"tRNS" + colour.astype(">u2").tobytes()
    chunk = len(chunk[4:]).to_bytes(4) + chunk + zlib.crc32(chunk).to_bytes(4)
    (tmp_path / "a.png").write_bytes(encoded[:33] + chunk + encoded[33:])  # behind the header
    found = read_photo(tmp_path / "a.png")
    transparent = (shown == colour).all(-1)
    assert transparent.sum() == 4 and np.array_equal(found.pixels, shown)
    assert np.array_equal(found.alpha, np.where(transparent, 0, np.iinfo(shown.dtype).max))
    write_photo(found, tmp_path / "b.png")
    assert np.array_equal(read_photo(tmp_path / "b.png").alpha, found.alpha)


@pytest.mark.parametrize("source", [".jpg", ".png", ".tif"])
@pytest.mark.parametrize("target", [".jpg", ".png", ".tif"])
def test_the_resolution_is_kept(tmp_path, pixels, source, target):
    image = Image.fromarray((pixels >> 8).astype(np.uint8))
    image.save(tmp_path / f"a{source}", dpi=(300, 150))
    write_photo(read_photo(tmp_path / f"a{source}"), tmp_path / f"b{target}")
    with Image.open(tmp_path / f"b{target}") as written:
        assert tuple(map(float, written.info["dpi"])) == pytest.approx((300, 150), abs=0.02)  # PNG counts a metre's


@pytest.mark.parametrize("dpi", [(0, 0), (1e6, 1e6), (300, 0.1)])
def test_a_resolution_that_makes_no_sense_is_left_out(tmp_path, pixels, dpi):
    Image.fromarray((pixels >> 8).astype(np.uint8)).save(tmp_path / "a.png", dpi=dpi)
    found = read_photo(tmp_path / "a.png")
    assert found.dpi is None
    write_photo(found, tmp_path / "b.jpg")


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".gif"])
def test_several_frames_or_pages_are_refused(tmp_path, pixels, suffix):
    frames = [Image.fromarray((pixels >> shift).astype(np.uint8)) for shift in (8, 9, 10)]
    frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:])
    with pytest.raises(PhotoError, match=rf"a\{suffix} holds 3 frames or pages, .*; save each as a file of its own"):
        read_photo(tmp_path / f"a{suffix}")


def test_several_pages_of_sixteen_bits_are_refused(tmp_path, pixels):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for _ in range(2):
            file.write(pixels, photometric="rgb")
    with pytest.raises(PhotoError, match=r"a\.tif holds 2 frames or pages"):
        read_photo(tmp_path / "a.tif")


@pytest.mark.parametrize("deep", [False, True])
def test_smaller_copies_in_a_tiff_are_left_out(tmp_path, pixels, deep):
    shown = pixels if deep else (pixels >> 8).astype(np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(shown, photometric="rgb")
        file.write(np.ascontiguousarray(shown[::4, ::4]), photometric="rgb", subfiletype=1)
    assert np.array_equal(read_photo(tmp_path / "a.tif").pixels, shown)


def test_what_accompanies_a_photo_in_a_jpeg_is_left_out(tmp_path, pixels):
    image = Image.fromarray((pixels >> 8).astype(np.uint8))
    image.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[image.resize((9, 6))])
    assert np.array_equal(read_photo(tmp_path / "a.jpg").pixels, np.asarray(Image.open(tmp_path / "a.jpg")))


def broken_files(pixels):
    jpeg = io.BytesIO()
    Image.fromarray((pixels >> 8).astype(np.uint8)).save(jpeg, "JPEG")
    png = cv2.imencode(".png", pixels)[1].tobytes()
    grey = io.BytesIO()
    Image.fromarray((pixels[..., 0] >> 8).astype(np.uint8)).save(grey, "PNG")
    cmyk, real, big = io.BytesIO(), io.BytesIO(), io.BytesIO()
    Image.fromarray((pixels >> 8).astype(np.uint8)).convert("CMYK").save(cmyk, "JPEG")
    tifffile.imwrite(real, pixels.astype(np.float32), photometric="rgb")
    tifffile.imwrite(big, pixels, photometric="rgb", bigtiff=True)
    return {
        "text.jpg": (b"no image at all", "is not an image; give one of .jpg"),
        "empty.png": (b"", "is not an image"),
        "cut.jpg": (jpeg.getvalue()[:-200], "is damaged"),
        "cut.tif": (b"II*\0\x08\0\0\0", "is damaged"),
        "grey.png": (grey.getvalue(), "has the colour mode L, not RGB"),
        "cmyk.jpg": (cmyk.getvalue(), "has the colour mode CMYK, not RGB"),
        "deepgrey.png": (cv2.imencode(".png", pixels[..., 0])[1].tobytes(), "has one channel, not RGB"),
        "float.tif": (real.getvalue(), "has channels of the type float32; give 8 or 16 bits"),
        "big.tif": (big.getvalue(), "is a BigTIFF; save it as an ordinary TIFF"),
        "cutdeep.png": (png[:60], "is damaged"),
    }


@pytest.mark.parametrize("name", list(broken_files(np.zeros((24, 36, 3), np.uint16))))
def test_what_is_no_photo_is_named(tmp_path, pixels, name):
    content, said = broken_files(pixels)[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PhotoError, match=f"{name} ({said})"):
        read_photo(tmp_path / name)


def test_missing_files_and_folders_are_named(tmp_path):
    for path in (tmp_path / "missing.jpg", tmp_path):
        with pytest.raises(PhotoError, match=f"{path} cannot be read"):
            read_photo(path)


def test_formats_that_cannot_hold_the_photo_are_refused(tmp_path, pixels):
    with pytest.raises(PhotoError, match=r"unknown format '.gif'"):
        write_photo(Photo(pixels), tmp_path / "a.gif")
    with pytest.raises(PhotoError, match=r".jpg holds 8 bits, .*16; give one of .png"):
        write_photo(Photo(pixels), tmp_path / "a.jpg")
    with pytest.raises(PhotoError, match="no transparency"):
        write_photo(
            Photo((pixels >> 8).astype(np.uint8), alpha=(pixels[..., 0] >> 8).astype(np.uint8)), tmp_path / "a.jpg"
        )
    with pytest.raises(PhotoError, match=r"webp cannot hold this photo of 16400x1 pixels"):
        write_photo(Photo(np.zeros((1, 16400, 3), np.uint8)), tmp_path / "a.webp")
    assert list(tmp_path.iterdir()) == []
