"""Every setting of the recipe reaches the training of the network that finds grey pixels."""

import math

import pytest
import torch

from offset_equivariant.color import code_input
from offset_equivariant.color.achromatic import NOISE
from offset_equivariant.color.representation import decode_srgb
from offset_equivariant.data.batches import EpochOrder, step_generator


@pytest.fixture
def planned(plan_of):
    """The network, the images and the task of a configuration by words of the command line."""

    def plan(*words):
        small = ("model.options.width=4", "train.batch_size=16")
        shown = ("train=quasi_smoke", "dataset=synthetic", "dataset.options.n_train=48")
        network, images, task = plan_of("experiment=quasi_unsupervised", *shown, *small, *words)
        return network, images.images, task

    return plan


@pytest.mark.parametrize(("flip", "seed", "channels_last"), [(True, 7, True), (False, 7, False), (True, 0, False)])
def test_order_flips_and_noise_are_those_of_the_settings(planned, watched, flip, seed, channels_last):
    words = (f"train.flip={flip}", f"seed={seed}", f"runtime.channels_last={channels_last}")
    network, images, task = planned(*words)
    seen = watched(network)
    for step in (1, 4):
        found = task.training_step(step, 0.0)
        chosen = images[EpochOrder(48, 16, seed).indices(step)]
        drawn = torch.rand(16, 1, generator=step_generator(seed, step, stream=1)) < 0.5
        shown = torch.where(drawn[..., None, None], chosen.flip(3), chosen) if flip else chosen
        assert 0 < drawn.sum() < 16
        linear = decode_srgb(shown)
        torch.testing.assert_close(seen.inputs, code_input(linear), rtol=0, atol=0)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        assert seen.inputs.is_contiguous(memory_format=layout)
        noise = NOISE * torch.randn(16, 3, generator=step_generator(seed, step, stream=2))
        colours = (linear * seen.answer).mean((2, 3)) + noise
        cosines = colours.sum(1) / (math.sqrt(3) * colours.norm(dim=1))
        torch.testing.assert_close(found["loss"], (1 - cosines).mean(), rtol=1e-3, atol=1e-6)


def test_the_optimiser_is_that_of_the_recipe(planned):
    recipe = ("train.learning_rate=0.02", "train.momentum=0.6", "train.weight_decay=0.03")
    network, _, task = planned(*recipe)
    (optimizer,) = task.optimizers().values()
    assert type(optimizer) is torch.optim.Adam
    (group,) = optimizer.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in network.parameters()]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.02, (0.6, 0.999), 0.03)


@pytest.mark.parametrize("asked", [False, True])
def test_the_network_is_compiled_where_that_is_asked_for(planned, compiled, asked):
    network, _, task = planned(f"runtime.compile={asked}")
    task.training_step(0, 0.0)
    assert compiled == ([network] if asked else [])
