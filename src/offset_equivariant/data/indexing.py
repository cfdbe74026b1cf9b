"""Which images of a set are meant."""

from collections.abc import Sequence

import torch
from torch import Tensor


def image_indices(indices: Sequence[int] | Tensor, n: int) -> Tensor:
    """Return indices of a set's ``n`` images as int64 (K,), on the CPU.

    Raises:
        TypeError: when they are not one-dimensional integers (a boolean mask is not a list of indices).
        IndexError: when one is outside 0 to n - 1.
    """
    index = torch.as_tensor(indices)
    if index.numel() == 0:
        index = index.long()
    if index.dim() != 1 or index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise TypeError(
            f"indices must be one-dimensional integers, got {index.dtype} of {tuple(index.shape)}; "
            "turn a boolean mask into indices with mask.nonzero().flatten()"
        )
    index = index.cpu().long()
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < n:
        raise IndexError(f"indices must lie in 0 to {n - 1}, got {int(index.min())} to {int(index.max())}")
    return index
