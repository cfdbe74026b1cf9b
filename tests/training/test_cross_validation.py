import pytest
import torch
from torch import nn

from offset_equivariant.training.cross_validation import CrossValidated, CrossValidationTraining, parameters_of_one
from offset_equivariant.training.schedules import one_cycle


class Adding(nn.Module):
    """Adds its number."""

    def __init__(self):
        super().__init__()
        self.number = nn.Parameter(torch.rand(()))

    def forward(self, x):
        return x.sum(1, keepdim=True) + self.number


class Remembering:
    """A training that notes its steps, and moves its network by one each."""

    batch_size, steps_per_epoch = 4, 2

    def __init__(self, network):
        self.network, self.steps = network, []
        self.optimizer = torch.optim.SGD(network.parameters(), lr=1.0)

    def modules(self):
        return {"network": self.network}

    def optimizers(self):
        return {"network": self.optimizer}

    def training_step(self, step, learning_rate_factor):
        self.steps.append((step, learning_rate_factor))
        with torch.no_grad():
            self.network.number += 1
        return {"loss": torch.tensor(0.0)}


def test_each_image_is_given_to_the_network_of_its_fold():
    torch.manual_seed(0)
    network = CrossValidated(Adding, 3)
    numbers = [one.number.item() for one in network.networks]
    assert len(set(numbers)) == 3 and parameters_of_one(network) == 1
    folds = torch.tensor([2, 0, 0, 2, 1])
    found = network(torch.arange(10.0).reshape(5, 2), folds)
    expected = torch.tensor([[4.0 * i + 1 + numbers[fold]] for i, fold in enumerate(folds.tolist())])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("folds", [[0, 3], [-1, 0], []])
def test_folds_without_a_network_are_refused(folds):
    with pytest.raises(ValueError, match="not all among the 3"):
        CrossValidated(Adding, 3)(torch.zeros(len(folds), 2), torch.tensor(folds, dtype=torch.int64))


def test_folds_are_trained_one_after_the_other_each_with_its_own_schedule():
    network = CrossValidated(Adding, 3)
    before = [one.number.item() for one in network.networks]
    folds = [Remembering(one) for one in network.networks]
    task = CrossValidationTraining(network, folds, [3, 1, 2])
    schedule = task.schedule(one_cycle)
    assert (task.total_steps, task.batch_size) == (6, 4)
    for step in range(6):
        task.training_step(step, schedule(step))
    assert [fold.steps for fold in folds] == [
        [(step, one_cycle(steps)(step)) for step in range(steps)] for steps in (3, 1, 2)
    ]
    moved = [one.number.item() - old for one, old in zip(network.networks, before, strict=True)]
    assert moved == pytest.approx([3, 1, 2])
    assert set(task.optimizers()) == {"fold0", "fold1", "fold2"} and task.modules() == {"network": network}
    with pytest.raises(IndexError, match="only 6 steps"):
        task.training_step(6, 1.0)


def test_lengths_must_fit():
    with pytest.raises(ValueError, match="2 networks, 1 trainings and 1 lengths differ"):
        CrossValidationTraining(network := CrossValidated(Adding, 2), [Remembering(network.networks[0])], [3])
