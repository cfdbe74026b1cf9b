from collections.abc import Callable
from typing import Any

import pytest

from offset_equivariant.reporting.records import Record

MakeRecord = Callable[..., Record]


@pytest.fixture
def make_record() -> MakeRecord:
    """A small valid record of Table 1; keywords replace fields."""

    def make(row: str = "original", seed: int = 0, **changes: Any) -> Record:
        values: dict[str, Any] = {
            "experiment": f"table1_{row}",
            "table": 1,
            "row": row,
            "dataset": "cifar10",
            "preset": "fast",
            "seed": seed,
            "complete": True,
            "metrics": {"error_percent": {"0.0": 25.0}},
            "n": 8,
            "parameters": 270410,
            "config": {"train": {"lr": 0.1}, "seed": seed},
            "config_sha256": "c0",
            "commit": "1111111122222222",
            "dirty": False,
            "training_commits": ["aaaaaaaabbbbbbbb"],
            "training_dirty": False,
            "steps": 100,
            "total_steps": 100,
            "checkpoint_sha256": "ff",
            "data_sha256": {"test": "d1", "train": "d0"},
            "environment": {"torch": "2"},
            "train_seconds": 10.0,
            "evaluate_seconds": 1.5,
        }
        return Record(**{**values, **changes})

    return make
