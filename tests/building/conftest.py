"""What tests of all four tasks' trainings share: a look at what a network is shown."""

import pytest
from torch import Tensor, nn


class Seen:
    """What a network was shown, and what it answered, last."""

    def __init__(self, network: nn.Module) -> None:
        network.register_forward_hook(self._keep)

    def _keep(self, network: nn.Module, given: tuple[Tensor, ...], answer: Tensor) -> None:
        self.inputs, self.answer = given[0].detach(), answer.detach()


@pytest.fixture
def watched() -> type[Seen]:
    return Seen
