"""Figures 6 and 8: one image under growing saturation, and what several methods make of it."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from offset_equivariant.storage import replace_file


@dataclass(frozen=True)
class ImagePanel:
    """An image under several illuminants, and the images that methods make of it.

    Attributes:
        name: Names of the data set and of the image.
        saturations: Saturation of each column.
        images: Row title -> sRGB images to show, shape (saturations, height, width, 3), uint8. The first row is the
            input, and the last what would be perfect.
        values: Row title -> a measure of each image, shape (saturations,), for the rows that have one.
        unit: Of the measure, as it is to stand behind a number.
        checkpoint_sha256: Row title -> digest of the network's weights.

    Raises:
        ValueError: If the shapes do not fit together.
    """

    name: str
    saturations: tuple[float, ...]
    images: dict[str, NDArray[np.uint8]]
    values: dict[str, NDArray[np.float32]]
    unit: str
    checkpoint_sha256: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the shapes."""
        columns = len(self.saturations)
        for row, images in self.images.items():
            if images.ndim != 4 or len(images) != columns or images.shape[3] != 3 or images.dtype != np.uint8:
                raise ValueError(f"images of {row!r} must be uint8 of shape ({columns}, height, width, 3)")
        for row, values in self.values.items():
            if row not in self.images or values.shape != (columns,):
                raise ValueError(f"values of {row!r} must have shape ({columns},), and images beside them")


def write_image_panel(panel: ImagePanel, path: Path) -> None:
    """Write ``panel`` to an ``.npz`` file in one step; equal panels give equal bytes."""
    described: dict[str, Any] = {
        name: getattr(panel, name) for name in ("name", "saturations", "unit", "checkpoint_sha256")
    }
    described |= {"rows": list(panel.images), "measured": list(panel.values)}
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        allow_pickle=False,
        images=np.stack(list(panel.images.values())),
        values=np.stack(list(panel.values.values())).astype(np.float32),
        description=np.array(json.dumps(described)),
    )
    replace_file(path, buffer.getvalue())


def read_image_panel(path: Path) -> ImagePanel:
    """Read what :func:`write_image_panel` wrote."""
    with np.load(path, allow_pickle=False) as members:
        described = json.loads(str(members["description"]))
        return ImagePanel(
            name=described["name"],
            saturations=tuple(described["saturations"]),
            images=dict(zip(described["rows"], members["images"], strict=True)),
            values=dict(zip(described["measured"], members["values"], strict=True)),
            unit=described["unit"],
            checkpoint_sha256=described["checkpoint_sha256"],
        )


def image_figure(panel: ImagePanel) -> Figure:
    """Draw a row for the input and for each method, a column for each saturation, values below the images."""
    rows, columns = len(panel.images), len(panel.saturations)
    figure = Figure(figsize=(1.9 * columns + 0.5, 2.1 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    figure.suptitle(panel.name, x=0.99, ha="right", fontsize=9, color="0.3")
    for row, (title, images) in enumerate(panel.images.items()):
        for column, axes in enumerate(grid[row]):
            axes.imshow(images[column], interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if row == 0:
                axes.set_title(f"S = {panel.saturations[column]:.1f}", fontsize=12)
            if column == 0:
                axes.set_ylabel(title.replace(", ", ",\n"), fontsize=11)
            if title in panel.values:
                axes.set_xlabel(f"{panel.values[title][column]:.1f}{panel.unit}", fontsize=10)
    return figure
