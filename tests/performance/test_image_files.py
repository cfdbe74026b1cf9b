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
