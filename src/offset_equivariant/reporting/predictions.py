"""Figure 3: what two networks say about the same images as the illuminant changes."""

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from offset_equivariant.storage import replace_file

_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7")
_OTHER = "#D9D9D9"
_TOP_CLASSES = 3


@dataclass(frozen=True)
class PredictionPanel:
    """Images under several illuminants, and the posteriors of each network.

    Attributes:
        images: sRGB images, shape (images, saturations, height, width, 3), uint8 or floating point in [0, 1].
        saturations: Saturation of each column.
        numbers: Number of each image among the test images.
        labels: True class of each image.
        classes: Names of the classes.
        posteriors: Name of a network -> its posteriors, shape (images, saturations, classes).
        checkpoint_sha256: Name of a network -> digest of its weights.

    Raises:
        ValueError: If the shapes do not fit together.
    """

    images: NDArray[Any]
    saturations: tuple[float, ...]
    numbers: tuple[int, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    posteriors: dict[str, NDArray[np.float32]]
    checkpoint_sha256: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the shapes."""
        grid = (len(self.numbers), len(self.saturations))
        if self.images.shape[:2] != grid or self.images.ndim != 5 or self.images.shape[-1] != 3:
            raise ValueError(f"images must have the shape {grid} + (height, width, 3), got {self.images.shape}")
        if len(self.labels) != len(self.numbers):
            raise ValueError(
                f"labels has {len(self.labels)} entries for {len(self.numbers)} numbers; give one per image"
            )
        for network, posterior in self.posteriors.items():
            if posterior.shape != (*grid, len(self.classes)):
                raise ValueError(
                    f"posteriors of {network!r} must have the shape {(*grid, len(self.classes))}, got {posterior.shape}"
                )


def write_panel(panel: PredictionPanel, path: Path) -> None:
    """Write ``panel`` to an ``.npz`` file in one step; equal panels give equal bytes."""
    names = ("saturations", "numbers", "labels", "classes", "checkpoint_sha256")
    described: dict[str, Any] = {name: getattr(panel, name) for name in names}
    described["networks"] = list(panel.posteriors)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        allow_pickle=False,
        images=panel.images,
        posteriors=np.stack(list(panel.posteriors.values())).astype(np.float32),
        description=np.array(json.dumps(described)),
    )
    replace_file(path, buffer.getvalue())


def read_panel(path: Path) -> PredictionPanel:
    """Read what :func:`write_panel` wrote."""
    with np.load(path, allow_pickle=False) as members:
        described = json.loads(str(members["description"]))
        return PredictionPanel(
            images=members["images"],
            saturations=tuple(described["saturations"]),
            numbers=tuple(described["numbers"]),
            labels=tuple(described["labels"]),
            classes=tuple(described["classes"]),
            posteriors=dict(zip(described["networks"], members["posteriors"], strict=True)),
            checkpoint_sha256=described["checkpoint_sha256"],
        )


def figure3(panel: PredictionPanel) -> Figure:
    """Draw each image under each illuminant, and below it the top three classes of each network as bars.

    A bar's length is the posterior, 1 reaching to the column of numbers. Frames, and the bars of the true class, have
    the network's colour; other bars are grey.
    """
    rows, columns, networks = len(panel.numbers), len(panel.saturations), len(panel.posteriors)
    figure = Figure(figsize=(2.0 * columns + 0.4, rows * (1.9 + 0.72 * networks) + 0.7))
    outer = figure.add_gridspec(rows, columns, left=0.045, right=0.99, bottom=0.015, top=0.93, hspace=0.09, wspace=0.07)
    for row in range(rows):
        for column in range(columns):
            heights = [1.9, *[0.66] * networks]
            inner = outer[row, column].subgridspec(1 + networks, 1, height_ratios=heights, hspace=0.07)
            axes = figure.add_subplot(inner[0])
            axes.imshow(panel.images[row, column], interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if row == 0:
                axes.set_title(f"S = {panel.saturations[column]:.1f}", fontsize=12)
            if column == 0:
                axes.set_ylabel(f"{panel.classes[panel.labels[row]]} (test image {panel.numbers[row]})", fontsize=11)
            for index, posteriors in enumerate(panel.posteriors.values()):
                bars = figure.add_subplot(inner[1 + index])
                _draw_bars(bars, panel, posteriors[row, column], panel.labels[row], _COLOURS[index % len(_COLOURS)])
    for index, network in enumerate(panel.posteriors):
        colour = _COLOURS[index % len(_COLOURS)]
        figure.text(0.045 + 0.2 * index, 0.972, f"■ {network}", fontsize=12, color=colour)
    note = "posterior of the top three classes; coloured: true class, grey: others"
    figure.text(0.99, 0.972, note, fontsize=11, ha="right", color="0.3")
    return figure


def _draw_bars(axes: Axes, panel: PredictionPanel, posterior: NDArray[np.float32], label: int, colour: str) -> None:
    top = np.argsort(-posterior, kind="stable")[:_TOP_CLASSES]
    colours = [colour if index == label else _OTHER for index in top]
    axes.barh(range(len(top)), posterior[top], height=0.84, color=colours, alpha=0.75)
    for place, index in enumerate(top):
        weight = "bold" if index == label else "normal"
        axes.text(0.02, place, panel.classes[index], va="center", fontsize=9.5, fontweight=weight)
        axes.text(1.22, place, f"{posterior[index]:.2f}", va="center", ha="right", fontsize=9, color="0.25")
    axes.set(xlim=(0, 1.24), ylim=(_TOP_CLASSES - 0.5, -0.5), xticks=[], yticks=[])
    axes.spines[:].set(color=colour, linewidth=0.9)
