"""What the page on the layers says is so."""

import torch

from offset_equivariant.models.resnet import CifarResNet
from offset_equivariant.nn import FAMILIES, check_equivariance
from offset_equivariant.provenance import repository_root

PAGE = " ".join((repository_root() / "docs" / "LAYERS.md").read_text(encoding="utf-8").split())


def fused_and_plain(padding):
    """ResNet-8 of both families with the same weights."""
    networks = []
    for name in ("offset_equivariant", "offset_equivariant_plain"):
        torch.manual_seed(0)
        networks.append(CifarResNet(8, family=FAMILIES[name](padding=padding)).double().eval())
    fused, plain = networks
    with torch.no_grad():
        for ours, theirs in zip(fused.parameters(), plain.parameters(), strict=True):
            theirs.copy_(ours.add_(0.1 * torch.randn_like(ours)))
    return networks


def test_fused_and_plain_layers_are_the_same_function_but_for_offset_padding():
    assert 'It is another function, as equivariant, where convolutions have `padding_mode="offset"`' in PAGE
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    fused, plain = fused_and_plain("replicate")
    torch.testing.assert_close(fused(images), plain(images), rtol=1e-10, atol=1e-10)
    fused, plain = fused_and_plain("offset")
    assert (fused(images) - plain(images)).abs().max() > 1e-3
    for network in (fused, plain):
        assert check_equivariance(network, (2, 3, 8, 8), output="mean", magnitudes=(10.0,)).worst() < 1e-12
