"""Every setting of the recipe reaches the training of an inpainting network and of its discriminator."""

import pytest
import torch

from offset_equivariant.data.batches import EpochOrder, step_generator
from offset_equivariant.tasks.inpainting import centre_of, random_crops_and_flips, visible_pixels


@pytest.fixture
def planned(plan_of):
    """The network, the photos and the task of a configuration by words of the command line."""

    def plan(*words):
        small = ("model.options.width=0.0625", "model.options.bottleneck=30", "train.batch_size=4")
        shown = ("train=inpainting_smoke", "dataset.options.n_train=8", "dataset.options.n_test=4")
        network, photos, task = plan_of("experiment=table4_facades_small_original", *shown, *small, *words)
        return network, photos.images, task

    return plan


@pytest.mark.parametrize(("flip", "seed", "channels_last"), [(True, 7, True), (False, 7, False), (True, 0, False)])
def test_order_crops_and_flips_are_those_of_the_settings(planned, watched, flip, seed, channels_last):
    words = (f"train.flip={flip}", f"seed={seed}", f"runtime.channels_last={channels_last}")
    network, photos, task = planned(*words)
    seen = watched(network)
    for step in (1, 4):
        task.training_step(step, 0.0)
        chosen = photos[EpochOrder(8, 4, seed).indices(step)]
        crops = random_crops_and_flips(chosen, 128, flip, step_generator(seed, step, stream=1))
        expected = visible_pixels(crops / 127.5 - 1)
        torch.testing.assert_close(visible_pixels(seen.inputs), expected, rtol=0, atol=1e-5)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        assert seen.inputs.is_contiguous(memory_format=layout)


@pytest.mark.parametrize(("border", "weight", "adversarial"), [(5, 7.0, 0.3), (0, 7.0, 0.3), (5, 2.0, 0.0)])
def test_the_loss_is_that_of_the_settings_by_hand(planned, watched, border, weight, adversarial):
    settings = {"border": border, "border_weight": weight, "adversarial_weight": adversarial}
    network, photos, task = planned(*(f"train.inpainting.{name}={value}" for name, value in settings.items()))
    seen = watched(network)
    found = task.training_step(0, 1.0)
    chosen = photos[EpochOrder(8, 4, 0).indices(0)]
    truth = centre_of(random_crops_and_flips(chosen, 128, True, step_generator(0, 0, stream=1))) / 127.5 - 1
    errors = (seen.answer.tanh() - truth).square()
    distance = torch.minimum(torch.arange(64), 63 - torch.arange(64))  # of a row or column to the centre's edge
    at_border = torch.minimum(distance[:, None], distance) < border
    expected = torch.where(at_border, weight * errors, errors).mean()
    torch.testing.assert_close(found["reconstruction_loss"], expected, rtol=1e-5, atol=0)
    joint = (1 - adversarial) * expected + adversarial * found["adversarial_loss"]
    torch.testing.assert_close(found["loss"], joint, rtol=1e-5, atol=0)
    assert bool(at_border.any()) == (border > 0) and found["adversarial_loss"] > 0.1


def test_both_optimisers_are_those_of_the_recipe(planned):
    recipe = ("train.learning_rate=0.02", "train.momentum=0.6", "train.weight_decay=0.03")
    _, _, task = planned(*recipe, "train.inpainting.discriminator_learning_rate=0.004")
    rates = {}
    for name, optimizer in task.optimizers().items():
        assert type(optimizer) is torch.optim.Adam
        (group,) = optimizer.param_groups
        assert [id(p) for p in group["params"]] == [id(p) for p in task.modules()[name].parameters()]
        assert (group["betas"], group["weight_decay"]) == ((0.6, 0.999), 0.03)
        rates[name] = group["lr"]
    assert rates == {"network": 0.02, "discriminator": 0.004}


@pytest.mark.parametrize("asked", [False, True])
def test_the_network_is_compiled_where_that_is_asked_for(planned, compiled, asked):
    network, _, task = planned(f"runtime.compile={asked}")
    task.training_step(0, 0.0)
    assert compiled == ([network] if asked else [])


def test_the_discriminator_is_new_and_as_wide_as_the_network(planned):
    _, _, task = planned()
    layers = [layer for layer in task.modules()["discriminator"].modules() if isinstance(layer, torch.nn.Conv2d)]
    assert [layer.out_channels for layer in layers] == [4, 8, 16, 32, 1]  # a sixteenth of the original's
    weights = torch.cat([layer.weight.detach().flatten() for layer in layers])
    assert weights.std().item() == pytest.approx(0.02, rel=0.05)
    assert all(bool((layer.bias == 0).all()) for layer in layers if layer.bias is not None)


def test_an_equivariant_networks_first_outputs_have_the_mean_of_its_inputs(planned, watched):
    words = ("experiment=table4_facades_small_equivariant_relative", "train.flip=false")
    network, _, task = planned(*words, "train.batch_size=8")
    seen = watched(network)
    task.training_step(0, 0.0)
    found, wanted = (values.mean((0, 2, 3)) for values in (seen.answer, seen.inputs))
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.2 * seen.inputs.std().item())
