import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from offset_equivariant.color import (
    AbsoluteClipping,
    ColorJitter,
    IlluminantAugmentation,
    grey_world,
    linear_to_srgb,
    srgb_to_linear,
)
from offset_equivariant.color.representation import Representation, decode_srgb
from offset_equivariant.data import synthetic_images
from offset_equivariant.data.batches import EpochOrder, random_crop_and_flip, step_generator
from offset_equivariant.models.resnet import CifarResNet
from offset_equivariant.nn.constraint import ConstrainedWeight, constraint_error, project_
from offset_equivariant.nn.families import FAMILIES, OffsetEquivariant
from offset_equivariant.tasks.recognition import Augmentation, InputPipeline, RecognitionTraining, kept_batches
from offset_equivariant.tasks.recognition_evaluation import RecognitionEvaluation, quantized_srgb
from offset_equivariant.training.loop import FitSettings, fit

SRGB = InputPipeline(Representation("srgb", (0.5, 0.5, 0.4), (0.25, 0.2, 0.25)))
LOG_RGB = InputPipeline(Representation("log_rgb", (1.9, 1.9, 2.2), (1.4, 1.4, 1.5), AbsoluteClipping()))
PLAIN = Augmentation(crop_padding=0, flip=False)


class Seeing(nn.Module):
    """A linear classifier that keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3 * 32 * 32, 10)
        self.seen: list[Tensor] = []
        self.modes: list[bool] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        self.modes.append(self.training)
        return self.linear(images.flatten(1))


@pytest.fixture(scope="module")
def images():
    return synthetic_images("train", n_train=40)


def training(network, images, pipeline=SRGB, augmentation=PLAIN, lr=0.1, momentum=0.0, weight_decay=0.0, **options):
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
    return trained_by(optimizer, network, images, pipeline, augmentation, seed=5, **options)


def trained_by(optimizer, network, images, pipeline=SRGB, augmentation=PLAIN, batch_size=8, seed=0, **options):
    batches = kept_batches(images, pipeline, augmentation, batch_size, seed)
    return RecognitionTraining(network, optimizer, batches, pipeline, augmentation, seed=seed, **options)


def normalised(images, pipeline=SRGB):
    """sRGB in [0, 1] to the input of the network, without the library's pipeline."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (pipeline.representation.mean, pipeline.representation.std))
    return (images.images.float() / 255 - mean) / std


def test_batches_are_the_epochs_images_padded_with_the_mean_colour_cropped_and_flipped(images):
    network = Seeing()
    task = training(network, images, augmentation=Augmentation(crop_padding=4, flip=True))
    assert task.steps_per_epoch == 5
    inputs = normalised(images)
    for step in (0, 6):
        task.training_step(step, 0.0)
        indices = EpochOrder(40, 8, 5).indices(step)
        expected = random_crop_and_flip(inputs[indices], 4, True, step_generator(5, step, stream=1))
        torch.testing.assert_close(network.seen[-1], expected, atol=1e-5, rtol=0)
        assert (network.seen[-1] == 0).any()
    assert network.modes == [True, True]


def test_images_stay_bytes_unless_they_are_balanced(images):
    balanced = InputPipeline(SRGB.representation, grey_world)
    for pipeline, dtype in ((SRGB, torch.uint8), (LOG_RGB, torch.uint8), (balanced, torch.float32)):
        network = Seeing()
        task = training(network, images, pipeline)
        kept = kept_batches(images, pipeline, PLAIN, 8, 5)
        tensors = [value for value in vars(kept).values() if isinstance(value, Tensor)]
        assert [value.dtype for value in tensors if value.shape == (40, 3, 32, 32)] == [dtype]
        task.training_step(0, 0.0)
        indices = EpochOrder(40, 8, 5).indices(0)
        expected = pipeline(decode_srgb(images.images[indices]))
        torch.testing.assert_close(network.seen[0], expected, rtol=1e-6, atol=1e-6)


def test_jitter_is_applied_to_srgb_before_everything_else(images):
    network, jitter = Seeing(), ColorJitter(0.4, 0.4, 0.4, 0.5)
    task = training(network, images, LOG_RGB, Augmentation(4, True, jitter))
    task.training_step(2, 0.0)
    generator = step_generator(5, 2, stream=1)
    batch = images.images[EpochOrder(40, 8, 5).indices(2)].float() / 255
    jittered = jitter(batch, generator)
    assert (jittered - batch).abs().amax((1, 2, 3)).min() > 0.01
    converted = (-srgb_to_linear(jittered).clamp(min=2e-4).log() - torch.tensor([1.9, 1.9, 2.2])[:, None, None]) / (
        torch.tensor([1.4, 1.4, 1.5])[:, None, None]
    )
    torch.testing.assert_close(network.seen[0], random_crop_and_flip(converted, 4, True, generator))


def test_random_illuminants_change_linear_rgb(images):
    network, illuminants = Seeing(), IlluminantAugmentation(0.9)
    task = training(network, images, LOG_RGB, Augmentation(0, False, illuminants=illuminants))
    task.training_step(1, 0.0)
    linear = decode_srgb(images.images[EpochOrder(40, 8, 5).indices(1)])
    lit = illuminants(linear, step_generator(5, 1, stream=1))
    assert (lit - linear).abs().amax((1, 2, 3)).min() > 0.01
    torch.testing.assert_close(network.seen[0], LOG_RGB(lit))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_step_is_gradient_descent_on_the_cross_entropy(images, label_smoothing):
    network = Seeing()
    before, bias = network.linear.weight.detach().double(), network.linear.bias.detach().double()
    task = training(network, images, lr=0.05, weight_decay=0.01, label_smoothing=label_smoothing)
    found = task.training_step(0, 0.5)

    indices = EpochOrder(40, 8, 5).indices(0)
    inputs, labels = normalised(images)[indices].double().flatten(1), images.labels[indices]
    scores = inputs @ before.T + bias
    target = torch.eye(10, dtype=torch.float64)[labels] * (1 - label_smoothing) + label_smoothing / 10
    loss = -(target * scores.log_softmax(1)).sum(1).mean()
    gradient = (scores.softmax(1) - target).T @ inputs / 8 + 0.01 * before
    torch.testing.assert_close(found["loss"].double(), loss, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(network.linear.weight.double(), before - 0.05 * 0.5 * gradient, rtol=0, atol=1e-5)
    assert found["error_percent"].item() == pytest.approx(100 * (scores.argmax(1) != labels).double().mean().item())
    assert not found["loss"].requires_grad


def test_factor_is_on_the_peak_rate_of_each_group(images):
    network = Seeing()
    groups = [{"params": [network.linear.weight], "lr": 0.3}, {"params": [network.linear.bias], "lr": 0.1}]
    optimizer = torch.optim.SGD(groups)
    task = trained_by(optimizer, network, images)
    for step, factor in enumerate((0.5, 0.25, 1.0)):
        task.training_step(step, factor)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.3 * factor, 0.1 * factor])


def test_projection_and_parametrization_learn_the_same(images):
    scores = {}
    for constraint in ("projection", "parametrization"):
        torch.manual_seed(0)
        network = CifarResNet(8, 10, OffsetEquivariant(constraint=constraint)).double()
        project_(network)
        pipeline = InputPipeline(LOG_RGB.representation)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
        task = trained_by(
            optimizer, network, images, pipeline, forward=lambda batch, network=network: network(batch.double())
        )
        for step in range(6):
            task.training_step(step, 1.0)
        constrained = [layer for layer in network.modules() if isinstance(layer, ConstrainedWeight)]
        assert len(constrained) == 8
        assert max(constraint_error(layer.weight, 3) for layer in constrained) < 1e-12
        with torch.no_grad():
            scores[constraint] = network.eval()(pipeline(decode_srgb(images.images)).double())
    torch.testing.assert_close(scores["projection"], scores["parametrization"], rtol=1e-9, atol=1e-9)
    assert scores["projection"].std() > 0.05


@pytest.mark.parametrize("channels_last", [False, True])
def test_memory_format_and_autocast(images, channels_last):
    network = Seeing()
    dtypes = []

    def forward(batch):
        scores = network(batch)
        dtypes.append(scores.dtype)
        return scores

    task = training(network, images, channels_last=channels_last, autocast=torch.bfloat16, forward=forward)
    found = task.training_step(0, 1.0)
    wanted = torch.channels_last if channels_last else torch.contiguous_format
    assert network.seen[0].is_contiguous(memory_format=wanted)
    assert dtypes == [torch.bfloat16]
    assert found["loss"].dtype == torch.float32 and network.linear.weight.dtype == torch.float32
    evaluation = RecognitionEvaluation(network, images, SRGB, channels_last=channels_last)
    evaluation.open_batch(torch.arange(3))
    assert network.seen[-1].is_contiguous(memory_format=wanted)


def small_equivariant():
    torch.manual_seed(0)
    return CifarResNet(8, 10, OffsetEquivariant(constraint="projection"), widths=(3, 6, 9))


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16], ids=str)
def test_mixed_precision_learns_what_single_precision_learns_but_for_rounding(images, autocast):
    losses, networks = [], []
    for low in (None, autocast):
        network = small_equivariant()
        task = training(network, images, LOG_RGB, lr=0.05, momentum=0.9, autocast=low)
        losses.append([task.training_step(step, 1.0)["loss"].item() for step in range(8)])
        networks.append(network)
    assert losses[1] == pytest.approx(losses[0], abs=0.05) and losses[1] != losses[0]
    for parameter in networks[1].parameters():
        assert parameter.dtype == parameter.grad.dtype == torch.float32
    constrained = [layer for layer in networks[1].modules() if isinstance(layer, ConstrainedWeight)]
    assert max(constraint_error(layer.weight, 3) for layer in constrained) < 1e-6


def test_float16_leaves_out_a_step_that_overflows_and_lowers_the_scale(images):
    network = Seeing()
    task = training(network, images, lr=0.5, autocast=torch.float16)
    assert task.optimizers()["loss_scale"].state_dict()["scale"] == 2**16
    task.optimizers()["loss_scale"].load_state_dict(task.optimizers()["loss_scale"].state_dict() | {"scale": 2.0**40})
    before = network.linear.weight.clone()
    task.training_step(0, 1.0)
    assert torch.equal(network.linear.weight, before)
    assert task.optimizers()["loss_scale"].state_dict()["scale"] == 2**39
    task.optimizers()["loss_scale"].load_state_dict(task.optimizers()["loss_scale"].state_dict() | {"scale": 2.0**10})
    task.training_step(0, 1.0)
    reference = Seeing()
    training(reference, images, lr=0.5).training_step(0, 1.0)
    # The scale has no part in the step.
    moved, expected = network.linear.weight - before, reference.linear.weight - before
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(moved, expected, rtol=0, atol=2**-8 * expected.abs().max().item())


def test_float16_goes_on_from_a_checkpoint_to_the_same_bits(images, tmp_path):
    def begin():
        network = small_equivariant()
        return network, training(network, images, LOG_RGB, momentum=0.9, autocast=torch.float16)

    settings = FitSettings(9, lambda step: 0.5, 3, 0.0, False)
    whole, task = begin()
    task.optimizers()["loss_scale"].set_growth_interval(2)
    fit(task, tmp_path / "whole", settings)
    _, task = begin()
    task.optimizers()["loss_scale"].set_growth_interval(2)
    fit(task, tmp_path / "cut", FitSettings(5, settings.schedule, 3, 0.0, False))
    resumed, task = begin()
    fit(task, tmp_path / "cut", settings)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    newest = [max((tmp_path / run / "checkpoints").iterdir()) for run in ("whole", "cut")]
    scales = [torch.load(path, weights_only=True)["optimizers"]["loss_scale"] for path in newest]
    assert scales[0] == scales[1] and scales[0]["scale"] > 2**16


def test_only_float16_scales_the_loss(images):
    for autocast in (None, torch.bfloat16):
        assert set(training(Seeing(), images, autocast=autocast).optimizers()) == {"network"}


def test_balancing_comes_after_the_light_and_before_the_representation(images):
    network = Seeing()
    pipeline = InputPipeline(SRGB.representation, grey_world)
    task = RecognitionEvaluation(network, images, pipeline)
    light = torch.tensor([1.0, 0.5, 0.25]).expand(4, 3)
    batch = task.open_batch(torch.arange(4))
    task.measure(batch, light)

    linear = srgb_to_linear(images.images[:4].double() / 255)
    mean, std = (torch.tensor(v)[:, None, None] for v in (SRGB.representation.mean, SRGB.representation.std))
    for seen, factor in zip(network.seen, (torch.ones(3), light[0]), strict=True):
        lit = linear * factor[:, None, None]
        channel_means = lit.mean((2, 3))
        gain = channel_means.prod(1, keepdim=True) ** (1 / 3) / channel_means
        expected = (linear_to_srgb((lit * gain[..., None, None]).clamp(0, 1)) - mean) / std
        torch.testing.assert_close(seen.double(), expected, rtol=0, atol=1e-4)


def test_recovery_error_is_the_angle_between_mean_colour_and_applied_light(images):
    task = RecognitionEvaluation(Seeing(), images, InputPipeline(SRGB.representation, grey_world))
    light = torch.tensor([[1.0, 0.5, 0.25], [0.3, 1.0, 1.0], [1.0, 1.0, 1.0]])
    found = task.measure(task.open_batch(torch.arange(3)), light)["recovery_error_degrees"]
    means = srgb_to_linear(images.images[:3].double() / 255).mean((2, 3)) * light
    cosine = (means * light).sum(1) / (means.norm(dim=1) * light.double().norm(dim=1))
    torch.testing.assert_close(found.double(), torch.rad2deg(torch.acos(cosine)), rtol=1e-4, atol=1e-4)
    metric, summarise = task.summaries["median_recovery_error_degrees"]
    assert metric == "recovery_error_degrees" and summarise(found.numpy()) == sorted(found.tolist())[1]


def test_a_part_of_a_batch_is_changed_as_in_the_whole(images):
    """Whatever the number of ranks: random numbers are drawn for the images of all."""
    batch = images.images[:8]
    changes = Augmentation(4, True, ColorJitter(0.4, 0.4, 0.4, 0.5), IlluminantAugmentation(0.9))

    def changed(part):
        generator = step_generator(5, 2, stream=1)
        linear = changes.colours(batch[part], generator, 8, part)
        return changes.place(linear, generator, 8, part)

    whole = changed(slice(0, 8))
    for part in (slice(0, 4), slice(4, 8), slice(2, 3)):
        torch.testing.assert_close(changed(part), whole[part], rtol=0, atol=1e-6)
    assert (whole - decode_srgb(batch)).abs().amax((1, 2, 3)).min() > 0.01


def test_top_5_error_by_hand(images):
    network = Seeing()
    task = RecognitionEvaluation(network, images, SRGB, top5=True)
    light = torch.tensor([1.0, 0.4, 0.2]).expand(40, 3)
    found = task.measure(task.open_batch(torch.arange(40)), light)["top5_error"]
    with torch.no_grad():
        scores = network.linear(network.seen[-1].flatten(1))
    better = (scores > scores.gather(1, images.labels[:, None])).sum(1)
    assert torch.equal(found, better >= 5) and 0 < found.sum() < 40
    metric, summarise = task.summaries["top5_error_percent"]
    assert metric == "top5_error" and summarise(found.numpy()) == 100 * (better >= 5).double().mean().item()


def test_without_balancing_no_light_is_recovered(images):
    task = RecognitionEvaluation(Seeing(), images, SRGB)
    found = task.measure(task.open_batch(torch.arange(3)), torch.ones(3, 3))
    assert set(found) == {"error", "posterior_change"} == {outcome for outcome, _ in task.summaries.values()}


def test_requantised_light_is_what_an_8_bit_file_would_hold(images):
    linear = decode_srgb(images.images[:4])
    light = torch.tensor([[1.0, 0.5, 0.3]]).expand(4, 3)
    exact = RecognitionEvaluation(Seeing(), images, SRGB).distort(linear, light)
    assert torch.equal(exact, linear * light[..., None, None])
    stored = RecognitionEvaluation(Seeing(), images, SRGB, requantize=True).distort(linear, light)
    levels = linear_to_srgb(stored) * 255
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-3)
    assert torch.equal(levels.round(), (linear_to_srgb(exact) * 255).round())
    assert not torch.allclose(stored, exact, atol=1e-4)


def test_quantising_undoes_decoding():
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(quantized_srgb(decode_srgb(values)), values)
    assert quantized_srgb(torch.tensor([-0.1, 1.7])).tolist() == [0, 255]


def test_outcomes_of_one_image_by_hand():
    images = synthetic_images("test", n_test=2)
    network = Seeing()
    task = RecognitionEvaluation(network, images, SRGB)
    light = torch.tensor([[0.2, 1.0, 1.0], [1.0, 1.0, 0.2]])
    found = task.measure(task.open_batch(torch.arange(2)), light)
    with torch.no_grad():
        before, after = (torch.softmax(network.linear(seen.flatten(1)), 1) for seen in network.seen[:2])
    assert torch.equal(found["error"], after.argmax(1) != images.labels)
    assert torch.equal(found["posterior_change"], (after - before).abs().max(1).values)
    assert network.modes == [False, False]


class NoWaiting(TorchDispatchMode):
    """Refuses to read a number from a tensor, for which a GPU would be waited for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket
        assert name not in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero), "a value was read"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", ["conventional", "offset_equivariant"])
def test_a_step_reads_nothing_from_the_device(family):
    network = CifarResNet(8, 10, FAMILIES[family]())
    images = synthetic_images("train", n_train=64)
    representation = Representation("srgb", (0.5,) * 3, (0.25,) * 3)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    pipeline, augmentation = InputPipeline(representation), Augmentation()
    task = trained_by(optimizer, network, images, pipeline, augmentation, batch_size=16, label_smoothing=0.1)
    task.training_step(0, 1.0)
    with NoWaiting():
        task.training_step(1, 1.0)
