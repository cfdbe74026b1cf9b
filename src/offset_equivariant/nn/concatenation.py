"""Concatenation of features that keeps every channel in its own offset group (Section 4.2: Color Cerberus)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from offset_equivariant.groups import require_offset_groups, split_groups


class Concatenation(nn.Module):
    """Concatenate ``(N, C, *spatial)`` tensors group by group: with x̄ behind x, R, R̄, G, Ḡ, B, B̄.

    One behind the other, R, G, B, R̄, Ḡ, B̄, most channels would come to lie in another colour's group.

    Raises:
        ValueError: if a tensor's channels are not divisible by ``offset_groups``.
    """

    def __init__(self, *, offset_groups: int = 3) -> None:
        super().__init__()
        require_offset_groups(offset_groups)
        self.offset_groups = offset_groups

    def forward(self, *tensors: Tensor) -> Tensor:
        return torch.cat([split_groups(tensor, self.offset_groups) for tensor in tensors], 2).flatten(1, 2)

    def extra_repr(self) -> str:
        return f"offset_groups={self.offset_groups}"


class ConventionalConcatenation(nn.Module):
    """The ordinary counterpart: one tensor's channels behind the other's."""

    def forward(self, *tensors: Tensor) -> Tensor:
        return torch.cat(tensors, 1)
