"""Every setting of the recipe and of the strategy reaches the training of a classifier, and its evaluation."""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

from offset_equivariant import building
from offset_equivariant.building.recognition_images import load_split
from offset_equivariant.color import ColorJitter, IlluminantAugmentation, linear_to_srgb, srgb_to_linear
from offset_equivariant.config import experiment_config
from offset_equivariant.data.batches import EpochOrder, random_crop_and_flip, step_generator
from offset_equivariant.data.cropping import RandomCrops
from offset_equivariant.data.decoding import decode_image_file

FILES = (
    "experiment=table2_imagenette_original",
    "train=imagenet_smoke",
    "model.options.width=0.0625",
    "dataset.options={n_train: 40, n_test: 26, shorter_side: 36, size: 32}",
    "train.batch_size=8",
    "train.random_resized_crop={area: [0.4, 0.6], aspect_ratio: [0.9, 1.5]}",
    "logger=none",
    "runtime.device=cpu",
    "runtime.progress=false",
)


@pytest.fixture
def planned(tiny_settings):
    """A configuration by words of the command line, its network, its 64 images, and its task."""

    def plan(*words):
        config = experiment_config(tiny_settings("dataset.options.n_train=64", "runtime.compile=false", *words))
        building.check_components(config)
        torch.manual_seed(0)
        network, images = building.build_network(config), building.load_split(config, "train")
        return config, network, images, building.plan_training(config, network, images).task

    return plan


def normalised(config, srgb):
    """The input of a network on sRGB, of images in 0 to 1."""
    mean, std = (torch.tensor(config.dataset.statistics["srgb"][name])[:, None, None] for name in ("mean", "std"))
    return (srgb - mean) / std


@pytest.mark.parametrize(
    ("padding", "flip", "channels_last"), [(3, True, True), (0, True, False), (3, False, False), (0, False, True)]
)
def test_order_crops_and_flips_are_those_of_the_settings(planned, padding, flip, channels_last):
    words = (f"train.crop_padding={padding}", f"train.flip={flip}", f"runtime.channels_last={channels_last}", "seed=7")
    config, _, images, task = planned(*words)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    inputs = normalised(config, images.images / 255)
    for step in (1, 6):
        found, labels = task.batch(step)
        indices = EpochOrder(64, 16, 7).indices(step)
        expected = random_crop_and_flip(inputs[indices], padding, flip, step_generator(7, step, stream=1))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        assert torch.equal(labels, images.labels[indices])
        assert torch.allclose(found, inputs[indices], atol=1e-5) == (not padding and not flip)
        assert found.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("flip", [True, False])
def test_of_files_order_crops_and_flips_are_those_of_the_settings(make_settings, flip):
    config = experiment_config(make_settings(*FILES, "seed=7", f"train.flip={flip}"))
    images = load_split(config, "train")
    task = building.plan_training(config, building.build_network(config), images).task
    found, labels = task.batch(6)
    indices = EpochOrder(40, 8, 7).indices(6)
    crops = RandomCrops((0.4, 0.6), (0.9, 1.5), flip)
    drawn = crops.draw(8, step_generator(7, 6, stream=2))
    files = [decode_image_file(images.path(i)) for i in indices.tolist()]
    pixels = torch.stack([crops.apply(image, 32, numbers) for image, numbers in zip(files, drawn, strict=True)])
    torch.testing.assert_close(found, normalised(config, pixels / 255), rtol=0, atol=1e-5)
    assert torch.equal(labels, images.labels[indices])
    assert bool((drawn[:, -1] < 0.5).any())  # some would be flipped


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("strategy", ["augmentation", "augmentation_illuminants"])
def test_colours_and_light_are_those_of_the_strategy_and_of_the_seed(planned, strategy, seed):
    changes = {
        "augmentation": "strategy.jitter={brightness: 0.1, contrast: 0.2, saturation: 0.3, hue: 0.4}",
        "augmentation_illuminants": "strategy.illuminant_saturation=0.6",
    }
    words = (f"experiment=table1_{strategy}", changes[strategy], "train.crop_padding=2", f"seed={seed}")
    config, _, images, task = planned(*words)
    found, _ = task.batch(2)
    generator = step_generator(seed, 2, stream=1)
    srgb = images.images[EpochOrder(64, 16, seed).indices(2)] / 255
    if strategy == "augmentation":
        changed = ColorJitter(0.1, 0.2, 0.3, 0.4)(srgb, generator)
    else:
        changed = linear_to_srgb(IlluminantAugmentation(0.6)(srgb_to_linear(srgb), generator))
    assert (changed - srgb).abs().amax((1, 2, 3)).median() > 0.02
    expected = random_crop_and_flip(normalised(config, changed), 2, True, generator)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_files_are_shown_under_the_light_of_the_strategy(make_settings):
    words = ("seed=7", "train.flip=false", "strategy=augmentation_illuminants", "strategy.illuminant_saturation=0.6")
    config = experiment_config(make_settings(*FILES, *words))
    plain = experiment_config(make_settings(*FILES, *words[:2]))
    images = load_split(config, "train")
    with_light, without = (
        building.plan_training(c, building.build_network(c), images).task.batch(3)[0] for c in (config, plain)
    )
    mean, std = (torch.tensor(config.dataset.statistics["srgb"][name])[:, None, None] for name in ("mean", "std"))
    lit = IlluminantAugmentation(0.6)(srgb_to_linear(without * std + mean), step_generator(7, 3, stream=1))
    torch.testing.assert_close(with_light, normalised(config, linear_to_srgb(lit)), rtol=0, atol=1e-4)
    assert (with_light - without).abs().amax((1, 2, 3)).median() > 0.05


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("autocast", [None, "bfloat16"])
def test_the_loss_is_the_smoothed_cross_entropy_in_the_precision_asked_for(planned, watched, smoothing, autocast):
    words = (f"train.label_smoothing={smoothing}", f"train.autocast={autocast or 'null'}")
    _, network, _, task = planned(*words)
    seen, before = watched(network), copy.deepcopy(network)
    inputs, labels = task.batch(0)
    loss = task.training_step(0, 1.0)["loss"]
    assert torch.equal(seen.inputs, inputs)
    assert seen.answer.dtype == (torch.float32 if autocast is None else torch.bfloat16)
    expected = cross_entropy(seen.answer.float(), labels, label_smoothing=smoothing)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-6)
    with torch.no_grad():
        exact = before.train()(inputs)
    torch.testing.assert_close(seen.answer.float(), exact, rtol=0, atol=0.05)
    assert torch.equal(seen.answer, exact) == (autocast is None)


@pytest.mark.parametrize("nesterov", [True, False])
def test_the_optimiser_is_that_of_the_recipe(planned, nesterov):
    recipe = ("train.learning_rate=0.3", "train.momentum=0.7", "train.weight_decay=0.02")
    _, _, _, task = planned(*recipe, f"train.nesterov={nesterov}")
    (optimizer,) = task.optimizers().values()
    assert isinstance(optimizer, torch.optim.SGD)
    (group,) = optimizer.param_groups
    found = {name: group[name] for name in ("lr", "momentum", "weight_decay", "nesterov", "dampening")}
    assert found == {"lr": 0.3, "momentum": 0.7, "weight_decay": 0.02, "nesterov": nesterov, "dampening": 0}


def test_two_steps_are_those_of_the_recipe_by_hand(planned):
    """Of the bias of the last layer, whose gradient is known: Sutskever et al.'s momentum, as in torch's SGD."""
    recipe = ("train.learning_rate=0.3", "train.momentum=0.7", "train.nesterov=true", "train.weight_decay=0.02")
    _, network, _, task = planned(*recipe)
    bias = list(network.parameters())[-1]
    assert bias.shape == (10,)
    value, velocity = bias.detach().clone(), torch.zeros(10)
    for step, factor in enumerate((0.5, 1.0)):
        task.training_step(step, factor)
        gradient = bias.grad + 0.02 * value
        velocity = 0.7 * velocity + gradient
        value = value - 0.3 * factor * (gradient + 0.7 * velocity)
        torch.testing.assert_close(bias.detach(), value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("brightness", [None, 0.1])
def test_balanced_images_have_the_brightness_of_the_strategy(planned, brightness, watched):
    """Grey world with a brightness: every channel's mean becomes that brightness, in training and in evaluation."""
    words = ("train.crop_padding=0", "train.flip=false", f"strategy.brightness={brightness or 'null'}")
    config, network, images, task = planned("experiment=table1_preprocessing_grey_world", *words)
    linear = srgb_to_linear(images.images / 255)

    def balanced(linear):
        means = linear.mean((2, 3), keepdim=True)
        target = means.log().mean(1, keepdim=True).exp() if brightness is None else brightness
        return normalised(config, linear_to_srgb((linear * target / means).clamp(0, 1)))

    found, _ = task.batch(1)
    expected = balanced(linear)[EpochOrder(64, 16, 0).indices(1)]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    evaluation = building.build_evaluation(config, network, images)
    seen, light = watched(evaluation.network), torch.tensor([1.0, 0.6, 0.4])
    evaluation.measure(evaluation.open_batch(torch.arange(4)), light.expand(4, 3))
    torch.testing.assert_close(seen.inputs, balanced(linear[:4] * light[:, None, None]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("requantize", [False, True])
def test_distorted_images_are_rounded_where_that_is_asked_for(planned, watched, requantize):
    config, network, images, _ = planned(f"distortion.requantize={requantize}")
    evaluation = building.build_evaluation(config, network, images)
    seen, light = watched(evaluation.network), torch.tensor([[1.0, 0.37, 0.81], [0.22, 1.0, 0.4]])
    evaluation.measure(evaluation.open_batch(torch.arange(2)), light)
    linear = srgb_to_linear(images.images[:2].double() / 255)
    levels = linear_to_srgb(linear * light[..., None, None]) * 255
    rounded = levels.round()
    assert (levels - rounded).abs().max() > 0.4
    expected = normalised(config, (rounded if requantize else levels).float() / 255)
    torch.testing.assert_close(seen.inputs, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("asked", [False, True])
def test_the_network_is_compiled_where_that_is_asked_for(planned, monkeypatch, asked):
    _, network, _, task = planned(f"runtime.compile={asked}")
    calls = []
    monkeypatch.setattr(torch, "compile", lambda module: calls.append(module) or module)
    task.training_step(0, 0.0)
    assert calls == ([network] if asked else [])


@pytest.mark.parametrize("parts", [None, 4])
def test_a_batch_is_computed_in_the_parts_asked_for(planned, parts):
    _, network, _, task = planned(f"train.accumulate={parts or 'null'}")
    sizes = []
    network.register_forward_hook(lambda module, given, answer: sizes.append(len(given[0])))
    task.training_step(0, 0.0)
    assert sizes == ([16] if parts is None else [4, 4, 4, 4])


@pytest.mark.parametrize("row", ["original", "equivariant"])
@pytest.mark.parametrize("asked", [True, False])
def test_batch_normalisation_is_synchronised_where_that_is_asked_for(planned, row, asked):
    _, network, _, _ = planned(f"experiment=table1_{row}", f"train.synchronise_batch_norm={asked}")
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert len(norms) >= 7 and {norm.synchronised for norm in norms} == {asked}


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_folded_network_is_evaluated_in_the_layout_asked_for(planned, watched, channels_last):
    config, network, images, task = planned(f"runtime.channels_last={channels_last}")
    task.training_step(0, 1.0)  # running statistics that are not those of a new network
    evaluation = building.build_evaluation(config, network, images)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in evaluation.network.modules())
    seen, linear = watched(evaluation.network), srgb_to_linear(images.images[:4] / 255)
    posteriors = evaluation.posteriors(linear)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert seen.inputs.is_contiguous(memory_format=layout)
    with torch.no_grad():
        expected = network.eval()(normalised(config, images.images[:4] / 255)).softmax(1)
    torch.testing.assert_close(posteriors, expected, rtol=0, atol=1e-5)
