"""Photos as files: 8 and 16 bits, in full resolution, with their EXIF data."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from offset_equivariant.storage import replace_file

#: Formats by the ends of file names; JPEG and WebP hold 8 bits.
SUFFIXES = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP"}
_DEEP_SUFFIXES = (".png", ".tif", ".tiff")
_PNG, _TIFF, _BIG_TIFF = b"\x89PNG\r\n\x1a\n", (b"II*\0", b"MM\0*"), (b"II+\0", b"MM\0+")
#: Of a TIFF's first directory, where those of the exposure and of the place are; and the tag of the colour profile.
_POINTERS, _PROFILE = (34665, 34853), 34675
_PREFIX = b"Exif\0\0"
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
#: Of a TIFF's first directory, what is copied: texts about the photo, resolution, copyright.
_COPIED_TAGS = (270, 271, 272, 274, 282, 283, 296, 305, 306, 315, 700, 33432)


class PhotoError(ValueError):
    """A file that is no photo, or not one that can be corrected; the message names it."""


@dataclass(frozen=True)
class Photo:
    """A photo as it is encoded in a file.

    Attributes:
        pixels: (H, W, 3), uint8 or uint16, RGB.
        alpha: (H, W), of the same type, or None.
        exif: EXIF data as bytes, that of the camera, the exposure and the place, without a prefix; empty if none.
        profile: ICC profile; empty if there is none.
    """

    pixels: npt.NDArray[Any]
    alpha: npt.NDArray[Any] | None = None
    exif: bytes = b""
    profile: bytes = b""

    @property
    def bits(self) -> int:
        """Bits a channel, 8 or 16."""
        return 8 * self.pixels.dtype.itemsize

    @property
    def upright(self) -> npt.NDArray[Any]:
        """The pixels as the photo is seen, by its EXIF orientation, (H, W, 3) or (W, H, 3): a view of ``pixels``."""
        exif = Image.Exif()
        exif.load(_PREFIX + self.exif if self.exif else b"")
        axes, transposed = _TO_UPRIGHT.get(exif.get(_ORIENTATION, 1), _TO_UPRIGHT[1])
        turned = np.flip(self.pixels, axes)
        return turned.swapaxes(0, 1) if transposed else turned


def read_photo(path: Path) -> Photo:
    """Read a photo: JPEG, WebP, PNG or TIFF, 8 or 16 bits a channel.

    Pixels are given as they are stored, whatever the EXIF orientation; of an 8-bit TIFF upright, as Pillow gives them.

    Raises:
        PhotoError: if the file is not there, no image, cut off, or has no three channels of RGB.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PhotoError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        if content.startswith(_PNG) and content[24:25] == b"\x10":
            return _read_deep_png(content)
        if content.startswith(_BIG_TIFF):
            raise PhotoError("is a BigTIFF; save it as an ordinary TIFF")
        if content.startswith(_TIFF) and _is_deep_tiff(content):
            return _read_deep_tiff(content)
        return _read_with_pillow(content)
    except UnidentifiedImageError as error:
        raise PhotoError(f"{path} is not an image; give one of {', '.join(SUFFIXES)}") from error
    except Image.DecompressionBombError as error:
        raise PhotoError(f"{path} is larger than Pillow opens: {error}") from error
    except PhotoError as error:
        raise PhotoError(f"{path} {error}") from error
    except Exception as error:  # a damaged file fails in many ways, all of which mean the same
        raise PhotoError(f"{path} is damaged, cut off, or of a kind that is not known here: {error}") from error


def _read_with_pillow(content: bytes) -> Photo:
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        mode, info, exif = image.mode, image.info, image.getexif()
        if mode == "P":
            mode = "RGBA" if "transparency" in info else "RGB"
        if mode not in ("RGB", "RGBA"):
            raise PhotoError(f"has the colour mode {mode}, not RGB; convert it first")
        pixels = np.asarray(image if mode == image.mode else image.convert(mode))
    alpha = pixels[..., 3] if mode == "RGBA" else None
    encoded = exif.tobytes().removeprefix(_PREFIX) if len(exif) else b""
    return Photo(pixels[..., :3], alpha, encoded, info.get("icc_profile") or b"")


def _is_deep_tiff(content: bytes) -> bool:
    """Whether Pillow cannot read it, because its channels have other than 8 bits."""
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        return np.dtype(file.pages[0].dtype) != np.uint8


def _read_deep_png(content: bytes) -> Photo:
    decoded: Any = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if decoded is None:
        raise PhotoError("is damaged or cut off")
    if decoded.ndim != 3:
        raise PhotoError("has one channel, not RGB")
    pixels, alpha = np.ascontiguousarray(decoded[..., 2::-1]), decoded[..., 3] if decoded.shape[2] == 4 else None
    with Image.open(io.BytesIO(content)) as image:
        image.load()  # EXIF data may stand behind the pixels
        exif = image.info.get("exif", b"").removeprefix(_PREFIX)
        return Photo(pixels, alpha, exif, image.info.get("icc_profile") or b"")


def _read_deep_tiff(content: bytes) -> Photo:
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page = file.pages[0]
        assert isinstance(page, tifffile.TiffPage)
        stored = np.asarray(page.asarray())
        separate = page.planarconfig == tifffile.PLANARCONFIG.SEPARATE
    if stored.dtype != np.uint16:
        raise PhotoError(f"has channels of the type {stored.dtype}; give 8 or 16 bits")
    channels = np.moveaxis(stored, 0, -1) if separate and stored.ndim == 3 else stored
    if channels.ndim != 3 or channels.shape[2] not in (3, 4):
        raise PhotoError(f"has the shape {stored.shape}, not three or four channels")
    alpha = channels[..., 3] if channels.shape[2] == 4 else None
    first = _directory(content, None)
    exif = Image.Exif()
    for tag in _COPIED_TAGS:
        if tag in first:
            exif[tag] = first[tag]
    for pointer in _POINTERS:
        if pointer in first:
            exif.get_ifd(pointer).update(dict(_directory(content, first[pointer])))
    encoded = exif.tobytes().removeprefix(_PREFIX)
    return Photo(np.ascontiguousarray(channels[..., :3]), alpha, encoded, bytes(first.get(_PROFILE, b"")))


def _directory(content: bytes, offset: int | None) -> TiffImagePlugin.ImageFileDirectory_v2:
    """A directory of tags at an offset, by default the first."""
    directory = TiffImagePlugin.ImageFileDirectory_v2(content[:8])
    file = io.BytesIO(content)
    file.seek(directory.next if offset is None else offset)
    directory.load(file)
    list(directory.items())  # Pillow writes only the tags that were looked at
    return directory


def write_photo(photo: Photo, path: Path) -> None:
    """Write a photo with its EXIF data in the format that the name asks for, in one step.

    Raises:
        PhotoError: if the format is unknown, or cannot hold the photo's bits.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise PhotoError(f"{path}: unknown format {suffix!r}; give one of {', '.join(SUFFIXES)}")
    if photo.bits == 16 and suffix not in _DEEP_SUFFIXES:
        raise PhotoError(
            f"{path}: {suffix} holds 8 bits, and the photo has 16; give one of {', '.join(_DEEP_SUFFIXES)}"
        )
    if photo.alpha is not None and SUFFIXES[suffix] == "JPEG":
        raise PhotoError(f"{path}: {suffix} holds no transparency, and the photo has it; give .png, .tif or .webp")
    channels = photo.pixels if photo.alpha is None else np.dstack([photo.pixels, photo.alpha])
    try:
        if photo.bits == 8:
            content = _encoded_by_pillow(photo, channels, SUFFIXES[suffix])
        else:
            content = _deep_png(photo, channels) if suffix == ".png" else _deep_tiff(photo, channels)
    except (OSError, ValueError) as error:
        size = f"{channels.shape[1]}x{channels.shape[0]} pixels"
        raise PhotoError(f"{path}: {suffix} cannot hold a photo of {size}: {error}") from error
    replace_file(path, content)


def _encoded_by_pillow(photo: Photo, channels: npt.NDArray[Any], form: str) -> bytes:
    options: dict[str, Any] = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"quality": 95}}.get(form, {})
    if photo.exif:
        options["exif"] = _PREFIX + photo.exif
    if photo.profile:
        options["icc_profile"] = photo.profile
    buffer = io.BytesIO()
    Image.fromarray(channels).save(buffer, form, **options)
    return buffer.getvalue()


def _deep_png(photo: Photo, channels: npt.NDArray[Any]) -> bytes:
    order = [2, 1, 0, 3][: channels.shape[2]]
    kinds = {cv2.IMAGE_METADATA_EXIF: photo.exif, cv2.IMAGE_METADATA_ICCP: photo.profile}
    present = {kind: np.frombuffer(data, np.uint8) for kind, data in kinds.items() if data}
    written, buffer = cv2.imencodeWithMetadata(".png", channels[..., order], list(present), list(present.values()))
    assert written
    return bytes(buffer)


def _deep_tiff(photo: Photo, channels: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer,
        channels,
        photometric="rgb",
        extrasamples=None if photo.alpha is None else ["unassalpha"],
        compression="zlib",
        iccprofile=photo.profile or None,
        metadata=None,
        software=False,
    )
    return _with_tags(buffer.getvalue(), photo.exif) if photo.exif else buffer.getvalue()


def _with_tags(content: bytes, exif: bytes) -> bytes:
    """Put EXIF data behind a TIFF, and a new first directory that knows of them."""
    given = Image.Exif()
    given.load(_PREFIX + exif)
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
