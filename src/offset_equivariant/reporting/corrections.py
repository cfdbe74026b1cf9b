"""Figure 6: one image under growing saturation, corrected by the estimates of several networks."""

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
class CorrectionPanel:
    """An image under several illuminants, and what is left of their colour after each correction.

    Attributes:
        name: Names of the data set and of the image.
        saturations: Saturation of each column.
        images: Row title -> sRGB images to show, shape (saturations, height, width, 3), uint8. The first row is the
            input, and the last the correction by the true illuminant.
        errors: Row title -> reproduction angular error of each image in degrees, shape (saturations,), for the rows
            that have one.
        checkpoint_sha256: Row title -> digest of the network's weights.

    Raises:
        ValueError: If the shapes do not fit together.
    """

    name: str
    saturations: tuple[float, ...]
    images: dict[str, NDArray[np.uint8]]
    errors: dict[str, NDArray[np.float32]]
    checkpoint_sha256: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the shapes."""
        columns = len(self.saturations)
        for row, images in self.images.items():
            if images.ndim != 4 or len(images) != columns or images.shape[3] != 3 or images.dtype != np.uint8:
                raise ValueError(f"images of {row!r} must be uint8 of shape ({columns}, height, width, 3)")
        for row, errors in self.errors.items():
            if row not in self.images or errors.shape != (columns,):
                raise ValueError(f"errors of {row!r} must have shape ({columns},), and images beside them")


def write_corrections(panel: CorrectionPanel, path: Path) -> None:
    """Write ``panel`` to an ``.npz`` file in one step; equal panels give equal bytes."""
    described: dict[str, Any] = {name: getattr(panel, name) for name in ("name", "saturations", "checkpoint_sha256")}
    described |= {"rows": list(panel.images), "measured": list(panel.errors)}
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        allow_pickle=False,
        images=np.stack(list(panel.images.values())),
        errors=np.stack(list(panel.errors.values())).astype(np.float32),
        description=np.array(json.dumps(described)),
    )
    replace_file(path, buffer.getvalue())


def read_corrections(path: Path) -> CorrectionPanel:
    """Read what :func:`write_corrections` wrote."""
    with np.load(path, allow_pickle=False) as members:
        described = json.loads(str(members["description"]))
        return CorrectionPanel(
            name=described["name"],
            saturations=tuple(described["saturations"]),
            images=dict(zip(described["rows"], members["images"], strict=True)),
            errors=dict(zip(described["measured"], members["errors"], strict=True)),
            checkpoint_sha256=described["checkpoint_sha256"],
        )


def figure6(panel: CorrectionPanel) -> Figure:
    """Draw a row for the input and for each correction, a column for each saturation, errors below the images."""
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
                axes.set_ylabel(title, fontsize=11)
            if title in panel.errors:
                axes.set_xlabel(f"{panel.errors[title][column]:.1f}°", fontsize=10)
    return figure
