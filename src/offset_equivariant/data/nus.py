"""The NUS data set of illuminant estimation (Cheng et al. 2014), prepared as one file of small images.

``scripts/prepare_nus.py`` makes the file from the official distribution, see :mod:`.nus_preparation`.
"""

import csv
import functools
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from offset_equivariant.data.illuminant_images import IlluminantDataError, IlluminantImages, fingerprint
from offset_equivariant.data.locations import DATA_DIR_VARIABLE, DataNotFoundError

CAMERAS = (
    "Canon1DsMkIII",
    "Canon600D",
    "FujifilmXM1",
    "NikonD5200",
    "OlympusEPL6",
    "PanasonicGX1",
    "SamsungNX2000",
    "SonyA57",
    "NikonD40",
)
#: Name and fold of every image: that of the three in which it is a test image.
_FOLDS = Path(__file__).with_name("nus_folds.csv")
ARRAYS = ("images", "illuminants", "names", "cameras", "folds")
"""Of a prepared file: uint16 (N, S, S, 3), value times 65535; float (N, 3); strings (N,) twice; integers (N,)."""


@functools.cache
def official_folds() -> dict[str, int]:
    """Return the fold (0 to 2) of each of the 1,853 images, by name: of three parts, the one it is tested in."""
    with _FOLDS.open(newline="") as file:
        return {row["name"]: int(row["fold"]) for row in csv.DictReader(file)}


def prepared_path(directory: Path, size: int) -> Path:
    """Return where the file of images of ``size`` x ``size`` pixels lies in a data directory."""
    return directory / f"nus{size}" / f"nus{size}.npz"


def load_nus(directories: Sequence[Path], size: int = 64) -> IlluminantImages:
    """Load the prepared images of NUS.

    Args:
        directories: where data sets lie, in order.
        size: height and width in pixels.

    Raises:
        DataNotFoundError: when there is no prepared file of that size; says how to make it.
        IlluminantDataError: when the file, or an image in it, cannot be used, is none of NUS by its name, or has
            another fold than the official one: networks of other users would be tested on images they have learned
            from.
    """
    paths = [prepared_path(directory, size) for directory in directories]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        raise DataNotFoundError(
            f"NUS at {size}x{size} pixels is not there; looked for {', '.join(map(str, paths))}.\n"
            "Get the nine cameras' PNG files and <Camera>_gt.mat of Cheng et al. 2014, and run\n"
            f"    python scripts/prepare_nus.py FOLDER {paths[0]} --size {size}\n"
            f"or say with {DATA_DIR_VARIABLE} or paths.data= where the prepared file lies."
        )
    images = read_prepared(path, size)
    folds = official_folds()
    unknown = [name for name in images.names if name not in folds]
    if unknown:
        raise IlluminantDataError(
            f"{path}: {len(unknown)} of {len(images)} images have no fold in {_FOLDS.name}, the first is {unknown[0]}; "
            "prepare the file anew from NUS alone, of files that have their official names"
        )
    other = [n for n, fold in zip(images.names, images.folds.tolist(), strict=True) if folds[n] != fold]
    if other:
        raise IlluminantDataError(
            f"{path}: {len(other)} of {len(images)} images have another fold than {_FOLDS.name} gives them, the first "
            f"is {other[0]}; networks trained on the official folds would be tested on their training images. Prepare "
            "the file anew"
        )
    return images


def read_prepared(path: Path, size: int) -> IlluminantImages:
    """Read a prepared file.

    Raises:
        IlluminantDataError: when it cannot be read, lacks an array, or holds what cannot be used.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ARRAYS}
    except KeyError as error:
        raise IlluminantDataError(f"{path}: {error.args[0]}; it must hold the arrays {', '.join(ARRAYS)}") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise IlluminantDataError(f"{path} cannot be read ({error}); prepare it anew") from error
    pixels = arrays["images"]
    if pixels.dtype != np.uint16 or pixels.shape[1:] != (size, size, 3):
        raise IlluminantDataError(
            f"{path}: images must be uint16 of shape (N, {size}, {size}, 3), got {pixels.dtype} {pixels.shape}"
        )
    images = torch.from_numpy((pixels.astype(np.float32) / 65535).transpose(0, 3, 1, 2).copy())
    try:
        illuminants = torch.from_numpy(arrays["illuminants"].astype(np.float64))
        return IlluminantImages(
            name="nus",
            images=images,
            illuminants=illuminants,
            names=tuple(map(str, arrays["names"])),
            cameras=tuple(map(str, arrays["cameras"])),
            folds=torch.from_numpy(arrays["folds"].astype(np.int64)),
            sha256=fingerprint(images, illuminants),
            synthetic=False,
        )
    except (IlluminantDataError, ValueError) as error:
        raise IlluminantDataError(f"{path}: {error}") from error
