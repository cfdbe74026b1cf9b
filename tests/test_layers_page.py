"""What the page on the layers says is so."""

import copy
import pickle
import re
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import offset_equivariant as oe
from offset_equivariant.models.resnet import CifarResNet
from offset_equivariant.nn import FAMILIES, check_equivariance
from offset_equivariant.provenance import repository_root

TEXT = (repository_root() / "docs" / "LAYERS.md").read_text(encoding="utf-8")
PAGE = " ".join(TEXT.split())


def fused_and_plain(padding):
    """ResNet-8 of both families with the same weights."""
    networks = []
    for name in ("offset_equivariant", "offset_equivariant_plain"):
        torch.manual_seed(0)
        networks.append(CifarResNet(8, family=FAMILIES[name](padding=padding)).double().eval())
    fused, plain = networks
    with torch.no_grad():
        for ours, theirs in zip(fused.parameters(), plain.parameters(), strict=True):
            theirs.copy_(ours.add_(0.1 * torch.randn_like(ours)))
    return networks


def test_fused_and_plain_layers_are_the_same_function_but_for_offset_padding():
    assert 'It is another function, as equivariant, where convolutions have `padding_mode="offset"`' in PAGE
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    fused, plain = fused_and_plain("replicate")
    torch.testing.assert_close(fused(images), plain(images), rtol=1e-10, atol=1e-10)
    fused, plain = fused_and_plain("offset")
    assert (fused(images) - plain(images)).abs().max() > 1e-3
    for network in (fused, plain):
        assert check_equivariance(network, (2, 3, 8, 8), output="mean", magnitudes=(10.0,)).worst() < 1e-12


class Net(nn.Module):
    """As the README's, but smaller."""

    def __init__(self):
        super().__init__()
        parts = (oe.nn.Conv2d(3, 6, 3), oe.nn.BatchNorm2d(6), oe.nn.ReLU(), oe.nn.MaxPool2d(2), oe.nn.Conv2d(6, 9, 3))
        self.features = nn.Sequential(*parts)


def test_the_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").symlink_to(repository_root() / "results")
    names: dict[str, Any] = {"torch": torch, "copy": copy, "oe": oe, "net": Net().eval()}
    for example in re.findall(r"```python\n(.*?)```", TEXT, re.S):
        exec(example, names)
    net, images = names["net"], torch.randn(2, 3, 12, 12)
    found = names["extractor"](images)
    torch.testing.assert_close(found["second"], net.features(images))
    loaded = torch.load("net.pt", weights_only=False)
    torch.testing.assert_close(loaded.features(images), net.features(images))
    assert loaded.features[0].constraint == "projection" and net.features[0].constraint == "parametrization"
    torch.testing.assert_close(names["layer"].weight, oe.nn.project_weight(torch.zeros(33, 3, 3, 3), 3))
    assert names["posteriors"].shape == (1, 10) and names["scores"].shape == (1, 5)
    assert [name for name, p in names["resnet"].named_parameters() if p.requires_grad] == [
        "fc.bias",
        "fc.parametrizations.weight.original",
    ]
    linear = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    resnet = names["RESNETS"]["resnet20"](classes=10, family=oe.nn.OffsetEquivariant())
    names["load_weights"](resnet, names["path"])
    found = torch.softmax(resnet.eval()(names["representation"](linear)), 1)
    torch.testing.assert_close(found, names["load_classifier"](str(names["path"]))(linear), rtol=1e-4, atol=1e-5)


def test_names_of_free_weights():
    assert "The free weight's name is `parametrizations.weight.original`" in PAGE
    names = [name for name, p in Net().named_parameters() if name.endswith(".weight") and p.ndim > 1]
    free = [name for name, p in Net().named_parameters() if p.ndim > 1]
    assert names == [] and free == [f"features.{i}.parametrizations.weight.original" for i in (0, 4)]


def test_what_is_done_to_a_computed_weight_is_lost_and_what_is_assigned_is_projected():
    assert "is done to a copy and lost, without an error." in PAGE
    layer = oe.nn.Conv2d(3, 6, 3)
    before = layer.weight.detach().clone()
    nn.init.ones_(layer.weight)
    layer.weight.data.zero_()
    assert torch.equal(layer.weight, before)
    given = torch.randn(6, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    layer.weight = given
    torch.testing.assert_close(layer.weight, oe.nn.project_weight(given, 3))
    held = oe.nn.Conv2d(3, 6, 3, constraint="projection")
    nn.init.ones_(held.weight)
    assert torch.equal(held.weight, torch.ones(6, 3, 3, 3))
    oe.nn.project_(held)
    torch.testing.assert_close(held.weight, oe.nn.project_weight(torch.ones(6, 3, 3, 3), 3))


def test_a_network_is_pickled_without_its_parametrisations_only():
    network = Net()
    with pytest.raises(RuntimeError, match="only supported through state_dict"):
        pickle.dumps(network)
    plain = copy.deepcopy(network)
    oe.nn.remove_parametrizations_(plain)
    loaded = pickle.loads(pickle.dumps(plain))
    images = torch.randn(2, 3, 12, 12)
    torch.testing.assert_close(loaded.features(images), network.features(images))
    plain.load_state_dict(network.state_dict())
    network.load_state_dict(plain.state_dict())


def test_checkpointing_of_feature_maps_beside_their_offset_needs_its_newer_kind():
    entrance = nn.Sequential(oe.nn.TakeOutOffset(), oe.nn.Conv2d(3, 6, 3))
    block = nn.Sequential(oe.nn.BatchNormReLU(6), oe.nn.Conv2d(6, 6, 3))
    images = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))

    def gradients(forward):
        entrance.zero_grad(), block.zero_grad()
        forward(entrance(images)).joined().square().sum().backward()
        return [parameter.grad for part in (entrance, block) for parameter in part.parameters()]

    expected = gradients(block)
    for found, wanted in zip(gradients(lambda x: checkpoint(block, x, use_reentrant=False)), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    with pytest.warns(UserWarning, match="None of the inputs have requires_grad"):
        given = checkpoint(block, entrance(images), use_reentrant=True)
    assert type(given) is tuple


def test_torchs_own_conversion_loses_the_rectifier():
    assert "torch's `convert_sync_batchnorm` must not be used here" in PAGE
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(oe.nn.BatchNormReLU(6)))
    assert type(converted[0]) is nn.SyncBatchNorm
