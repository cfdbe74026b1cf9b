"""Learning rates as functions of the step alone: nothing to save, nothing to restore."""

from __future__ import annotations

from collections.abc import Callable, Sequence

#: From a step, counted from 0, to the factor on the learning rate.
Schedule = Callable[[int], float]


def one_cycle(total_steps: int, warmup_fraction: float = 0.25) -> Schedule:
    """Linear from near 0 to 1 over the first ``warmup_fraction`` of the steps, then linear to near 0.

    Raises:
        ValueError: if ``warmup_fraction`` is outside (0, 1).
    """
    if not 0 < warmup_fraction < 1:
        raise ValueError(f"warmup_fraction = {warmup_fraction} must be between 0 and 1")
    warmup = max(1.0, warmup_fraction * total_steps)
    return lambda step: min((step + 1) / warmup, (total_steps - step) / max(1.0, total_steps - warmup))


def multi_step(total_steps: int, milestones: Sequence[int], factor: float = 0.1) -> Schedule:
    """Multiply by ``factor`` from each milestone on (He et al. 2016, Section 4.2: at 32k and 48k of 64k steps).

    Milestones after the last of the ``total_steps`` are never reached.

    Raises:
        ValueError: if the milestones do not ascend.
    """
    if list(milestones) != sorted(set(milestones)):
        raise ValueError(f"milestones = {list(milestones)} must ascend")
    return lambda step: factor ** sum(step >= milestone for milestone in milestones)


def equal_stages(total_steps: int, stages: int = 3, factor: float = 0.1) -> Schedule:
    """Multiply by ``factor`` after each of ``stages`` equal parts of the steps.

    With 90 epochs and three stages that is at epochs 30 and 60, as usual with ILSVRC-12 (fb.resnet.torch).

    Raises:
        ValueError: if there is no stage.
    """
    if stages < 1:
        raise ValueError(f"stages = {stages} must be at least 1")
    return lambda step: factor ** (step * stages // total_steps)


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "one_cycle": one_cycle,
    "multi_step": multi_step,
    "equal_stages": equal_stages,
}


def make_schedule(name: str, total_steps: int, **options: object) -> Schedule:
    """Return the schedule of that name, one of ``SCHEDULES``.

    Raises:
        ValueError: for another name, listing the valid ones.
    """
    if name not in SCHEDULES:
        raise ValueError(f"schedule {name!r} is not one of {', '.join(SCHEDULES)}")
    return SCHEDULES[name](total_steps, **options)
