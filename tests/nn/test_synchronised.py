"""Statistics of batch normalisation over two processes, on the CPU."""

import copy
import multiprocessing

import pytest
import torch
from torch import distributed, nn

import offset_equivariant as oe
from offset_equivariant.models.resnet import CifarResNet


def as_rank(number, store, network, images, results):
    distributed.init_process_group("gloo", store=distributed.FileStore(str(store), 2), rank=number, world_size=2)
    part = images.chunk(2)[number]
    output = network(part)
    output.square().sum().backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    for gradient in gradients:
        distributed.all_reduce(gradient)
    state = {name: value for name, value in network.state_dict().items() if "running" in name}
    torch.save((output.detach(), gradients, state), results / f"{number}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.parametrize(
    "norm",
    [
        oe.nn.BatchNorm2d(6),
        oe.nn.BatchNorm2d(6, pooling=oe.nn.GroupLinear(6)),
        oe.nn.BatchNormReLU(6),
        oe.nn.BatchNormOfShortcut(6),
        oe.nn.Conventional().batch_norm2d(6),
    ],
    ids=["BatchNorm2d", "learned pooling", "BatchNormReLU", "BatchNormOfShortcut", "conventional"],
)
def test_two_processes_compute_what_one_computes_of_all_images(norm, randomised, tmp_path):
    network = randomised(nn.Sequential(oe.nn.Conv2d(3, 6, 3), norm)).double()
    images = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images[:2] += 1  # so that the halves have other statistics than the whole
    alone = copy.deepcopy(network)
    expected = alone(images)
    expected.square().sum().backward()
    oe.nn.synchronise_batch_norm_(network)
    context = multiprocessing.get_context("fork")
    arguments = (tmp_path / "store", network, images, tmp_path)
    processes = [context.Process(target=as_rank, args=(number, *arguments)) for number in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    found = [torch.load(tmp_path / f"{number}.pt") for number in (0, 1)]
    torch.testing.assert_close(torch.cat([output for output, _, _ in found]), expected.detach())
    for _, gradients, state in found:
        for gradient, parameter in zip(gradients, alone.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad)
        for name, value in state.items():
            torch.testing.assert_close(value, alone.state_dict()[name])


@pytest.mark.parametrize("family", oe.nn.FAMILIES.values(), ids=oe.nn.FAMILIES)
def test_networks_of_every_family_can_be_synchronised(family):
    network = CifarResNet(8, family=family())
    oe.nn.synchronise_batch_norm_(network)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 7 and all(norm.synchronised for norm in norms)


@pytest.mark.parametrize(
    "last", [nn.BatchNorm2d(6), oe.nn.BatchNorm1d(6), oe.nn.BatchNorm2d(6, affine=False)], ids=["torch", "1d", "affine"]
)
def test_none_is_switched_if_one_cannot_be(last):
    network = nn.Sequential(oe.nn.BatchNormReLU(6), oe.nn.BatchNorm2d(6), last)
    with pytest.raises(
        TypeError, match=r"2(\.module)? is a .*BatchNorm.d, which cannot be synchronised; use BatchNorm2d"
    ):
        oe.nn.synchronise_batch_norm_(network)
    assert not any(getattr(module, "synchronised", False) for module in network.modules())


def test_running_variance_of_half_precision_is_torchs():
    """The batch's variance, 90,000, is more than half precision has; a tenth of it is not."""
    x = 300 * torch.randn(64, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    ours, torchs = oe.nn.BatchNormReLU(6).half(), nn.BatchNorm2d(6).half()
    ours(x.half()), torchs((x.unflatten(1, (3, 2)) - x.unflatten(1, (3, 2)).mean((2, 3, 4), True)).flatten(1, 2).half())
    assert torchs.running_var.isfinite().all()
    torch.testing.assert_close(ours.running_var, torchs.running_var, rtol=2e-3, atol=0)
