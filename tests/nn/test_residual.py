import pytest
import torch

import offset_equivariant as oe
from offset_equivariant.nn.residual import ConventionalOptionAShortcut


def random_input(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_merge_is_eq_27():
    branch, shortcut = random_input(2, 2, 6, 4, 3)
    phi = shortcut.reshape(2, 3, -1).mean(2).repeat_interleave(2, 1)[:, :, None, None]
    torch.testing.assert_close(oe.nn.ResidualMerge()(branch, shortcut), branch + shortcut - phi, rtol=0, atol=1e-14)


@pytest.mark.parametrize("offset_groups", [1, 2, 3, 31])
@pytest.mark.parametrize("spatial", [(), (4,), (3, 4), (2, 3, 2)])
def test_the_merge_is_equivariant(offset_groups, spatial, assert_equivariant):
    shape = (2, 2 * offset_groups, *spatial)
    assert_equivariant(oe.nn.ResidualMerge(offset_groups=offset_groups), shape, shape, offset_groups=offset_groups)


def test_a_plain_sum_is_not():
    class Sum(torch.nn.Module):
        def forward(self, branch, shortcut):
            return branch + shortcut

    report = oe.nn.check_equivariance(Sum(), (2, 6, 4), (2, 6, 4), magnitudes=(1000.0,))
    assert report.worst() == pytest.approx(1, abs=0.01)  # twice the offset instead of once
    assert report.first_breaking == ""


@pytest.mark.parametrize("padding", ["inside_groups", "end"])
@pytest.mark.parametrize(("inputs", "outputs", "stride", "offset_groups"), [(15, 33, 2, 3), (6, 6, 2, 3), (4, 7, 1, 1)])
def test_option_a_is_equivariant(inputs, outputs, stride, offset_groups, padding, assert_equivariant):
    shortcut = oe.nn.OptionAShortcut(inputs, outputs, stride, offset_groups=offset_groups, padding=padding)
    assert shortcut(torch.zeros(2, inputs, 7, 6)).shape == (2, outputs, *((4, 3) if stride == 2 else (7, 6)))
    assert_equivariant(shortcut, (2, inputs, 7, 6), offset_groups=offset_groups)


def test_padding_inside_the_groups_keeps_every_channel_in_its_group():
    x = random_input(2, 15, 7, 6)
    y = oe.nn.OptionAShortcut(15, 33, 2)(x).reshape(2, 3, 11, 4, 3)
    kept = x[:, :, ::2, ::2].reshape(2, 3, 5, 4, 3)
    torch.testing.assert_close(y[:, :, :5], kept, rtol=0, atol=1e-14)
    mean = kept.mean((2, 3, 4))[:, :, None, None, None].expand(2, 3, 6, 4, 3)
    torch.testing.assert_close(y[:, :, 5:], mean, rtol=0, atol=1e-14)


def test_padding_at_the_end_moves_channels_into_other_groups():
    x = random_input(2, 15, 7, 6)
    y = oe.nn.OptionAShortcut(15, 33, 2, padding="end")(x)
    kept = x[:, :, ::2, ::2]
    mean = kept.reshape(2, 3, -1).mean(2)
    centred = (kept.reshape(2, 3, -1) - mean[:, :, None]).reshape(2, 15, 4, 3)
    centred = torch.cat([centred, torch.zeros(2, 18, 4, 3)], 1)
    expected = centred + mean.repeat_interleave(11, 1)[:, :, None, None]
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-14)
    # Of the old channels the first five alone are where they were.
    stays = [bool(torch.allclose(y[:, c], kept[:, c])) for c in range(15)]
    assert stays == [True] * 5 + [False] * 10


@pytest.mark.parametrize("padding", ["inside_groups", "end"])
def test_after_the_merge_the_padding_adds_nothing(padding):
    x = random_input(2, 3, 4, 4)
    shortcut = oe.nn.OptionAShortcut(3, 6, 2, padding=padding)(x)
    merged = oe.nn.ResidualMerge()(torch.zeros_like(shortcut), shortcut)
    centred = x[:, :, ::2, ::2] - x[:, :, ::2, ::2].mean((2, 3), keepdim=True)
    old, new = ([0, 2, 4], [1, 3, 5]) if padding == "inside_groups" else ([0, 1, 2], [3, 4, 5])
    torch.testing.assert_close(merged[:, old], centred, rtol=0, atol=1e-15)
    assert merged[:, new].abs().max() < 1e-15


def test_the_conventional_shortcut_appends_zeros():
    x = random_input(2, 4, 5, 4)
    expected = torch.cat([x[:, :, ::2, ::2], torch.zeros(2, 3, 3, 2)], 1)
    assert torch.equal(ConventionalOptionAShortcut(4, 7, 2)(x), expected)
    report = oe.nn.check_equivariance(ConventionalOptionAShortcut(3, 6, 2), (2, 3, 4, 4))
    assert not report.equivariant


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: oe.nn.OptionAShortcut(16, 33, 2), "in_channels = 16 .* offset_groups = 3; .* 15 or 18"),
        (lambda: oe.nn.OptionAShortcut(15, 32, 2), "out_channels = 32 .* offset_groups = 3; .* 30 or 33"),
        (lambda: oe.nn.OptionAShortcut(15, 33, 2, padding="front"), "'front' is not one of inside_groups, end"),
        (lambda: oe.nn.OptionAShortcut(33, 15, 2), "out_channels = 15 must not be fewer than in_channels = 33"),
        (lambda: ConventionalOptionAShortcut(4, 3, 2), "out_channels = 3 must not be fewer than in_channels = 4"),
        (lambda: oe.nn.ResidualMerge()(torch.zeros(1, 4), torch.zeros(1, 4)), "channels = 4 .* offset_groups = 3"),
    ],
)
def test_errors_say_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()
