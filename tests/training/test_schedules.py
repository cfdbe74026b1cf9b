import pytest

from offset_equivariant.training.schedules import equal_stages, make_schedule, multi_step, one_cycle


def test_multi_step_is_he_et_als_schedule():
    schedule = multi_step(64000, [32000, 48000])
    expected = {0: 1, 31999: 1, 32000: 0.1, 47999: 0.1, 48000: 0.01, 63999: 0.01}
    assert {step: schedule(step) for step in expected} == pytest.approx(expected)


def test_one_cycle_by_hand():
    # Eight steps, two of them warm-up: up over 1/2 and 1, then down by sixths of what is left.
    schedule = one_cycle(8, warmup_fraction=0.25)
    assert [schedule(step) for step in range(8)] == pytest.approx([1 / 2, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


@pytest.mark.parametrize(("steps", "fraction"), [(1, 0.25), (3, 0.1), (3, 0.9), (11700, 0.25)])
def test_one_cycle_stays_in_range_and_peaks_at_the_warm_ups_end(steps, fraction):
    factors = [one_cycle(steps, fraction)(step) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    peak = factors.index(max(factors))
    assert abs(peak + 1 - fraction * steps) <= 1
    assert factors == sorted(factors[:peak]) + sorted(factors[peak:], reverse=True)


def test_wrong_arguments():
    for fraction in (0, 1, -0.1, 1.5):
        with pytest.raises(ValueError, match="warmup_fraction"):
            one_cycle(10, fraction)
    for milestones in ([2, 1], [1, 1]):
        with pytest.raises(ValueError, match="must ascend"):
            multi_step(10, milestones)
    with pytest.raises(ValueError, match="'cosine' is not one of one_cycle, multi_step"):
        make_schedule("cosine", 10)


@pytest.mark.parametrize("steps", [9, 10, 450_360])
def test_equal_stages_end_after_equal_parts_of_the_steps(steps):
    schedule = equal_stages(steps, stages=3, factor=0.1)
    third = -(-steps // 3)
    assert [schedule(step) for step in (0, third - 1, third)] == pytest.approx([1, 1, 0.1])
    assert schedule(steps - 1) == pytest.approx(0.01)
    with pytest.raises(ValueError, match="stages = 0 must be at least 1"):
        equal_stages(steps, stages=0)


def test_schedules_by_name():
    assert make_schedule("one_cycle", 8, warmup_fraction=0.5)(0) == one_cycle(8, 0.5)(0) == 0.25
    assert make_schedule("multi_step", 8, milestones=[4], factor=0.5)(4) == 0.5
