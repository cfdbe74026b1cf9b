import math

import numpy as np
import pytest
import torch
from torch import nn

import offset_equivariant as oe
from offset_equivariant.models.resnet import RESNETS
from offset_equivariant.nn import check_equivariance, equivariance


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def test_every_condition_is_measured():
    report = check_equivariance(nn.Identity(), (2, 6, 4), magnitudes=(0.5, 20.0))
    conditions = [(m.dtype, m.training, m.magnitude) for m in report.measurements]
    dtypes, modes = (torch.float32, torch.float64), (False, True)
    assert conditions == [(d, t, m) for d in dtypes for t in modes for m in (0.5, 20.0)]
    assert len(check_equivariance(nn.Identity(), (2, 6)).measurements) == 16
    assert report.equivariant and report.first_breaking is None


@pytest.mark.parametrize(
    ("function", "output", "share"),
    [
        (lambda x: 3 * x, "equivariant", 2),  # moves by 3Δ instead of Δ
        (lambda x: 0 * x, "equivariant", 1),
        (lambda x: 0.5 * x, "invariant", 0.5),
    ],
)
def test_the_errors_are_those_of_eq_2(function, output, share):
    inputs = []

    def observed(x):
        inputs.append(x)
        return function(x)

    report = check_equivariance(Function(observed), (2, 6, 4), output=output, magnitudes=(5.0,))
    # Of five calls a measurement those without and with offset; then come one to see what rounding does, and two more.
    calls = zip(inputs[0::5], inputs[1::5], strict=True)
    for measurement, (plain, moved) in zip(report.measurements, calls, strict=True):
        offset = (moved - plain).reshape(2, 3, -1)
        assert (offset.std(2) < 1e-5).all()  # one number an image and group
        assert offset.mean(2).std() > 1  # and not the same everywhere
        largest = offset.abs().max().item()
        assert measurement.absolute == pytest.approx(share * largest, rel=1e-5)
        scale = max(function(plain).abs().max().item(), 0 if output == "invariant" else largest)
        assert measurement.relative == pytest.approx(share * largest / scale, rel=1e-5)
    assert not report.equivariant
    assert report.worst() == max(m.relative for m in report.measurements if m.dtype == torch.float64)


def test_what_a_correct_output_does():
    head = oe.nn.InvariantHead()
    assert check_equivariance(head, (2, 9), output="mean").equivariant
    assert not check_equivariance(head, (2, 9), output="invariant").equivariant
    assert check_equivariance(nn.Sequential(head, nn.Softmax(1)), (2, 9), output="invariant").equivariant
    assert check_equivariance(Function(lambda x: x.mean((1, 2))[:, None]), (2, 9, 4), output="mean").equivariant
    assert check_equivariance(oe.nn.Conv1d(31, 62, 3, offset_groups=31), (2, 31, 5), offset_groups=31).equivariant
    assert not check_equivariance(oe.nn.Conv1d(6, 6, 3, offset_groups=2), (2, 6, 5), offset_groups=6).equivariant


def test_single_and_double_precision_are_told_apart():
    report = check_equivariance(oe.nn.Conv2d(6, 6, 3, constraint="projection"), (2, 6, 5, 5))
    assert 1e-9 < report.worst(torch.float32) < 1e-5
    assert report.worst(torch.float64) < 1e-14


def test_breaking_in_training_only():
    report = check_equivariance(nn.Sequential(oe.nn.ReLU(), nn.Dropout(0.5)), (2, 6, 8))
    for measurement in report.measurements:
        assert (measurement.relative > 1e-3) == measurement.training
    assert not report.equivariant
    assert report.first_breaking == "1"


def test_breaking_at_large_offsets_only():
    report = check_equivariance(Function(lambda x: x.clamp(-50, 50)), (2, 6, 8), magnitudes=(1.0, 1000.0))
    for measurement in report.measurements:
        assert (measurement.relative > 0.1) == (measurement.magnitude == 1000)
    assert report.first_breaking == ""


def equivariant_block(**replaced):
    layers = {
        "conv": oe.nn.Conv2d(6, 6, 3, padding=1),
        "norm": oe.nn.BatchNorm2d(6),
        "relu": oe.nn.ReLU(),
        "pool": oe.nn.AvgPool2d(2, padding=1),
    }
    block = nn.Sequential()
    for name, layer in (layers | replaced).items():
        block.add_module(name, layer)
    return block


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("conv", nn.Conv2d(6, 6, 3, padding=1)),
        ("norm", nn.BatchNorm2d(6)),
        ("relu", nn.ReLU()),
        ("pool", nn.AvgPool2d(2, padding=1)),
    ],
)
def test_the_first_submodule_to_break_is_named(name, layer):
    # What comes after it may be broken too: the first counts.
    network = nn.Sequential(equivariant_block(), equivariant_block(**{name: layer}), nn.Conv2d(6, 6, 1), oe.nn.ReLU())
    report = check_equivariance(network, (3, 6, 8, 8))
    assert not report.equivariant
    if name == "norm":  # in evaluation, a fresh one divides by the same constant everywhere: 1 / sqrt(1 + ε)
        assert report.worst() > 1e-6
    else:
        assert report.worst() > 1e-2
    assert report.first_breaking == f"1.{name}"
    assert str(report).endswith(f"first to break it: 1.{name}")


def test_a_broken_network_with_a_head_is_blamed_on_the_broken_layer():
    network = nn.Sequential(oe.nn.Linear(6, 9), nn.Linear(9, 9), oe.nn.InvariantHead())
    assert check_equivariance(network, (2, 6), output="mean").first_breaking == "1"


@pytest.mark.parametrize("classes", [9, 10])
def test_a_head_is_not_blamed_for_what_is_done_to_its_scores(classes):
    class Doubled(nn.Sequential):
        def forward(self, x):
            return 2 * super().forward(x)

    layers = oe.nn.Linear(6, 3 * classes), oe.nn.InvariantHead()
    report = check_equivariance(Doubled(*layers), (2, 6), output="mean")
    assert not report.equivariant and report.first_breaking == ""
    assert check_equivariance(nn.Sequential(*layers), (2, 6), output="mean").first_breaking is None


def test_scores_that_the_groups_do_not_divide_are_refused():
    network = nn.Sequential(oe.nn.Linear(6, 30), oe.nn.InvariantHead())
    with pytest.raises(ValueError, match=r"the output has shape \(2, 10\), .* pass output='mean'"):
        check_equivariance(network, (2, 6))


def test_an_invariant_part_of_an_invariant_module_is_not_blamed():
    centred = Function(lambda x: x - x.mean(1, keepdim=True))
    network = nn.Sequential(centred, nn.Linear(6, 4))
    assert check_equivariance(network, (2, 6), offset_groups=1, output="invariant").first_breaking is None


def test_a_break_between_submodules_is_the_modules_own():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch = oe.nn.Conv1d(6, 6, 3, padding=1)

        def forward(self, x):
            return self.branch(x) + x

    assert check_equivariance(nn.Sequential(oe.nn.ReLU(), Residual()), (2, 6, 5)).first_breaking == "1"
    report = check_equivariance(Residual(), (2, 6, 5))
    assert report.first_breaking == ""
    assert str(report).endswith("first to break it: the module itself")


def test_nan_is_no_equivariance():
    report = check_equivariance(Function(lambda x: (x - 1e9).log()), (2, 6))
    assert not report.equivariant
    assert report.first_breaking == ""
    assert math.isnan(report.worst())
    only_the_last = check_equivariance(Function(lambda x: x + 0 * (1e4 - x.abs()).log()), (2, 6), magnitudes=(1, 1e6))
    assert math.isnan(only_the_last.worst())


def test_nothing_to_measure_is_refused():
    with pytest.raises(ValueError, match="magnitudes is empty"):
        check_equivariance(nn.Identity(), (2, 6), magnitudes=())


def test_the_module_and_the_random_state_are_left_alone(randomised):
    network = randomised(nn.Sequential(oe.nn.Conv2d(3, 6, 3, constraint="projection"), oe.nn.BatchNorm2d(6)))
    network[1].eval()
    with torch.no_grad():
        network[0].weight.add_(0.1)  # not even the constraint is restored
    state = {name: value.clone() for name, value in network.state_dict().items()}
    random_state = torch.get_rng_state()
    check_equivariance(network, (2, 3, 5, 5))
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert [part.training for part in (network, *network)] == [True, True, False]
    assert not network[0]._forward_hooks
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_seed_decides_the_inputs():
    def errors(seed):
        return [m.absolute for m in check_equivariance(nn.ReLU(), (2, 6), seed=seed).measurements]

    assert errors(1) == errors(1)
    assert errors(1) != errors(2)


def test_the_report_prints_a_line_a_measurement():
    lines = str(check_equivariance(nn.Identity(), (2, 6), magnitudes=(10.0,))).splitlines()
    assert lines[0].split() == ["dtype", "mode", "offset", "absolute", "relative"]
    conditions = [line.split()[:3] for line in lines[1:]]
    assert conditions == [[d, m, "10"] for d in ("float32", "float64") for m in ("eval", "train")]


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="output = 'same' is not one of equivariant, mean, invariant"):
        check_equivariance(nn.Identity(), (2, 6), output="same")
    with pytest.raises(ValueError, match="give the shape of the module's input"):
        check_equivariance(nn.Identity())
    with pytest.raises(ValueError, match=r"channels = 7 .* offset_groups = 3; .* 6 or 9"):
        check_equivariance(nn.Identity(), (2, 7))


def test_an_output_of_zeros_has_no_relative_error_to_divide_by():
    report = check_equivariance(Function(lambda x: 0 * x), (2, 6), output="invariant")
    assert report.equivariant and report.worst() == 0.0


def test_what_breaks_in_single_precision_alone_is_named():
    def rounded(x):
        return x.half().to(x.dtype) if x.dtype == torch.float32 else x

    report = check_equivariance(nn.Sequential(nn.Identity(), Function(rounded)), (2, 6))
    assert not report.equivariant and report.first_breaking == "1"
    assert report.worst(torch.float64) < 1e-12


def test_a_layer_that_works_in_place_is_named():
    network = nn.Sequential(oe.nn.Conv2d(3, 6, 3), nn.ReLU(inplace=True), oe.nn.Conv2d(6, 6, 3))
    report = check_equivariance(network, (2, 3, 8, 8))
    assert not report.equivariant and report.first_breaking == "1"


def test_a_module_that_overwrites_its_input_is_measured_as_any_other():
    measured = [check_equivariance(nn.LeakyReLU(0.1, inplace), (2, 6, 4)).measurements for inplace in (False, True)]
    assert measured[0] == measured[1] and measured[0][0].relative > 0.1


def test_a_module_that_carries_its_offset_beside_it_is_measured():
    trunk = nn.Sequential(oe.nn.TakeOutOffset(), oe.nn.Conv2d(3, 6, 3), oe.nn.BatchNormReLU(6))
    report = check_equivariance(trunk, (2, 3, 8, 8))
    assert report.equivariant and report.worst() < 1e-12


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (oe.nn.Conv2d(6, 9, 3, padding=1, groups=3, constraint="projection"), (2, 6, 8, 8)),
        (oe.nn.ConvTranspose2d(6, 6, 4, 2, 1, groups=2, constraint="projection"), (2, 6, 8, 8)),
        (oe.nn.Linear(6, 9, constraint="projection"), (2, 6)),
    ],
    ids=["Conv2d", "ConvTranspose2d", "Linear"],
)
def test_weights_that_were_not_projected_are_measured_as_they_are(layer, shape):
    network = nn.Sequential(oe.nn.ReLU(), layer)
    assert check_equivariance(network, shape).equivariant
    with torch.no_grad():
        layer.weight.add_(1e-4)  # as after an optimiser's step
    report = check_equivariance(network, shape)
    assert report.worst() > 1e-5 and not report.equivariant and report.first_breaking == "1"
    layer.project_()
    assert check_equivariance(network, shape).worst() < 1e-13


def test_weights_of_an_ordinary_network_that_were_not_projected_are_named():
    network = nn.Sequential(oe.nn.Conv2d(3, 6, 3, padding=1, constraint="projection"))
    network[0].load_state_dict(nn.Conv2d(3, 6, 3, padding=1).state_dict())
    report = check_equivariance(network, (2, 3, 8, 8))
    assert report.worst() > 0.1 and not report.equivariant and report.first_breaking == "0"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_rounding_of_projected_weights_is_no_violation(dtype):
    layer = oe.nn.Conv2d(30, 60, 3, constraint="projection")
    with torch.no_grad():
        layer.weight.mul_(50)
    layer.to(dtype).project_()
    assert layer.satisfies_constraint()
    assert check_equivariance(layer, (2, 30, 5, 5)).worst() < 1e-12
    # To numbers in double precision, the rounding of single precision is a violation like any other.
    assert not layer.float().double().satisfies_constraint()


def test_an_invariant_output_may_lose_the_digits_that_an_offset_takes():
    """Features beside an offset of 1000 have four digits less, and so have probabilities made of them."""
    torch.manual_seed(0)
    network = nn.Sequential(oe.nn.Linear(6, 30), oe.nn.InvariantHead(), Function(lambda x: 20 * x), nn.Softmax(1))
    report = check_equivariance(network, (64, 6), output="invariant")
    assert 1e-4 < report.worst(torch.float32) < 5e-3 and report.worst() < 1e-11
    assert report.equivariant and report.first_breaking is None


def test_a_folded_network_is_judged_by_the_type_that_its_weights_are_kept_in(randomised):
    blocks = [part for _ in range(2) for part in (oe.nn.Conv2d(6, 6, 3, padding=1), oe.nn.BatchNormReLU(6))]
    network = randomised(nn.Sequential(*blocks, oe.nn.Conv2d(6, 6, 3, padding=1)))
    single = check_equivariance(oe.nn.fuse_for_inference(network), (2, 6, 8, 8))
    assert 1e-9 < single.worst() < 1e-5 and single.equivariant and single.first_breaking is None
    double = check_equivariance(oe.nn.fuse_for_inference(network.double()), (2, 6, 8, 8))
    assert double.worst() < 1e-12 and double.measurements[-1].tolerance < 2e-10
    broken = nn.Sequential(*oe.nn.fuse_for_inference(network), nn.Conv2d(6, 6, 1))
    report = check_equivariance(broken, (2, 6, 8, 8))
    assert not report.equivariant and report.first_breaking == "5"


def test_what_no_submodule_breaks_alone_is_the_modules_own():
    """Each error is within the tolerance, that of all is not."""
    drift = [Function(lambda x: x + 6e-11 * x) for _ in range(4)]
    report = check_equivariance(nn.Sequential(*drift), (2, 6, 4), magnitudes=(1.0,))
    assert not report.equivariant and report.first_breaking == ""
    assert check_equivariance(drift[0], (2, 6, 4), magnitudes=(1.0,)).equivariant


def test_no_verdict_is_without_a_name():
    """A small output whose error is small beside the offset, and large beside itself."""
    leak = Function(lambda x: 1e-6 * torch.tanh(x - x.mean((1, 2), keepdim=True)) + 1e-12 * x)
    report = check_equivariance(leak, (2, 6, 4), offset_groups=1, output="invariant", magnitudes=(1.0,))
    assert 1e-8 < report.worst() < 1e-4
    assert not report.equivariant and report.first_breaking == ""


def test_what_is_no_shape_and_what_is_no_tensor_is_refused():
    with pytest.raises(TypeError, match="an input's shape must be a sequence of whole numbers, batch first, but is 2;"):
        check_equivariance(nn.Identity(), 2, 6)
    assert check_equivariance(nn.Identity(), list(np.array([2, 6]))).equivariant
    with pytest.raises(TypeError, match="but is '26'"):
        check_equivariance(nn.Identity(), "26")
    with pytest.raises(TypeError, match="the module must return one tensor, but Function returned tuple; wrap it"):
        check_equivariance(Function(lambda x: (x, x)), (2, 6))


def test_rounding_that_the_module_multiplies_is_no_break():
    """Batch normalisation of two values: in training mode, what rounding does grows with every layer."""
    torch.manual_seed(0)
    network = RESNETS["resnet18"](classes=10, family=oe.nn.OffsetEquivariant())
    report = check_equivariance(network, (2, 3, 32, 32), output="mean", magnitudes=(10.0,))
    assert report.equivariant and report.first_breaking is None
    trained = [m for m in report.measurements if m.training]
    assert trained[0].tolerance > 10 * equivariance.TOLERANCES[trained[0].dtype]  # of single precision
    # What breaks is found there, too.
    network.fc = nn.Linear(network.fc.in_features, 30)
    report = check_equivariance(network, (2, 3, 32, 32), output="mean", magnitudes=(10.0,))
    assert [m.within_tolerance for m in report.measurements] == [False] * 4 and report.first_breaking == "fc"


def test_the_mean_of_an_offset_is_told_from_a_break():
    head = nn.Sequential(nn.Flatten(), oe.nn.Linear(12, 18), oe.nn.InvariantHead())
    report = check_equivariance(head, (2, 12))
    assert not report.equivariant and report.moves_by_mean
    assert str(report).endswith("of an invariant head's scores: output='mean'")
    assert not check_equivariance(head, (2, 12), output="mean").moves_by_mean
    broken = check_equivariance(nn.Linear(12, 12), (2, 12))
    assert not broken.moves_by_mean and not broken.equivariant


def test_measuring_leaves_other_generators_and_processes_alone(monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    seen = []

    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = oe.nn.BatchNormReLU(6)

        def forward(self, x):
            seen.append(self.norm.synchronised)
            return self.norm(x)

    network = Normalised()
    oe.nn.synchronise_batch_norm_(network)
    state = torch.get_rng_state()
    assert check_equivariance(network, (2, 6, 4, 4)).equivariant
    assert seeded == [] and torch.equal(torch.get_rng_state(), state)
    assert seen and not any(seen) and network.norm.synchronised
