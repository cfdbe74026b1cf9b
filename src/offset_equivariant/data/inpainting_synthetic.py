"""Drawn building fronts: for smoke tests and machines without photos to complete, never for results."""

from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch

from offset_equivariant.data.labelled_images import Split, check_split, pixels_sha256
from offset_equivariant.data.photo_folders import check_photo_options
from offset_equivariant.data.photo_images import PhotoImages

_MINIMUM_SIZE = 16

Array = npt.NDArray[np.floating[Any]]
Colour = Array
"""Gamma-encoded sRGB in 0 to 1, (3,)."""


def drawn_facades(
    split: Split, n_train: int = 256, n_test: int = 32, shorter_side: int = 144, size: int = 128, seed: int = 0
) -> PhotoImages:
    """Building fronts with sky, roof, cornice, pavement, a door, and windows in regular rows and columns.

    Whoever sees the border of an image can tell the middle: the windows go on through it. Image i of a split depends on
    (seed, split, i) and its size alone.

    Args:
        split: ``"train"`` or ``"test"``.
        n_train: number of images of the training split.
        n_test: number of images of the test split.
        shorter_side: height and width of the training images in pixels.
        size: height and width of the test images in pixels, at least 16.
        seed: non-negative.

    Raises:
        ValueError: when an argument is out of range.
    """
    check_split(split)
    check_drawn_facades(n_train, n_test, shorter_side, size, seed)
    count, side = (n_train, shorter_side) if split == "train" else (n_test, size)
    number_of_split = get_args(Split).index(split)
    fronts = [_draw(np.random.default_rng([seed, number_of_split, number]), side) for number in range(count)]
    images = torch.from_numpy(np.stack(fronts)).permute(0, 3, 1, 2).contiguous()
    return PhotoImages(
        name="inpainting_synthetic",
        split=split,
        images=images,
        names=tuple(f"{split}_{number:04d}" for number in range(count)),
        sha256=pixels_sha256(images),
        synthetic=True,
    )


def check_drawn_facades(
    n_train: int = 256, n_test: int = 32, shorter_side: int = 144, size: int = 128, seed: int = 0
) -> None:
    """Check the arguments of :func:`drawn_facades`.

    Raises:
        ValueError: when one is out of range.
    """
    given = (("n_train", n_train, 1), ("n_test", n_test, 1), ("size", size, _MINIMUM_SIZE), ("seed", seed, 0))
    for name, value, minimum in given:
        if value < minimum:
            raise ValueError(f"{name} must be at least {minimum}, got {value}")
    check_photo_options(shorter_side, size)


@dataclass(frozen=True)
class _Building:
    """Places in parts of the image, down or to the right, and colours."""

    floors: int
    columns: int
    eaves: float
    ground: float
    left: float
    right: float
    wall: Colour
    trim: Colour
    accent: Colour

    @property
    def height(self) -> float:
        """Of a floor."""
        return (self.ground - self.eaves) / self.floors

    @property
    def width(self) -> float:
        """Of a column of windows, with the wall between it and the next."""
        return (self.right - self.left) / self.columns


@dataclass(frozen=True)
class _Windows:
    """What the windows of one building have in common.

    Attributes:
        trim: colour of the surround and of the sill.
        frame: colour of the frame and of the bars.
        glass: colour of the panes, (H, W, 3), different from window to window.
        shutter: colour of the shutters, or None.
        panes: in a row and in a column of a window.
        surround: its width, in parts of a window's.
    """

    trim: Colour
    frame: Colour
    glass: Array
    shutter: Colour | None
    panes: tuple[int, int]
    surround: float


def _draw(rng: np.random.Generator, side: int) -> npt.NDArray[np.uint8]:
    """One building front, uint8 (side, side, 3)."""
    building = _building(rng)
    windows = _windows(rng, building, side)
    canvas = _sky(rng, side)
    _paint_walls(canvas, building, rng)

    tops = building.eaves + building.height * (np.arange(building.floors) + rng.uniform(0.2, 0.28))
    rows = _intervals(tops, building.height * rng.uniform(0.5, 0.62))
    share = rng.uniform(0.36, 0.52)
    starts = building.left + building.width * (np.arange(building.columns) + (1 - share) / 2)
    columns = _intervals(starts, building.width * share)
    door = int(rng.integers(building.columns))
    _paint_windows(canvas, rows[:-1], columns, windows)
    _paint_windows(canvas, rows[-1:], np.delete(columns, door, 0), windows)
    _paint_door(canvas, float(tops[-1]), columns[door], building)

    canvas += rng.normal(0, 0.012, canvas.shape)
    return np.asarray((canvas * 255).round().clip(0, 255), np.uint8)


def _building(rng: np.random.Generator) -> _Building:
    return _Building(
        floors=int(rng.integers(3, 6)),
        columns=int(rng.integers(3, 7)),
        eaves=rng.uniform(0.14, 0.2),
        ground=rng.uniform(0.92, 0.97),
        left=rng.uniform(-0.1, 0.1),
        right=rng.uniform(0.9, 1.1),
        wall=_wall_colour(rng),
        trim=rng.uniform(0.75, 0.95) * np.array([1, 0.98, 0.93]),
        accent=rng.uniform(0.2, 0.5) * rng.uniform(0.5, 1.2, 3),
    )


def _windows(rng: np.random.Generator, building: _Building, side: int) -> _Windows:
    lightness = rng.uniform(0.08, 0.5, (building.floors, building.columns))
    return _Windows(
        trim=building.trim,
        frame=building.trim if rng.random() < 0.5 else building.accent,
        glass=_by_cell(lightness, building, side)[..., None] * rng.uniform(0.85, 1.15, 3),
        shutter=building.accent if rng.random() < 0.35 else None,
        panes=(int(rng.integers(2, 4)), int(rng.integers(2, 5))),
        surround=rng.uniform(0.05, 0.15),
    )


def _paint_walls(canvas: Array, building: _Building, rng: np.random.Generator) -> None:
    """Paint what is neither window nor door: roof, walls, courses, cornice, and the pavement in front."""
    across, eaves, ground = [[building.left, building.right]], building.eaves, building.ground
    _paint(canvas, [[rng.uniform(0.02, 0.08), eaves]], _widened(np.array(across), -0.02), _roof_colour(rng))
    _paint(canvas, [[eaves, ground]], across, _texture(rng, len(canvas))[..., None] * building.wall)
    if rng.random() < 0.6:
        courses = _intervals(eaves + building.height * np.arange(1, building.floors), 0.012)
        _paint(canvas, courses, across, building.trim)
    ground_floor = [[ground - building.height, ground]]
    _paint(canvas, ground_floor, across, building.wall * rng.uniform(0.65, 1), opacity=0.8)
    _paint(canvas, [[eaves, eaves + 0.03]], _widened(np.array(across), 0.02), building.trim)
    _paint(canvas, [[eaves + 0.03, eaves + 0.045]], across, building.wall * 0.5, opacity=0.6)  # the cornice's shadow
    _paint(canvas, [[ground, 1]], [[0, 1]], rng.uniform(0.3, 0.6) * np.ones(3))


def _paint_windows(canvas: Array, rows: Array, columns: Array, windows: _Windows) -> None:
    """Paint a window wherever one of ``rows`` meets one of ``columns``, both (K, 2)."""
    height, width = np.ptp(rows[0]), np.ptp(columns[0])
    if windows.shutter is not None:
        beside = np.concatenate(
            [
                _intervals(columns[:, 0] - 0.4 * width, 0.35 * width),
                _intervals(columns[:, 1] + 0.05 * width, 0.35 * width),
            ]
        )
        _paint(canvas, rows, beside, windows.shutter)
    margin = windows.surround * width
    _paint(canvas, _widened(rows, margin), _widened(columns, margin), windows.trim)
    _paint(canvas, _intervals(rows[:, 1] + margin, 0.06 * height), _widened(columns, 2 * margin), windows.trim)
    _paint(canvas, _intervals(rows[:, 1] + margin + 0.06 * height, 0.06 * height), columns, np.zeros(3), opacity=0.3)
    _paint(canvas, rows, columns, windows.frame)
    across, down = windows.panes
    _paint(canvas, _divided(rows, down), _divided(columns, across), windows.glass)


def _paint_door(canvas: Array, top: float, columns: Array, building: _Building) -> None:
    margin, middle = 0.1 * float(np.ptp(columns)), float(columns.mean())
    _paint(canvas, [[top - margin, building.ground]], _widened(columns[None], margin), building.trim)
    _paint(canvas, [[top, building.ground]], [columns], building.accent)
    _paint(canvas, [[top, building.ground]], [[middle - 0.004, middle + 0.004]], building.accent * 0.4)


def _paint(canvas: Array, rows: npt.ArrayLike, columns: npt.ArrayLike, colour: Array, opacity: float = 1) -> None:
    """Lay rectangles, all of ``rows`` by all of ``columns``, over the canvas; edges are smooth.

    ``rows`` and ``columns`` are (K, 2), from and to; ``colour`` is (3,) or (H, W, 3).
    """
    side = len(canvas)
    cover = opacity * np.outer(_coverage(rows, side), _coverage(columns, side))
    canvas += cover[..., None] * (colour - canvas)


def _coverage(intervals: npt.ArrayLike, side: int) -> Array:
    """How much of each of ``side`` pixels in a line lies inside the intervals, which do not overlap."""
    start, end = np.asarray(intervals).T[..., None] * side
    pixel = np.arange(side)
    return np.asarray((np.minimum(end, pixel + 1) - np.maximum(start, pixel)).clip(0, 1).sum(0))


def _intervals(starts: Array, length: float) -> Array:
    return np.stack([starts, starts + length], 1)


def _widened(intervals: Array, margin: float) -> Array:
    return np.asarray(intervals + np.array([-margin, margin]))


def _divided(intervals: Array, parts: int) -> Array:
    """The panes in each interval, with bars around and between them: (K * parts, 2)."""
    length = np.ptp(intervals[0])
    bar = 0.2 * length / (parts + 1)
    pane = (length - bar * (parts + 1)) / parts
    starts = intervals[:, :1] + bar + (pane + bar) * np.arange(parts)
    return _intervals(starts.ravel(), pane)


def _by_cell(values: Array, building: _Building, side: int) -> Array:
    """Values by floor and column, spread over the pixels of each and to the borders, (side, side)."""
    centre = (np.arange(side) + 0.5) / side
    floor = ((centre - building.eaves) / building.height).clip(0, building.floors - 1).astype(int)
    column = ((centre - building.left) / building.width).clip(0, building.columns - 1).astype(int)
    return np.asarray(values[np.ix_(floor, column)])


def _sky(rng: np.random.Generator, side: int) -> Array:
    """From a bluish or grey zenith to a lighter horizon, (side, side, 3)."""
    zenith = rng.uniform(0.55, 0.8) * np.array([rng.uniform(0.6, 1), rng.uniform(0.85, 1), 1.15])
    down = np.linspace(0, 1, side)[:, None, None]
    return np.broadcast_to(zenith + down * (0.95 - zenith), (side, side, 3)).copy()


def _texture(rng: np.random.Generator, side: int) -> Array:
    """Light and stains on a wall, and on some the joints between its stones, around 1, (side, side)."""
    row, column = np.mgrid[:side, :side] / side
    texture = 1 + rng.uniform(-0.15, 0.15) * (row - 0.5) + rng.uniform(-0.25, 0.25) * (column - 0.5)
    for _ in range(4):
        frequency, phase = rng.uniform(-20, 20, 2), rng.uniform(0, 2 * np.pi)
        texture += 0.012 * np.cos(frequency[0] * row + frequency[1] * column + phase)
    if rng.random() < 0.5:
        stones = int(rng.integers(20, 40))
        joints = _coverage(_intervals(np.arange(stones) / stones, 0.25 / stones), side)
        texture -= rng.uniform(0.05, 0.15) * joints[:, None]
    return np.asarray(texture)


def _wall_colour(rng: np.random.Generator) -> Colour:
    """Mostly sandstone, brick or render: never bluer than green, nor greener than red, by much."""
    red, green, blue = rng.uniform(0.5, 0.9), rng.uniform(0.7, 1.02), rng.uniform(0.65, 1.05)
    return red * np.array([1, green, green * blue])


def _roof_colour(rng: np.random.Generator) -> Colour:
    return rng.uniform(0.2, 0.45) * np.array([rng.uniform(1, 1.6), 1, rng.uniform(0.9, 1.1)])
