"""What the paper leaves open, tried one by one: each a table with a sentence of conclusion.

A question shows once all of its variants were measured, and then has a conclusion.

The runs are short (``train=brief``), of one seed; differences below their intervals say nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from offset_equivariant.reporting.costs import Costs, read_costs
from offset_equivariant.reporting.markdown import markdown_rows
from offset_equivariant.reporting.records import (
    Outcomes,
    Record,
    find_records,
    load_outcomes,
    trained_at,
    trained_on,
)
from offset_equivariant.reporting.tables import signed_interval
from offset_equivariant.statistics import paired_difference_interval, proportion_interval
from offset_equivariant.storage import replace_file

#: Folder below ``results``.
FOLDER = "ablations"
_SEED = 0
_SATURATIONS = ("0.0", "0.5", "0.9", "1.0")
_PAIRED_AT = ("0.0", "0.9", "1.0")


@dataclass(frozen=True)
class Ablation:
    """A question, the variants that answer it, and the answer.

    Attributes:
        question: What was asked.
        variants: Title -> name of the record; the first is what the others are compared with.
        conclusion: What was found, in one sentence; empty until it was measured.
        timed: Whether times of the variants are shown.
        paired: Whether each second variant is compared with the one before it, instead of all with the first.
    """

    question: str
    variants: Mapping[str, str]
    conclusion: str
    timed: bool = False
    paired: bool = False

    def compared_with(self, title: str) -> str | None:
        """Return the title of the variant that another is compared with; None if with none."""
        titles = list(self.variants)
        position = titles.index(title)
        if self.paired:
            return titles[position - 1] if position % 2 else None
        return titles[0] if position else None


_BASE = "ablation_equivariant_brief"
ABLATIONS = (
    Ablation(
        "How much is the representation, how much the equivariance?",
        {
            "original, sRGB": "ablation_original_brief",
            "original, log RGB": "ablation_log_rgb_brief",
            "equivariant, log RGB": _BASE,
        },
        "Of the two it is the equivariance that makes this network robust: with ordinary layers log RGB is not told "
        "apart from sRGB where the light is white, and is no help where it is coloured (its error is the larger one, "
        "at S = 1 by far, at 0.9 by hardly more than the original's seeds are apart in Table 1); what the equivariant "
        "network pays where the light is white comes with its layers, too.",
    ),
    Ablation(
        "Are the other layers enough without the constraint on the weights? (Both at a quarter of the learning rate)",
        {"equivariant": "ablation_quarter_rate_brief", "without the constraint": "ablation_unconstrained_brief"},
        "No: without the constraint the error doubles up to S = 0.9, as with ordinary layers; in white light it is a "
        "point lower, half of which rounding alone made in the one pair of trainings that shows it (at the learning "
        "rate of the others, 0.6, and at 0.3, the training without the constraint diverges; no record was kept of "
        "either).",
    ),
    Ablation(
        "How should dark values be clipped before the logarithm?",
        {
            "absolute, ε = 2·10⁻⁴ (the paper's)": _BASE,
            "absolute, ε = 2·10⁻⁵": "ablation_epsilon_2e-5_brief",
            "absolute, ε = 2·10⁻³ (the authors' code)": "ablation_epsilon_2e-3_brief",
            "relative, 10⁻³ of the channel's mean": "ablation_relative_brief",
            "relative, 10⁻⁴": "ablation_fraction_1e-4_brief",
            "relative, 10⁻²": "ablation_fraction_1e-2_brief",
        },
        "Up to S = 0.9 relative clipping keeps the error exactly where it is, whatever its fraction, and absolute "
        "clipping to a tenth of a point, but for the largest ε, with which it rises by half a point; the highest floor "
        "of either kind has the smallest error where the light is white, by up to a point, half of which rounding "
        "alone made in the one pair of trainings that shows it.",
    ),
    Ablation(
        "Does it matter whether distorted images are rounded to 8 bits, as a file would be? (Networks of `train=fast`)",
        {
            "equivariant": "table1_equivariant",
            "equivariant, rounded": "table1_equivariant_requantized",
            "equivariant, relative clipping": "table1_equivariant_relative",
            "equivariant, relative clipping, rounded": "table1_equivariant_relative_requantized",
            "original": "table1_original",
            "original, rounded": "table1_original_requantized",
        },
        "Rounding leaves the errors with the paper's clipping where they are, moves the original network's by less "
        "than a fifth of a point, and takes the exactness from the relative one, whose error rises a little under "
        "saturated light.",
        paired=True,
    ),
    Ablation(
        "Is it the equivariant layers alone that keep single images from the light?",
        {
            "equivariant, relative clipping": "ablation_relative_brief",
            "original, balanced by grey-world": "ablation_grey_world_brief",
            "original, balanced by grey-world and scaled to one brightness": "ablation_grey_world_brightness_brief",
        },
        "No: with grey-world and one brightness an ordinary network is as exact below S = 1, and its error in these "
        "short trainings is two points lower; what usual grey-world leaves of the light is its brightness.",
    ),
    Ablation(
        "Projection after each step, or reparametrisation?",
        {"projection": _BASE, "reparametrisation": "ablation_parametrization_brief"},
        "In exact arithmetic both are one training under SGD, from the same weights, so that their difference is what "
        "rounding alone made of it, in one draw of which there are many: no other difference that is not several times "
        "as large means much; their times are not told apart here.",
        timed=True,
    ),
    Ablation(
        "Where do option A's shortcuts put their new channels?",
        {"inside each offset group": _BASE, "behind all others": "ablation_shortcut_end_brief"},
        "These trainings do not tell the two apart: at S = 1, where a channel is gone, new channels behind all others "
        "are ahead, but by less than rounding alone makes of a training.",
    ),
    Ablation(
        "Which group pooling φ?",
        {
            "mean": _BASE,
            "maximum in normalisation, mean in the rectifier": "ablation_pooling_max_brief",
            "learned combination in both": "ablation_pooling_linear_brief",
        },
        "A learned combination has a smaller error than the mean up to S = 0.9, by two points, and takes about twice "
        "as long (as a plain composition, nothing of it fused); the maximum in normalisation is four points behind "
        "(not tried in the rectifier, where only the maximum itself would pass).",
        timed=True,
    ),
    Ablation(
        "How should convolutions pad?",
        {"the border's own values": _BASE, "zeros beside the offset": "ablation_padding_offset_brief"},
        'Zeros beside the offset (put there once the group means were taken out: `padding_mode="offset"`) keep the '
        "equivariance just as well, are faster and, in this one training, ahead up to S = 0.9; rounding alone, in the "
        "one pair of trainings that shows it, made half of that difference.",
        timed=True,
    ),
)


def render_ablations(
    records: Iterable[Record], outcomes: Mapping[tuple[str, int], Outcomes], costs: Costs | None
) -> str:
    """Return those ablations of which every variant was measured, as Markdown."""
    found = {record.experiment: record for record in records}
    shown = [ablation for ablation in ABLATIONS if all(name in found for name in ablation.variants.values())]
    parts = ["# Ablations", _introduction(shown, costs)]
    for ablation in shown:
        measured = [found[name] for name in ablation.variants.values()]
        where = f"Trained at {', '.join(trained_at(measured))}, on: {'; '.join(trained_on(measured))}."
        parts += [f"## {ablation.question}", _table(ablation, found, outcomes, costs), ablation.conclusion, where]
    return "\n\n".join(part for part in parts if part) + "\n"


def _introduction(shown: Sequence[Ablation], costs: Costs | None) -> str:
    """Say what the ablations that are shown have in common."""
    rounded = ", or from rounding," if any(ablation.paired for ablation in shown) else ","
    text = (
        "What the paper leaves open, on the CIFAR-10 test images: ResNet-20, `train=brief` (4 epochs on all training "
        "images, seed 0) but where it says otherwise. Nothing was chosen by these numbers. Error in %, [ ]: 95 % "
        "interval over the test images, which says nothing of what another seed would have given; difference: to the "
        f"first variant{rounded} on the same images under the same light. Every variant is normalised by the "
        "statistics of its representation in Table 1, whatever its ε or fraction. The first records do not name the "
        "processor."
    )
    if costs is not None and any(ablation.timed for ablation in shown):
        text += f" Times: {costs.device}, {costs.threads} threads, commit {costs.commit[:8]}"
        text += ", with uncommitted changes." if costs.dirty else "."
    return text


def write_ablations(results: Path) -> list[Path]:
    """Write ``ablations.md`` into its folder, if that has records, and return its path."""
    folder = results / FOLDER
    if not (folder / "records").exists():
        return []
    # Those of Table 1 are compared with what was measured otherwise, seed for seed.
    chosen = [r for r in [*find_records(results, 1), *find_records(folder)] if r.seed == _SEED]
    outcomes = load_outcomes(results, chosen) | load_outcomes(folder, chosen)
    path = folder / "ablations.md"
    replace_file(path, render_ablations(chosen, outcomes, read_costs(folder)).encode())
    return [path]


def _table(
    ablation: Ablation, found: Mapping[str, Record], outcomes: Mapping[tuple[str, int], Outcomes], costs: Costs | None
) -> str:
    header = ["Variant", "Parameters", *(f"S = {s}" for s in _SATURATIONS)]
    header += [*(f"difference, S = {s}" for s in _PAIRED_AT), "largest change of a posterior, S ≤ 0.9"]
    timed = ablation.timed and costs is not None
    header += ["ms per training step", "ms per image, inference"] if timed else []
    rows = [header]
    for title, name in ablation.variants.items():
        record = found[name]
        marks = f" **[{', '.join(record.flags)}]**" if record.flags else ""
        row = [title + marks, f"{record.parameters:,}", *(_error(record, s) for s in _SATURATIONS)]
        other = ablation.compared_with(title)
        base = None if other is None else found[ablation.variants[other]]
        row += ["–" if base is None else _difference(record, base, outcomes, s) for s in _PAIRED_AT]
        row.append(f"{record.largest('posterior_change'):.2g}")
        if timed and costs is not None:
            cost = costs.rows.get(record.row)
            row += ["–", "–"] if cost is None else [f"{cost.step_ms:.0f}", f"{cost.inference_ms:.2f}"]
        rows.append(row)
    return markdown_rows(rows, [" --- ", *[" ---: "] * (len(header) - 1)])


def _error(record: Record, saturation: str) -> str:
    error = record.metrics["error_percent"].get(saturation)
    if error is None:
        return "–"
    low, high = proportion_interval(round(error / 100 * record.n), record.n)
    return f"{error:.2f} [{100 * low:.2f}, {100 * high:.2f}]"


def _difference(record: Record, base: Record, outcomes: Mapping[tuple[str, int], Outcomes], saturation: str) -> str:
    ours, theirs = (outcomes.get((r.experiment, r.seed), {}).get("error", {}).get(saturation) for r in (record, base))
    if ours is None or theirs is None:
        return "–"
    return signed_interval(paired_difference_interval(100.0 * ours, 100.0 * theirs))
