"""Offset equivariant networks: ``import offset_equivariant as oe``, then ``oe.nn.Conv2d`` and the like.

Reference implementation of M. Cotogni and C. Cusano, "Offset equivariant networks and their applications",
Neurocomputing 502 (2022). Equations and sections in the documentation are the paper's.
"""

from offset_equivariant import color, groups, nn

__all__ = ["color", "groups", "nn"]
