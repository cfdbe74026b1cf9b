import importlib.util
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch

from offset_equivariant.data import nus_preparation
from offset_equivariant.data.illuminant_images import IlluminantDataError, IlluminantImages, fingerprint
from offset_equivariant.data.locations import DataNotFoundError, data_directories
from offset_equivariant.data.nus import CAMERAS, load_nus, official_folds, prepared_path
from offset_equivariant.data.nus_preparation import (
    PreparationError,
    find_images,
    prepare,
    prepare_image,
    read_png16,
)

DARKNESS, SATURATION = 2048, 15303


def png(pixels):
    """A PNG of 8- or 16-bit RGB, written from the format's description."""
    height, width, _ = pixels.shape
    lines = b"".join(b"\0" + row.astype(row.dtype.newbyteorder(">")).tobytes() for row in pixels)

    def part(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", zlib.compress(lines)) + part(b"IEND", b"")


def sensor_image(seed, height=24, width=36):
    return np.random.default_rng(seed).integers(1900, SATURATION + 1, (height, width, 3)).astype(np.uint16)


def write_camera(folder, camera="SonyA57", images=3, layout="", **replaced):
    """The official files of one camera; a chart of 6 x 9 pixels is at rows 2-7, columns 10-18."""
    (folder / layout).mkdir(parents=True, exist_ok=True)
    names = [f"{camera}_{number:04d}" for number in range(1, images + 1)]
    for number, name in enumerate(names):
        (folder / layout / f"{name}.PNG").write_bytes(png(sensor_image(number)))
    content = {
        "darkness_level": np.array([[DARKNESS]]),
        "saturation_level": np.array([[SATURATION]]),
        "all_image_names": np.array([[name] for name in names], dtype=object),
        "groundtruth_illuminants": np.random.default_rng(9).uniform(0.2, 1, (images, 3)),
        "CC_coords": np.tile([2, 7, 10, 18], (images, 1)),
    }
    content |= replaced
    scipy.io.savemat(folder / f"{camera}_gt.mat", {k: v for k, v in content.items() if v is not None})
    return content


@pytest.fixture
def official(tmp_path):
    folder = tmp_path / "official"
    folder.mkdir()
    return folder


def load(tmp_path, size=12):
    return load_nus([tmp_path / "data"], size)


def run(official, tmp_path, size=12, **options):
    return prepare(official, prepared_path(tmp_path / "data", size), size=size, workers=1, **options)


@pytest.mark.parametrize("layout", ["", "PNG", "SonyA57/PNG"])
def test_official_files_are_found_and_prepared(official, tmp_path, layout):
    content = write_camera(official, layout=layout)
    assert run(official, tmp_path) == 3
    found = load(tmp_path)
    assert (found.name, found.synthetic, found.size, len(found)) == ("nus", False, 12, 3)
    assert found.names == ("SonyA57_0001", "SonyA57_0002", "SonyA57_0003")
    assert found.cameras == ("SonyA57",) * 3
    assert found.folds.tolist() == [official_folds()[name] for name in found.names]
    truth = content["groundtruth_illuminants"]
    np.testing.assert_allclose(found.illuminants, truth / np.sqrt((truth**2).sum(1, keepdims=True)), rtol=1e-12)
    # 24 x 36 to 12 x 12: the mean of 2 x 3 sensor pixels, without those of the chart.
    for number in range(3):
        light = (sensor_image(number).astype(float) - DARKNESS) / (SATURATION - DARKNESS)
        light[1:7, 9:18] = np.nan
        cells = light.reshape(12, 2, 12, 3, 3).transpose(0, 2, 4, 1, 3).reshape(12, 12, 3, 6)
        covered = np.isnan(cells).all((2, 3))
        expected = np.where(covered[..., None], 0, np.nanmean(np.where(np.isnan(cells).all(3)[..., None], 0, cells), 3))
        expected = expected.clip(0, 1)
        pixels = found.images[number].permute(1, 2, 0).double().numpy()
        np.testing.assert_allclose(pixels, expected / expected.max(), rtol=0, atol=1.5e-5)
        # Rows 2-7 are cells 1-2 whole, and half of cell 0 and 3; columns 10-18 are the cells 3 to 5 whole.
        assert np.argwhere((pixels == 0).all(2)).tolist() == [[row, column] for row in (1, 2) for column in (3, 4, 5)]
    assert sorted(path.name for path in (tmp_path / "data" / "nus12").iterdir()) == ["nus12.npz"]


def test_size_that_does_not_divide_the_sensors(official, tmp_path):
    write_camera(official, images=1, CC_coords=np.array([[1, 1, 1, 1]]))
    (source,) = find_images(official)
    light = np.maximum((sensor_image(0).astype(float) - DARKNESS) / (SATURATION - DARKNESS), -1)
    light[0, 0] = np.nan
    # Exact areas: each sensor pixel repeated so often that ten rectangles fit along either axis.
    fine = light.repeat(5, 0).repeat(5, 1).reshape(10, 12, 10, 18, 3)
    expected = np.nanmean(fine, (1, 3)).clip(0, 1)
    expected /= expected.max()
    np.testing.assert_allclose(prepare_image(source, 10) / 65535, expected, rtol=0, atol=3e-5)


def test_several_cameras_and_their_official_folds(official, tmp_path):
    for camera in ("NikonD40", "Canon600D"):
        write_camera(official, camera, images=2)
    assert run(official, tmp_path) == 4
    found = load(tmp_path)
    assert found.names == ("Canon600D_0001", "Canon600D_0002", "NikonD40_0001", "NikonD40_0002")
    assert found.cameras == ("Canon600D", "Canon600D", "NikonD40", "NikonD40")
    assert found.folds.tolist() == [1, 2, 2, 2]
    put(tmp_path, **(arrays(4) | {"names": np.array(found.names), "cameras": np.array(found.cameras)}
                     | {"folds": np.array([1, 2, 2, 1], np.int8)}))  # fmt: skip
    with pytest.raises(IlluminantDataError, match=r"1 of 4 images have another fold .* the first is NikonD40_0002"):
        load(tmp_path)


@pytest.mark.parametrize("fold", [0, 1, 2])
def test_an_image_that_is_none_of_nus_is_refused(tmp_path, fold):
    content = arrays() | {"names": np.array([*NAMES[:2], "Canon600D_9999"])}
    content["folds"][2] = fold
    put(tmp_path, **content)
    with pytest.raises(
        IlluminantDataError, match=r"1 of 3 images have no fold in .*, the first is Canon600D_9999; prep"
    ):
        load(tmp_path)


def test_every_image_has_an_official_fold(official, tmp_path):
    folds = official_folds()
    assert len(folds) == 1853 and np.bincount(list(folds.values())).tolist() == [622, 622, 609]
    assert {name.rpartition("_")[0] for name in folds} == set(CAMERAS)
    write_camera(official, "Canon600D", images=201)
    with pytest.raises(PreparationError, match="Canon600D_0201 is no image of NUS: it has no fold"):
        run(official, tmp_path)


def truncate(official):
    path = official / "SonyA57_0002.PNG"
    path.write_bytes(path.read_bytes()[:-400])


def alter(official):
    path = official / "SonyA57_0002.PNG"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


DAMAGES = {
    "missing": (
        lambda f: (f / "SonyA57_0002.PNG").unlink(),
        r"SonyA57_0002\.PNG, which .*SonyA57_gt\.mat names, is not",
    ),
    "truncated": (truncate, r"SonyA57_0002\.PNG is truncated or damaged"),
    "altered": (alter, r"SonyA57_0002\.PNG is truncated or damaged"),
    "8 bits": (
        lambda f: (f / "SonyA57_0002.PNG").write_bytes(png((sensor_image(1) // 256).astype(np.uint8))),
        r"SonyA57_0002\.PNG: expected 16-bit RGB, got torch\.uint8",
    ),
    "too small": (
        lambda f: (f / "SonyA57_0002.PNG").write_bytes(png(sensor_image(1, 24, 17))),
        r"SonyA57_0002\.PNG: the chart lies at rows 2-7, columns 10-18, but the image has 24 rows and 17 columns",
    ),
    "dark": (
        lambda f: (f / "SonyA57_0002.PNG").write_bytes(png(np.full((24, 36, 3), 2000, np.uint16))),
        r"SonyA57_0002\.PNG: no pixel outside the chart is above the darkness",
    ),
    "no ground truth": (
        lambda f: (f / "SonyA57_gt.mat").unlink(),
        r"there is no SonyA57_gt.mat for 3 images, such as .*SonyA57_0001\.PNG",
    ),
    "an image without a label": (
        lambda f: (f / "SonyA57_0099.PNG").write_bytes(png(sensor_image(1))),
        r"SonyA57_0099\.PNG is not in .*SonyA57_gt\.mat",
    ),
    "not a .mat": (lambda f: (f / "SonyA57_gt.mat").write_bytes(b"nothing"), "SonyA57_gt.mat cannot be read"),
    "no charts": (lambda f: write_camera(f, CC_coords=None), "SonyA57_gt.mat: there is no variable 'CC_coords' in it"),
    "one illuminant too few": (
        lambda f: write_camera(f, groundtruth_illuminants=np.ones((2, 3))),
        r"SonyA57_gt.mat: 3 images, but illuminants of shape \(2, 3\)",
    ),
    "levels": (
        lambda f: write_camera(f, saturation_level=np.array([[2048]])),
        "darkness 2048.0 is not below saturation 2048.0",
    ),
    "zero illuminant": (
        lambda f: write_camera(f, groundtruth_illuminants=np.array([[1, 1, 1], [0, 0, 0], [1, 2, 1.0]])),
        "SonyA57_gt.mat: illuminants that are not finite and positive in every component: SonyA57_0002",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_files_that_cannot_be_used_are_named_and_nothing_is_written(official, tmp_path, damage):
    write_camera(official)
    break_it, message = DAMAGES[damage]
    break_it(official)
    with pytest.raises(PreparationError, match=message):
        run(official, tmp_path)
    assert not prepared_path(tmp_path / "data", 12).exists()
    with pytest.raises(DataNotFoundError, match=r"NUS at 12x12 pixels is not there.*\n.*\n.*scripts/prepare_nus.py"):
        load(tmp_path)


def test_an_interrupted_preparation_goes_on(official, tmp_path):
    write_camera(official)
    broken = (official / "SonyA57_0003.PNG").read_bytes()
    (official / "SonyA57_0003.PNG").write_bytes(broken[:100])
    with pytest.raises(PreparationError, match="SonyA57_0003"):
        run(official, tmp_path)
    (official / "SonyA57_0003.PNG").write_bytes(broken)
    done = []
    run(official, tmp_path, progress=lambda tasks, total: done.append(total) or tasks)
    assert done == [1]
    write_camera(official)
    run(official, tmp_path / "again", progress=lambda tasks, total: done.append(total) or tasks)
    assert done == [1, 3]
    first, second = (prepared_path(place / "data", 12) for place in (tmp_path, tmp_path / "again"))
    assert load(tmp_path).sha256 == load(tmp_path / "again").sha256 and first.stat().st_size == second.stat().st_size


def test_nothing_at_all_is_said(official, tmp_path):
    with pytest.raises(PreparationError, match=r"none of Canon1DsMkIII_gt.mat, .* is in .*official"):
        run(official, tmp_path)
    for options, message in (({"size": 0}, "size must be at least 1"), ({"workers": 0}, "workers must be at least 1")):
        with pytest.raises(PreparationError, match=message):
            prepare(official, tmp_path / "a.npz", **options)
    with pytest.raises(PreparationError, match=r"a file nus12/nus12\.npz, and would not be found in .*nus64"):
        prepare(official, prepared_path(tmp_path, 64), size=12)


def end_process(source, kept, size):
    os._exit(9)  # as the kernel does where memory runs out


def test_a_process_that_is_ended_is_told_from_a_wrong_file(official, tmp_path, monkeypatch):
    write_camera(official)
    monkeypatch.setattr(nus_preparation, "_prepare_one", end_process)
    with pytest.raises(PreparationError, match=r"for want of memory.* give fewer workers"):
        run(official, tmp_path)


def mark_and_fail(source, kept, size):
    source.path.with_suffix(".begun").touch()
    raise OSError("No space left on device")


def test_an_error_does_not_wait_for_the_images_that_are_left(official, tmp_path, monkeypatch):
    write_camera(official, images=30)
    monkeypatch.setattr(nus_preparation, "_prepare_one", mark_and_fail)
    with pytest.raises(OSError, match="No space left"):
        run(official, tmp_path)
    assert 1 <= len(list(official.glob("*.begun"))) < 10


@pytest.mark.parametrize("change", ["chart", "levels", "image"])
def test_what_has_changed_is_prepared_anew(official, tmp_path, change):
    write_camera(official)
    whole = (official / "SonyA57_0003.PNG").read_bytes()
    (official / "SonyA57_0003.PNG").write_bytes(whole[:100])
    with pytest.raises(PreparationError, match="SonyA57_0003"):
        run(official, tmp_path)
    kinds = {"chart": {"CC_coords": np.tile([4, 9, 3, 8], (3, 1))}, "levels": {"darkness_level": np.array([[1950]])}}
    write_camera(official, **kinds.get(change, {}))
    if change == "image":
        (official / "SonyA57_0001.PNG").write_bytes(png(sensor_image(17, 26, 36)))
    run(official, tmp_path)
    run(official, tmp_path / "fresh")
    assert load(tmp_path).sha256 == load(tmp_path / "fresh").sha256
    assert [path.name for path in (tmp_path / "data" / "nus12").iterdir()] == ["nus12.npz"]


def test_the_script(official, tmp_path, capsys):
    location = Path(__file__).parents[2] / "scripts" / "prepare_nus.py"
    specification = importlib.util.spec_from_file_location("prepare_nus", location)
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    write_camera(official)
    target = prepared_path(tmp_path / "data", 12)
    assert script.main([str(official), str(target), "--size", "12", "--workers", "2"]) == 0
    said = capsys.readouterr()
    assert f"{target}: 3 images of 12x12 pixels" in said.out and "3/3" in said.err
    run(official, tmp_path / "alone")
    assert load(tmp_path).sha256 == load(tmp_path / "alone").sha256  # in two processes, as in one


def test_png_of_16_bits_is_read_exactly(tmp_path):
    (tmp_path / "a.png").write_bytes(png(sensor_image(3)))
    assert np.array_equal(read_png16(tmp_path / "a.png"), sensor_image(3))


NAMES = ("Canon600D_0001", "Canon600D_0002", "FujifilmXM1_0001")


def arrays(count=3, size=12):
    generator = np.random.default_rng(0)
    illuminants = generator.uniform(0.2, 1, (count, 3))
    return {
        "images": generator.integers(0, 65536, (count, size, size, 3)).astype(np.uint16),
        "illuminants": illuminants / np.linalg.norm(illuminants, axis=1, keepdims=True),
        "names": np.array(NAMES),
        "cameras": np.array(["A", "B", "B"]),
        "folds": np.array([official_folds()[name] for name in NAMES], np.int8),
    }


def put(tmp_path, **content):
    path = prepared_path(tmp_path / "data", 12)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **content)
    return path


WRONG = {
    "an array is missing": ({"folds": None}, r"nus12.npz: .*folds.*it must hold the arrays images, illuminants"),
    "another type": (
        {"images": np.zeros((3, 12, 12, 3), np.uint8)},
        r"must be uint16 of shape \(N, 12, 12, 3\), got uint8",
    ),
    "another size": ({"images": np.zeros((3, 8, 12, 3), np.uint16)}, r"got uint16 \(3, 8, 12, 3\)"),
    "black image": (
        {"images": arrays()["images"] * np.array([1, 1, 0], np.uint16)[:, None, None, None]},
        "no light.*FujifilmXM1_0001",
    ),
    "illuminants' shape": ({"illuminants": np.ones((3, 2))}, r"illuminants must be float64 of shape \(3, 3\)"),
    "an image without a label": (
        {"illuminants": arrays()["illuminants"][:2]},
        "there are 3 images, but 2 illuminants; the first image without one is FujifilmXM1_0001",
    ),
    "zero illuminant": (
        {"illuminants": np.eye(3)},
        "3 of 3 images of nus have an illuminant that is not finite and positive",
    ),
    "not a number": (
        {"illuminants": np.array([[0.6, 0.8, np.nan]] * 3)},
        "an illuminant that is not finite and positive in every component: " + ", ".join(NAMES),
    ),
    "norm": ({"illuminants": np.ones((3, 3))}, "an illuminant whose norm is not 1: Canon600D_0001"),
    "same name": ({"names": np.array(["a", "b", "a"])}, "more than one image of the name a"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_prepared_file_that_cannot_be_used_is_refused(tmp_path, case):
    replaced, message = WRONG[case]
    put(tmp_path, **{name: array for name, array in (arrays() | replaced).items() if array is not None})
    with pytest.raises(IlluminantDataError, match=message):
        load(tmp_path)


def test_a_truncated_prepared_file_is_refused(tmp_path):
    path = put(tmp_path, **arrays())
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(IlluminantDataError, match=r"nus12.npz cannot be read \(.*prepare it anew"):
        load(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), -0.1, 1.1])
def test_pixels_outside_the_range_are_refused(value):
    content = arrays()
    images = torch.from_numpy(content["images"].astype(np.float32)).permute(0, 3, 1, 2) / 65535
    images[1, 2, 3, 4] = value
    with pytest.raises(IlluminantDataError, match="not finite and in 0 to 1: Canon600D_0002"):
        IlluminantImages(
            "nus",
            images,
            torch.from_numpy(content["illuminants"]),
            tuple(content["names"]),
            tuple(content["cameras"]),
            torch.from_numpy(content["folds"].astype(np.int64)),
            "",
            False,
        )


def test_subsets_keep_what_belongs_together(tmp_path):
    put(tmp_path, **arrays())
    images = load(tmp_path)
    part, folds = images.subset([2, 0]), [official_folds()[NAMES[2]], official_folds()[NAMES[0]]]
    assert folds[0] != folds[1]
    assert (part.names, part.cameras, part.folds.tolist()) == ((NAMES[2], NAMES[0]), ("B", "A"), folds)
    assert torch.equal(part.images, images.images[[2, 0]]) and torch.equal(part.illuminants, images.illuminants[[2, 0]])
    assert part.sha256 == fingerprint(part.images, part.illuminants) != images.sha256
    assert images.subset(range(3)).sha256 == images.sha256
    with pytest.raises(TypeError, match="turn a boolean mask into indices"):
        images.subset(torch.tensor([True, False, True]))
    with pytest.raises(IndexError, match="must lie in 0 to 2, got -1 to 0"):
        images.subset([0, -1])


def test_the_data_set_itself():
    try:
        found = load_nus(data_directories())
    except DataNotFoundError:
        pytest.skip("NUS is not in the data directories")
    assert len(found) == 1853 and found.images.shape == (1853, 3, 64, 64)
    assert set(found.cameras) == set(CAMERAS)
    assert found.folds.bincount().tolist() == [622, 622, 609]
    assert found.images.amax((1, 2, 3)).tolist() == [1.0] * 1853
    assert Path(found.names[0]).name == found.names[0]
