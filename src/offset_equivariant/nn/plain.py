"""Normalisation, merge and rectifier as the equations have them: what :mod:`offset_equivariant.nn.fused` computes."""

from __future__ import annotations

from torch import Tensor, nn

from offset_equivariant.nn import adapters, residual


class PlainBatchNormReLU(nn.Module):
    """The composition of Eq. 19, 21 and 27 that :class:`~offset_equivariant.nn.fused.BatchNormReLU` stands for.

    Args:
        channels: C, of tensors ``(N, C, H, W)``.
        offset_groups: number of offset groups.
        normalisation_pooling: φ of the normalisation, a name or a module; that of the merge is the mean.
        rectifier_pooling: φ of the rectifier.
    """

    def __init__(
        self,
        channels: int,
        offset_groups: int = 3,
        normalisation_pooling: str | nn.Module = "mean",
        rectifier_pooling: str | nn.Module = "mean",
    ) -> None:
        super().__init__()
        self.norm = adapters.BatchNorm2d(channels, offset_groups=offset_groups, pooling=normalisation_pooling)
        self.merge = residual.ResidualMerge(offset_groups=offset_groups)
        self.relu = adapters.ReLU(offset_groups=offset_groups, pooling=rectifier_pooling)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """Return the activation, shaped as ``x``; ``shortcut`` is the x of Eq. 27."""
        y: Tensor = self.norm(x)
        activation: Tensor = self.relu(y if shortcut is None else self.merge(y, shortcut))
        return activation
