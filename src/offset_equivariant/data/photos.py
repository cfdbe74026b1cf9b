"""Photos as files: 8 and 16 bits, in full resolution, with their EXIF data."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
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
_PNG, _TIFF = b"\x89PNG\r\n\x1a\n", (b"II*\0", b"MM\0*")
_EXIF_POINTER, _PROFILE = 34665, 34675
#: Of a TIFF's first directory, what is copied: texts about the photo, resolution, copyright, XMP.
_COPIED_TAGS = (270, 271, 272, 274, 282, 283, 296, 305, 306, 315, 700, 33432, 33723)


class PhotoError(ValueError):
    """A file that is no photo, or not one that can be corrected; the message names it."""


@dataclass(frozen=True)
class Photo:
    """A photo as it is encoded in a file.

    Attributes:
        pixels: (H, W, 3), uint8 or uint16, RGB.
        alpha: (H, W), of the same type, or None.
        exif: EXIF data as bytes, without a prefix; empty if there are none.
        profile: ICC profile; empty if there is none.
        tags: of a 16-bit TIFF: what its first directory says beside the pixels.
    """

    pixels: npt.NDArray[Any]
    alpha: npt.NDArray[Any] | None = None
    exif: bytes = b""
    profile: bytes = b""
    tags: Mapping[int, Any] = field(default_factory=dict)

    @property
    def bits(self) -> int:
        """Bits a channel, 8 or 16."""
        return 8 * self.pixels.dtype.itemsize


def read_photo(path: Path) -> Photo:
    """Read a photo: JPEG, WebP, PNG or TIFF, 8 or 16 bits a channel.

    Raises:
        PhotoError: if the file is not there, no image, cut off, or has no three colour channels.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PhotoError(f"{path} cannot be read: {error.strerror or error}") from error
    deep_png = content.startswith(_PNG) and content[24:25] == b"\x10"
    if deep_png or (content.startswith(_TIFF) and _tiff_type(content, path) == np.uint16):
        return _read_deep(content, path, is_png=deep_png)
    return _read_with_pillow(content, path)


def _read_with_pillow(content: bytes, path: Path) -> Photo:
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            mode, info, exif = image.mode, image.info, image.getexif()
            if mode == "P":
                mode = "RGBA" if "transparency" in info else "RGB"
            pixels = np.asarray(image if mode == image.mode else image.convert(mode))
    except UnidentifiedImageError as error:
        raise PhotoError(f"{path} is not an image; give one of {', '.join(SUFFIXES)}") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PhotoError(f"{path} is damaged or cut off: {error}") from error
    if mode not in ("RGB", "RGBA"):
        raise PhotoError(
            f"{path} has the colour mode {mode}; convert it to RGB, a photo without colour has no illuminant"
        )
    alpha = pixels[..., 3] if mode == "RGBA" else None
    encoded = exif.tobytes().removeprefix(b"Exif\0\0") if len(exif) else b""
    return Photo(pixels[..., :3], alpha, encoded, info.get("icc_profile") or b"")


def _tiff_type(content: bytes, path: Path) -> Any:
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            return np.dtype(file.pages[0].dtype)
    except Exception as error:  # a damaged file fails in many ways, all of which mean the same
        raise PhotoError(f"{path} is damaged or cut off: {error}") from error


def _read_deep(content: bytes, path: Path, *, is_png: bool) -> Photo:
    """Read 16-bit RGB, which Pillow cannot."""
    decoded: Any = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if decoded is None:
        raise PhotoError(f"{path} is damaged or cut off, or compressed in a way that is not known here")
    if decoded.dtype != np.uint16 or decoded.ndim != 3:
        raise PhotoError(f"{path} has no three colour channels of 16 bits; a photo without colour has no illuminant")
    alpha = decoded[..., 3] if decoded.shape[2] == 4 else None
    pixels = np.ascontiguousarray(decoded[..., 2::-1])
    if is_png:
        with Image.open(io.BytesIO(content)) as image:
            image.load()  # EXIF data may stand behind the pixels
            exif = image.info.get("exif", b"").removeprefix(b"Exif\0\0")
            return Photo(pixels, alpha, exif, image.info.get("icc_profile") or b"")
    first = _directory(content, None)
    tags = {tag: first[tag] for tag in _COPIED_TAGS if tag in first}
    exif = _as_exif(_directory(content, first[_EXIF_POINTER])) if _EXIF_POINTER in first else b""
    return Photo(pixels, alpha, exif, bytes(first.get(_PROFILE, b"")), tags)


def _directory(content: bytes, offset: int | None) -> TiffImagePlugin.ImageFileDirectory_v2:
    """A directory of tags at an offset, by default the first."""
    directory = TiffImagePlugin.ImageFileDirectory_v2(content[:8])
    file = io.BytesIO(content)
    file.seek(directory.next if offset is None else offset)
    directory.load(file)
    list(directory.items())  # Pillow writes only the tags that were looked at
    return directory


def _as_exif(directory: TiffImagePlugin.ImageFileDirectory_v2) -> bytes:
    exif = Image.Exif()
    exif.get_ifd(_EXIF_POINTER).update(dict(directory))
    return exif.tobytes().removeprefix(b"Exif\0\0")


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
    if photo.bits == 8:
        content = _encoded_by_pillow(photo, channels, SUFFIXES[suffix])
    else:
        content = _deep_png(photo, channels) if suffix == ".png" else _deep_tiff(photo, channels)
    replace_file(path, content)


def _encoded_by_pillow(photo: Photo, channels: npt.NDArray[Any], form: str) -> bytes:
    options: dict[str, Any] = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"quality": 95}}.get(form, {})
    if photo.exif:
        options["exif"] = b"Exif\0\0" + photo.exif
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
    return _with_tags(buffer.getvalue(), photo)


def _with_tags(content: bytes, photo: Photo) -> bytes:
    """Put the photo's own tags and EXIF data behind a TIFF, and a new first directory that knows of them."""
    own = TiffImagePlugin.ImageFileDirectory_v2(prefix=content[:2])
    for tag, value in photo.tags.items():
        own[tag] = value
    if photo.exif:
        exif = Image.Exif()
        exif.load(b"Exif\0\0" + photo.exif)
        directory = TiffImagePlugin.ImageFileDirectory_v2(prefix=content[:2])
        for tag, value in exif.get_ifd(_EXIF_POINTER).items():
            directory[tag] = value
        content = _padded(content)
        own[_EXIF_POINTER] = len(content)
        content += directory.tobytes(len(content))
    content = _padded(content)
    first = _entries(content, _integer(content, content[4:8])) | _entries(
        content + own.tobytes(len(content)), len(content)
    )
    content = _padded(content + own.tobytes(len(content)))
    entries = b"".join(first[tag] for tag in sorted(first))
    return (
        content[:4]
        + _bytes(content, len(content), 4)
        + content[8:]
        + _bytes(content, len(first), 2)
        + entries
        + bytes(4)
    )


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
