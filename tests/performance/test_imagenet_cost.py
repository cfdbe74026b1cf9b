import json
from pathlib import Path

import pytest
import torch

from offset_equivariant.performance import imagenet_cost

COSTS = Path(__file__).parents[2] / "results" / "costs"


def test_operations_are_those_of_resnet_50():
    found = imagenet_cost.operations("original")
    # torchvision gives 4.089 * 10^9 multiplications with an addition each.
    assert found["forward"] == pytest.approx(2 * 4.089, rel=1e-3)
    # Backward as many for the weights and for the inputs, but for the images: 7 x 7 taps, 3 to 64, at 112 x 112.
    first = 2 * 49 * 3 * 64 * 112 * 112 / 1e9
    assert found["training"] == pytest.approx(3 * found["forward"] - first, rel=1e-3)


def test_hours_by_hand():
    found = {
        "operations": {
            "original": {"forward": 8.0, "training": 24.0},
            "equivariant": {"forward": 7.0, "training": 21.0},
        },
        "step_seconds": {"original": 2.0, "equivariant": 3.0},
    }
    hours = imagenet_cost.gpu_hours(found)
    training = 90 * 1_281_167 * 24e9 / 20e12 / 3600
    assert hours["original"]["training"] == pytest.approx(training)
    assert hours["equivariant"]["training"] == pytest.approx(1.5 * training)
    assert hours["original"]["evaluation"] == pytest.approx(11 * 50_000 * 8e9 / 20e12 / 3600)


def test_steps_are_timed(monkeypatch):
    # Small networks in place of two ResNet-50s, which take seconds a step.
    monkeypatch.setattr(imagenet_cost, "build", lambda network: Small(8 if network == "original" else 256))
    found = imagenet_cost.step_seconds(4, side=16, rounds=3)
    assert set(found) == {"original", "equivariant"} and 0 < found["original"] < found["equivariant"]


class Small(torch.nn.Sequential):
    def __init__(self, width: int) -> None:
        layers = [torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, width * 16), torch.nn.Linear(width * 16, 1000)]
        super().__init__(*layers)


def test_the_committed_estimate_is_what_was_measured():
    found = json.loads((COSTS / "imagenet.json").read_text())
    assert not found["dirty"]
    assert (COSTS / "imagenet.md").read_text() == imagenet_cost.render_costs(found)


def test_cores_by_hand_and_what_is_said_of_them():
    found = json.loads((COSTS / "imagenet.json").read_text())
    found |= {"step_seconds": {"original": 2.0, "equivariant": 3.0}, "operations": dict(found["operations"])}
    found["operations"]["original"] = {"forward": 8.0, "training": 25.0}
    found.pop("large", None)
    before = imagenet_cost.render_costs(found)  # a file of before there were large images
    assert "cores in training" not in before and f"| decoding | {found['reading']['decoding']:.0f} |" in before
    found["large"] = {"images": "large ones", "reading": {"decoding": 300.0, "training": 160.0, "evaluation": 200.0}}
    cores = imagenet_cost.cores_a_gpu(found)
    # 20 TFLOP/s are 800 images a second in training, 2,500 in evaluation.
    assert cores["original"] == pytest.approx({"training": 800 / 160, "evaluation": 2500 / 200})
    assert cores["equivariant"] == pytest.approx({"training": 800 / 1.5 / 160, "evaluation": 2500 / 1.5 / 200})
    said = imagenet_cost.render_costs(found)
    assert (
        "takes 800 images a second" in said and "5.0 such cores in training and 12.5 in evaluation (original)" in said
    )
    assert f"| training | {found['reading']['training']:.0f} | 160 |" in said and "large ones |" in said
