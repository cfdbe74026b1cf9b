import pytest
import torch
from torch import nn
from torch.func import functional_call

import offset_equivariant as oe
from offset_equivariant.nn.fused import BatchNormOfShortcut, BatchNormReLU, ConventionalBatchNormReLU
from offset_equivariant.nn.shifted import ShiftedFeatures


class PlainBatchNormReLU(nn.Module):
    """What BatchNormReLU stands for, of the adapters and the merge."""

    def __init__(self, fused):
        super().__init__()
        groups = fused.offset_groups
        self.norm = oe.nn.BatchNorm2d(fused.num_features, fused.eps, fused.momentum, offset_groups=groups)
        self.norm.module.load_state_dict(fused.state_dict())
        self.merge = oe.nn.ResidualMerge(offset_groups=groups)
        self.relu = oe.nn.ReLU(offset_groups=groups)
        self.to(fused.weight.dtype).train(fused.training)

    def forward(self, x, shortcut=None):
        y = self.norm(x)
        return self.relu(y if shortcut is None else self.merge(y, shortcut))


def random_input(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def assert_relatively_close(actual, expected, tolerance):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * expected.abs().max().item())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("with_shortcut", [False, True])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("offset_groups", [1, 2, 3])
def test_equals_the_plain_composition(offset_groups, training, with_shortcut, dtype, tolerance, randomised):
    fused = randomised(BatchNormReLU(6, 1e-4, 0.3, offset_groups=offset_groups)).to(dtype).train(training)
    plain = PlainBatchNormReLU(fused)
    results = []
    for module in (fused, plain):
        inputs = [random_input(4, 6, 5, 3, seed=s, dtype=dtype).requires_grad_() for s in range(1 + with_shortcut)]
        for _ in range(2):  # the second call, in training, meets running statistics that have moved
            y = module(*inputs)
        (y * random_input(*y.shape, seed=9, dtype=dtype)).sum().backward()
        norm = module if module is fused else module.norm.module
        gradients = [x.grad for x in inputs] + [norm.weight.grad, norm.bias.grad]
        results.append(([y, *gradients, norm.running_mean, norm.running_var], norm.num_batches_tracked.item()))
    for actual, expected in zip(results[0][0], results[1][0], strict=True):
        assert_relatively_close(actual, expected, tolerance)
    assert results[0][1] == results[1][1] == (2 if training else 0)


@pytest.mark.parametrize("channels", [6, 36])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("training", [True, False])
def test_batch_normalisation_of_a_shortcut_equals_the_plain_one(
    training, dtype, tolerance, memory_format, channels, randomised
):
    fused = randomised(BatchNormOfShortcut(channels, 1e-4, 0.3)).to(dtype).train(training)
    plain = oe.nn.BatchNorm2d(channels, 1e-4, 0.3).to(dtype).train(training)
    plain.module.load_state_dict(fused.state_dict())
    offset = 1e3 * random_input(4, 3, seed=2, dtype=dtype)
    weights = random_input(4, channels, 5, 3, seed=9, dtype=dtype)
    results = []
    for module in (fused, plain):
        values = random_input(4, channels, 5, 3, dtype=dtype).to(memory_format=memory_format).requires_grad_()
        shift = random_input(4, channels, seed=1, dtype=dtype).requires_grad_()
        features = ShiftedFeatures(values, shift, offset)
        for _ in range(2):  # the second call, in training, meets running statistics that have moved
            y = module(features) if module is fused else module(features._replace(offset=0 * offset).joined())
        if module is fused:
            assert y.offset is offset and y.padded is None
            y = y._replace(offset=0 * offset).joined()
        (y * weights).sum().backward()
        norm = module if module is fused else module.module
        gradients = [values.grad, shift.grad, norm.weight.grad, norm.bias.grad]
        results.append([y, *gradients, norm.running_mean, norm.running_var])
        assert norm.num_batches_tracked == (2 if training else 0)
    for actual, expected in zip(*results, strict=True):
        assert_relatively_close(actual, expected, tolerance)


@pytest.mark.parametrize("training", [True, False])
def test_batch_normalisation_of_a_shortcut_that_is_a_tensor(training, randomised):
    fused = randomised(BatchNormOfShortcut(6)).double().train(training)
    plain = oe.nn.BatchNorm2d(6).double().train(training)
    plain.module.load_state_dict(fused.state_dict())
    x = random_input(4, 6, 5, 3)
    assert_relatively_close(fused(x), plain(x), 1e-12)
    assert_relatively_close(fused.running_var, plain.module.running_var, 1e-12)
    with pytest.raises(ValueError, match="expected 4D input"):
        fused(random_input(4, 6))


@pytest.mark.parametrize("with_shortcut", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_gradients(training, with_shortcut, randomised):
    fused = randomised(BatchNormReLU(6).double()).train(training)

    def function(weight, bias, *inputs):
        buffers = {"running_mean": fused.running_mean.clone(), "running_var": fused.running_var.clone()}
        return functional_call(fused, {"weight": weight, "bias": bias, **buffers}, inputs)

    parameters = [fused.weight, fused.bias]
    inputs = [random_input(2, 6, 2, 3, seed=s).requires_grad_() for s in range(1 + with_shortcut)]
    assert torch.autograd.gradcheck(function, (*parameters, *inputs))


@pytest.mark.parametrize("channels", [6, 36])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("with_shortcut", [False, True])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [(5, 4), (1, 3), (2, 1)])
def test_shifted_features_within_a_border(size, training, with_shortcut, memory_format, channels, randomised):
    fused = randomised(BatchNormReLU(channels, border=1)).double().train(training)
    plain = PlainBatchNormReLU(fused)
    shape = (3, channels, *size)
    inputs = [random_input(*shape, seed=s).to(memory_format=memory_format) for s in range(1 + with_shortcut)]
    shifts = [random_input(*shape[:2], seed=s + 5) for s in range(1 + with_shortcut)]
    offset = 1e3 * random_input(3, 3, seed=8)
    weights = random_input(3, channels, size[0] + 2, size[1] + 2, seed=9), random_input(*shape, seed=10)

    def leaves():
        return [[x.clone().requires_grad_() for x in part] for part in (inputs, shifts)]

    values, level = leaves()
    result = fused(*(ShiftedFeatures(x, s, offset) for x, s in zip(values, level, strict=True)))
    padded = ShiftedFeatures(result.padded, result.shift, result.offset).joined()
    ((padded * weights[0]).sum() + (result.joined() * weights[1]).sum()).backward()
    expected_values, expected_level = leaves()
    y = plain(*(x + s[..., None, None] for x, s in zip(expected_values, expected_level, strict=True)))
    y_padded = nn.functional.pad(y, (1, 1, 1, 1), mode="replicate")
    ((y_padded * weights[0]).sum() + (y * weights[1]).sum()).backward()
    assert result.offset is offset
    without = result._replace(offset=torch.zeros_like(offset))
    assert_relatively_close(without.joined(), y, 1e-10)
    assert_relatively_close(without._replace(values=result.padded).joined(), y_padded, 1e-10)
    norm = plain.norm.module
    for actual, expected in zip(
        [*values, *level, fused.weight, fused.bias],
        [*expected_values, *expected_level, norm.weight, norm.bias],
        strict=True,
    ):
        assert_relatively_close(actual.grad, expected.grad, 1e-10)
    assert_relatively_close(fused.running_var, norm.running_var, 1e-10)


def test_gradients_where_only_one_of_the_results_is_used(randomised):
    fused = randomised(BatchNormReLU(6, border=1).double())
    x = random_input(2, 6, 3, 4)
    zeros = torch.zeros(2, 6, dtype=x.dtype), torch.zeros(2, 3, dtype=x.dtype)

    def gradient(function):
        leaf = x.clone().requires_grad_()
        function(fused(ShiftedFeatures(leaf, *zeros))).backward()
        return leaf.grad

    inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    both = gradient(lambda y: y.values.square().sum() + y.shift.square().sum())
    from_values, from_shift = gradient(lambda y: y.values.square().sum()), gradient(lambda y: y.shift.square().sum())
    torch.testing.assert_close(from_values + from_shift, both, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient(lambda y: y.padded[inner].square().sum()), from_values, rtol=0, atol=1e-12)


@pytest.mark.parametrize("offset_groups", [1, 2, 3, 31])
@pytest.mark.parametrize("inputs", [1, 2])
def test_is_equivariant(inputs, offset_groups, assert_equivariant):
    shape = (3, 2 * offset_groups, 4, 3)
    assert_equivariant(
        BatchNormReLU(2 * offset_groups, offset_groups=offset_groups), *[shape] * inputs, offset_groups=offset_groups
    )


@pytest.mark.parametrize("training", [True, False])
def test_large_offsets_in_single_precision(training, randomised):
    fused = randomised(BatchNormReLU(6)).train(training)
    x, offset = random_input(4, 6, 5, 5), 1e3 * random_input(4, 3, seed=1)
    expected = oe.groups.add_offset(PlainBatchNormReLU(fused.double())(x), offset)
    moved = oe.groups.add_offset(x, offset).float().requires_grad_()
    y = randomised(BatchNormReLU(6)).train(training)(moved)
    assert_relatively_close(y.double(), expected, 1e-6)
    y.square().mean().backward()
    assert moved.grad.isfinite().all()


def test_large_offsets_leave_the_statistics_alone(randomised):
    x, offset = random_input(4, 6, 5, 5), 1e3 * random_input(4, 3, seed=1)
    still, moved = (randomised(BatchNormReLU(6).double()) for _ in range(2))
    still(x)
    moved(oe.groups.add_offset(x, offset))
    torch.testing.assert_close(moved.running_mean, still.running_mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(moved.running_var, still.running_var, rtol=1e-12, atol=0)


def test_a_constant_image_gives_no_nan():
    fused = BatchNormReLU(3)
    x = torch.full((2, 3, 4, 4), 7.0, requires_grad=True)
    y = fused(x)
    torch.testing.assert_close(y, x.detach(), rtol=1e-6, atol=0)
    y.sum().backward()
    assert x.grad.isfinite().all()


def test_half_precision_inputs_keep_their_type_and_have_precise_statistics():
    fused, reference = BatchNormReLU(6), BatchNormReLU(6)
    x, shortcut = (random_input(4, 6, 8, 8, seed=s, dtype=torch.bfloat16) for s in (0, 1))
    y = fused(x, shortcut)
    assert (y.dtype, fused.running_var.dtype) == (torch.bfloat16, torch.float32)
    expected = reference(x.float(), shortcut.float())
    torch.testing.assert_close(y.float(), expected, rtol=2**-8, atol=1e-6)  # the output's own rounding
    torch.testing.assert_close(fused.running_var, reference.running_var, rtol=1e-6, atol=0)


def test_one_value_a_channel_cannot_be_normalised():
    fused = BatchNormReLU(6)
    with pytest.raises(ValueError, match=r"needs more than one value a channel, got \(1, 6, 1, 1\)"):
        fused(torch.zeros(1, 6, 1, 1))
    assert fused.num_batches_tracked == 0
    assert fused.eval()(torch.ones(1, 6, 1, 1)).shape == (1, 6, 1, 1)
    assert BatchNormReLU(6)(torch.ones(1, 6, 1, 2)).isfinite().all()


def test_inputs_that_are_no_images_are_refused():
    with pytest.raises(ValueError, match="expected 4D input"):
        BatchNormReLU(6)(torch.zeros(4, 6))
    with pytest.raises(ValueError, match=r"num_features = 16 .* offset_groups = 3; .* 15 or 18"):
        BatchNormReLU(16)


@pytest.mark.parametrize("with_shortcut", [False, True])
def test_the_conventional_counterpart_is_torchs(with_shortcut):
    layer, norm = ConventionalBatchNormReLU(4), nn.BatchNorm2d(4)
    x, shortcut = (random_input(3, 4, 5, 5, seed=s, dtype=torch.float32) for s in (0, 1))
    expected = norm(x) + shortcut if with_shortcut else norm(x)
    assert torch.equal(layer(x, shortcut) if with_shortcut else layer(x), expected.relu())
    assert torch.equal(layer.running_var, norm.running_var)


def strange_layouts():
    whole = torch.randn(3, 6, 9, 8, generator=torch.Generator().manual_seed(3))
    return {
        "expanded rows": torch.randn(3, 1, 4, 6).permute(0, 3, 1, 2).expand(3, 6, 8, 4),
        "expanded images": whole[:1].to(memory_format=torch.channels_last).expand(3, -1, -1, -1),
        "every other row": whole[:, :, ::2],
        "transposed": whole.transpose(2, 3),
        "channels-last": whole.to(memory_format=torch.channels_last),
    }


@pytest.mark.parametrize("layout", list(strange_layouts()))
@pytest.mark.parametrize("border", [0, 1])
@pytest.mark.parametrize("training", [True, False])
def test_layout_in_memory_does_not_matter(layout, border, training):
    x = strange_layouts()[layout]
    module = BatchNormReLU(6, border=border).train(training)
    found = []
    for given in (x, x.contiguous()):
        shortcut = given.flip(0)
        y = module(oe.nn.shifted.unshifted(given, 3), oe.nn.shifted.unshifted(shortcut, 3))
        found.append(y.joined())
        if border:
            torch.testing.assert_close(y.padded[:, :, 1:-1, 1:-1], y.values)
    torch.testing.assert_close(*found)


def test_other_channels_groups_and_kinds_are_refused():
    features = oe.nn.TakeOutOffset()(torch.randn(2, 6, 4, 4))
    with pytest.raises(ValueError, match=r"expected num_features = 9 channels, got shape \(2, 6, 4, 4\)"):
        BatchNormReLU(9)(features)
    with pytest.raises(ValueError, match="offsets of 3 groups, but this layer has offset_groups = 2"):
        BatchNormReLU(6, offset_groups=2)(features)
    with pytest.raises(ValueError, match="offsets of 3 groups, but this layer has offset_groups = 1"):
        oe.nn.Conv2d(6, 6, 3, padding=1, offset_groups=1)(features)
    with pytest.raises(ValueError, match="offsets of 3 groups, but this layer has offset_groups = 2"):
        oe.nn.OptionAShortcut(6, 6, 2, offset_groups=2)(features)
    with pytest.raises(TypeError, match="the branch is ShiftedFeatures, but the shortcut is Tensor"):
        BatchNormReLU(6)(features, torch.randn(2, 6, 4, 4))
    for taker in (lambda x: BatchNormReLU(6)(torch.randn(2, 6, 4, 4), x), oe.nn.ReLU()):
        with pytest.raises(TypeError, match=r"ShiftedFeatures.*\.joined\(\)"):
            taker(features)


@pytest.mark.parametrize("training", [True, False])
def test_second_derivatives_are_refused_and_those_of_the_plain_layers_are_there(training, randomised):
    def penalty(*layers):
        network = nn.Sequential(oe.nn.Conv2d(3, 6, 3), *layers).double().train(training)
        x = torch.randn(2, 3, 6, 6, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
        ((gradient.flatten(1).norm(dim=1) - 1) ** 2).sum().backward()
        return network[1]

    with pytest.raises(RuntimeError, match=r"no second derivatives \(create_graph=True\); for those use BatchNorm2d"):
        penalty(BatchNormReLU(6))
    assert penalty(oe.nn.BatchNorm2d(6), oe.nn.ReLU()).module.weight.grad.abs().max() > 0


def test_running_statistics_are_the_average_of_all_batches_without_a_momentum():
    """As of torch's own layer, and so that torch.optim.swa_utils.update_bn can recompute them."""
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(4, 6, 3, 3, generator=generator).double() + 2 for _ in range(3)]
    fused, plain = nn.Sequential(BatchNormReLU(6)).double(), oe.nn.BatchNorm2d(6).double()
    torch.optim.swa_utils.update_bn(batches, fused)
    torch.optim.swa_utils.update_bn(batches, plain)
    torch.testing.assert_close(fused[0].running_mean, plain.module.running_mean, rtol=0, atol=1e-14)
    torch.testing.assert_close(fused[0].running_var, plain.module.running_var, rtol=0, atol=1e-14)
    assert fused[0].num_batches_tracked == 3 and fused[0].momentum == 0.1
    assert BatchNormReLU(6, momentum=None).momentum is None


@pytest.mark.parametrize("training", [False, True])
def test_weights_trained_with_plain_layers_load_in_the_same_place(training, randomised):
    def plain_part():
        return nn.Sequential(oe.nn.Conv2d(3, 6, 3, padding=1), oe.nn.BatchNorm2d(6), oe.nn.ReLU())

    def fused_part():
        return nn.Sequential(oe.nn.Conv2d(3, 6, 3, padding=1), oe.nn.BatchNormReLU(6), nn.Identity())

    plain = randomised(nn.Sequential(*plain_part(), oe.nn.Conv2d(6, 3, 3), plain_part())).double().train(training)
    fused = nn.Sequential(*fused_part(), oe.nn.Conv2d(6, 3, 3), fused_part()).double().train(training)
    plain[1].module.num_batches_tracked.fill_(7)
    state = plain.state_dict()
    assert "1.module.weight" in state and "4.1.module.running_var" in state
    fused.load_state_dict(state)
    assert "1.module.weight" in state  # the caller's is left alone
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(fused(images), plain(images), rtol=1e-11, atol=1e-11)
    assert fused[1].num_batches_tracked == plain[1].module.num_batches_tracked == 7 + int(training)
    fused.load_state_dict(fused.state_dict())
    shortcut = oe.nn.BatchNormOfShortcut(6)
    shortcut.load_state_dict(randomised(oe.nn.BatchNorm2d(6)).state_dict())
    assert shortcut.running_mean.all()
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "weight"'):
        shortcut.load_state_dict({"module.bias": torch.zeros(6)})


@pytest.mark.parametrize("layer", [BatchNormReLU, BatchNormOfShortcut])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_batch_of_no_images_is_torchs_to_the_last_number(layer, training, layout):
    ours, torchs = layer(6, border=1).train(training), nn.BatchNorm2d(6).train(training)
    torch.manual_seed(0)
    for norm in (ours, torchs):
        images = torch.zeros(0, 6, 4, 5).to(memory_format=layout).requires_grad_()
        output = norm(images)
        assert output.shape == (0, 6, 4, 5)
        output.sum().backward()
        assert images.grad.shape == (0, 6, 4, 5)
        assert norm.weight.grad.tolist() == norm.bias.grad.tolist() == [0] * 6
    for name, value in torchs.state_dict().items():
        assert torch.equal(value, ours.state_dict()[name]), name
    with torch.no_grad():
        features = layer(6, border=1).train(training)(oe.nn.TakeOutOffset()(images))
    assert features.joined().shape == (0, 6, 4, 5)


@pytest.mark.parametrize("shape", [(4, 6, 1, 1), (1, 6, 5, 3), (4, 6, 5, 1)])
def test_a_shortcut_of_another_shape_is_not_spread_over_the_branch(shape):
    branch, shortcut = random_input(4, 6, 5, 3), random_input(*shape)
    module = BatchNormReLU(6).double()
    wrapped = (oe.nn.shifted.unshifted(branch, 3), oe.nn.shifted.unshifted(shortcut, 3))
    for merge, inputs in ((module, (branch, shortcut)), (module, wrapped), (oe.nn.ResidualMerge(), (branch, shortcut))):
        with pytest.raises(ValueError, match=r"the shortcut has shape \(.*\), the branch \(4, 6, 5, 3\)"):
            merge(*inputs)
