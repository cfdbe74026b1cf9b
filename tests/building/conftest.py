"""What tests of all four tasks' trainings share: their plans, and looks at what a network is shown and torch told."""

import pytest
import torch
from torch import Tensor, nn

from offset_equivariant import building
from offset_equivariant.config import experiment_config

MACHINERY = ("runtime.device=cpu", "runtime.progress=false", "logger=none")


class Seen:
    """What a network was shown, and what it answered, last."""

    def __init__(self, network: nn.Module) -> None:
        network.register_forward_hook(self._keep)

    def _keep(self, network: nn.Module, given: tuple[Tensor, ...], answer: Tensor) -> None:
        self.inputs, self.answer = given[0].detach(), answer.detach()


@pytest.fixture
def watched() -> type[Seen]:
    return Seen


@pytest.fixture
def plan_of(make_settings):
    """From words of the command line to the network, the training data and the task of their training."""

    def plan(*words):
        config = experiment_config(make_settings(*MACHINERY, *words))
        building.check_components(config)
        torch.manual_seed(0)
        network, data = building.build_network(config), building.load_split(config, "train")
        return network, data, building.plan_training(config, network, data).task

    return plan


@pytest.fixture
def compiled(monkeypatch):
    """The networks that torch was told to compile, which it leaves as they are."""
    calls = []
    monkeypatch.setattr(torch, "compile", lambda module: calls.append(module) or module)
    return calls
