"""Every layer under autograd in double precision, torch.compile, torch.export, autocast, copies and state dicts."""

import copy
import gc
import os
import shutil
import sysconfig
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.func import functional_call

import offset_equivariant as oe
from offset_equivariant.groups import add_offset
from offset_equivariant.models.resnet import BasicBlock, Bottleneck, CifarResNet, ResNet
from offset_equivariant.nn import OffsetEquivariant, one_position, project_
from offset_equivariant.nn.fused import BatchNormOfShortcut

CONSTRAINTS = ("parametrization", "projection")


def small_resnet(constraint):
    return CifarResNet(8, 4, OffsetEquivariant(constraint=constraint), widths=(3, 6, 9))


def small_bottlenecks(constraint):
    return ResNet(Bottleneck, (1, 1), 4, OffsetEquivariant(constraint=constraint), width=6 / 64)


CONSTRAINED = {
    "Linear": (lambda c: oe.nn.Linear(6, 9, constraint=c), [(2, 6)]),
    "Conv1d": (lambda c: oe.nn.Conv1d(3, 6, 3, padding=1, constraint=c), [(2, 3, 5)]),
    "Conv2d": (lambda c: oe.nn.Conv2d(3, 6, 3, 2, padding=1, constraint=c), [(2, 3, 4, 4)]),
    "Conv2d-reflect": (lambda c: oe.nn.Conv2d(3, 3, 3, 1, 1, padding_mode="reflect", constraint=c), [(2, 3, 4, 4)]),
    "Conv2d-circular": (lambda c: oe.nn.Conv2d(3, 3, 3, 1, 1, padding_mode="circular", constraint=c), [(2, 3, 4, 4)]),
    "Conv2d-grouped": (lambda c: oe.nn.Conv2d(6, 6, 3, padding=1, groups=6, constraint=c), [(2, 6, 3, 4)]),
    "Conv3d": (lambda c: oe.nn.Conv3d(3, 3, 2, padding=1, constraint=c), [(2, 3, 2, 3, 2)]),
    "ConvTranspose1d": (lambda c: oe.nn.ConvTranspose1d(3, 6, 5, 2, 1, dilation=3, constraint=c), [(2, 3, 4)]),
    "ConvTranspose2d": (lambda c: oe.nn.ConvTranspose2d(3, 6, 4, 2, 1, constraint=c), [(2, 3, 3, 4)]),
    "ConvTranspose2d-grouped": (lambda c: oe.nn.ConvTranspose2d(6, 6, 3, 2, groups=2, constraint=c), [(2, 6, 2, 3)]),
    "GroupLinear": (lambda c: oe.nn.GroupLinear(6, constraint=c), [(2, 6, 3, 2)]),
    "CifarResNet": (small_resnet, [(2, 3, 8, 8)]),
    "ResNet": (small_bottlenecks, [(2, 3, 16, 16)]),
}
OTHERS = {
    "AvgPool2d": (lambda: oe.nn.AvgPool2d(3, 2, 1), [(2, 3, 4, 4)]),
    "MaxPool2d": (lambda: oe.nn.MaxPool2d(3, 2, 1), [(2, 3, 4, 4)]),
    "AdaptiveAvgPool2d": (lambda: oe.nn.AdaptiveAvgPool2d(2), [(2, 3, 4, 4)]),
    "GroupMean": (oe.nn.GroupMean, [(2, 6, 3, 2)]),
    "GroupMax": (oe.nn.GroupMax, [(2, 6, 3, 2)]),
    "GroupMin": (oe.nn.GroupMin, [(2, 6, 3, 2)]),
    "OffsetAdapter": (lambda: oe.nn.OffsetAdapter(nn.Linear(6, 3), 3, "max", "min"), [(2, 6)]),
    "BatchNorm1d": (lambda: oe.nn.BatchNorm1d(6), [(4, 6)]),
    "BatchNorm2d": (lambda: oe.nn.BatchNorm2d(6), [(2, 6, 3, 2)]),
    "BatchNormReLU": (lambda: oe.nn.BatchNormReLU(6), [(2, 6, 3, 2)]),
    "BatchNormOfShortcut": (lambda: BatchNormOfShortcut(6), [(2, 6, 3, 2)]),
    "BatchNormReLU-merge": (lambda: oe.nn.BatchNormReLU(6), [(2, 6, 3, 2)] * 2),
    "ReLU": (oe.nn.ReLU, [(2, 6, 3, 2)]),
    "LeakyReLU": (lambda: oe.nn.LeakyReLU(0.2), [(2, 6, 3, 2)]),
    "Dropout": (lambda: oe.nn.Dropout(0.4), [(2, 6, 3, 2)]),
    "Maxout": (lambda: oe.nn.Maxout(2), [(2, 6, 3, 2)]),
    "ResidualMerge": (oe.nn.ResidualMerge, [(2, 6, 3, 2)] * 2),
    "OptionAShortcut": (lambda: oe.nn.OptionAShortcut(3, 6, 2), [(2, 3, 4, 4)]),
    "OptionAShortcut-end": (lambda: oe.nn.OptionAShortcut(3, 6, 2, padding="end"), [(2, 3, 4, 4)]),
    "InvariantHead": (oe.nn.InvariantHead, [(2, 9)]),
}
CASES = OTHERS | {
    f"{name}-{constraint}": (partial(make, constraint), shapes)
    for name, (make, shapes) in CONSTRAINED.items()
    for constraint in CONSTRAINTS
}

every_layer = pytest.mark.parametrize(("make", "shapes"), CASES.values(), ids=CASES)
every_constrained_layer = pytest.mark.parametrize(("make", "shapes"), CONSTRAINED.values(), ids=CONSTRAINED)


def random_inputs(shapes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def run(module, inputs):
    torch.manual_seed(0)  # of dropout
    return module(*inputs)


def assert_relatively_close(actual, expected, tolerance):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * (1e-3 + expected.abs().max().item()))


# Not of a whole network: too many of its rectifiers bend within a finite difference.
@pytest.mark.parametrize("name", [name for name in CASES if "ResNet" not in name])
def test_gradients_in_double_precision(name, randomised):
    make, shapes = CASES[name]
    module = randomised(make().double())
    names = [name for name, _ in module.named_parameters()]
    buffers = {name: value.clone() for name, value in module.named_buffers()}

    def function(*tensors):
        parameters = dict(zip(names, tensors, strict=False))
        torch.manual_seed(0)
        copied = {name: value.clone() for name, value in buffers.items()}
        return functional_call(module, parameters | copied, tensors[len(names) :])

    inputs = [x.requires_grad_() for x in random_inputs(shapes, torch.float64)]
    assert torch.autograd.gradcheck(function, (*module.parameters(), *inputs))


def assert_compiled_equals_eager(module, shapes, memory_format=torch.contiguous_format, **options):
    module = module.to(memory_format=memory_format)
    eager = copy.deepcopy(module)
    torch.compiler.reset()
    results = []
    for network, function in ((module, torch.compile(module, fullgraph=True, **options)), (eager, eager)):
        inputs = [x.to(memory_format=memory_format) if x.ndim == 4 else x for x in random_inputs(shapes)]
        inputs = [x.requires_grad_() for x in inputs]
        y = run(function, inputs)
        y.square().sum().backward()
        gradients = [x.grad for x in inputs] + [p.grad for p in network.parameters()]
        results.append([y, *gradients, *network.buffers()])
    for actual, expected in zip(*results, strict=True):
        assert_relatively_close(actual, expected, 2e-5)


@every_layer
def test_compiled_graphs_compute_the_same(make, shapes, randomised):
    # Traced forward and backward in one graph, without generating code.
    assert_compiled_equals_eager(randomised(make()), shapes, backend="aot_eager")


generates_code = pytest.mark.skipif(
    not (shutil.which(os.environ.get("CXX", "g++")) and Path(sysconfig.get_path("include"), "Python.h").exists()),
    reason="torch.compile needs a C++ compiler and Python's headers",
)


@generates_code
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_compiled_convolutions_with_replicate_padding(constraint, memory_format):
    layer = oe.nn.Conv2d(6, 9, 3, 2, padding=1, constraint=constraint)
    assert_compiled_equals_eager(layer, [(2, 6, 8, 8)], memory_format)


class CompiledBlocks(nn.Module):
    """What follows what in the network: convolution, normalisation, shortcut, pooling, linear layer, head."""

    def __init__(self, constraint):
        super().__init__()
        family = OffsetEquivariant(constraint=constraint)
        self.block = BasicBlock(3, 6, 2, family)
        self.fc = nn.Sequential(family.linear(6, 6), family.scores())

    def forward(self, x):
        return self.fc(self.block(x).mean((2, 3)))


@generates_code
@pytest.mark.slow
@pytest.mark.parametrize(
    ("constraint", "memory_format"),
    [("projection", torch.channels_last), ("parametrization", torch.contiguous_format)],
)
def test_compiled_residual_blocks(constraint, memory_format):
    torch.manual_seed(0)
    assert_compiled_equals_eager(CompiledBlocks(constraint), [(2, 3, 8, 8)], memory_format)


@every_layer
def test_exported_programs_compute_the_same_with_plain_operators(make, shapes, randomised):
    module = randomised(make()).eval()
    inputs = random_inputs(shapes)
    with torch.no_grad():
        program = torch.export.export(module, tuple(inputs), strict=True)
        assert_relatively_close(program.module()(*inputs), module(*inputs), 1e-6)
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert {name for name in operators if not name.startswith(("aten.", "<built-in function getitem>"))} == set()


@every_layer
def test_autocast(make, shapes):
    torch.manual_seed(0)
    module = make()
    inputs = [x.requires_grad_() for x in random_inputs(shapes)]
    reference = run(copy.deepcopy(module), inputs)
    with torch.autocast("cpu", torch.bfloat16):
        y = run(module, inputs)
    # bfloat16 rounds to 2⁻⁹; the weights' and the outputs' rounding add up over a layer, and over the layers.
    scale = reference.abs().max().item()
    assert (y.float() - reference).abs().max().item() <= 2**-5 * scale
    y.float().square().sum().backward()
    assert all(x.grad.isfinite().all() and x.grad.dtype == torch.float32 for x in inputs)


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_equivariance_under_autocast_is_lost_to_rounding_only(constraint):
    torch.manual_seed(0)
    network = CifarResNet(20, family=OffsetEquivariant(constraint=constraint)).eval()
    (images,) = random_inputs([(4, 3, 16, 16)])
    offset = torch.tensor([[3.0, -2.0, 1.0]]).expand(4, -1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        still, moved = network(images).float(), network(add_offset(images, offset)).float()
    with torch.no_grad():
        exact, exact_moved = (network(x) for x in (images, add_offset(images, offset)))
    # 2⁻⁹ for every rounding, and there are some forty on the way; in single precision, 2⁻²⁴.
    scale = exact.abs().max().item()
    assert (moved - still - offset.mean(1, keepdim=True)).abs().max().item() <= 2**-4 * scale
    assert (exact_moved - exact - offset.mean(1, keepdim=True)).abs().max().item() <= 1e-5 * scale


@every_layer
def test_deep_copies_are_equal_and_independent(make, shapes, randomised):
    module, inputs = randomised(make()).eval(), random_inputs(shapes)
    expected = module(*inputs).detach()
    copied = copy.deepcopy(module)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    assert torch.equal(copied(*inputs), expected)
    del module
    gc.collect()
    copied.load_state_dict(state)
    assert torch.equal(copied(*inputs), expected)


@every_layer
def test_state_dicts_round_trip(make, shapes, randomised, tmp_path):
    module, inputs = randomised(make()).eval(), random_inputs(shapes)
    torch.save(module.state_dict(), tmp_path / "state.pt")
    restored = make().eval()
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(restored(*inputs), module(*inputs))


@pytest.mark.parametrize(("source", "target"), [CONSTRAINTS, CONSTRAINTS[::-1]])
@every_constrained_layer
def test_state_dicts_of_one_constraint_load_into_the_other(make, shapes, source, target, randomised):
    module, inputs = randomised(make(source).double()).eval(), random_inputs(shapes, torch.float64)
    if source == "parametrization":  # free weights that do not satisfy the constraint themselves
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.1)
    state = module.state_dict()
    names = list(state)
    restored = make(target).double().eval()
    restored.load_state_dict(state)
    assert list(state) == names
    assert_relatively_close(restored(*inputs), module(*inputs), 1e-13)
    before = [p.detach().clone() for p in restored.parameters()]
    project_(restored)
    for parameter, old in zip(restored.parameters(), before, strict=True):
        torch.testing.assert_close(parameter, old, rtol=0, atol=1e-14)


def test_a_state_dict_without_the_weight_is_refused_by_its_name():
    layer = oe.nn.Linear(6, 3)
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "parametrizations.weight.original"'):
        layer.load_state_dict({"bias": torch.zeros(3)})


@pytest.mark.parametrize("layer", [oe.nn.ConvTranspose2d(3, 6, 4, 2, 1), one_position.ConvTranspose2d(3, 6, 4, 2, 1)])
def test_transposed_convolutions_are_exported_for_images_of_any_size(layer):
    sizes = {2: torch.export.Dim("height", min=4, max=64), 3: torch.export.Dim("width", min=4, max=64)}
    program = torch.export.export(layer.eval(), (torch.randn(2, 3, 8, 8),), dynamic_shapes=(sizes,))
    x = torch.randn(2, 3, 12, 20)
    torch.testing.assert_close(program.module()(x), layer(x))


def test_networks_are_traced_by_torchs_older_compiler():
    network = oe.nn.fuse_for_inference(CifarResNet(8, 4, OffsetEquivariant(), widths=(3, 6, 9)).eval())
    x, other = torch.randn(2, 2, 3, 8, 8)
    with pytest.warns(torch.jit.TracerWarning):
        traced = torch.jit.trace(network, x)
    torch.testing.assert_close(traced(other), network(other))


@pytest.mark.parametrize("make", [lambda: oe.nn.ConvTranspose2d(3, 6, 4, 2, 1), lambda: oe.nn.Conv2d(3, 6, 3)])
def test_layers_are_made_on_the_meta_device(make):
    with torch.device("meta"):
        assert make().weight.is_meta
