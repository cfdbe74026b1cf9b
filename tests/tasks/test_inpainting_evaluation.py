import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from offset_equivariant.color import RelativeClipping, apply_illuminant, linear_to_srgb, srgb_to_linear
from offset_equivariant.color.representation import Representation, decode_srgb
from offset_equivariant.data.inpainting_synthetic import drawn_facades
from offset_equivariant.evaluation.sweep import sweep
from offset_equivariant.models.context_encoder import ContextEncoder, initialise_
from offset_equivariant.nn import OffsetEquivariant
from offset_equivariant.tasks.inpainting import HoleFilling, centre_of, visible_pixels
from offset_equivariant.tasks.inpainting_evaluation import (
    CHANGE,
    LARGEST_PSNR_DB,
    InpaintingEvaluation,
    classical_filler,
    network_filler,
)
from offset_equivariant.tasks.inpainting_watch import InpaintingWatch

LOG_RGB = Representation("log_rgb", (1.4, 1.5, 1.7), (0.9, 0.8, 1.1), RelativeClipping())
SRGB = Representation("srgb", (0.5,) * 3, (0.5,) * 3)


@pytest.fixture(scope="module")
def photos():
    return drawn_facades("test", n_test=4)


@pytest.fixture(scope="module")
def linear(photos):
    return decode_srgb(photos.images)


class Constant(nn.Module):
    """The same output everywhere."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return torch.full((len(x), 3, 64, 64), self.value, dtype=x.dtype)


def test_outputs_in_log_rgb_are_cut_at_the_brightest_visible_pixel(linear):
    bright = network_filler(Constant(-10.0), HoleFilling(LOG_RGB))(linear)
    brightest = visible_pixels(linear).amax((2, 3), keepdim=True)
    torch.testing.assert_close(bright, brightest.expand(4, 3, 64, 64), rtol=1e-5, atol=0)
    dark = network_filler(Constant(2.0), HoleFilling(LOG_RGB))(linear)
    torch.testing.assert_close(dark[0, :, 0, 0], torch.tensor([math.exp(-3.2), math.exp(-3.1), math.exp(-3.9)]))


def test_mean_colour_by_hand(linear):
    fill = classical_filler("mean_colour")(linear)
    encoded = linear_to_srgb(linear)
    total = encoded.sum((2, 3)) - centre_of(encoded).sum((2, 3))
    torch.testing.assert_close(linear_to_srgb(fill)[:, :, 3, 5], total / (128 * 128 - 64 * 64))


@pytest.mark.parametrize(("method", "flag"), [("telea", cv2.INPAINT_TELEA), ("navier_stokes", cv2.INPAINT_NS)])
def test_opencv_sees_the_image_without_its_centre(photos, linear, method, flag):
    fill = classical_filler(method)(linear)
    image = photos.images[0].permute(1, 2, 0).numpy().copy()
    image[32:96, 32:96] = 0  # what is there must not matter
    mask = np.zeros((128, 128), np.uint8)
    mask[32:96, 32:96] = 255
    expected = cv2.inpaint(image, mask, 3.0, flag)[32:96, 32:96]
    assert np.array_equal((linear_to_srgb(fill[0]) * 255).round().byte().permute(1, 2, 0).numpy(), expected)


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="method 'guess' is not one of mean_colour, telea, navier_stokes"):
        classical_filler("guess")


def psnr(a, b):
    return 10 * np.log10(1 / ((a - b) ** 2).mean())


def test_outcomes_by_hand(photos, linear):
    """A method that gives half of the truth: every outcome from its definition."""
    truth_of = {}

    def half(images):
        truth_of["fill"] = centre_of(images) / 2
        return truth_of["fill"]

    evaluation = InpaintingEvaluation(half, photos)
    batch = evaluation.open_batch(torch.tensor([2, 0]))
    illuminants = torch.tensor([[1.0, 0.5, 0.25], [0.1, 1.0, 0.4]], dtype=torch.float64)
    outcomes = evaluation.measure(batch, illuminants)
    for row, image in enumerate((2, 0)):
        centre = centre_of(linear[image]).double()
        light = illuminants[row][:, None, None]
        lit = centre * light
        expected = {
            "psnr_db": psnr(linear_to_srgb(lit / 2).numpy(), linear_to_srgb(lit).numpy()),
            "psnr_linear_db": psnr((lit / 2).numpy(), lit.numpy()),
            "psnr_undone_db": psnr(linear_to_srgb(centre / 2).numpy(), linear_to_srgb(centre).numpy()),
        }
        for name, value in expected.items():
            assert outcomes[name][row].item() == pytest.approx(value, rel=1e-5), name
        assert outcomes[CHANGE][row].item() == pytest.approx(0, abs=1e-3)
        assert 0 < outcomes["ssim"][row].item() < 1


def test_change_is_measured_in_levels(photos):
    """A fill that stays as it is while the light changes: its distance from the recoloured one."""
    evaluation = InpaintingEvaluation(lambda images: torch.full((len(images), 3, 64, 64), 0.5), photos)
    batch = evaluation.open_batch(torch.tensor([0]))
    light = torch.tensor([[1.0, 0.2, 0.6]], dtype=torch.float64)
    change = evaluation.measure(batch, light)[CHANGE].item()
    still, moved = linear_to_srgb(torch.tensor(0.5)), linear_to_srgb(0.5 * light[0])
    assert change == pytest.approx(255 * (still - moved).square().mean().sqrt().item(), rel=1e-5)


def test_similarity_of_a_perfect_fill_is_one(photos):
    evaluation = InpaintingEvaluation(lambda images: centre_of(images) + 1e-6, photos)
    outcomes = evaluation.measure(evaluation.open_batch(torch.arange(4)), torch.ones(4, 3, dtype=torch.float64))
    torch.testing.assert_close(outcomes["ssim"], torch.ones(4), rtol=0, atol=1e-4)
    assert outcomes["psnr_linear_db"].tolist() == [LARGEST_PSNR_DB] * 4  # 120 dB, cut


@pytest.mark.parametrize("method", ["mean_colour", "telea"])
def test_a_black_photo_loses_no_evaluation(photos, method):
    black = photos.images.clone()
    black[1] = 0
    found = sweep(InpaintingEvaluation(classical_filler(method), replace(photos, images=black)), (0.0, 0.5, 1.0))
    usual = sweep(InpaintingEvaluation(classical_filler(method), photos), (0.0, 0.5, 1.0))
    for saturation in (0.0, 0.5, 1.0):
        expected = usual.outcomes["psnr_db"][saturation].copy()
        expected[1] = LARGEST_PSNR_DB
        assert found.outcomes["psnr_db"][saturation] == pytest.approx(expected, rel=1e-6)
    assert all(math.isfinite(value) for by_saturation in found.metrics.values() for value in by_saturation.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_whole_pipeline_is_equivariant(linear, dtype):
    """sRGB in, sRGB out: hole, clipping and cut included. The paper's claim of Section 4.3, with relative clipping."""
    torch.manual_seed(0)
    network = ContextEncoder(OffsetEquivariant(3, constraint="parametrization"), width=0.1, bottleneck=60)
    initialise_(network)
    network(HoleFilling(LOG_RGB).inputs(linear))  # running statistics of its own
    filler = network_filler(network.to(dtype), HoleFilling(LOG_RGB))
    light = torch.tensor([1.0, 0.3, 0.02], dtype=torch.float64)
    images = srgb_to_linear(linear_to_srgb(linear.to(dtype)))
    before, after = filler(images), filler(apply_illuminant(images, light))
    moved = apply_illuminant(before, light)
    assert before.std() > 0
    tolerance = 1e-11 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(linear_to_srgb(after), linear_to_srgb(moved), rtol=0, atol=tolerance)


def test_sweep_summaries(photos):
    evaluation = InpaintingEvaluation(classical_filler("mean_colour"), photos)
    found = sweep(evaluation, (0.0, 1.0), batch_size=3)
    assert found.images == 4
    assert set(found.metrics) == {
        "psnr_db",
        "psnr_linear_db",
        "psnr_undone_db",
        "ssim",
        "fill_change_levels",
        "largest_fill_change_levels",
    }
    assert found.metrics["psnr_db"][0.0] == pytest.approx(found.outcomes["psnr_db"][0.0].mean())
    assert found.metrics["largest_fill_change_levels"][0.0] == 0
    assert all(math.isfinite(value) for by_saturation in found.metrics.values() for value in by_saturation.values())


def watch(sample_steps):
    photos = drawn_facades("test", n_test=3).images
    return InpaintingWatch(Constant(0.0), HoleFilling(SRGB), photos, sample_steps), photos


def losses(discriminator=0.5, reconstruction=0.3):
    return {"discriminator_loss": discriminator, "reconstruction_loss": reconstruction}


def test_a_watch_draws_samples_once_an_interval():
    watched, photos = watch(10)
    drawn = [step for step in range(4, 40, 4) if watched(losses(), step).pictures]
    assert drawn == [12, 20, 32]
    grid = watched.grid()
    assert grid.dtype == torch.uint8 and grid.shape == (3, 3 * 130 + 2, 3 * 130 + 2)
    first = photos[0]
    assert torch.equal(grid[:, 2 * 130 + 2 : 3 * 130, 2:130], first)  # the last row: as they were
    filled = grid[:, 130 + 2 : 2 * 130, 2:130]
    assert torch.equal(visible_pixels(filled[None]), visible_pixels(first[None]))
    assert bool((centre_of(filled) == 128).all())
    assert bool((centre_of(grid[:, 2:130, 2:130]) == 0).all())


def test_a_watch_without_samples_draws_none():
    watched, _ = watch(None)
    assert not any(watched(losses(), step).pictures for step in range(100))


def test_a_collapsed_discriminator_is_said_once():
    watched, _ = watch(None)
    assert watched(losses(discriminator=0.02), 1).warnings == ()
    (warning,) = watched(losses(discriminator=0.004), 2).warnings
    assert "step 2: the discriminator's loss is 0.004" in warning
    assert watched(losses(discriminator=0.004), 3).warnings == ()


def test_a_discriminator_that_only_guesses_is_said_once():
    watched, _ = watch(None)
    said = [watched(losses(discriminator=0.6932), step).warnings for step in range(12)]
    assert [len(warnings) for warnings in said] == [0] * 9 + [1, 0, 0]
    assert "step 9: the discriminator's loss has stayed at ln 2" in said[9][0]
    interrupted, _ = watch(None)
    for step in range(30):
        assert interrupted(losses(discriminator=0.6932 if step % 9 else 0.66), step).warnings == ()


def test_what_was_seen_before_is_neither_said_nor_drawn_again():
    looks = [(4, losses()), (12, losses(reconstruction=1.3)), (16, losses(discriminator=0.004))]
    one, _ = watch(10)
    for step, scalars in looks:
        one(scalars, step)
    other, _ = watch(10)
    for step, scalars in looks:
        other.recall(scalars, step)
    for step, scalars in [(18, losses(reconstruction=7.0, discriminator=0.004)), (21, losses(reconstruction=1.9))]:
        first, second = one(scalars, step), other(scalars, step)
        assert first.warnings == second.warnings and first.pictures.keys() == second.pictures.keys()


def test_a_loss_far_above_its_lowest_is_said_once():
    watched, _ = watch(None)
    for step, loss in enumerate((2.4, 0.5, 1.9, 0.6)):  # a step up to less than four times the lowest is usual
        assert watched(losses(reconstruction=loss), step).warnings == ()
    (warning,) = watched(losses(reconstruction=2.1), 9).warnings
    assert "step 9: the reconstruction loss is 2.1, but was 0.5 already: the training diverges" in warning
    assert watched(losses(reconstruction=7e8), 10).warnings == ()
