"""From the official files of NUS to one file of small images.

Of each camera the official distribution has 16-bit linear PNGs and ``<Camera>_gt.mat``. An image becomes
(value - darkness) / (saturation - darkness), averaged over the area of each small pixel without what the colour chart
covers, and scaled so that its maximum is 1. A small pixel that the chart covers whole is zero.
"""

import hashlib
import io
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.io
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_image

from offset_equivariant.data.nus import CAMERAS, official_folds, prepared_path, read_prepared
from offset_equivariant.data.workers import usable_cores
from offset_equivariant.storage import replace_file

#: Where a camera's images lie below the folder of the official files.
_PARTS = ("", "{}", "PNG", "{}/PNG")


class PreparationError(ValueError):
    """Official files that are missing, damaged or do not fit together; the message names every one of them."""


@dataclass(frozen=True)
class CameraTruth:
    """What ``<Camera>_gt.mat`` says of a camera's N images.

    Attributes:
        names: their names, without extension.
        illuminants: linear RGB, float64 (N, 3).
        charts: the colour chart's first and last row, first and last column, counted from 1, integers (N, 4).
        darkness: the sensor's value without light.
        saturation: the sensor's largest value.
    """

    names: tuple[str, ...]
    illuminants: npt.NDArray[np.float64]
    charts: npt.NDArray[np.int64]
    darkness: float
    saturation: float


@dataclass(frozen=True)
class SourceImage:
    """One official image: where it lies, and what is known of it."""

    path: Path
    name: str
    camera: str
    illuminant: tuple[float, float, float]
    chart: tuple[int, int, int, int]
    darkness: float
    saturation: float


def read_ground_truth(path: Path) -> CameraTruth:
    """Read ``<Camera>_gt.mat``.

    Raises:
        PreparationError: when the file cannot be read, lacks a variable, or its variables do not fit together.
    """
    try:
        content = scipy.io.loadmat(path)
        names = tuple(str(np.ravel(cell)[0]) for cell in np.ravel(content["all_image_names"]))
        truth = CameraTruth(
            names,
            np.asarray(content["groundtruth_illuminants"], np.float64),
            np.asarray(content["CC_coords"], np.int64),
            float(np.ravel(content["darkness_level"])[0]),
            float(np.ravel(content["saturation_level"])[0]),
        )
    except KeyError as error:
        raise PreparationError(f"{path}: there is no variable {error.args[0]!r} in it") from error
    except Exception as error:  # scipy raises many kinds for a damaged file
        raise PreparationError(f"{path} cannot be read ({error})") from error
    for what, values, columns in (("illuminants", truth.illuminants, 3), ("charts", truth.charts, 4)):
        if values.shape != (len(names), columns):
            raise PreparationError(f"{path}: {len(names)} images, but {what} of shape {values.shape}")
    usable = (truth.illuminants > 0).all(1) & np.isfinite(truth.illuminants).all(1)
    if not usable.all():
        bad = ", ".join(names[row] for row in np.flatnonzero(~usable)[:10])
        raise PreparationError(f"{path}: illuminants that are not finite and positive in every component: {bad}")
    if not truth.darkness < truth.saturation:
        raise PreparationError(f"{path}: darkness {truth.darkness} is not below saturation {truth.saturation}")
    return truth


def find_images(folder: Path, cameras: Sequence[str] = CAMERAS) -> list[SourceImage]:
    """Find the images that the ground truths in ``folder`` and below tell of, camera by camera.

    A camera of which there is nothing is left out.

    Raises:
        PreparationError: when there is no ground truth at all, when files are missing or do not fit, or when there are
            images without a ground truth; names them.
    """
    found: list[SourceImage] = []
    problems: list[str] = []
    for camera in cameras:
        place = _first(folder / part / f"{camera}_gt.mat" for part in ("", camera, "GT", f"{camera}/GT"))
        there = {path.stem: path for part in _PARTS for path in _images_of(camera, folder / part.format(camera))}
        if place is None:
            if there:
                problems.append(f"there is no {camera}_gt.mat for {len(there)} images, such as {min(there.values())}")
            continue
        try:
            truth = read_ground_truth(place)
        except PreparationError as error:
            problems.append(str(error))
            continue
        problems += [f"{path} is not in {place}" for name, path in sorted(there.items()) if name not in truth.names]
        for index, name in enumerate(truth.names):
            path = there.get(name)
            if path is None:
                problems.append(f"{name}.PNG, which {place} names, is not in {folder}")
                continue
            found.append(
                SourceImage(
                    path,
                    name,
                    camera,
                    tuple(truth.illuminants[index].tolist()),
                    tuple(truth.charts[index].tolist()),
                    truth.darkness,
                    truth.saturation,
                )
            )
    if not found and not problems:
        problems.append(f"none of {', '.join(f'{camera}_gt.mat' for camera in cameras)} is in {folder}")
    _raise(problems)
    return found


def _images_of(camera: str, folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [p for p in folder.iterdir() if p.suffix in (".PNG", ".png") and p.name.startswith(f"{camera}_")]


def _first(paths: Iterable[Path]) -> Path | None:
    return next((path for path in paths if path.exists()), None)


def _raise(problems: Sequence[str]) -> None:
    if problems:
        listed = "\n  ".join(problems[:20]) + (f"\n  and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise PreparationError(f"{len(problems)} problems; the file was not written:\n  {listed}")


def read_png16(path: Path) -> npt.NDArray[np.uint16]:
    """Read a 16-bit RGB PNG as (H, W, 3).

    Raises:
        PreparationError: when it is truncated, altered, or another kind of image.
    """
    content = path.read_bytes()
    try:
        # The decoder trusts its input; Pillow compares every part's checksum first.
        with Image.open(io.BytesIO(content)) as image:
            image.verify()
        pixels = decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.UNCHANGED)
    except Exception as error:  # both raise many kinds
        raise PreparationError(f"{path} is truncated or damaged ({error})") from error
    if pixels.dtype != torch.uint16 or pixels.shape[0] != 3:
        raise PreparationError(f"{path}: expected 16-bit RGB, got {pixels.dtype} with {pixels.shape[0]} channels")
    array: npt.NDArray[np.uint16] = pixels.permute(1, 2, 0).numpy()
    return array


def prepare_image(source: SourceImage, size: int) -> npt.NDArray[np.uint16]:
    """Make the small image, (size, size, 3), value times 65535.

    Raises:
        PreparationError: when the file is damaged, or smaller than its chart's place or than ``size``.
    """
    sensor = read_png16(source.path)
    height, width = sensor.shape[:2]
    first_row, last_row, first_column, last_column = source.chart
    if not (1 <= first_row <= last_row <= height and 1 <= first_column <= last_column <= width):
        raise PreparationError(
            f"{source.path}: the chart lies at rows {first_row}-{last_row}, columns {first_column}-{last_column}, "
            f"but the image has {height} rows and {width} columns"
        )
    if min(height, width) < size:
        raise PreparationError(f"{source.path}: {width}x{height} pixels are fewer than {size}x{size}")
    visible = np.ones((height, width), np.float32)
    visible[first_row - 1 : last_row, first_column - 1 : last_column] = 0
    shares = _area_average(visible, size)
    scale = np.float32(1 / (source.saturation - source.darkness))
    light = (sensor.astype(np.float32) - np.float32(source.darkness)) * scale * visible[..., None]
    averages = np.stack([_area_average(light[..., channel], size) for channel in range(3)], -1)
    # A share below one sensor pixel is rounding of the average.
    seen = shares > 0.5 * size * size / (height * width)
    averages = np.where(seen[..., None], averages / np.where(seen, shares, 1)[..., None], 0).clip(0, 1)
    if averages.max() <= 0:
        raise PreparationError(f"{source.path}: no pixel outside the chart is above the darkness {source.darkness}")
    return np.asarray((averages / averages.max() * 65535).round(), np.uint16)


def _area_average(plane: npt.NDArray[np.float32], size: int) -> npt.NDArray[np.float64]:
    """Mean over the area of each of size x size rectangles, which may end within a pixel."""
    rows, columns = (_area_weights(length, size) for length in plane.shape)
    averages: npt.NDArray[np.float64] = (rows @ plane @ columns.T).astype(np.float64)
    return averages


def _area_weights(length: int, parts: int) -> npt.NDArray[np.float32]:
    """Share of each pixel in each of ``parts`` equal stretches of a line of ``length`` pixels, (parts, length)."""
    ends = np.linspace(0, length, parts + 1)[:, None]
    pixels = np.arange(length)
    overlap = np.minimum(ends[1:], pixels + 1) - np.maximum(ends[:-1], pixels)
    return (overlap.clip(0) * (parts / length)).astype(np.float32)


def prepare(
    folder: Path,
    target: Path,
    *,
    size: int = 64,
    workers: int | None = None,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] = lambda done, total: done,
) -> int:
    """Prepare all images in ``folder`` and write ``target`` in one step; return how many there are.

    Small images are kept beside the target until it is written, so that a call that was interrupted goes on.

    Args:
        folder: the official files, all in it, in one folder a camera, or in ``PNG`` folders.
        target: the file to write, ``nus<size>/nus<size>.npz`` in a data directory.
        size: height and width in pixels.
        workers: processes; by default as many as there are cores that this process may use.
        progress: wraps the images that are done, given how many there are to do.

    Raises:
        PreparationError: when an argument is wrong, or files cannot be used, or are none of NUS. All files are named,
            and the target is not written.
    """
    if size < 1:
        raise PreparationError(f"size must be at least 1, got {size}")
    if workers is not None and workers < 1:
        raise PreparationError(f"workers must be at least 1, got {workers}")
    place = prepared_path(Path(), size)
    if target.resolve().parts[-2:] != place.parts:
        raise PreparationError(
            f"images of {size}x{size} pixels are looked for in a file {place}, and would not be found in {target}"
        )
    sources = find_images(folder)
    folds = official_folds()
    _raise([f"{source.name} is no image of NUS: it has no fold" for source in sources if source.name not in folds])
    kept = kept_folder(target, size)
    waiting = [source for source in sources if not _small_path(kept, source).exists()]
    _raise(sorted(_prepare_small(waiting, kept, size, workers or usable_cores(), progress)))
    content = io.BytesIO()
    illuminants = np.array([source.illuminant for source in sources])
    with np.errstate(invalid="ignore"):  # of a zero illuminant, which is named when the file is checked
        illuminants /= np.linalg.norm(illuminants, axis=1, keepdims=True)
    np.savez_compressed(
        content,
        images=np.stack([np.load(_small_path(kept, source)) for source in sources]),
        illuminants=illuminants,
        names=np.array([source.name for source in sources]),
        cameras=np.array([source.camera for source in sources]),
        folds=np.array([folds[source.name] for source in sources], np.int8),
    )
    _check_and_write(content.getvalue(), target, size)
    shutil.rmtree(kept)
    return len(sources)


def kept_folder(target: Path, size: int) -> Path:
    """Return where small images are kept until the file ``target`` is written."""
    return target.with_name(f".{target.name}.{size}.partial")


def _prepare_small(
    waiting: Sequence[SourceImage],
    kept: Path,
    size: int,
    workers: int,
    progress: Callable[[Iterable[Any], int], Iterable[Any]],
) -> list[str]:
    """Prepare images into ``kept``, in processes; return what is wrong with some."""
    pool = ProcessPoolExecutor(workers)
    try:
        tasks = [pool.submit(partial(_prepare_one, kept=kept, size=size), source) for source in waiting]
        problems = [task.result() for task in progress(as_completed(tasks), len(tasks))]
    except BrokenProcessPool as error:
        raise PreparationError(
            "a process that prepares images was ended, perhaps for want of memory, of which each takes about 1 GB: "
            "give fewer workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)  # after an error, those that wait would all be prepared first
    return [problem for problem in problems if problem is not None]


def _small_path(kept: Path, source: SourceImage) -> Path:
    """Where the small image is kept: under another name once the image, or what is known of it, has changed."""
    status = source.path.stat()
    told = (source.path.resolve(), status.st_size, status.st_mtime_ns, source.chart, source.darkness, source.saturation)
    return kept / f"{source.name}-{hashlib.sha256(repr(told).encode()).hexdigest()[:12]}.npy"


def _prepare_one(source: SourceImage, kept: Path, size: int) -> str | None:
    """Prepare one image into ``kept``; return what is wrong with it."""
    try:
        content = io.BytesIO()
        np.save(content, prepare_image(source, size))
    except PreparationError as error:
        return str(error)
    except OSError as error:
        return f"{source.path} cannot be read: {error.strerror or error}"
    replace_file(_small_path(kept, source), content.getvalue())
    return None


def _check_and_write(content: bytes, target: Path, size: int) -> None:
    """Write the file once it has been read back as a user will: a wrong illuminant is named now, not in training."""
    trial = target.with_name(f".{target.name}.trial")
    replace_file(trial, content)
    try:
        read_prepared(trial, size)
        trial.replace(target)
    except ValueError as error:
        raise PreparationError(f"{target} was not written: {str(error).removeprefix(f'{trial}: ')}") from error
    finally:
        trial.unlink(missing_ok=True)
