"""The table and the curves that a tracker is given are those of the records."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from offset_equivariant.reporting import summary
from offset_equivariant.reporting.records import save_evaluation
from offset_equivariant.reporting.summary import track_table


class Watcher:
    def __init__(self):
        self.tables, self.plots = {}, {}

    def table(self, name, columns, rows):
        self.tables[name] = [dict(zip(columns, row, strict=True)) for row in rows]

    def curves(self, name, xs, ys, x_name, title):
        self.plots[name] = (xs, ys)


def test_table1_and_the_saturations_that_all_curves_have(make_record, tmp_path):
    errors = {"original": {"0.0": 25.0, "0.5": 50.0, "0.9": 75.0}, "equivariant": {"0.0": 12.5, "0.9": 37.5}}
    for row, by_saturation in errors.items():
        wrong = {s: np.arange(8) < value * 8 / 100 for s, value in by_saturation.items()}
        save_evaluation(tmp_path, make_record(row, metrics={"error_percent": by_saturation}), {"error": wrong})
    watcher = Watcher()
    track_table(watcher, tmp_path, 1)
    rows = {row["row"]: row for row in watcher.tables["table1"]}
    assert rows["original"]["S0.5_ours"] == 50.0 and rows["original"]["S0.9_paper"] == 29.0
    assert rows["equivariant"]["S0.0_ours"] == 12.5 and rows["equivariant"]["S0.9_minus_baseline"] == -37.5
    assert watcher.plots["figure2"] == ([0.0, 0.9], {"Original": [25.0, 75.0], "Equivariant": [12.5, 37.5]})


def test_a_table_that_is_not_known_is_refused(make_record, tmp_path):
    with pytest.raises(ValueError, match="there is no table 7, only 1"):
        track_table(Watcher(), tmp_path, replace(make_record(), table=7).table)


def test_training_and_evaluation_import_nothing_that_draws():
    """Of this package: torchmetrics imports matplotlib on its own, where it is installed."""
    package = Path(summary.__file__).parents[1]
    drawing = [
        path for path in package.rglob("*.py") if re.search(r"^(import|from) matplotlib", path.read_text(), re.M)
    ]
    names = {".".join(path.relative_to(package.parent).with_suffix("").parts) for path in drawing}
    assert "offset_equivariant.reporting.figures" in names
    code = "import sys, offset_equivariant.experiment; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "offset_equivariant.reporting.summary" in loaded and not names & set(loaded)
