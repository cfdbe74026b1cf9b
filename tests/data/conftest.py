"""A miniature of CIFAR-10, on disk and online."""

import hashlib
import io
import json
import pickle
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from offset_equivariant.data import Split, cifar10


@dataclass
class Miniature:
    """Twelve training and five test images, published in the formats of both sources.

    ``online`` says what the network offers: source folder -> bytes of the archive. ``fetched`` lists the downloads.
    """

    pixels: dict[Split, np.ndarray]
    labels: dict[Split, np.ndarray]
    contents: dict[str, dict[str, bytes]]
    online: dict[str, bytes] = field(default_factory=dict)
    fetched: list[str] = field(default_factory=list)

    def put(self, source: cifar10.Source, directory: Path) -> Path:
        """Write the intact files of ``source`` as they lie in a data directory."""
        folder = directory / source.folder
        folder.mkdir(parents=True)
        for name, content in self.contents[source.folder].items():
            (folder / name).write_bytes(content)
        return folder

    def publish(self, source: cifar10.Source, **altered: bytes) -> None:
        """Put an archive of ``source`` online, with some files replaced or added."""
        contents = self.contents[source.folder] | altered
        self.online[source.folder] = archive({f"{source.archive_folder}/{k}": v for k, v in contents.items()})

    def fetch(self, folder: str) -> Callable[[Path], Path]:
        def fetch(into: Path) -> Path:
            self.fetched.append(folder)
            if folder not in self.online:
                raise cifar10._FetchError(f"{folder} is offline")
            (into / "archive.tgz").write_bytes(self.online[folder])
            return into / "archive.tgz"

        return fetch


def archive(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _png(images: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(images.reshape(len(images), -1, 3)).save(buffer, "png")
    return buffer.getvalue()


def _pickle(images: np.ndarray, labels: np.ndarray) -> bytes:
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return pickle.dumps({"data": planes, "labels": labels.tolist()}, protocol=2)


@pytest.fixture
def miniature(monkeypatch: pytest.MonkeyPatch) -> Miniature:
    """Make `cifar10` expect the miniature instead of the real data set, and put nothing online."""
    rng = np.random.default_rng(0)
    size: dict[Split, int] = {"train": 12, "test": 5}
    pixels = {split: rng.integers(0, 256, (n, 32, 32, 3), np.uint8) for split, n in size.items()}
    labels = {split: rng.integers(0, 10, n).astype(np.uint8) for split, n in size.items()}
    pngs, pickles = {}, {"batches.meta": b"meta"}
    for split in size:
        pngs[f"{split}_lables.json"] = json.dumps(labels[split].tolist()).encode()
    batches = {"data_batch_1": ("train", slice(0, 7)), "data_batch_2": ("train", slice(7, 12))}
    for name, (split, part) in (batches | {"test_batch": ("test", slice(None))}).items():
        pngs[f"{name}.png"] = _png(pixels[split][part])
        pickles[name] = _pickle(pixels[split][part], labels[split][part])
    mini = Miniature(pixels, labels, {cifar10.NPM.folder: pngs, cifar10.TORCHVISION.folder: pickles})

    def digest(algorithm: str, content: bytes | np.ndarray) -> str:
        return hashlib.new(algorithm, content).hexdigest()

    def shrunk(source: cifar10.Source) -> cifar10.Source:
        files = {
            split: tuple(name for name in names if name in mini.contents[source.folder])
            for split, names in source.files.items()
        }
        digests = {name: digest(source.algorithm, content) for name, content in mini.contents[source.folder].items()}
        return replace(source, digests=digests, files=files, fetch=mini.fetch(source.folder))

    for name in ("TORCHVISION", "NPM"):
        monkeypatch.setattr(cifar10, name, shrunk(getattr(cifar10, name)))
    monkeypatch.setattr(cifar10, "SOURCES", (cifar10.TORCHVISION, cifar10.NPM))
    expected = {s: cifar10.SplitDigests(digest("sha256", pixels[s]), digest("sha256", labels[s])) for s in size}
    monkeypatch.setattr(cifar10, "SPLITS", expected)
    return mini
