"""Every setting of the recipe reaches the training of an illuminant estimator."""

import pytest
import torch

from offset_equivariant.data.batches import EpochOrder, step_generator
from offset_equivariant.tasks.illuminant_estimation import random_crops, random_flips_and_transpositions


@pytest.fixture
def planned(plan_of):
    """The networks, the images and the task of a configuration by words of the command line."""

    def plan(*words):
        shown = ("train=nus_smoke", "dataset.options.images=18", "train.batch_size=3")
        return plan_of("experiment=table3_original", *shown, *words)

    return plan


@pytest.mark.parametrize(
    ("flip", "crop", "seed", "channels_last"),
    [(True, 0.5, 7, True), (False, 0.5, 7, False), (True, None, 0, False), (False, None, 7, True)],
)
def test_order_orientations_and_crops_are_those_of_the_settings(planned, watched, flip, crop, seed, channels_last):
    words = (f"train.flip={flip}", f"train.smallest_crop={crop or 'null'}", f"seed={seed}")
    network, images, task = planned(*words, f"runtime.channels_last={channels_last}")
    seen = watched(network.networks[0])
    own = images.images[images.folds != 0]
    for step in (1, 5):
        task.training_step(step, 0.0)
        chosen = own[EpochOrder(len(own), 3, seed).indices(step)]
        expected = random_flips_and_transpositions(chosen, step_generator(seed, step, stream=1)) if flip else chosen
        if crop is not None:
            expected = random_crops(expected, crop, step_generator(seed, step, stream=2))
        scaled, shown = (values.flatten(2) - values.mean((2, 3))[..., None] for values in (expected, seen.inputs))
        ratio = shown.std((0, 2), keepdim=True) / scaled.std((0, 2), keepdim=True)  # the data set's statistics
        torch.testing.assert_close(shown, scaled * ratio, rtol=0, atol=1e-4)
        assert torch.equal(expected, chosen) == (not flip and crop is None)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        assert seen.inputs.is_contiguous(memory_format=layout)


@pytest.mark.parametrize(
    ("name", "kind", "momentum", "beta1"),
    [("adamw", torch.optim.AdamW, 0.0, 0.9), ("adam", torch.optim.Adam, 0.6, 0.6), (None, torch.optim.SGD, 0.6, None)],
)
def test_every_folds_optimiser_is_that_of_the_recipe(planned, name, kind, momentum, beta1):
    recipe = (f"train.optimizer={name or 'null'}", f"train.momentum={momentum}", "train.learning_rate=0.02")
    network, _, task = planned(*recipe, "train.weight_decay=0.03")
    optimizers = list(task.optimizers().values())
    assert len(optimizers) == 3
    for one, optimizer in zip(network.networks, optimizers, strict=True):
        assert type(optimizer) is kind
        (group,) = optimizer.param_groups
        assert [id(parameter) for parameter in group["params"]] == [id(parameter) for parameter in one.parameters()]
        assert (group["lr"], group["weight_decay"]) == (0.02, 0.03)
        assert group["momentum"] == momentum if beta1 is None else group["betas"] == (beta1, 0.999)


@pytest.mark.parametrize(("name", "decoupled"), [("adamw", True), ("adam", False)])
def test_the_first_step_is_adams_with_the_decay_of_the_recipe_by_hand(planned, name, decoupled):
    """Of the first step the moments, corrected, are the gradient and its square."""
    recipe = (f"train.optimizer={name}", f"train.momentum={0.0 if decoupled else 0.6}", "train.learning_rate=0.02")
    network, _, task = planned(*recipe, "train.weight_decay=0.5")
    parameters = list(network.networks[0].parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    task.training_step(0, 0.25)
    for old, parameter in zip(before, parameters, strict=True):
        gradient = parameter.grad if decoupled else parameter.grad + 0.5 * old
        expected = old * (1 - 0.02 * 0.25 * 0.5 * decoupled) - 0.02 * 0.25 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("asked", [False, True])
def test_the_network_is_compiled_where_that_is_asked_for(planned, compiled, asked):
    network, _, task = planned(f"runtime.compile={asked}")
    task.training_step(0, 0.0)
    assert compiled == ([network.networks[0]] if asked else [])
