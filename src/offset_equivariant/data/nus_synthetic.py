"""Made-up scenes under known illuminants: for smoke tests and machines without NUS, never for results."""

import numpy as np
import numpy.typing as npt
import torch

from offset_equivariant.data.illuminant_images import IlluminantImages, fingerprint
from offset_equivariant.data.nus import CAMERAS

_SURFACES = 40
_MINIMUM_SIZE = 16


def synthetic_scenes(images: int = 270, size: int = 64, seed: int = 0) -> IlluminantImages:
    """Scenes of overlapping coloured discs, lit by one illuminant each and seen by one of nine cameras.

    Reflectances are grey on average, so that a scene tells something of its light. Illuminants lie near a curve from
    reddish to bluish, as daylight and lamps do, and each camera multiplies them by a gain of its own. Like the images
    of NUS these have a black rectangle, where the colour chart would be, and a maximum of 1.

    Args:
        images: number of images, at least 9. Image i is of camera i mod 9 and fold i mod 3, and depends on (seed, i)
            alone.
        size: height and width in pixels, at least 16.
        seed: non-negative.

    Raises:
        ValueError: when an argument is out of range.
    """
    check_scenes(images, size, seed)
    numbers = range(images)
    gains = [np.exp(np.random.default_rng([seed, camera]).normal(0, 0.25, 3)) for camera in range(len(CAMERAS))]
    scenes, illuminants = [], []
    for number in numbers:
        # Three numbers, so that no image shares its generator with a camera.
        rng = np.random.default_rng([seed, number, 1])
        illuminant = _illuminant(rng) * gains[number % len(CAMERAS)]
        scenes.append(_scene(rng, size, illuminant))
        illuminants.append(illuminant / np.linalg.norm(illuminant))
    pixels = torch.from_numpy(np.stack(scenes).astype(np.float32)).permute(0, 3, 1, 2).contiguous()
    lights = torch.from_numpy(np.stack(illuminants))
    cameras = tuple(CAMERAS[number % len(CAMERAS)] for number in numbers)
    return IlluminantImages(
        name="nus_synthetic",
        images=pixels,
        illuminants=lights,
        names=tuple(f"synthetic_{number:04d}" for number in numbers),
        cameras=cameras,
        folds=torch.arange(images) % 3,
        sha256=fingerprint(pixels, lights),
        synthetic=True,
    )


def check_scenes(images: int = 270, size: int = 64, seed: int = 0) -> None:
    """Check the arguments of :func:`synthetic_scenes`.

    Raises:
        ValueError: when one is out of range.
    """
    for name, value, minimum in (("images", images, len(CAMERAS)), ("size", size, _MINIMUM_SIZE), ("seed", seed, 0)):
        if value < minimum:
            raise ValueError(f"{name} must be at least {minimum}, got {value}")


def _illuminant(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Linear RGB with green 1, from reddish to bluish."""
    warmth = rng.uniform(-0.6, 0.6)
    return np.exp(np.array([warmth, 0.0, -warmth]) + rng.normal(0, 0.05, 3))


def _scene(rng: np.random.Generator, size: int, illuminant: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """One lit scene, (size, size, 3), its maximum 1."""
    row, column = np.mgrid[:size, :size] / size
    reflectance = np.broadcast_to(_reflectance(rng), (size, size, 3)).copy()
    for _ in range(_SURFACES):
        place, radius = rng.uniform(0, 1, 2), rng.uniform(0.05, 0.35)
        reflectance[np.hypot(row - place[0], column - place[1]) < radius] = _reflectance(rng)
    shading = 1 + 0.5 * (rng.uniform(-1, 1) * (row - 0.5) + rng.uniform(-1, 1) * (column - 0.5))
    scene = reflectance * shading[..., None] * illuminant
    scene *= np.exp(rng.normal(0, 0.02, scene.shape))
    top, left = rng.integers(0, size - size // 6, 2)
    scene[top : top + size // 6, left : left + size // 8] = 0
    return np.asarray(scene / scene.max())


def _reflectance(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """A surface's colour: brightness over a decade, with a tint that is grey on average."""
    return np.exp(rng.uniform(-2.3, 0) + rng.normal(0, 0.3, 3))
