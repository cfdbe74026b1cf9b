"""ILSVRC-12 (Russakovsky et al. 2015): 1,281,167 + 50,000 images of 1,000 classes, in folders or official archives.

It is given out on registration at https://image-net.org and never downloaded here.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from offset_equivariant.data.image_files import ImageDataError, ImageFiles
from offset_equivariant.data.image_folders import SAMPLE, SPLIT_FOLDERS, Published, read_image_folder
from offset_equivariant.data.labelled_images import Split, check_split
from offset_equivariant.data.locations import DATA_DIR_VARIABLE, DataNotFoundError
from offset_equivariant.data.photo_folders import check_photo_options
from offset_equivariant.storage import locked, replace_file

ILSVRC12 = Published(
    name="ilsvrc12",
    classes=1000,
    images={"train": 1_281_167, "test": 50_000},
    wnids_sha256="385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd",
)
ARCHIVES = {"train": "ILSVRC2012_img_train.tar", "test": "ILSVRC2012_img_val.tar"}
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"


def load_ilsvrc12(
    split: Split,
    directories: Sequence[Path],
    *,
    shorter_side: int = 256,
    size: int = 224,
    subset: bool = False,
    sample: int = SAMPLE,
    progress: bool = True,
) -> ImageFiles:
    """Find ILSVRC-12, ``ilsvrc12`` in a data directory, and check it, see `read_image_folder`.

    That folder holds ``train/<wnid>/*.JPEG`` and ``val/<wnid>/*.JPEG``, or the official archives with the development
    kit. Archives are verified and unpacked beside themselves by `torchvision.datasets.ImageNet`, once.

    Args:
        split: ``"train"`` or ``"test"``, which are the validation images.
        directories: where data sets lie, in order.
        shorter_side: of an image in evaluation, in pixels, before the central crop.
        size: height and width of the crops, in pixels.
        subset: whether some of the classes or images are enough.
        sample: files to decode, to see whether they are whole.
        progress: whether to show progress bars.

    Raises:
        ValueError: when the split is unknown or a size is out of range.
        DataNotFoundError: when no directory holds that split; says what to put where.
        ImageDataError: when it is incomplete or damaged.
    """
    check_split(split)
    check_photo_options(shorter_side, size)
    roots = [directory / ILSVRC12.name for directory in directories]
    root = next((root for root in roots if (root / SPLIT_FOLDERS[split]).is_dir()), None)
    if root is None:
        root = next((root for root in roots if (root / ARCHIVES[split]).is_file()), None)
        if root is None:
            raise DataNotFoundError(_how_to_get_it(split, roots))
        _unpack(root, split)
    files = read_image_folder(
        root, ILSVRC12, split, shorter_side=shorter_side, size=size, subset=subset, sample=sample, progress=progress
    )
    return replace(files, classes=_class_names(files.wnids))


def _class_names(wnids: tuple[str, ...]) -> tuple[str, ...]:
    """Names of all classes in the order of their wnids; of some classes, the wnids."""
    if len(wnids) != ILSVRC12.classes:
        return wnids
    from torchvision.models import ResNet50_Weights

    return tuple(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])


def _how_to_get_it(split: Split, roots: Sequence[Path]) -> str:
    return (
        f"ILSVRC-12 ({split}) is not there; looked for the folder {SPLIT_FOLDERS[split]}/ and the archive "
        f"{ARCHIVES[split]} in {', '.join(map(str, roots)) or 'no folder at all'}.\n"
        "Register at https://image-net.org/challenges/LSVRC/2012/2012-downloads.php, and put "
        f"{', '.join(ARCHIVES.values())} and {DEVKIT}, or their images as train/<wnid>/*.JPEG and val/<wnid>/*.JPEG, "
        f"into such a folder, or say with {DATA_DIR_VARIABLE} or paths.data= where {ILSVRC12.name}/ lies."
    )


def _unpack(root: Path, split: Split) -> None:
    """Unpack a split's archive. Its folder appears when it is complete: an interruption leaves nothing half-done."""
    if not os.access(root, os.W_OK):
        raise ImageDataError(
            f"{root / ARCHIVES[split]} cannot be unpacked there: {root} is not writable. Unpack it elsewhere, or link "
            f"it into a folder {ILSVRC12.name}/ of your own, and say where with {DATA_DIR_VARIABLE} or paths.data="
        )
    target = root / SPLIT_FOLDERS[split]
    with locked(root / ".unpacking.lock"):
        if target.is_dir():  # another process was faster
            return
        for left in root.glob(".unpacking-*/"):  # by a process that was killed: a whole split, perhaps
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=root) as temporary:
            staging = Path(temporary)
            for path in root.iterdir():
                if path.is_file() and not path.name.startswith("."):
                    (staging / path.name).symlink_to(path.resolve())
            _call_torchvision(staging, split, root / ARCHIVES[split])
            meta = staging / "meta.bin"
            if not meta.is_symlink():
                replace_file(root / meta.name, meta.read_bytes())
            os.replace(staging / target.name, target)


def _call_torchvision(root: Path, split: Split, archive: Path) -> None:
    from torchvision.datasets import ImageNet

    unpack: Callable[..., object] = ImageNet
    try:
        unpack(root, split=SPLIT_FOLDERS[split])
    except (RuntimeError, OSError, EOFError) as error:
        raise ImageDataError(f"{archive} could not be unpacked ({DEVKIT} must lie beside it): {error}") from error
