"""Photos as files: 8 and 16 bits, in full resolution, with their EXIF data."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image, UnidentifiedImageError

from offset_equivariant.data.exif import (
    decode_exif,
    encode_exif,
    exif_of_tiff,
    remove_layout_,
    tiff_with_exif,
    turn_upright,
    with_prefix,
    without_prefix,
)
from offset_equivariant.storage import replace_file

#: Formats by the ends of file names; JPEG and WebP hold 8 bits.
SUFFIXES = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP"}
_DEEP_SUFFIXES = (".png", ".tif", ".tiff")
_PNG, _TIFF, _BIG_TIFF = b"\x89PNG\r\n\x1a\n", (b"II*\0", b"MM\0*"), (b"II+\0", b"MM\0+")


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
        dpi: pixels an inch, across and down, of 8 bits; of 16, the EXIF data may have them.
    """

    pixels: npt.NDArray[Any]
    alpha: npt.NDArray[Any] | None = None
    exif: bytes = b""
    profile: bytes = b""
    dpi: tuple[float, float] | None = None

    @property
    def bits(self) -> int:
        """Bits a channel, 8 or 16."""
        return 8 * self.pixels.dtype.itemsize

    @property
    def upright(self) -> npt.NDArray[Any]:
        """The pixels as the photo is seen, by its EXIF orientation, (H, W, 3) or (W, H, 3): a view of ``pixels``.

        Raises:
            PhotoError: if the EXIF data are damaged.
        """
        return self._turned(self.pixels)

    @property
    def upright_alpha(self) -> npt.NDArray[Any] | None:
        """The transparency as the photo is seen, (H, W) or (W, H): a view of ``alpha``, or None.

        Raises:
            PhotoError: if the EXIF data are damaged.
        """
        return None if self.alpha is None else self._turned(self.alpha)

    def _turned(self, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
        try:
            return turn_upright(stored, self.exif)
        except Exception as error:  # damaged data fail in many ways
            raise PhotoError(
                f"EXIF data, which say how the photo is turned, are damaged; remove them: {error}"
            ) from error


def read_photo(path: Path) -> Photo:
    """Read a photo: JPEG, WebP, PNG or TIFF, 8 or 16 bits a channel.

    Pixels are given as they are stored, whatever the EXIF orientation; of an 8-bit TIFF upright, as Pillow gives them.
    Smaller copies in a TIFF, and what accompanies the photo in a JPEG (previews, maps of gain or depth: MPO), are left
    out.

    Raises:
        PhotoError: if the file is not there, no image, cut off, has several frames or pages, or has no three channels
            of RGB.
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
        if content.startswith(_TIFF):
            _require_one_image(_pages_of_tiff(content))
            if _is_deep_tiff(content):
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


def _require_one_image(count: int) -> None:
    if count > 1:
        raise PhotoError(f"holds {count} frames or pages, and only one could be kept; save each as a file of its own")


def _pages_of_tiff(content: bytes) -> int:
    """How many pages a TIFF has, without smaller copies of the first."""
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        # A TiffFrame stands for a page that is laid out as another; of such, tifffile makes none unless it is told to.
        return 1 + sum(not (isinstance(page, tifffile.TiffPage) and page.is_reduced) for page in file.pages[1:])


def _read_with_pillow(content: bytes) -> Photo:
    with Image.open(io.BytesIO(content)) as image:
        if image.format not in ("TIFF", "MPO"):
            _require_one_image(getattr(image, "n_frames", 1))
        image.load()
        mode, info, exif = image.mode, image.info, image.getexif()
        if image.format == "TIFF":
            remove_layout_(exif)
        if mode in ("P", "RGB"):  # of both, a colour may be the transparent one
            mode = "RGBA" if "transparency" in info else "RGB"
        if mode not in ("RGB", "RGBA"):
            raise PhotoError(f"has the colour mode {mode}, not RGB; convert it first")
        pixels = np.asarray(image if mode == image.mode else image.convert(mode))
    alpha = pixels[..., 3] if mode == "RGBA" else None
    return Photo(pixels[..., :3], alpha, encode_exif(exif), info.get("icc_profile") or b"", _usable_dpi(info))


def _usable_dpi(info: dict[str | tuple[int, int], Any]) -> tuple[float, float] | None:
    """The resolution that Pillow has found, if every format can hold it."""
    across, down = map(float, info.get("dpi", (0, 0)))
    return (across, down) if 1 <= across < 65535 and 1 <= down < 65535 else None


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
        _require_one_image(getattr(image, "n_frames", 1))
        image.load()  # EXIF data may stand behind the pixels
        exif = without_prefix(image.info.get("exif", b""))
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
    return Photo(np.ascontiguousarray(channels[..., :3]), alpha, *exif_of_tiff(content))


def write_photo(photo: Photo, path: Path) -> None:
    """Write a photo with its EXIF data in the format that the name asks for, in one step.

    Raises:
        PhotoError: if the format is unknown, or cannot hold the photo's bits, size, EXIF data or colour profile.
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
    except (OSError, ValueError, SyntaxError) as error:  # the last is Pillow's of damaged EXIF data
        size = f"{channels.shape[1]}x{channels.shape[0]} pixels"
        raise PhotoError(f"{path}: {suffix} cannot hold this photo of {size} and its EXIF data: {error}") from error
    replace_file(path, content)


def _encoded_by_pillow(photo: Photo, channels: npt.NDArray[Any], form: str) -> bytes:
    options: dict[str, Any] = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"quality": 95}}.get(form, {})
    if photo.exif:
        options["exif"] = with_prefix(photo.exif)
        if form == "TIFF":
            options["exif"] = decode_exif(photo.exif)
            remove_layout_(options["exif"])
    if photo.profile:
        options["icc_profile"] = photo.profile
    if photo.dpi is not None and form != "WEBP":
        options["dpi"] = photo.dpi
    buffer = io.BytesIO()
    Image.fromarray(channels).save(buffer, form, **options)
    return buffer.getvalue()


def _deep_png(photo: Photo, channels: npt.NDArray[Any]) -> bytes:
    order = [2, 1, 0, 3][: channels.shape[2]]
    kinds = {cv2.IMAGE_METADATA_EXIF: photo.exif, cv2.IMAGE_METADATA_ICCP: photo.profile}
    present = {kind: np.frombuffer(data, np.uint8) for kind, data in kinds.items() if data}
    written, buffer = cv2.imencodeWithMetadata(".png", channels[..., order], list(present), list(present.values()))
    if not written:
        raise ValueError("OpenCV cannot encode it; are its EXIF data and its colour profile intact?")
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
    return tiff_with_exif(buffer.getvalue(), photo.exif) if photo.exif else buffer.getvalue()
