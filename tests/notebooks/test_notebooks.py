"""Every notebook runs from the committed records, and really shows pictures."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from offset_equivariant.provenance import repository_root

NOTEBOOKS = sorted((repository_root() / "notebooks").glob("*.ipynb"))
#: Pictures that each notebook shows.
PICTURES = {
    "01_tables_and_curves": 3,
    "02_predictions_under_coloured_light": 2,
    "03_white_balance": 2,
    "04_inpainting": 3,
    "05_build_your_own_equivariant_network": 1,
}


def test_every_notebook_is_listed():
    assert {path.stem for path in NOTEBOOKS} == set(PICTURES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_shows_its_pictures(path: Path):
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(path.parent)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == PICTURES[path.stem]
    assert all(len(picture) > 10_000 for picture in pictures)
