"""From an image file to its pixels, whatever is in it.

The names of ILSVRC-12 end in ``.JPEG``, but one of its files is a PNG and 22 are JPEGs in CMYK (they are listed in
``build_imagenet_data.py`` of TensorFlow's models). Pillow decodes all of them. torchvision's decoder, which takes about
60 % of its time for the same pixels, is deprecated and will be removed.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFile
from torch import Tensor

from offset_equivariant.data.image_files import ImageFileError


def decode_image_file(path: Path) -> Tensor:
    """Decode an image file to sRGB bytes.

    Grey, palette and CMYK images are converted as Pillow does, without colour profiles; transparency is dropped, and
    the EXIF orientation is ignored, as is usual with ILSVRC-12. A file that is cut off is an error. Bits that changed
    within a JPEG cannot be noticed: the format has no checksum.

    Returns:
        uint8 tensor of shape (3, H, W), its channels next to each other in memory.

    Raises:
        ImageFileError: when the file cannot be read, is no image, is cut off, or has more than 8 bits a channel.
        RuntimeError: when Pillow was told to accept files that are cut off.
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise RuntimeError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set: images that are cut off would be grey below; "
            "set it to False, so that they are found"
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ImageFileError(f"{path} cannot be read: {error.strerror or error}") from error
    if not content:
        raise ImageFileError(f"{path} is empty")
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"its mode is {image.mode}; convert it to 8 bits a channel")
            # Pillow warns where it drops a palette's transparency in one step.
            opaque = image.convert("RGBA") if image.has_transparency_data else image
            pixels = np.array(opaque.convert("RGB"))
    except Exception as error:  # a damaged file fails in many ways, all of which mean the same
        raise ImageFileError(f"{path} cannot be decoded as an image ({len(content)} bytes): {error}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)
