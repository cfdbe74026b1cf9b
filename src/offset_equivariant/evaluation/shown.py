"""What the figures that show images share."""

import numpy as np
import numpy.typing as npt
from torch import Tensor

from offset_equivariant.tasks.recognition_evaluation import quantized_srgb

#: Saturations of the illuminant in the paper's Figures 3, 6 and 8.
SATURATIONS = (0.0, 0.2, 0.4, 0.6, 0.8)


def srgb_bytes(linear: Tensor) -> npt.NDArray[np.uint8]:
    """Return linear images ``(N, 3, H, W)``, clipped to 0 to 1, as sRGB bytes ``(N, H, W, 3)``."""
    shown: npt.NDArray[np.uint8] = quantized_srgb(linear.clamp(0, 1)).permute(0, 2, 3, 1).numpy()
    return shown
