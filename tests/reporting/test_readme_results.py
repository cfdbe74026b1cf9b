"""The README's answer and short tables: what they say of made-up records, and where they are put."""

import json

import numpy as np
import pytest

from offset_equivariant.reporting.costs import Cost, Costs, costs_path, write_costs
from offset_equivariant.reporting.readme import ANSWER_BEGIN, ANSWER_END, readme_block, render_answer, update_readme
from offset_equivariant.reporting.records import save_evaluation
from offset_equivariant.reporting.reproduction import examined_tables
from offset_equivariant.reporting.tables import RESULTS_BEGIN, RESULTS_END
from offset_equivariant.statistics import paired_difference_interval, proportion_interval

KEYS = ("0.0", "0.5", "0.9")
WRONG = {  # of 1,000 images, at S = 0.0, 0.5, 0.9
    "original": (120, 170, 330),
    "preprocessing_grey_world": (123, 122, 135),
    "augmentation_illuminants": (130, 129, 134),
    "equivariant": (136, 135, 137),
    "equivariant_relative": (138, 138, 138),
}
CHANGES = {"equivariant": 0.55, "equivariant_relative": 6.4e-6, "preprocessing_grey_world": 0.95}


def outcomes_of(wrong):
    return {key: np.arange(1000) < count for key, count in zip(KEYS, wrong, strict=True)}


def save(results, make_record, row, wrong=None, change=None, steps=4680, **changes):
    wrong = wrong or WRONG[row]
    metrics = {"error_percent": {key: count / 10 for key, count in zip(KEYS, wrong, strict=True)}}
    metrics["posterior_change"] = {"0.9": change or CHANGES.get(row, 1.0)}
    if "preset" in changes:
        changes["experiment"] = f"table1_{row}_{changes['preset']}"
    record = make_record(row, n=1000, metrics=metrics, total_steps=steps, steps=steps, **changes)
    save_evaluation(results, record, {"error": outcomes_of(wrong)})


def answer(results):
    return " ".join(render_answer(results, examined_tables(results)).split())


def test_answer_says_what_the_records_say(tmp_path, make_record):
    for row in WRONG:
        save(tmp_path, make_record, row)
    costs = {"original": Cost(1, 0.5, 200, 1, 0), "equivariant": Cost(1, 0.85, 300, 1, 0)}
    write_costs(Costs("a device", 2, "c0ffee", False, costs, {}), costs_path(tmp_path, 1))
    times = {
        kind: {network: {"ms": {"median": ms}} for network, ms in (("original", 100.0), ("equivariant", ours))}
        for kind, ours in (("training", 160.0), ("inference", 150.0))
    }
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "another.json").write_text(json.dumps(times))
    text = answer(tmp_path)
    papers = "In the paper: 8.67 to 29.0 % and 8.88 to 9.29 %."
    training = "(`train=fast`: 4,680 steps, 1 seed, so intervals over images alone)"
    assert f" {training}. {papers}" in text
    wrong = [proportion_interval(count, 1000) for count in (330, 137)]
    original, ours = ("[{:.2f}, {:.2f}]".format(*(100 * end for end in ends)) for ends in wrong)
    assert (
        f"from 12.00 to 33.00 {original} %, and the equivariant one's from 13.60 to 13.70 {ours} % {training}." in text
    )
    ours, original = (outcomes_of(WRONG[row])["0.0"] for row in ("equivariant", "original"))
    found = paired_difference_interval(100 * ours, 100 * original)
    assert found[0] == pytest.approx(1.6)
    assert "minus the ordinary one is {:+.2f} [{:+.2f}, {:+.2f}] points (`train=fast`); in".format(*found) in text
    assert "training step takes 1.5 to 1.6 times as long, its inference 1.5 to 1.7 times, on [the CPUs" in text
    assert "by grey-world, which learns nothing, 12.30 and 13.50 %; training under" in text
    assert "random illuminants, 13.00 and 13.40 %. Theirs minus the equivariant network's: -1.30 [" in text
    assert " points at 0, -0.20 [-0.48, +0.08] and -0.30 [" in text
    exact = "no single posterior changes by more than 6.4e-06 with relative clipping (ours, 13.80 %, 1 seed), and"
    leaves = "Grey-world leaves up to 0.95"
    assert f"Up to S = 0.9 {exact} by up to 0.55 with the paper's. {leaves}." in text
    assert text.endswith(
        "Table 1 partly (0 of its 12 numbers, 1 of 5 claims), "
        + ", ".join(f"Table {number} not yet (not measured on the paper's data)" for number in (2, 3, 4))
        + "."
    )
    for name, change in (
        ("table1_equivariant_relative_requantized", 0.87),
        ("table1_equivariant_requantized", 0.5),
        ("ablation_grey_world_brightness_brief", 3e-6),
    ):
        changes = {"posterior_change": {"0.5": change / 2, "0.9": change, "1.0": 1.0}}
        save_evaluation(tmp_path / "ablations", make_record(experiment=name, table=None, metrics=changes), {})
    text = answer(tmp_path)
    rounded = "once images are rounded to 8 bits under that light, as photos are, by up to 0.87 and 0.5 (`train=fast`, "
    assert f"by up to 0.55 with the paper's; {rounded}seed 0; [" in text
    fixed = "with all images scaled to one brightness it is as exact, before rounding (3e-06; one short training)."
    assert f"{leaves}; {fixed}" in text


def test_answer_tells_of_longer_trainings_beside_the_usual_ones(tmp_path, make_record):
    for row in ("original", "preprocessing_grey_world", "equivariant", "equivariant_relative"):
        save(tmp_path, make_record, row)
    only_fast = answer(tmp_path).partition("- [What is reproduced")[0]
    wrong = {"original": (80, 130, 270), "equivariant": (91, 90, 92)}
    for row, complete in (("original", True), ("equivariant", False), ("equivariant", True)):
        assert answer(tmp_path).startswith(only_fast)  # one of the two alone is compared with nothing
        save(tmp_path, make_record, row, wrong[row], 0.61, 64_000, preset="paper", complete=complete)
    text = answer(tmp_path)
    original, ours = (
        "[{:.2f}, {:.2f}]".format(*(100 * end for end in proportion_interval(count, 1000))) for count in (270, 92)
    )
    alone = "1 seed, so intervals over images alone"
    paper = f"8.00 to 27.00 {original} % and 9.10 to 9.20 {ours} % with `train=paper`: 64,000 steps, {alone}"
    assert f"(`train=fast`: 4,680 steps, {alone}). The two are {paper}. In the paper" in text
    assert " points (`train=fast`) and +1.10 [" in text and "] points (`train=paper`)" in text
    assert "(ours, 13.80 %, 1 seed), and by up to 0.55 with the paper's (`train=paper`: 0.61)." in text
    assert text.endswith(
        "Table 1 partly (6 of its 12 numbers, 1 of 5 claims with `train=paper`; 0 and 1 of 5 with `train=fast`), "
        "Table 2 not yet (not measured on the paper's data), Table 3 not yet (not measured on the paper's data), "
        "Table 4 not yet (not measured on the paper's data)."
    )
    # Trainings of two lengths are not one range of times.
    assert "One training with `train=fast` took 0.17 minutes, all 4 together 0.67 minutes; one training with" in (
        readme_block(tmp_path)
    )


def test_answer_leaves_out_what_was_not_measured_or_must_not_be_cited(tmp_path, make_record):
    assert render_answer(tmp_path, examined_tables(tmp_path)) == ""
    save(tmp_path, make_record, "original")
    assert answer(tmp_path).startswith("- [What is reproduced")
    save(tmp_path, make_record, "equivariant", training_dirty=True)
    assert answer(tmp_path).startswith("- [What is reproduced")
    save(tmp_path, make_record, "equivariant")
    text = answer(tmp_path)
    assert text.startswith("- On CIFAR-10") and "grey-world" not in text and "posterior" not in text
    assert "training step" not in text


def test_short_tables(tmp_path, make_record):
    assert readme_block(tmp_path) == "No results have been recorded yet.\n"
    save(tmp_path, make_record, "original")
    save(tmp_path, make_record, "equivariant_relative")
    lines = readme_block(tmp_path).splitlines()
    assert lines[0].startswith("### Table 1: ")
    assert "| Original | 12.00 (8.67) | 17.00 (12.6) | 33.00 (29.0) | 1 | fast, 1 seed |" in lines
    assert "| Equivariant | – (8.88) | – (8.85) | – (9.29) | – | not run |" in lines
    exact = "| Equivariant, relative clipping (ours) | 13.80 | 13.80 | 13.80 | 6.4e-06 | fast, 1 seed |"
    assert exact in lines
    assert lines[-1].startswith("1,000 test images") and "(results/tables/table1.md)" in lines[-1]
    evaluations = "one evaluation took 0.025 minutes, all 2 together 0.05 minutes ([on what]"
    assert f"One training took 0.17 minutes, all 2 together 0.33 minutes; {evaluations}" in lines[-1]
    assert "Unfinished trainings" not in readme_block(tmp_path)
    save(tmp_path, make_record, "original", preset="paper", complete=False, evaluate_seconds=600.0)
    assert "\n\nUnfinished trainings say nothing of where they end, nor two" in readme_block(tmp_path)
    assert evaluations in readme_block(tmp_path)
    save(tmp_path, make_record, "original", seed=1, train_seconds=7180.0)
    assert "One training took 0.17 to 120 minutes, all 3 together 2 hours; one" in readme_block(tmp_path)
    assert "| 12.00 ± 0.00 (8.67) |" in readme_block(tmp_path) and "| fast, 2 seeds |" in readme_block(tmp_path)


def test_both_go_between_their_markers(tmp_path, make_record):
    readme = tmp_path / "README.md"
    readme.write_text(
        f"a\n{ANSWER_BEGIN}\nold\n{ANSWER_END}\nb\n{RESULTS_BEGIN}\nold\n{RESULTS_END}\nc\n", encoding="utf-8"
    )
    for row in ("original", "equivariant"):
        save(tmp_path, make_record, row)
    for _ in range(2):
        update_readme(readme, tmp_path, examined_tables(tmp_path))
    begun, rest = readme.read_text(encoding="utf-8").split(ANSWER_END)
    assert begun == f"a\n{ANSWER_BEGIN}\n{render_answer(tmp_path, examined_tables(tmp_path))}"
    assert rest == f"\nb\n{RESULTS_BEGIN}\n{readme_block(tmp_path)}{RESULTS_END}\nc\n"


@pytest.mark.parametrize("text", ["", f"{RESULTS_BEGIN}\n{RESULTS_END}", f"{ANSWER_BEGIN}\n{ANSWER_END}"])
def test_readme_without_its_markers_is_an_error_and_stays(tmp_path, text):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(ValueError, match=r"README\.md: .*:begin"):
        update_readme(readme, tmp_path, examined_tables(tmp_path))
    assert readme.read_text() == text
