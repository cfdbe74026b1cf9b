"""Times, memory, and the machine's own limits."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from offset_equivariant.nn.fused import BatchNormReLU, ConventionalBatchNormReLU
from offset_equivariant.nn.plain import PlainBatchNormReLU
from offset_equivariant.performance.settings import Setting
from offset_equivariant.performance.subjects import Size, build, training_of


def synchronise(device: torch.device) -> None:
    """Wait for what was put on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def interleaved(
    subjects: Mapping[str, Callable[[], object]], device: torch.device, rounds: int, warm_up: int = 2
) -> dict[str, dict[str, float]]:
    """Time every subject once a round, so that a slow minute of the machine meets all: median, min and max in ms."""
    for run in subjects.values():
        for _ in range(warm_up):
            run()
    times: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, run in subjects.items():
            synchronise(device)
            started = time.perf_counter()
            run()
            synchronise(device)
            times[name].append((time.perf_counter() - started) * 1000)
    return {
        name: {"median": statistics.median(values), "min": min(values), "max": max(values)}
        for name, values in times.items()
    }


def machine_limits(device: torch.device) -> dict[str, float]:
    """Measured rates: multiplication of matrices, GFLOP/s, and copying of what fits no cache, GB/s read and written."""
    a, b = torch.randn(2, 2048, 2048, device=device)
    source = torch.randn(64 * 2**20 // 4 * 4, device=device)
    target = torch.empty_like(source)
    times = interleaved({"gemm": lambda: a @ b, "copy": lambda: target.copy_(source)}, device, rounds=7)
    return {
        "gemm_gflops": 2 * 2048**3 / times["gemm"]["min"] / 1e6,
        "copy_gb_per_s": 2 * source.numel() * 4 / times["copy"]["min"] / 1e6,
    }


def training_floor(network: str, size: Size, limits: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """What a training step needs at least: arithmetic, and traffic of feature maps, in ms at the machine's rates.

    The traffic counted is what is left if nothing is done twice: the output of each convolution and of each rectifier
    is written once and read once, so is its gradient, and it is read once more for the gradient.
    """
    module = build(network, size, Setting(channels_last=False, compile=False), device)
    images = torch.rand(size.batch, size.offset_groups, size.side, size.side, device=device)
    sizes: list[int] = []
    for part in module.modules():
        if isinstance(part, torch.nn.Conv2d | BatchNormReLU | ConventionalBatchNormReLU | PlainBatchNormReLU):
            part.register_forward_hook(lambda _, __, y: sizes.append(y.shape.numel()))
    with FlopCounterMode(display=False) as counter:
        module(images).sum().backward()
    flops, traffic = counter.get_total_flops(), 5 * 4 * sum(sizes)
    return {
        "gflop": flops / 1e9,
        "arithmetic_ms": flops / limits["gemm_gflops"] / 1e6,
        "traffic_gb": traffic / 1e9,
        "traffic_ms": traffic / limits["copy_gb_per_s"] / 1e6,
    }


def training_memory(network: str, size: Size, setting: Setting, device: torch.device) -> float | None:
    """Peak memory of a training step beyond what was there before the network, in MB.

    On a CPU, the resident memory of a process of its own; None on MPS, which does not keep its peak.
    """
    if device.type == "mps":
        return None
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        _two_steps(network, size, setting, device)
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return float(pool.apply(_resident_memory, (network, size, setting, torch.get_num_threads())))


def _resident_memory(network: str, size: Size, setting: Setting, threads: int) -> float:
    torch.set_num_threads(threads)
    device = torch.device("cpu")
    torch.nn.functional.conv2d(torch.randn(1, 3, 8, 8), torch.randn(3, 3, 3, 3))  # so that the libraries are loaded
    before = peak_resident_megabytes()
    _two_steps(network, size, setting, device)
    return peak_resident_megabytes() - before


def peak_resident_megabytes() -> float:
    """Return the largest resident memory that this process has had."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the process that started this one had
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _two_steps(network: str, size: Size, setting: Setting, device: torch.device) -> None:
    task = training_of(network, size, setting, device)
    for step in range(2):
        task.training_step(step, 1.0)


def operator_times(
    run: Callable[[], object], device: torch.device, rounds: int = 5, shown: int = 12
) -> dict[str, float]:
    """Return by operator, the costliest first, the ms of one call that it spends in itself; the rest as ``others``.

    With CUDA that is the time of its kernels, elsewhere the CPU's.
    """
    run()
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        for _ in range(rounds):
            run()
    field = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    times = {event.key: getattr(event, field) / rounds / 1000 for event in profiler.key_averages()}
    order = sorted(times, key=lambda key: -times[key])
    return {key: times[key] for key in order[:shown]} | {"others": sum(times[key] for key in order[shown:])}


def compilation_seconds(run: Callable[[], Any]) -> float:
    """Time of a first call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
