"""The tables of docs/PERFORMANCE.md, from results/benchmarks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from offset_equivariant.reporting.markdown import markdown_rows
from offset_equivariant.reporting.tables import replace_block
from offset_equivariant.storage import replace_file

NAMES = {"original": "original", "equivariant": "equivariant", "plain": "equivariant, plain composition"}
#: Images per second of the authors' own code, end to end: measured once, on another machine with two CPU cores.
AUTHORS_RATES = {
    "training": {"original": 410.0, "equivariant": 220.0},
    "evaluation": {"original": 1039.0, "equivariant": 707.0},
}
#: How many times as fast this project aims to be.
AIMS_BESIDE_THE_AUTHORS = {
    "training": {"original": 1.8, "equivariant": 2.0},
    "evaluation": {"original": 3.0, "equivariant": 3.0},
}
#: Forward passes that the arithmetic of a training step amounts to, about.
_PASSES = {"training": 1, "evaluation": 3}
#: Times as long as a step that profiling alone may take.
_MOST_BY_PROFILING = 2


def write_performance(root: Path) -> Path:
    """Put the tables of every benchmarked device into docs/PERFORMANCE.md, and return its path."""
    path = root / "docs" / "PERFORMANCE.md"
    replace_file(path, replace_block(path.read_text(encoding="utf-8"), render_benchmarks(root)).encode())
    return path


def render_benchmarks(root: Path) -> str:
    """Return the tables of every benchmarked device as Markdown."""
    files = sorted((root / "results" / "benchmarks").glob("*.json"))
    return "\n".join(render_benchmark(json.loads(file.read_text(encoding="utf-8"))) for file in files)


def render_benchmark(found: dict[str, Any]) -> str:
    """Return the tables of one device."""
    environment, limits = found["environment"], found["limits"]
    dirty = ", with uncommitted changes" if found["dirty"] else ""
    parts = [
        f"### {found['device']}",
        f"torch {environment['torch']}, {environment['threads']} threads, commit {found['commit'][:8]}{dirty}. "
        f"Matrices are multiplied at {limits['gemm_gflops']:.0f} GFLOP/s, memory is read and written at "
        f"{limits['copy_gb_per_s']:.1f} GB/s. Times are medians of interleaved runs, [minimum, maximum].",
        _aims(found),
        _settings(found["settings"]),
        _training(found["training"]),
        _others(found),
        _beside_the_authors(found),
        _profile(found["profile"], {n: found["training"][n]["ms"]["median"] for n in ("original", "equivariant")}),
        _growth(found["growth"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def ratio(found: dict[str, Any], kind: str, other: str = "original") -> float:
    """Time of the equivariant network over another's."""
    return float(found[kind]["equivariant"]["ms"]["median"] / found[kind][other]["ms"]["median"])


def _sweep_ratio(found: dict[str, Any]) -> float:
    times = [found["sweep"][network]["sweep_ms"]["median"] for network in ("equivariant", "original")]
    return float(times[0] / times[1])


def _aims(found: dict[str, Any]) -> str:
    """What was aimed at on two CPU cores, and what was measured."""
    training, pipeline = found["training"], found["pipeline"]
    step = training["original"]["ms"]["median"]
    measured = [
        ("training step, equivariant / original, each in its fastest setting", 1.6, ratio(found, "training")),
        ("training step, equivariant / its plain composition, eager", 0.5, ratio(found, "training", "plain")),
        ("inference, equivariant / original", 1.5, ratio(found, "inference")),
        (
            "input pipeline / the original's training step",
            0.05,
            max(p["ms"]["median"] for p in pipeline.values()) / step,
        ),
        ("sweep over 11 saturations / 11 bare passes", 1.15, max(s["ratio"] for s in found["sweep"].values())),
    ]
    memory = memory_ratio(found)
    measured += [] if memory is None else [("peak memory of a step, equivariant / original", 1.3, memory)]
    rows = [(name, f"≤ {aim:g}", f"{value:.3f}", "yes" if value <= aim else "no") for name, aim, value in measured]
    return "**Aims**\n\n" + markdown_rows([("Ratio of medians, batch 128", "aim", "measured", "reached"), *rows])


def memory_ratio(found: dict[str, Any]) -> float | None:
    """Peak memory of the equivariant network's training step over the original's; None where it was not measured."""
    ours, theirs = (found["training"][network]["peak_memory_mb"] for network in ("equivariant", "original"))
    return None if ours is None else float(ours / theirs)


def _ms(times: dict[str, float]) -> str:
    return f"{times['median']:.1f} [{times['min']:.1f}, {times['max']:.1f}]"


def _settings(rows: Sequence[dict[str, Any]]) -> str:
    header = ("Family, layout, compiler", "training step, ms", "compilation, s")
    return "**Settings**\n\n" + markdown_rows(
        [
            header,
            *(
                (
                    f"{row['family']}, {'channels-last' if row['channels_last'] else 'channels-first'}, "
                    f"{'torch.compile' if row['compile'] else 'eager'}",
                    _ms(row["step_ms"]),
                    f"{row['compile_seconds']:.0f}" if row["compile"] else "–",
                )
                for row in rows
            ),
        ],
    )


def _training(found: dict[str, Any]) -> str:
    header = (
        "Training step, batch 128, each in its fastest setting",
        "ms",
        "images/s",
        "peak memory (eager), MB",
        "share of GEMM rate",
        "floor: arithmetic, ms",
        "floor: traffic, ms",
    )
    rows = [
        (
            NAMES[network],
            _ms(row["ms"]),
            f"{row['images_per_second']:.0f}",
            "–" if row["peak_memory_mb"] is None else f"{row['peak_memory_mb']:.0f}",
            f"{100 * row['share_of_gemm_rate']:.0f} %",
            f"{row['floor']['arithmetic_ms']:.1f}",
            f"{row['floor']['traffic_ms']:.1f}",
        )
        for network, row in found.items()
    ]
    whole = {"training": found}
    memory = memory_ratio(whole)
    over = f"time {ratio(whole, 'training'):.2f}" + ("" if memory is None else f", memory {memory:.2f}")
    return (
        f"{markdown_rows([header, *rows])}\n\nEquivariant over original: {over}; over the plain "
        f"composition: time {ratio(whole, 'training', 'plain'):.2f}."
    )


def _others(found: dict[str, Any]) -> str:
    step = found["training"]["original"]["ms"]["median"]
    rows = [
        (f"inference, batch 128, {NAMES[network]}", _ms(row["ms"]), f"{row['images_per_second']:.0f}")
        for network, row in found["inference"].items()
    ]
    rows += [
        (f"input pipeline, batch 128, {NAMES[network]}", _ms(row["ms"]), f"{row['images_per_second']:.0f}")
        for network, row in found["pipeline"].items()
    ]
    rows += [
        (
            f"sweep of 11 saturations, {row['images']:,} images, {NAMES[network]}",
            _ms(row["sweep_ms"]),
            f"{row['images_per_second_and_saturation']:.0f}",
        )
        for network, row in found["sweep"].items()
    ]
    pipeline = found["pipeline"]
    shares = " and ".join(f"{100 * pipeline[n]['ms']['median'] / step:.1f} %" for n in pipeline)
    sweeps = " and ".join(f"{found['sweep'][network]['ratio']:.2f}" for network in found["sweep"])
    over = {
        "inference": ratio(found, "inference"),
        "input pipeline": ratio(found, "pipeline"),
        "sweep": _sweep_ratio(found),
    }
    return (
        f"{markdown_rows([('What', 'ms', 'images/s'), *rows])}\n\n"
        f"Equivariant over original: {', '.join(f'{name} {value:.2f}' for name, value in over.items())}; inference and "
        f"sweep are eager, in the layout that is the fastest for training. Input pipeline: {shares} of the original's "
        f"training step. The sweep takes {sweeps} times as long as 11 bare forward passes over the same images."
    )


def _beside_the_authors(found: dict[str, Any]) -> str:
    """Rates beside those of the authors' code, where there are as many cores."""
    if found["environment"]["threads"] != 2 or not found["device"].startswith("cpu"):
        return ""
    ours = {
        "training": {
            network: found["training"][network]["images_per_second"] for network in ("original", "equivariant")
        },
        "evaluation": {n: row["images_per_second_and_saturation"] for n, row in found["sweep"].items()},
    }
    rows = [
        (
            f"{what}, {network}",
            f"{theirs:.0f}",
            f"{ours[what][network]:.0f}",
            f"{ours[what][network] / theirs:.2f}",
            f"{AIMS_BESIDE_THE_AUTHORS[what][network]:.1f}",
            f"{_most_images_per_second(found, what, network) / theirs:.2f}",
        )
        for what, rates in AUTHORS_RATES.items()
        for network, theirs in rates.items()
    ]
    return (
        "**Beside the authors' code** (images/s; theirs was measured end to end on another machine with two cores of a "
        "kind that was not recorded, and not by `make benchmark`, so that the ratios are rough; evaluation is the "
        "sweep's rate at one saturation)\n\n"
        + markdown_rows([("What", "authors' code", "here", "times as fast", "aim", "at most"), *rows])
        + "\n\nAt most: with the arithmetic at the rate of this machine's matrix products, and nothing else to do."
    )


def _most_images_per_second(found: dict[str, Any], what: str, network: str) -> float:
    """Rate at which the network's multiplications alone, at the rate of matrix products, would be done."""
    step = found["training"][network]
    images = step["images_per_second"] * step["ms"]["median"] / 1000
    return float(_PASSES[what] * images / (step["floor"]["arithmetic_ms"] / 1000))


def _profile(found: dict[str, dict[str, float]], step_ms: dict[str, float]) -> str:
    """Where a step's time goes; operators in the order of the equivariant network's times.

    Args:
        found: network -> operator -> ms in the operator itself.
        step_ms: network -> ms of a step that was not profiled.
    """
    names = list(dict.fromkeys([*found["equivariant"], *found["original"]]))
    names = [name for name in names if name != "others"] + ["others"]
    totals = {network: sum(of.values()) for network, of in found.items()}
    rows = [
        (
            name if name == "others" else f"`{name}`",
            *(f"{100 * of[name] / totals[network]:.0f} %" if name in of else "–" for network, of in found.items()),
        )
        for name in names
    ]
    slow = [
        f"{totals[network]:.0f} ms in place of {ms:.0f} ms ({NAMES[network]})"
        for network, ms in step_ms.items()
        if totals[network] > _MOST_BY_PROFILING * ms
    ]
    text = "**Where a training step's time goes** (eager, profiled, in the operator itself)\n\n"
    text += markdown_rows([("Operator", *(NAMES[network] for network in found)), *rows])
    if slow:
        text += f"\n\nThe machine was busy meanwhile, so that the shares are rough: a step took {' and '.join(slow)}."
    return text


def _growth(rows: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return ""
    names = {"batch": "batch {}, 32×32", "side": "batch 16, {0}×{0}", "offset_groups": "{} offset groups, batch 128"}
    return "**Growth** (training step, without compiler)\n\n" + markdown_rows(
        [
            ("Size", "original, ms", "equivariant, ms", "ratio"),
            *(
                (
                    names[row["axis"]].format(row["value"]),
                    _ms(row["original"]),
                    _ms(row["equivariant"]),
                    f"{row['equivariant']['median'] / row['original']['median']:.2f}",
                )
                for row in rows
            ),
        ],
    )
