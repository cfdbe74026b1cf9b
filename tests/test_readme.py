"""What the README shows is true: its example runs, its commands and files exist."""

import json
import re
import shlex
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import nn

import offset_equivariant as oe
from offset_equivariant.composition import checked_run
from offset_equivariant.nn import check_equivariance
from offset_equivariant.performance.imagenet_cost import GPU, SUSTAINED_TFLOPS, gpu_hours
from offset_equivariant.provenance import repository_root

ROOT = repository_root()
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_is_equivariant(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.S)
    names: dict[str, Any] = {}
    exec(example, names)
    assert "float64" in capsys.readouterr().out
    network = names["net"]
    assert check_equivariance(network.features, (2, 3, 32, 32), output="mean").worst() < 1e-12
    srgb = torch.rand(2, 3, 32, 32)
    assert network(srgb).shape == (2, 10)


def test_what_is_said_of_inference():
    """Behind the conversion of colours, with BatchNormReLU, a network can be folded."""
    said = "`oe.nn.fuse_for_inference(net.features)` folds the running statistics of `BatchNormReLU`"
    assert said in " ".join(README.split())
    features = nn.Sequential(oe.nn.Conv2d(3, 33, 3, padding=1), oe.nn.BatchNormReLU(33), oe.nn.MaxPool2d(2))
    images = torch.rand(2, 3, 8, 8)
    features(images)
    folded = oe.nn.fuse_for_inference(features)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    torch.testing.assert_close(folded(images), features.eval()(images), rtol=0, atol=1e-5)


def compose_words(words: list[str]) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", words)


def test_the_estimate_of_gpu_hours_is_the_committed_one():
    found = json.loads((ROOT / "results" / "costs" / "imagenet.json").read_text())
    hours = gpu_hours(found)
    text = " ".join(README.split())
    assert f"{hours['original']['training']:.0f} GPU-hours on an A100 for the original network" in text
    assert f"and {hours['equivariant']['training']:.0f} for the equivariant one" in text
    assert f"an assumed {SUSTAINED_TFLOPS:.0f} TFLOP/s" in text and "A100" in GPU


def test_commands_experiments_and_links_exist():
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"`?make ([a-z0-9-]+)", README)) <= targets
    experiments = {path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml")}
    shown = set(re.findall(r"`(table[1-4]_[a-z_]+)`", README))
    assert shown == {name for name in experiments if name.startswith("table")}
    commands = re.findall(r"^(?:python|torchrun .*) -m offset_equivariant ((?:.*\\\n)*.*)$", README, re.M)
    assert len(commands) >= 5
    for command in commands:
        words = shlex.split(command.replace("\\\n", " "), comments=True)
        # A multirun's words, each with its first value.
        checked_run(compose_words([word.split(",")[0] for word in words if word != "-m"]))
    links = re.findall(r"\]\(((?!http)[^)#]+)\)", README)
    assert [link for link in links if not (ROOT / link).exists()] == []
