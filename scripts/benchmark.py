"""Time the networks on this device, choose the fastest settings, and render docs/PERFORMANCE.md.

    python scripts/benchmark.py [--quick]

Writes results/benchmarks/<device>.json. Let nothing else run meanwhile.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import Any

import torch

from offset_equivariant import provenance
from offset_equivariant.building import choose_device
from offset_equivariant.performance.measuring import (
    compilation_seconds,
    interleaved,
    machine_limits,
    operator_times,
    training_floor,
    training_memory,
)
from offset_equivariant.performance.report import write_performance
from offset_equivariant.performance.settings import Setting, benchmark_path, device_slug, training_seconds
from offset_equivariant.performance.subjects import (
    FAMILY_NAMES,
    NETWORKS,
    Size,
    bare_step_of,
    inference_of,
    sweep_of,
    training_of,
)
from offset_equivariant.storage import replace_file

#: Steps of train=fast on CIFAR-10, over which compiling must pay.
FAST_STEPS = 4680
#: Images at a time in the sweep, as conf/runtime has it.
EVALUATION_BATCH = 250
GROWTH = [
    *(("batch", batch, Size(batch=batch)) for batch in (32, 64, 128, 256, 512)),
    *(("side", side, Size(batch=16, side=side)) for side in (32, 64, 128, 224)),
    *(("offset_groups", groups, Size(offset_groups=groups)) for groups in (1, 3, 31)),
]


def main() -> None:
    """Measure everything, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds, no compiler: to see that it runs")
    parser.add_argument("--device", default="auto")
    quick, device = (arguments := parser.parse_args()).quick, choose_device(arguments.device)
    # What was compiled before would be found again, and compiling look as if it cost nothing.
    torch.compiler.config.force_disable_caches = True
    rounds = 3 if quick else 15
    commit, dirty = provenance.commit()
    found: dict[str, Any] = {"device": device_slug(device), "commit": commit, "dirty": dirty, "quick": quick}
    found["environment"] = provenance.environment(device)
    found["limits"] = machine_limits(device)
    found["settings"] = measure_settings(device, 2 if quick else 10, with_compiler=not quick)
    best = {network: fastest(found["settings"], network) for network in NETWORKS}
    found["training"] = measure_training(best, found["limits"], device, rounds)
    found["inference"] = measure_inference(best, device, 2 * rounds)
    found["pipeline"] = measure_pipeline(best, device, 2 * rounds)
    found["sweep"] = measure_sweep(best, device, 3 if quick else 5, images=100 if quick else 1000)
    found["profile"] = measure_profile(best, device)
    found["growth"] = [] if quick else measure_growth(best, device)
    root = provenance.repository_root()
    path = benchmark_path(root / "runs" if quick else root / "results", device)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, (json.dumps(found, indent=1) + "\n").encode())
    print(f"wrote {path}")
    if not quick:
        print(f"wrote {write_performance(root)}")


def steps_of(network: str, size: Size, setting: Setting, device: torch.device) -> Callable[[], object]:
    """Return a function that takes the next training step."""
    task = training_of(network, size, setting, device)
    numbers: Iterator[int] = count()
    return lambda: task.training_step(next(numbers), 1.0)


def measure_settings(device: torch.device, rounds: int, *, with_compiler: bool) -> list[dict[str, Any]]:
    """Time a training step of both families in every setting."""
    settings = [
        Setting(layout, compiled) for layout in (False, True) for compiled in (False, True)[: 1 + with_compiler]
    ]
    subjects, first = {}, {}
    for network in ("original", "equivariant"):
        for setting in settings:
            run = steps_of(network, Size(), setting, device)
            try:
                first[network, setting] = compilation_seconds(run)
            except Exception as error:
                print(f"{network}, {setting}: {(str(error) or type(error).__name__).splitlines()[0]}")
                continue
            subjects[network, setting] = run
    names = {f"{network} {setting}": (network, setting) for network, setting in subjects}
    times = interleaved({name: subjects[key] for name, key in names.items()}, device, rounds)
    return [
        {
            "family": FAMILY_NAMES[network],
            "channels_last": setting.channels_last,
            "compile": setting.compile,
            "step_ms": times[name],
            "compile_seconds": first[network, setting] if setting.compile else 0.0,
        }
        for name, (network, setting) in names.items()
    ]


def fastest(settings: list[dict[str, Any]], network: str) -> Setting:
    """Return the best setting for a fast training; the plain composition has that of its family, without a compiler."""
    rows = [row for row in settings if row["family"] == FAMILY_NAMES[network]]
    if network == "plain":
        rows = [row for row in rows if not row["compile"]]
    row = min(rows, key=lambda row: training_seconds(row, FAST_STEPS))
    return Setting(row["channels_last"], row["compile"])


def measure_training(
    best: dict[str, Setting], limits: dict[str, float], device: torch.device, rounds: int
) -> dict[str, Any]:
    """Time training steps of all networks, each in its fastest setting."""
    times = interleaved({n: steps_of(n, Size(), best[n], device) for n in NETWORKS}, device, rounds)
    found: dict[str, Any] = {}
    for network in NETWORKS:
        floor = training_floor(network, Size(), limits, device)
        seconds = times[network]["median"] / 1000
        found[network] = {
            "setting": vars(best[network]),
            "ms": times[network],
            "images_per_second": Size().batch / seconds,
            # Without the compiler, whose own memory a process would be charged with.
            "peak_memory_mb": training_memory(network, Size(), Setting(best[network].channels_last, False), device),
            "share_of_gemm_rate": floor["gflop"] / seconds / limits["gemm_gflops"],
            "floor": floor,
        }
    return found


def measure_profile(best: dict[str, Setting], device: torch.device) -> dict[str, dict[str, float]]:
    """Say where the time of a training step goes, without a compiler, whose kernels have no telling names."""
    return {
        n: operator_times(steps_of(n, Size(), Setting(best[n].channels_last, False), device), device)
        for n in ("original", "equivariant")
    }


def measure_inference(best: dict[str, Setting], device: torch.device, rounds: int) -> dict[str, Any]:
    """Time forward passes of the folded networks, and of the plain one."""
    eager = {network: Setting(setting.channels_last, False) for network, setting in best.items()}
    times = interleaved({n: inference_of(n, Size(), eager[n], device) for n in NETWORKS}, device, rounds)
    return {n: {"ms": times[n], "images_per_second": Size().batch * 1000 / times[n]["median"]} for n in NETWORKS}


def measure_pipeline(best: dict[str, Setting], device: torch.device, rounds: int) -> dict[str, Any]:
    """Time the making of a batch: choice, augmentation, conversion, normalisation."""
    numbers: Iterator[int] = count()
    tasks = {
        n: training_of(n, Size(), Setting(best[n].channels_last, False), device) for n in ("original", "equivariant")
    }
    times = interleaved({n: partial(_next_batch, task, numbers) for n, task in tasks.items()}, device, rounds)
    return {n: {"ms": times[n], "images_per_second": Size().batch * 1000 / times[n]["median"]} for n in tasks}


def _next_batch(task: Any, numbers: Iterator[int]) -> None:
    task.batch(next(numbers))


def measure_sweep(best: dict[str, Setting], device: torch.device, rounds: int, images: int) -> dict[str, Any]:
    """Time the sweep over all saturations beside as many bare forward passes."""
    found: dict[str, Any] = {}
    for network in ("original", "equivariant"):
        eager = Setting(best[network].channels_last, False)
        whole, bare = sweep_of(network, images, EVALUATION_BATCH, eager, device)
        times = interleaved({"sweep": whole, "forward": bare}, device, rounds, warm_up=1)
        found[network] = {
            "images": images,
            "sweep_ms": times["sweep"],
            "forward_ms": times["forward"],
            "ratio": times["sweep"]["median"] / times["forward"]["median"],
            "images_per_second_and_saturation": images * 11000 / times["sweep"]["median"],
        }
    return found


def measure_growth(best: dict[str, Setting], device: torch.device) -> list[dict[str, Any]]:
    """Time training steps of other sizes, without a compiler, which would need its time anew for each."""
    rows = []
    for axis, value, size in GROWTH:
        subjects = {
            n: bare_step_of(n, size, Setting(best[n].channels_last, False), device) for n in ("original", "equivariant")
        }
        times = interleaved(subjects, device, rounds=5, warm_up=1)
        rows.append({"axis": axis, "value": value, "batch": size.batch, **times})
    return rows


if __name__ == "__main__":
    main()
