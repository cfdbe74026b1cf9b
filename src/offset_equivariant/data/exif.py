"""EXIF data, and the directories of TIFF files that hold them."""

from __future__ import annotations

import io
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, TiffImagePlugin

_PREFIX = b"Exif\0\0"
#: Of a TIFF's first directory, where those of the exposure and of the place are; and the tag of the colour profile.
_POINTERS, _PROFILE = (34665, 34853), 34675
#: Of a TIFF's first directory, what is copied: texts about the photo, resolution, copyright.
_COPIED_TAGS = (270, 271, 272, 274, 282, 283, 296, 305, 306, 315, 700, 33432)
_ORIENTATION = 274
#: Of stored pixels, the axes to turn round, and whether rows then become columns, by their EXIF orientation.
_TO_UPRIGHT: dict[int, tuple[tuple[int, ...], bool]] = {
    1: ((), False),
    2: ((1,), False),
    3: ((0, 1), False),
    4: ((0,), False),
    5: ((), True),
    6: ((0,), True),
    7: ((0, 1), True),
    8: ((1,), True),
}


def encode_exif(exif: Image.Exif) -> bytes:
    """Return EXIF data as bytes without a prefix; empty if there are none."""
    return without_prefix(exif.tobytes()) if len(exif) else b""


def without_prefix(exif: bytes) -> bytes:
    """Return bytes of EXIF data without the prefix that some formats put before them."""
    return exif.removeprefix(_PREFIX)


def with_prefix(exif: bytes) -> bytes:
    """Return bytes of EXIF data as Pillow takes them."""
    return _PREFIX + exif


def turn_upright(pixels: npt.NDArray[Any], exif: bytes) -> npt.NDArray[Any]:
    """Return a view of stored pixels ``(H, W, ...)`` as they are to be seen, ``(H, W, ...)`` or ``(W, H, ...)``."""
    orientation = decode_exif(exif).get(_ORIENTATION, 1) if exif else 1
    axes, transposed = _TO_UPRIGHT.get(orientation, _TO_UPRIGHT[1])
    turned = np.flip(pixels, axes)
    return turned.swapaxes(0, 1) if transposed else turned


def decode_exif(exif: bytes) -> Image.Exif:
    """Read EXIF data of bytes without a prefix."""
    decoded = Image.Exif()
    decoded.load(_PREFIX + exif)
    return decoded


def remove_layout_(exif: Image.Exif) -> None:
    """Remove what a TIFF's first directory says of how its own pixels are stored; another file's are not so."""
    for tag in set(exif) - {*_COPIED_TAGS, *_POINTERS}:
        del exif[tag]


def exif_of_tiff(content: bytes) -> tuple[bytes, bytes]:
    """Return the EXIF data of a TIFF as bytes without a prefix, and its colour profile; empty what is not there."""
    first = _directory(content, None)
    exif = Image.Exif()
    for tag in _COPIED_TAGS:
        if tag in first:
            exif[tag] = first[tag]
    for pointer in _POINTERS:
        if pointer in first:
            exif.get_ifd(pointer).update(dict(_directory(content, first[pointer])))
    return without_prefix(exif.tobytes()), bytes(first.get(_PROFILE, b""))


def _directory(content: bytes, offset: int | None) -> TiffImagePlugin.ImageFileDirectory_v2:
    """A directory of tags at an offset, by default the first."""
    directory = TiffImagePlugin.ImageFileDirectory_v2(content[:8])
    file = io.BytesIO(content)
    file.seek(directory.next if offset is None else offset)
    directory.load(file)
    list(directory.items())  # Pillow writes only the tags that were looked at
    return directory


def tiff_with_exif(content: bytes, exif: bytes) -> bytes:
    """Put EXIF data behind a TIFF, and a new first directory that knows of them."""
    given = decode_exif(exif)
    own = TiffImagePlugin.ImageFileDirectory_v2(prefix=content[:2])
    for tag in _COPIED_TAGS:
        if tag in given:
            own[tag] = given[tag]
    for pointer in _POINTERS:
        if entries := given.get_ifd(pointer):
            directory = TiffImagePlugin.ImageFileDirectory_v2(prefix=content[:2])
            for tag, value in entries.items():
                directory[tag] = value
            content = _padded(content)
            own[pointer] = len(content)
            content += directory.tobytes(len(content))
    content = _padded(content)
    first = _entries(content, _integer(content, content[4:8]))
    first |= _entries(content + own.tobytes(len(content)), len(content))
    content = _padded(content + own.tobytes(len(content)))
    entries_of_all = b"".join(first[tag] for tag in sorted(first))
    directory_of_all = _bytes(content, len(first), 2) + entries_of_all + bytes(4)
    return content[:4] + _bytes(content, len(content), 4) + content[8:] + directory_of_all


def _padded(content: bytes) -> bytes:
    """Directories begin at even addresses."""
    return content + b"\0" * (len(content) % 2)


def _order(content: bytes) -> Literal["little", "big"]:
    return "little" if content.startswith(b"II") else "big"


def _integer(content: bytes, encoded: bytes) -> int:
    return int.from_bytes(encoded, _order(content))


def _bytes(content: bytes, number: int, length: int) -> bytes:
    return number.to_bytes(length, _order(content))


def _entries(content: bytes, offset: int) -> dict[int, bytes]:
    """The entries of a TIFF's directory, 12 bytes each, by tag; addresses in them are of the whole file."""
    count = _integer(content, content[offset : offset + 2])
    found = [content[start : start + 12] for start in range(offset + 2, offset + 2 + 12 * count, 12)]
    return {_integer(content, entry[:2]): entry for entry in found}
