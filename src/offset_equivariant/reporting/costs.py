"""What the strategies of a table cost beside what they are good for, as measured by ``scripts/measure_costs.py``.

``costs/table<N>.json`` below ``results``, or ``costs.json`` below its ablations, has the times of one device, measured
side by side: the seconds that the trainings of the records took would not do, since they ran at various times, beside
other work.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from offset_equivariant.storage import replace_file

#: Of a row, as a table's CSV file has them.
COST_COLUMNS = ("extra_parameters", "inference_ms", "step_ms", "extra_training_percent", "search_percent")


@dataclass(frozen=True)
class Cost:
    """What one strategy costs.

    Attributes:
        parameters: of all networks that an image goes through in inference.
        inference_ms: median time of one image, in batches, from linear RGB to posteriors.
        step_ms: median time of a training step.
        steps: of the training.
        beforehand_seconds: time before the first step: balancing the training images, training what balances them.
        search_steps: of all the trainings that chose the strategy's own settings.
    """

    parameters: int
    inference_ms: float
    step_ms: float
    steps: int
    beforehand_seconds: float
    search_steps: int = 0

    @property
    def training_seconds(self) -> float:
        """Time of the whole training, without the search before it."""
        return self.beforehand_seconds + self.steps * self.step_ms / 1000

    @property
    def search_seconds(self) -> float:
        """Time of the trainings that chose the strategy's own settings."""
        return self.search_steps * self.step_ms / 1000


@dataclass(frozen=True)
class Costs:
    """What the strategies of a table cost on one device, by row, and what measured it.

    ``details`` has minima, maxima and the environment, for whoever looks into the file.
    """

    device: str
    threads: int
    commit: str
    dirty: bool
    rows: Mapping[str, Cost]
    details: Mapping[str, Any]

    def extra_parameters(self, row: str, baseline: str) -> int:
        """Return how many more parameters a row's networks have than the baseline's."""
        return self.rows[row].parameters - self.rows[baseline].parameters

    def extra_training_percent(self, row: str, baseline: str) -> float:
        """Return by how much a row's training takes longer than the baseline's, in per cent."""
        return 100 * (self.rows[row].training_seconds / self.rows[baseline].training_seconds - 1)

    def search_percent(self, row: str, baseline: str) -> float:
        """Return the time of the search for a row's own settings, in per cent of the baseline's training."""
        return 100 * self.rows[row].search_seconds / self.rows[baseline].training_seconds

    def values(self, row: str, baseline: str) -> tuple[int | float | None, ...]:
        """Return a row's values in the order of :data:`COST_COLUMNS`; None for one that was not measured."""
        if row not in self.rows:
            return (None,) * len(COST_COLUMNS)
        cost = self.rows[row]
        extra = self.extra_parameters(row, baseline), self.extra_training_percent(row, baseline)
        return extra[0], cost.inference_ms, cost.step_ms, extra[1], self.search_percent(row, baseline)


def tabulate_costs(costs: Costs, titles: Mapping[str, str], baseline: str) -> tuple[str, list[list[str]]]:
    """Return a caption, and the cells of a table with its header, of those rows whose cost was measured.

    Args:
        costs: what was measured.
        titles: row -> its name for readers, in the order of the table.
        baseline: row that the others are compared with.
    """
    lines = [["Strategy", "Extra parameters", "ms per image, inference", "ms per training step"]]
    lines[0] += ["Extra training time", "Search for its settings"]
    for row in (row for row in titles if row in costs.rows):
        cost = costs.rows[row]
        extra = [f"{costs.extra_parameters(row, baseline):+,}"]
        extra.append(f"{round(costs.extra_training_percent(row, baseline)):+d} %")
        extra.append(f"{costs.search_percent(row, baseline):+.0f} %" if cost.search_steps else "–")
        if row == baseline:
            extra = ["–", "–", "–"]
        lines.append([titles[row], extra[0], f"{cost.inference_ms:.2f}", f"{cost.step_ms:.0f}", *extra[1:]])
    dirty = ", with uncommitted changes" if costs.dirty else ""
    caption = (
        f"Cost of the strategies, timed side by side on {costs.device}, {costs.threads} threads, commit "
        f"{costs.commit[:8]}{dirty}. Inference goes from linear RGB to posteriors, balancing included, in batches. "
        "Training time includes what comes before the first step: balancing the training images, and training the "
        "network that balances them; differences of a few per cent are within the spread of the measurements. The last "
        "column is the time of the trainings that chose a strategy's own settings, counted in steps; the recipe that "
        "all rows share was searched for with the original and the equivariant network, without a strategy. Both in "
        "per cent of the time of the row without a strategy:"
    )
    return caption, lines


def costs_path(results: Path, table: int | None = None) -> Path:
    """Return where the costs of a table are kept, or, without one, those of a folder of ablations."""
    return results / "costs.json" if table is None else results / "costs" / f"table{table}.json"


def write_costs(costs: Costs, path: Path) -> Path:
    """Write costs, and return the path."""
    replace_file(path, (json.dumps(asdict(costs), indent=1) + "\n").encode())
    return path


def read_costs(results: Path, table: int | None = None) -> Costs | None:
    """Read the costs at :func:`costs_path`; None where none were measured.

    Raises:
        ValueError: if the file is not what :func:`write_costs` writes; the message names it.
    """
    path = costs_path(results, table)
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Costs(**values | {"rows": {name: Cost(**row) for name, row in values["rows"].items()}})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: is not a file of costs ({error}); run make costs") from error
