"""ResNet-50 from its configuration: what is built, what is refused, and a run from training to record."""

import copy
from typing import get_args, get_type_hints

import pytest
import torch
from torch import nn

from offset_equivariant import building
from offset_equivariant.config import ConfigError, ModelConfig, experiment_config
from offset_equivariant.experiment import run_experiment
from offset_equivariant.models.resnet import RESNETS, Bottleneck
from offset_equivariant.nn.constraint import ConstrainedWeight
from offset_equivariant.reporting.tracking import NullTracker
from offset_equivariant.runs import Run

MODELS = ("resnet50_original", "resnet50_equivariant", "resnet50_equivariant_relative")


@pytest.fixture
def configured(make_settings):
    """The configuration of a model of Table 2 on drawn images."""
    return lambda model, *words: experiment_config(
        make_settings("experiment=table1_original", "train=smoke", f"model={model}", *words)
    )


def test_the_configuration_knows_every_resnet():
    architectures = get_args(get_type_hints(ModelConfig)["architecture"])
    assert [name for name in architectures if name.startswith("resnet")] == list(RESNETS)


@pytest.mark.parametrize("model", MODELS)
def test_networks_of_table_2(configured, model):
    config = configured(model, "dataset.classes=1000")
    network = building.build_network(config)
    expected = 25_557_032 if model == "resnet50_original" else 28_831_107
    assert sum(parameter.numel() for parameter in network.parameters()) == expected
    constrained = any(isinstance(module, ConstrainedWeight) for module in network.modules())
    assert constrained == (model != "resnet50_original")
    for name in ("cifar10", "synthetic"):
        assert config.model.representation.statistics in configured(model, f"dataset={name}").dataset.statistics


@pytest.mark.parametrize("model", MODELS)
def test_options(configured, model):
    words = ("model.options.width=0.25", "model.options.zero_init_last=true")
    config = configured(model, *words)
    building.check_components(config)
    network = building.build_network(config)
    base = 16 if model == "resnet50_original" else 15
    assert [layer[0].conv2.out_channels for layer in (network.layer1, network.layer4)] == [base, 8 * base]
    blocks = [module for module in network.modules() if isinstance(module, Bottleneck)]
    assert len(blocks) == 16 and not any(block.bn3.weight.any() for block in blocks)
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("architecture", ["resnet18", "resnet34", "resnet101"])
def test_other_depths_by_name(configured, architecture):
    words = (f"model.architecture={architecture}", "model.options.width=0.0625")
    network = building.build_network(configured("resnet50_original", *words))
    layers = [m for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and "downsample" not in n]
    assert len(layers) == int(architecture.removeprefix("resnet"))


@pytest.mark.parametrize(
    ("model", "words", "message"),
    [
        ("resnet50_original", ["model.options.width=0"], "model: width = 0 leaves no channel"),
        ("resnet50_original", ["model.options.width=wide"], "model.options.width = 'wide' must be a number"),
        ("resnet50_equivariant", ["model.options.zero_init_last=1"], "zero_init_last = 1 must be true or false"),
        (
            "resnet50_original",
            ["+model.options.counts=[1]"],
            "unknown setting model.options.counts; valid ones are width, zero_init_last",
        ),
        ("resnet20_original", ["+model.options.width=1"], r"unknown setting model.options.width; .* \(none\)"),
        ("resnet50_original", ["model.architecture=resnet51"], "architecture = 'resnet51' must be one of .*resnet152"),
    ],
)
def test_what_cannot_be_built_is_refused(configured, model, words, message):
    with pytest.raises(ConfigError, match=message):
        building.check_components(configured(model, *words))


@pytest.mark.parametrize("model", ["resnet50_original", "resnet50_equivariant_relative"])
def test_a_run_from_training_to_record(model, tiny_settings):
    settings = copy.deepcopy(
        tiny_settings(
            f"model={model}",
            "model.architecture=resnet50",
            "model.options.width=0.0625",
            "dataset.options.n_train=64",
            "dataset.options.n_test=40",
            "train.epochs=1",
            "distortion.saturations=[0,0.6]",
        )
    )
    record = run_experiment(Run(settings), NullTracker())
    assert record is not None and record.complete
    assert (record.steps, record.n, record.config["model"]["architecture"]) == (4, 40, "resnet50")
    network = building.build_network(experiment_config(settings))
    assert record.parameters == sum(parameter.numel() for parameter in network.parameters())
    errors = record.metrics["error_percent"]
    assert set(errors) == {"0.0", "0.6"}
    if model == "resnet50_equivariant_relative":  # neither the clipping nor the network sees the light
        assert errors["0.0"] == errors["0.6"]
