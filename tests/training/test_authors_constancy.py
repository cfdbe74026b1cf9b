"""Files of the structure that the authors of quasi-unsupervised colour constancy publish, made here."""

import argparse

import pytest
import torch
from torch import nn

from offset_equivariant.color import code_input
from offset_equivariant.models.quasi_unsupervised import QuasiUnsupervised
from offset_equivariant.provenance import file_sha256
from offset_equivariant.training.authors_constancy import _translated, read_authors_file
from offset_equivariant.training.weights import load_weights, read_facts

SMALL, PUBLISHED = (3, 6, 12, 24, 24, 24), (64, 128, 256, *[512] * 5)


@pytest.fixture
def convert(load_script):
    """The script."""
    script = load_script("convert_quasi_unsupervised")
    return lambda *words: script.main([str(word) for word in words])


class Nest(nn.Module):
    """A pair of convolutions around a smaller nest; what comes in is handed on beside what comes out."""

    def __init__(self, outside, inside, smaller, dropout):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(outside, inside, 4, 2, 1), nn.BatchNorm2d(inside), nn.LeakyReLU(0.2))
        self.inner = smaller if smaller is not None else lambda x: x
        middle = nn.ConvTranspose2d(inside if smaller is None else 2 * inside, outside, 4, 2, 1)
        between = [nn.Dropout2d()] if dropout else []
        self.up = nn.Sequential(middle, nn.BatchNorm2d(outside), *between, nn.ReLU())

    def forward(self, x):
        return torch.cat([x, self.up(self.inner(self.down(x)))], 1)


class Nested(nn.Module):
    """The U-Net with the names that its tensors have in the authors' files."""

    def __init__(self, sizes=SMALL):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(7, sizes[0], 4, 2, 1), nn.LeakyReLU(0.2))
        nest = None
        for level in range(len(sizes) - 1, 0, -1):
            nest = Nest(sizes[level - 1], sizes[level], nest, dropout=level >= 5)
        self.inner = nest
        self.deconv = nn.Sequential(nn.ConvTranspose2d(2 * sizes[0], 1, 4, 2, 1))

    def forward(self, x):
        return self.deconv(self.inner(self.conv(x))).sigmoid()


@pytest.fixture(scope="module")
def original():
    torch.manual_seed(0)
    network = Nested()
    for _ in range(3):  # running statistics of its own
        network(torch.rand(4, 7, 64, 64))
    return network.eval()


@pytest.fixture
def write(original, tmp_path):
    def file(legacy=False, model=None, **changes):
        arguments = argparse.Namespace(**{"input": "eg", "output": "c", "image_size": 64, "last_only": False} | changes)
        optimizer = torch.optim.Adam(original.parameters())
        content = {"model": model or original.state_dict(), "optimizer": optimizer.state_dict(), "step": 7}
        path = tmp_path / "ilsvrc12-eg.pt"
        torch.save(content | {"args": arguments}, path, _use_new_zipfile_serialization=not legacy)
        return path

    return file


@pytest.mark.parametrize("legacy", [True, False])  # torch's format of 2019, and that of today
def test_the_converted_network_is_the_original(original, write, convert, legacy, tmp_path, capsys):
    source, target = write(legacy), tmp_path / "converted.safetensors"
    assert convert(source, target) == 0
    parameters = sum(p.numel() for p in original.parameters())
    assert f"{parameters:,} parameters, for images of 64x64 pixels" in capsys.readouterr().out
    facts = read_facts(target)
    model = facts["config"]["model"]
    assert model == {"architecture": "quasi_unsupervised", "options": {"levels": 6, "width": 3, "image_size": 64}}
    assert facts["source"]["sha256"] == file_sha256(source) and facts["source"]["arguments"]["input"] == "eg"
    network = QuasiUnsupervised(**model["options"])
    load_weights(network, target)
    coded = code_input(torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(coded), original(coded), rtol=0, atol=1e-6)
    assert convert(source, target) == 1
    assert "is there already; give --overwrite" in capsys.readouterr().err
    assert convert(source, target, "--overwrite") == 0


def test_every_tensor_of_the_published_size_has_its_place():
    with torch.device("meta"):
        theirs, ours = Nested(PUBLISHED).state_dict(), QuasiUnsupervised().state_dict()
    assert {_translated(name, 8): t.shape for name, t in theirs.items()} == {name: t.shape for name, t in ours.items()}


class Wicked:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("legacy", [True, False])
def test_no_code_in_the_file_is_run(legacy, write, convert, tmp_path, capsys):
    mark = tmp_path / "mark"
    source = write(legacy, image_size=Wicked(mark))
    with pytest.raises(ValueError, match=r"ilsvrc12-eg.pt is not a file of tensors and plain values, and was not read"):
        read_authors_file(source)
    assert convert(source, tmp_path / "target") == 1
    assert "was not read" in capsys.readouterr().err and not (tmp_path / "target").exists()
    assert not mark.exists()


def test_other_files_are_refused(original, write, tmp_path):
    for changes, message in (
        ({"input": "sd"}, "was trained with --input sd; only --input eg can be converted"),
        ({"output": "cm"}, "was trained with --output cm; only --output c"),
        ({"image_size": [64]}, "holds another network"),
        ({"model": {**original.state_dict(), "conv.0.weight": 1.0}}, "is not made of named tensors"),
        ({"model": {0: torch.zeros(1)}}, "is not made of named tensors"),
        ({"image_size": 100}, "image_size = 100 must be a positive multiple of 64"),
        ({"model": {"conv.0.weight": torch.zeros(3, 7, 4, 4), "inner.down.0.weight": torch.zeros(1)}}, "Missing key"),
        ({"model": {"fc.weight": torch.zeros(3, 7)}}, "holds another network"),
        ({"model": {**original.state_dict(), "head.0.weight": torch.zeros(1)}}, "unknown name head.0.weight"),
        ({"model": {**original.state_dict(), "inner.conv.0.weight": torch.zeros(1)}}, "unknown name inner.conv.0"),
    ):
        with pytest.raises(ValueError, match=message):
            read_authors_file(write(**changes))
    path = tmp_path / "other.pt"
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_authors_file(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(ValueError, match="has not the entries model"):
        read_authors_file(path)
    path.write_bytes(b"no pickle at all")
    with pytest.raises(ValueError, match="was not read"):
        read_authors_file(path)
    for legacy in (True, False):
        whole = write(legacy).read_bytes()
        for part in (10, 1000, len(whole) // 2, len(whole) - 100):
            path.write_bytes(whole[:part])
            with pytest.raises(ValueError, match="was not read"):
                read_authors_file(path)
