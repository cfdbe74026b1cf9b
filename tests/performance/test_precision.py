"""Equivariance in each precision, as measured and as shown in docs/PERFORMANCE.md."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from offset_equivariant.groups import add_offset
from offset_equivariant.models.resnet import CifarResNet
from offset_equivariant.nn.families import Conventional, OffsetEquivariant
from offset_equivariant.performance.precision import (
    BEGIN,
    END,
    PRECISIONS,
    Subject,
    in_double_precision,
    inputs,
    measure,
    render_precision,
    with_statistics_of,
)
from offset_equivariant.reporting.tables import replace_block

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found():
    return json.loads((ROOT / "results" / "precision.json").read_text())


def test_document(found):
    text = (ROOT / "docs" / "PERFORMANCE.md").read_text(encoding="utf-8")
    wanted = replace_block(text, render_precision(found), BEGIN, END)
    assert text == wanted, "run scripts/measure_precision.py and commit docs/PERFORMANCE.md"


def test_measurements_are_of_committed_code_and_say_what_the_document_says(found):
    assert not found["dirty"] and len(found["commit"]) == 40
    assert len(found["errors"]) == 3
    for by_precision in found["errors"].values():
        assert list(by_precision) == list(PRECISIONS)
        errors = {name: of["equivariance"] for name, of in by_precision.items()}
        assert errors["float64"] < 1e-10 and errors["float32"] < 1e-3
        for low in ("float16", "bfloat16"):
            mixed = by_precision[f"{low} autocast"]
            assert mixed["equivariance"] < mixed["rounding"]
            assert mixed["equivariance"] < errors[f"all in {low}"] / 3


def subject(family):
    torch.manual_seed(0)
    images, offsets = inputs(4, 16)
    network = in_double_precision(CifarResNet(8, 10, family))
    return Subject(with_statistics_of(network, images), images, offsets)


def test_errors_are_relative_to_the_spread_of_the_scores():
    class Scores(nn.Module):
        """An equivariant one, but for an error of a tenth where its input is positive."""

        def forward(self, x):
            mean = x.mean((1, 2, 3))
            return mean[:, None] + torch.tensor([-2.0, 0.0, 2.0], dtype=x.dtype) + 0.1 * (mean > 0)[:, None]

    images = torch.zeros(1, 3, 2, 2, dtype=torch.float64) - 0.5
    offsets = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    errors = measure(Subject(Scores(), images, offsets), PRECISIONS["float64"])
    assert errors["equivariance"] == pytest.approx(0.1 / 2) and errors["rounding"] == 0


def test_precisions_differ_as_they_should():
    equivariant = subject(OffsetEquivariant(constraint="projection"))
    errors = {name: measure(equivariant, how) for name, how in PRECISIONS.items()}
    assert errors["float64"]["equivariance"] < 1e-10 and errors["float64"]["rounding"] == 0
    assert errors["float32"]["equivariance"] < 1e-4 and 0 < errors["float32"]["rounding"] < 1e-4
    rounding = [errors[f"{low} autocast"]["rounding"] for low in ("float16", "bfloat16")]
    # Three binary digits apart.
    assert 2**1 < rounding[1] / rounding[0] < 2**5
    assert errors["bfloat16 autocast"]["equivariance"] < errors["all in bfloat16"]["equivariance"] / 3


def test_conventional_networks_do_not_pass():
    assert measure(subject(Conventional()), PRECISIONS["float64"])["equivariance"] > 0.1


def test_statistics_are_those_of_the_images():
    images, _ = inputs(4, 16)
    network = with_statistics_of(in_double_precision(CifarResNet(8, 10, Conventional())), images)
    (norm,) = (module for name, module in network.named_modules() if name == "bn1")
    expected = network.conv1(images).mean((0, 2, 3))
    torch.testing.assert_close(norm.running_mean, expected, rtol=1e-10, atol=1e-10)
    assert norm.momentum == 0.1 and not norm.training
    assert add_offset(images, torch.zeros(3)).std() == pytest.approx(1, abs=1e-3)
