"""``python -m offset_equivariant.inpaint`` on small photos, with a small network and with simple fillers."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps

from offset_equivariant import building, photo_commands
from offset_equivariant.building.inpainting import load_filler
from offset_equivariant.color import linear_to_srgb
from offset_equivariant.data.exif import encode_exif
from offset_equivariant.data.photos import Photo, PhotoError, read_photo, write_photo
from offset_equivariant.inpaint import Box, context_of, fill_box, fill_photo, main
from offset_equivariant.runs import Run
from offset_equivariant.tasks.inpainting import centre_of, visible_pixels
from offset_equivariant.training.weights import save_weights

BOXES = [Box(20, 30, 64, 64), Box(31, 7, 9, 21), Box(0, 0, 50, 33), Box(90, 80, 30, 20), Box(0, 40, 120, 11)]
BOXES += [Box(5, 0, 110, 100), Box(60, 50, 1, 1), Box(119, 0, 1, 100), Box(0, 0, 120, 99)]


@pytest.fixture(scope="module")
def weights(make_settings, tmp_path_factory):
    """Of the released network's kind, random; its outputs are not cut, and differ from image to image."""
    torch.manual_seed(0)
    small = ("model.options.width=0.0625", "model.options.bottleneck=30")
    run = Run(make_settings("experiment=table4_facades_small_equivariant_relative", *small))
    network = building.build_network(run.config)
    typical = torch.randn(8, 3, 128, 128)
    with torch.no_grad():
        for _ in range(20):
            network.train()(typical)
        network.decoder[-1].bias += 0.5 - network.eval()(typical).mean((0, 2, 3))
    path = tmp_path_factory.mktemp("networks") / "weights.safetensors"
    save_weights(network, path, {"config": run.training_settings})
    return path


@pytest.fixture(scope="module")
def filler(weights):
    return load_filler(weights)


@pytest.fixture
def linear():
    """Linear, (3, 100, 120), smooth on the whole with some noise."""
    smooth = torch.rand(3, 5, 6, generator=torch.Generator().manual_seed(0)).repeat_interleave(20, 1)
    noise = torch.rand(3, 100, 120, generator=torch.Generator().manual_seed(1))
    return 0.05 + 0.6 * smooth.repeat_interleave(20, 2) + 0.1 * noise


def pixels_of(linear, dtype):
    return (linear.permute(1, 2, 0).numpy() * np.iinfo(dtype).max).round().astype(dtype)


def outside(box, shape):
    mask = np.ones(shape[:2], bool)
    mask[box.rows, box.columns] = False
    return mask


def changed_inside(pixels, box):
    other = pixels.copy()
    other[box.rows, box.columns] = np.iinfo(pixels.dtype).max - other[box.rows, box.columns]
    return other


def test_a_box_of_the_centres_size_is_shown_as_it_is(linear):
    image = torch.nn.functional.pad(linear, (40, 40, 40, 40), mode="reflect")
    shown = context_of(image, Box(50, 60, 64, 64))
    expected = image[:, 28:156, 18:146]
    torch.testing.assert_close(visible_pixels(shown[None]), visible_pixels(expected[None]))


@pytest.mark.parametrize(("width", "height"), [(128, 128), (16, 96), (7, 201), (1, 1)])
def test_what_is_linear_in_the_place_stays_so_at_any_size(width, height):
    """Away from the hole, whose border takes away one side of the mean."""
    x, y = 150, 220
    rows, columns = torch.arange(640.0).add(0.5)[:, None], torch.arange(500.0).add(0.5)[None]
    image = torch.stack([rows.expand(640, 500), columns.expand(640, 500), 2 * rows - columns]) / 1000
    shown = context_of(image, Box(x, y, width, height))
    places = torch.arange(128.0) + 0.5
    down, across = (y + (places - 32) * height / 64)[:, None], (x + (places - 32) * width / 64)[None]
    expected = torch.stack([down.expand(128, 128), across.expand(128, 128), 2 * down - across]) / 1000
    margin_y, margin_x = max(height / 64, 1), max(width / 64, 1)
    far = (down < y - margin_y) | (down > y + height + margin_y)
    far = far | (across < x - margin_x) | (across > x + width + margin_x)
    assert far.any() or (width, height) == (1, 1)
    torch.testing.assert_close(shown[:, far], expected[:, far], rtol=0, atol=1e-4)  # a tenth of a pixel
    assert shown.isfinite().all()


def test_a_mean_of_areas_is_taken_of_linear_light(linear):
    """Of stripes one pixel wide, halves of both."""
    image = torch.zeros(3, 400, 400)
    image[:, :, ::2] = 0.8
    shown = context_of(image, Box(100, 100, 256, 256))
    torch.testing.assert_close(shown[:, :20, 20:100], torch.full((3, 20, 80), 0.4), rtol=0, atol=1e-6)


@pytest.mark.parametrize("box", [Box(0, 0, 64, 64), Box(0, 20, 64, 64), Box(56, 36, 64, 64), Box(30, 36, 64, 64)])
def test_beyond_the_borders_is_the_nearest_visible_pixel(linear, box):
    """Against a search through all pixels; where several are nearest, one of them."""
    shown = context_of(linear, box)
    rows, columns = np.nonzero(outside(box, (100, 120)))
    checked = 0
    for row in range(0, 128, 3):
        for column in range(0, 128, 3):
            y, x = row + box.y - 32, column + box.x - 32
            beyond = not (0 <= y < 100 and 0 <= x < 120)
            if beyond:
                distances = (rows - y) ** 2 + (columns - x) ** 2
                nearest = np.flatnonzero(distances == distances.min())
                values = linear[:, rows[nearest], columns[nearest]]
                assert (values - shown[:, row, column, None]).abs().amax(0).min() < 1e-6
                checked += 1
    assert checked > 200


def test_nearest_is_meant_in_pixels_of_the_photo():
    """Above a flat box in a corner: nearer is what is below it, though what is beside it is nearer in what is shown."""
    image = torch.zeros(3, 100, 300)
    image[0, :, 128:], image[1, 32:, :128] = 1, 1
    shown = context_of(image, Box(0, 0, 128, 32))
    torch.testing.assert_close(shown[:, 28:32, 32:62], torch.tensor([0.0, 1.0, 0.0])[:, None, None].expand(3, 4, 30))
    torch.testing.assert_close(shown[:, :32, 97:], torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(3, 32, 31))


@pytest.mark.parametrize("box", BOXES, ids=str)
def test_what_is_in_the_box_is_not_looked_at_and_all_else_keeps_its_bits(linear, filler, box):
    for dtype, encoding in ((np.uint8, "srgb"), (np.uint16, "linear")):
        pixels = pixels_of(linear, dtype)
        filled = fill_photo(Photo(pixels), box, filler, encoding).pixels
        assert np.array_equal(filled, fill_photo(Photo(changed_inside(pixels, box)), box, filler, encoding).pixels)
        mask = outside(box, pixels.shape)
        assert filled.dtype == dtype and np.array_equal(filled[mask], pixels[mask])
        assert not np.array_equal(filled[~mask], pixels[~mask])
        assert np.array_equal(pixels, pixels_of(linear, dtype))  # the photo itself is as it was


@pytest.mark.parametrize("box", BOXES, ids=str)
def test_what_is_invisible_is_not_looked_at(linear, filler, box):
    pixels = pixels_of(linear, np.uint16)
    alpha = np.full((100, 120), 65535, np.uint16)
    alpha[7:50, 5:70], alpha[99, :], alpha[:, 119] = 0, 20000, 20000
    hidden = np.where(alpha[..., None] > 0, pixels, 65535 - pixels)
    filled, other = (fill_photo(Photo(values, alpha), box, filler, "linear").pixels for values in (pixels, hidden))
    assert np.array_equal(filled[box.rows, box.columns], other[box.rows, box.columns])
    opaque = fill_photo(Photo(pixels, np.full_like(alpha, 65535)), box, filler, "linear").pixels
    assert np.array_equal(opaque, fill_photo(Photo(pixels), box, filler, "linear").pixels)


@pytest.mark.parametrize("orientation", [1, 6])
def test_invisible_pixels_are_filled_from_the_nearest_visible_ones(orientation):
    """Of a photo whose left half is hidden: the colour of its right half, everywhere."""
    exif = Image.Exif()
    exif[274] = orientation
    seen, alpha = np.full((100, 120, 3), [200, 10, 30], np.uint8), np.zeros((100, 120), np.uint8)
    seen[:, 60:], alpha[:, 60:] = (20, 90, 150), 255
    turns = {1: 0, 6: 1}[orientation]
    photo = Photo(np.rot90(seen, turns).copy(), np.rot90(alpha, turns).copy(), encode_exif(exif))
    assert np.array_equal(photo.upright, seen) and np.array_equal(photo.upright_alpha, alpha)
    filled = fill_photo(photo, Box(20, 30, 50, 40), lambda shown: shown[:, :3, 32:96, 32:96], "srgb")
    assert (filled.upright[30:70, 20:70] == (20, 90, 150)).all() and np.array_equal(filled.alpha, photo.alpha)


def test_a_box_with_nothing_visible_around_it_is_refused(linear):
    alpha = np.zeros((100, 120), np.uint8)
    alpha[30:50, 40:60] = 255
    with pytest.raises(PhotoError, match=r"all around the box, .*, is transparent; make visible"):
        fill_photo(Photo(pixels_of(linear, np.uint8), alpha), Box(40, 30, 20, 20), centre_of, "srgb")


def test_what_is_around_the_box_matters(linear, filler):
    box = Box(40, 30, 20, 20)
    fills = [fill_box(image, box, filler) for image in (linear, linear.flip(1))]
    assert (fills[0] - fills[1]).abs().max() > 0.05


@pytest.mark.parametrize("box", BOXES, ids=str)
def test_fills_follow_the_light(linear, filler, box):
    light = torch.tensor([1.0, 0.3, 0.05])[:, None, None]
    fill = fill_box(linear, box, filler)
    assert fill.shape == (3, box.height, box.width)
    torch.testing.assert_close(fill_box(linear * light, box, filler), fill * light, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("box", BOXES, ids=str)
def test_decoding_a_part_of_the_photo_is_enough(linear, filler, box):
    pixels = pixels_of(linear, np.uint16)
    filled = fill_photo(Photo(pixels), box, filler, "linear").pixels[box.rows, box.columns]
    whole = fill_box(torch.from_numpy(pixels / np.float32(65535)).permute(2, 0, 1), box, filler)
    assert np.abs(filled.astype(int) - pixels_of(whole.clamp(0, 1), np.uint16)).max() <= 1


@pytest.mark.parametrize(("width", "height"), [(64, 64), (37, 90), (100, 16)])
def test_a_fill_is_brought_to_the_boxs_size(width, height):
    """A ramp of 64 pixels becomes a ramp of another number of pixels."""
    places = (torch.arange(64.0) + 0.5) / 64
    ramp = torch.stack([places[:, None].expand(64, 64), places[None].expand(64, 64), torch.full((64, 64), 0.25)])
    fill = fill_box(torch.rand(3, 150, 180), Box(20, 30, width, height), lambda shown: ramp[None])
    down = ((torch.arange(height) + 0.5) / height)[:, None].expand(height, width)
    across = ((torch.arange(width) + 0.5) / width)[None].expand(height, width)
    expected = torch.stack([down, across, torch.full((height, width), 0.25)])
    inner = (slice(None), slice(height // 8, -height // 8), slice(width // 8, -width // 8))
    torch.testing.assert_close(fill[inner], expected[inner], rtol=0, atol=5e-4)


def test_fills_are_cut_at_black_and_encoded_as_the_photo_is(linear):
    step = torch.full((1, 3, 64, 64), 0.2)
    step[..., 32:] = 0
    assert fill_box(linear, Box(10, 10, 90, 80), lambda shown: step).min() == 0
    box = Box(10, 20, 8, 6)
    for dtype, encoding, expected in (
        (np.uint8, "srgb", (linear_to_srgb(torch.tensor(0.2)) * 255).round().item()),
        (np.uint16, "srgb", (linear_to_srgb(torch.tensor(0.2)) * 65535).round().item()),
        (np.uint16, "linear", 13107),
        (np.uint8, "linear", 51),
    ):
        flat = fill_photo(Photo(pixels_of(linear, dtype)), box, lambda shown: torch.full((1, 3, 64, 64), 0.2), encoding)
        assert np.abs(flat.pixels[box.rows, box.columns].astype(int) - expected).max() <= 1
    bright = fill_photo(Photo(pixels_of(linear, np.uint8)), box, lambda shown: 3 + centre_of(shown[:, :3]), "srgb")
    assert (bright.pixels[box.rows, box.columns] == 255).all()


def test_a_fill_that_is_not_finite_is_refused(linear):
    with pytest.raises(PhotoError, match="is not finite"):
        fill_box(linear, Box(10, 10, 9, 9), lambda shown: torch.full((1, 3, 64, 64), torch.nan))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_box_is_of_the_photo_as_it_is_seen(linear, weights, filler, tmp_path, orientation):
    exif = Image.Exif()
    exif[271], exif[274] = "Maker", orientation
    pixels, box = pixels_of(linear, np.uint8), Box(8, 30, 20, 12)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    words = [str(tmp_path / "a.png"), "--box", *str(box).split(), "--weights", str(weights)]
    assert main(words) == 0
    with Image.open(tmp_path / "a.png") as image:
        seen = np.array(ImageOps.exif_transpose(image))
    with Image.open(tmp_path / "a_inpainted.png") as image:
        assert (image.size, image.getexif()[271], image.getexif()[274]) == ((120, 100), "Maker", orientation)
        found = np.array(ImageOps.exif_transpose(image))
    assert np.array_equal(found, fill_photo(Photo(seen), box, filler, "srgb").pixels)


def test_a_tiff_of_eight_bits_that_is_turned(linear, weights, filler, tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    pixels, box = pixels_of(linear, np.uint8), Box(70, 90, 20, 12)
    Image.fromarray(pixels).save(tmp_path / "a.tif", exif=exif)
    assert main([str(tmp_path / "a.tif"), "--box", *str(box).split(), "--weights", str(weights)]) == 0
    with Image.open(tmp_path / "a_inpainted.tif") as image:
        found = np.array(ImageOps.exif_transpose(image))
    assert np.array_equal(found, fill_photo(Photo(np.rot90(pixels, -1)), box, filler, "srgb").pixels)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_transparency_and_profile_are_kept(linear, weights, tmp_path, suffix):
    pixels, box = pixels_of(linear, np.uint16), Box(100, 3, 20, 31)
    original = Photo(
        pixels, alpha=pixels[..., 1], profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    )
    write_photo(original, tmp_path / f"a{suffix}")
    write_photo(Photo(changed_inside(pixels, box), alpha=pixels[..., 1]), tmp_path / f"b{suffix}")
    names = [str(tmp_path / f"{name}{suffix}") for name in "ab"]
    assert main([*names, "-o", str(tmp_path / "out"), "--box", *str(box).split(), "--weights", str(weights)]) == 0
    a, b = (read_photo(tmp_path / "out" / f"{name}_inpainted{suffix}") for name in "ab")
    mask = outside(box, pixels.shape)
    assert np.array_equal(a.pixels[mask], pixels[mask]) and not np.array_equal(a.pixels[~mask], pixels[~mask])
    assert np.array_equal(a.pixels, b.pixels) and np.array_equal(a.alpha, original.alpha)
    assert a.pixels.dtype == np.uint16 and a.profile == original.profile


def test_photos_that_fail_are_named_and_the_others_go_on(linear, weights, tmp_path, capsys):
    Image.fromarray(pixels_of(linear, np.uint8)).save(tmp_path / "good.jpg")
    Image.fromarray(pixels_of(linear[:, :40, :50], np.uint8)).save(tmp_path / "small.png")
    (tmp_path / "bad.png").write_text("no image")
    names = [str(tmp_path / name) for name in ("bad.png", "good.jpg", "small.png", "none.png")]
    common = ["-o", str(tmp_path / "out"), "--weights", str(weights)]
    assert main([*names, "--box", "60", "50", "40", "30", *common]) == 1
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert len(lines) == 3 and "bad.png is not an image" in lines[0] and "none.png cannot be read" in lines[2]
    assert "small.png: the box 60 50 40 30 (x y width height) is not inside the photo of 50x40 pixels" in lines[1]
    assert "good.jpg: box 60 50 40 30 filled, written to" in said.out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good_inpainted.jpg"]
    assert main([names[1], "--box", "60", "50", "40", "30", *common]) == 1
    assert "is there already; give --overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("box", "status", "message"),
    [
        ("81 0 40 10", 1, "a.png: the box 81 0 40 10 (x y width height) is not inside the photo of 120x100 pixels"),
        ("0 91 40 10", 1, "is not inside"),
        ("-1 0 40 10", 1, "a.png: the box -1 0 40 10 (x y width height) is not inside"),
        ("0 -1 40 10", 1, "is not inside"),
        ("0 0 120 100", 1, "a.png: the box 0 0 120 100 is the whole photo"),
        ("5 5 0 10", 2, "the box 5 5 0 10 is empty; its width and height must be positive"),
        ("5 5 10 -3", 2, "the box 5 5 10 -3 is empty"),
    ],
)
def test_boxes_that_cannot_be_filled(linear, weights, tmp_path, capsys, box, status, message):
    Image.fromarray(pixels_of(linear, np.uint8)).save(tmp_path / "a.png")
    assert main([str(tmp_path / "a.png"), "--weights", str(weights), "--box", *box.split()]) == status
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_damaged_exif_data_are_said(linear):
    with pytest.raises(PhotoError, match="EXIF data, which say how the photo is turned, are damaged"):
        fill_photo(Photo(pixels_of(linear, np.uint8), exif=b"garbage"), Box(1, 1, 9, 9), centre_of, "srgb")


def test_weights_that_are_not_there_are_said(weights, tmp_path, capsys, monkeypatch):
    words = [str(tmp_path / "a.png"), "--box", "1", "1", "9", "9"]
    monkeypatch.setattr(photo_commands, "repository_root", lambda: tmp_path)
    assert main(words) == 2
    said = capsys.readouterr().err
    missing = tmp_path / "results" / "checkpoints" / "table4_facades_small_equivariant_relative-seed0.safetensors"
    assert f"there are no weights at {missing}; train them with `python -m offset_equivariant experiment=" in said
    assert said.count("\n") == 1
    assert main([*words, "--weights", str(tmp_path / "none.safetensors")]) == 2
    assert "there are no weights at" in capsys.readouterr().err
    save_weights(torch.nn.Linear(1, 1), tmp_path / "other.safetensors", {})
    assert main([*words, "--weights", str(tmp_path / "other.safetensors")]) == 2
    assert "holds no network of the architecture context_encoder" in capsys.readouterr().err
    missing.parent.mkdir(parents=True)
    missing.write_bytes(weights.read_bytes())
    assert main(words) == 1
    assert "a.png cannot be read" in capsys.readouterr().err
