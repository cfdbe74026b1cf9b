"""Photos as files: 8 and 16 bits, in full resolution, with their EXIF data."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
    """The EXIF directory is put behind the image, since tifffile writes none."""
    buffer = io.BytesIO()
    extra: list[Any] = [(_EXIF_POINTER, "I", 1, 0, True)] if photo.exif else []
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in photo.tags.items():
        tags[tag] = value
        kind = tags.tagtype[tag]
        if kind == 2:
            extra.append((tag, "s", 0, str(value), True))
        elif kind in (1, 7):
            data = bytes(value)
            extra.append((tag, "B" if kind == 1 else 7, len(data), data, True))
        elif kind == 3 and not isinstance(value, tuple):
            extra.append((tag, "H", 1, int(value), True))
    profile = photo.profile or None
    tifffile.imwrite(
        buffer,
        channels,
        photometric="rgb",
        extrasamples=None if photo.alpha is None else ["unassalpha"],
        compression="zlib",
        iccprofile=profile,
        metadata=None,
        software=False,
        extratags=extra,
    )
    if photo.exif:
        _append_exif(buffer, photo.exif)
    return buffer.getvalue()


def _append_exif(buffer: io.BytesIO, exif: bytes) -> None:
    block = Image.Exif()
    block.load(b"Exif\0\0" + exif)
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in block.get_ifd(_EXIF_POINTER).items():
        directory[tag] = value
    end = buffer.seek(0, os.SEEK_END)
    offset = end + end % 2
    buffer.write(b"\0" * (offset - end) + directory.tobytes(offset))
    buffer.seek(0)
    with tifffile.TiffFile(buffer, mode="r+") as file:
        page = file.pages[0]
        assert isinstance(page, tifffile.TiffPage)
        page.tags[_EXIF_POINTER].overwrite(offset)
