import itertools

import numpy as np
import torch
from PIL import Image

from offset_equivariant.data.image_files import ImageFiles
from offset_equivariant.performance import image_files


def test_rates_are_medians_of_the_rounds_without_the_first(tmp_path, monkeypatch):
    Image.new("RGB", (20, 10)).save(tmp_path / "a.JPEG")
    names, sizes = np.array(["a.JPEG"] * 6, dtype=np.bytes_), np.ones(6, np.int64)
    files = ImageFiles("toy", "train", tmp_path, names, sizes, torch.zeros(6).long(), ("a",), ("a",), 8, 8)
    # Seconds of decoding, training and evaluation, by round; the first is slow.
    seconds = [100, 100, 100, 1, 2, 4, 3, 2, 8, 2, 6, 6]
    ticks = list(itertools.accumulate(second for pair in zip([0] * 12, seconds, strict=True) for second in pair))
    monkeypatch.setattr("time.process_time", iter(ticks).__next__)
    found = image_files.images_per_second(files, batch_size=6, rounds=3)
    assert found == {"decoding": 6 / 2, "training": 6 / 2, "evaluation": 6 / 6}


def test_copies_have_the_size_of_ilsvrc_12_in_pixels_and_about_in_bytes(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(4):  # broad structure, such as a photograph of 128 pixels has
        small = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        small.resize((128, 128), Image.Resampling.BICUBIC).save(tmp_path / f"{number}.JPEG", quality=95)
    names, sizes = np.array([f"{number}.JPEG" for number in range(4)], dtype=np.bytes_), np.ones(4, np.int64)
    labels = torch.tensor([0, 0, 1, 1])
    files = ImageFiles("toy", "train", tmp_path, names, sizes, labels, ("a", "b"), ("a", "b"), 128, 112)
    (tmp_path / "copies").mkdir()
    copies = image_files.enlarged_copies(files, tmp_path / "copies", 3)
    assert (len(copies), copies.shorter_side, copies.size) == (3, 256, 224)
    assert copies.labels.tolist() == [0, 1, 1]  # images 0, 2 and 3
    for number, source in enumerate((0, 2, 3)):
        found = Image.open(copies.path(number))
        assert (found.format, found.size) == ("JPEG", (500, 375))
        assert copies.sizes[number] == copies.path(number).stat().st_size
        original = np.asarray(Image.open(tmp_path / f"{source}.JPEG").resize((500, 375), Image.Resampling.BICUBIC))
        difference = np.asarray(found, np.float64) - original
        assert abs(difference.mean()) < 2 and 8 < difference.std() < 14
    assert 80_000 < copies.sizes.mean() < 140_000
    assert f"{copies.sizes.mean() / 1000:.0f} kB on average" in copies.note
