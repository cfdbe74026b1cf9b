import json
import multiprocessing
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from offset_equivariant.reporting import records
from offset_equivariant.reporting.records import (
    RecordError,
    find_records,
    merge_records,
    outcomes_path,
    read_outcomes,
    read_record,
    record_path,
    require_place,
    saturation_key,
    save_evaluation,
    write_outcomes,
    write_record,
)

SATURATIONS = [i / 10 for i in range(11)]


def evaluation(make_record, saturations, **changes):
    """A record and outcomes as an evaluation under these saturations would give them."""
    errors = {saturation_key(s): np.arange(8) < round(8 * s) for s in saturations}
    changes.setdefault("metrics", {})
    changes["metrics"] = {
        "posterior_change": {key: float(key) / 7 for key in errors},
        "error_percent": {key: float(100 * values.mean()) for key, values in errors.items()},
    }
    return make_record(**changes), {"error": errors}


@pytest.mark.parametrize(
    ("s", "key"), [(0, "0.0"), (0.1, "0.1"), (3 * 0.1, "0.3"), (0.25, "0.25"), (1, "1.0"), (np.float32(0.9), "0.9")]
)
def test_saturation_key(s, key):
    assert saturation_key(s) == key


@pytest.mark.parametrize("s", [-0.1, 1.01, float("nan")])
def test_saturation_outside_the_unit_interval_is_refused(s):
    with pytest.raises(ValueError, match="saturation must be in"):
        saturation_key(s)


def test_record_survives_the_round_trip_in_canonical_form(tmp_path, make_record):
    record = make_record(
        table=None,
        metrics={"b": {"1.0": 3.0, "0.5": 2.0, "0.25": 1.0}, "a": {"0.0": 0.1}},
        config={"z": {"y": 1, "x": [2]}},
    )
    path = tmp_path / "deep" / "seed0.json"
    write_record(record, path)
    text = path.read_text()
    assert read_record(path) == record
    assert text.endswith("}\n") and text.startswith('{\n "experiment": "table1_original",\n "table": null,')
    assert list(json.loads(text)) == list(asdict(record))
    assert list(json.loads(text)["metrics"]) == ["a", "b"]
    assert list(json.loads(text)["metrics"]["b"]) == ["0.25", "0.5", "1.0"]
    assert list(json.loads(text)["config"]["z"]) == ["x", "y"]
    assert [p.name for p in path.parent.iterdir()] == ["seed0.json"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", True),
        ("seed", 0.0),
        ("table", "1"),
        ("complete", 1),
        ("n", None),
        ("training_commits", "abc"),
        ("training_commits", [1]),
        ("data_sha256", {"test": 1}),
        ("metrics", {"error_percent": {"0.0": "8.67"}}),
        ("metrics", {"error_percent": 8.67}),
        ("metrics", {"error_percent": {"0.50": 8.67}}),
        ("metrics", {"error_percent": {"nan": 8.67}}),
        ("train_seconds", "1"),
    ],
)
def test_mistyped_field_is_named_with_its_file(tmp_path, make_record, field, value):
    path = tmp_path / "seed0.json"
    path.write_text(json.dumps({**asdict(make_record()), field: value}))
    with pytest.raises(RecordError, match=rf"seed0\.json.*'{field}'"):
        read_record(path)
    with pytest.raises(RecordError, match=rf"other\.json.*'{field}'"):
        write_record(make_record(**{field: value}), tmp_path / "other.json")
    assert not (tmp_path / "other.json").exists()


def test_missing_unknown_and_unreadable_are_named(tmp_path, make_record):
    path = tmp_path / "seed0.json"
    values = asdict(make_record())
    path.write_text(json.dumps({k: v for k, v in values.items() if k not in ("n", "commit")}))
    with pytest.raises(RecordError, match=r"seed0\.json: missing field\(s\) commit, n; remove it and evaluate"):
        read_record(path)
    old = {name: value for name, value in values.items() if not name.startswith("training_m")}
    path.write_text(json.dumps(old))  # of before this was recorded
    assert read_record(path) == make_record(training_means={})
    path.write_text(json.dumps({**values, "surprise": 1}))
    with pytest.raises(RecordError, match=r"seed0\.json: unknown field\(s\) surprise"):
        read_record(path)
    path.write_text('{"experiment": ')
    with pytest.raises(RecordError, match=r"seed0\.json: not a JSON file .*; remove it and evaluate"):
        read_record(path)
    path.write_text("[]")
    with pytest.raises(
        RecordError, match=r"seed0\.json: a record is a JSON object, found a list; remove it and evaluate"
    ):
        read_record(path)


def test_value_that_is_not_finite_is_refused_and_leaves_the_old_file(tmp_path, make_record):
    path = tmp_path / "seed0.json"
    write_record(make_record(), path)
    with pytest.raises(RecordError, match="finite"):
        write_record(make_record(metrics={"error_percent": {"0.0": float("nan")}}), path)
    assert read_record(path) == make_record()


def test_flags(make_record):
    assert make_record().flags == ()
    record = make_record(complete=False, steps=40, dirty=True, training_dirty=True)
    assert record.flags == ("incomplete (40/100 steps)", "dirty training", "dirty evaluation")
    assert make_record(dataset="nus", n=1_853).flags == () == make_record(dataset="facades", n=100).flags
    assert make_record(dataset="nus", n=900).flags == ("900 of 1,853 test images",)


def test_outcomes_round_trip_with_equal_bytes(tmp_path):
    rng = np.random.default_rng(0)
    outcomes = {
        "error": {"1.0": rng.random(50) < 0.5, "0.5": rng.random(50) < 0.1},
        "change": {"0.0": rng.random(50).astype(np.float32)},
        "prediction": {"0.0": rng.integers(0, 10, 50).astype(np.uint8)},
    }
    write_outcomes(tmp_path / "a.npz", outcomes)
    write_outcomes(
        tmp_path / "b.npz", {metric: dict(reversed(outcomes[metric].items())) for metric in reversed(outcomes)}
    )
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    back = read_outcomes(tmp_path / "a.npz")
    assert {m: set(v) for m, v in back.items()} == {m: set(v) for m, v in outcomes.items()}
    for metric, by_saturation in outcomes.items():
        for key, values in by_saturation.items():
            assert back[metric][key].dtype == values.dtype
            np.testing.assert_array_equal(back[metric][key], values)


@pytest.mark.parametrize("values", [np.zeros((2, 2), bool), np.zeros(3), np.array(["a"]), np.array([None])])
def test_outcomes_of_other_shapes_and_types_are_refused(tmp_path, values):
    with pytest.raises(RecordError, match=r"a\.npz: outcomes error/0\.5"):
        write_outcomes(tmp_path / "a.npz", {"error": {"0.5": values}})


DAMAGED = {
    "no zip file": lambda content: b"\x00" * 40,
    "empty": lambda content: b"",
    "cut off": lambda content: content[:-30],
    "other bytes": lambda content: content.replace(content[60:70], b"\xff" * 10, 1),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_outcomes_are_named_before_the_work_and_after(tmp_path, make_record, damage):
    save_evaluation(tmp_path, *evaluation(make_record, [0.0, 0.5]))
    path = outcomes_path(tmp_path, "table1_original", 0)
    path.write_bytes(DAMAGED[damage](path.read_bytes()))
    said = r"seed0\.npz: no file of outcomes, or a damaged one .*; remove it, and the record beside it, and evaluate"
    with pytest.raises(RecordError, match=said):
        read_outcomes(path)
    record, outcomes = evaluation(make_record, [0.9])
    with pytest.raises(RecordError, match=said):
        require_place(tmp_path, record, ["0.9"])
    with pytest.raises(RecordError, match=said):
        save_evaluation(tmp_path, record, outcomes)
    other = replace(record, checkpoint_sha256="ee")  # replaces them unread
    require_place(tmp_path, other, ["0.9"])
    save_evaluation(tmp_path, other, outcomes)
    assert list(read_outcomes(path)["error"]) == ["0.9"]


def test_an_evaluation_that_would_lose_numbers_has_no_place(tmp_path, make_record):
    record, outcomes = evaluation(make_record, [0.0, 0.5])
    require_place(tmp_path, record, ["0.0", "0.5"])
    save_evaluation(tmp_path, record, outcomes)
    require_place(tmp_path, record, ["0.9"])
    with pytest.raises(RecordError, match=r"holds the saturations 0\.5 too"):
        require_place(tmp_path, replace(record, commit="another"), ["0.0", "0.9"])
    record_path(tmp_path, "table1_original", 0).write_text("{")
    with pytest.raises(RecordError, match=r"seed0\.json: not a JSON file"):
        require_place(tmp_path, record, ["0.9"])
    with pytest.raises(FileNotFoundError):
        read_outcomes(tmp_path / "absent.npz")


def test_merge_unites_the_metrics_of_the_same_weights(make_record):
    old = make_record(metrics={"e": {"0.9": 9.0, "0.0": 1.0}}, evaluate_seconds=2.0)
    new = make_record(metrics={"e": {"0.5": 5.0, "0.0": 1.5}, "p": {"0.5": 0.1}}, evaluate_seconds=3.0)
    merged = merge_records(old, new)
    assert merged.metrics == {"e": {"0.0": 1.5, "0.5": 5.0, "0.9": 9.0}, "p": {"0.5": 0.1}}
    assert list(merged.metrics["e"]) == ["0.0", "0.5", "0.9"]
    assert merged.evaluate_seconds == 5.0


@pytest.mark.parametrize(
    "changes",
    [
        {"experiment": "other"},
        {"seed": 1},
        {"config": {"train": {"lr": 0.2}, "seed": 0}},
        {"checkpoint_sha256": "fe"},
        {"data_sha256": {"test": "d2"}},
        {"n": 9},
    ],
)
def test_merge_replaces_what_is_not_the_same_evaluation(make_record, changes):
    old = make_record(metrics={"e": {"0.9": 9.0}})
    new = make_record(**{"metrics": {"e": {"0.5": 5.0}}, **changes})
    assert merge_records(old, new) == new


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"commit": "another"}, "commit .* there, another now"),
        ({"environment": {"torch": "3"}}, "torch .* there, 3 now"),
    ],
)
def test_fewer_numbers_of_other_code_do_not_replace_more(make_record, changes, difference):
    old = make_record(metrics={"e": {"0.5": 5.5, "0.9": 9.0}}, environment={"torch": "2", "threads": 1})
    new = make_record(**{"metrics": {"e": {"0.5": 5.0}}, "environment": {"torch": "2", "threads": 1}, **changes})
    with pytest.raises(RecordError, match=f"holds the saturations 0.9 too, .*{difference}.*give another paths.results"):
        merge_records(old, new)
    whole = make_record(**{**changes, "metrics": {"e": {"0.5": 5.0, "0.9": 9.1}}})
    assert merge_records(old, whole) == whole


def test_a_setting_that_came_later_and_is_null_makes_no_other_record(make_record):
    """Else an old record's saturations would be replaced by those of one evaluation, without a word."""
    old = make_record(metrics={"e": {"0.5": 5.5, "0.9": 9.0}})
    config = {"train": {"lr": 0.1, "autocast": None, "log_every": 7}, "seed": 0, "model": {"options": {}}}
    new = make_record(metrics={"e": {"0.5": 5.0}}, config=config, config_sha256="c1")
    assert merge_records(old, new).metrics == {"e": {"0.5": 5.0, "0.9": 9.0}}
    with pytest.raises(RecordError, match=r"holds the saturations 0.9 too"):
        merge_records(old, replace(new, commit="another"))


def test_jobs_of_one_sweep_may_run_on_different_computers(make_record):
    old = make_record(metrics={"e": {"0.9": 9.0}}, environment={"torch": "2", "threads": 1, "platform": "a"})
    new = make_record(metrics={"e": {"0.5": 5.0}}, environment={"torch": "2", "threads": 8, "platform": "b"})
    assert merge_records(old, new).metrics == {"e": {"0.5": 5.0, "0.9": 9.0}}


def test_a_dirty_number_keeps_the_merged_record_dirty_until_measured_again(make_record):
    dirty = make_record(metrics={"e": {"0.9": 9.0}}, dirty=True)
    other = make_record(metrics={"e": {"0.5": 5.0}})
    again = make_record(metrics={"e": {"0.5": 5.0, "0.9": 9.1}})
    assert merge_records(dirty, other).dirty
    assert not merge_records(dirty, again).dirty
    assert merge_records(dirty, again).evaluate_seconds == again.evaluate_seconds


def _save(arguments):
    results, record, outcomes = arguments
    save_evaluation(results, record, outcomes)


def test_concurrent_jobs_of_one_saturation_give_the_record_of_one_job_with_all(tmp_path, make_record):
    whole, outcomes = evaluation(make_record, SATURATIONS)
    save_evaluation(tmp_path / "one", whole, outcomes)
    shuffled = [SATURATIONS[i] for i in np.random.default_rng(1).permutation(len(SATURATIONS))]
    jobs = [(tmp_path / "many", *evaluation(make_record, [s])) for s in shuffled]
    with multiprocessing.get_context("fork").Pool(6) as pool:
        pool.map(_save, jobs, chunksize=1)

    one, many = (record_path(tmp_path / name, "table1_original", 0) for name in ("one", "many"))
    assert read_record(many).evaluate_seconds == pytest.approx(11 * 1.5)
    merged = replace(read_record(many), evaluate_seconds=whole.evaluate_seconds)
    write_record(merged, tmp_path / "many.json")
    assert (tmp_path / "many.json").read_bytes() == one.read_bytes()
    assert one.with_suffix(".npz").read_bytes() == many.with_suffix(".npz").read_bytes()
    assert not list(many.parent.glob("*.tmp"))


def test_evaluation_of_other_weights_replaces_record_and_outcomes(tmp_path, make_record):
    save_evaluation(tmp_path, *evaluation(make_record, [0.0, 0.5]))
    record, outcomes = evaluation(make_record, [0.9], checkpoint_sha256="ee")
    assert save_evaluation(tmp_path, record, outcomes) == record
    assert read_record(record_path(tmp_path, "table1_original", 0)).metrics == record.metrics
    assert list(read_outcomes(outcomes_path(tmp_path, "table1_original", 0))["error"]) == ["0.9"]


@pytest.mark.parametrize(("failing", "outcomes_there"), [("write_record", {"0.0", "0.5"}), ("write_outcomes", {"0.0"})])
def test_a_job_killed_while_it_writes_leaves_a_record_that_is_run_again(
    failing, outcomes_there, tmp_path, make_record, monkeypatch
):
    """A record never claims a number whose outcomes are not there."""
    before = save_evaluation(tmp_path, *evaluation(make_record, [0.0]))
    new, outcomes = evaluation(make_record, [0.5])

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(records, failing, killed)
        save_evaluation(tmp_path, new, outcomes)
    assert read_record(record_path(tmp_path, "table1_original", 0)) == before
    assert set(read_outcomes(outcomes_path(tmp_path, "table1_original", 0))["error"]) == outcomes_there
    merged = save_evaluation(tmp_path, new, outcomes)
    assert set(merged.metrics["error_percent"]) == {"0.0", "0.5"}
    assert set(read_outcomes(outcomes_path(tmp_path, "table1_original", 0))["error"]) == {"0.0", "0.5"}


def test_outcomes_of_another_length_are_refused(tmp_path, make_record):
    with pytest.raises(RecordError, match=r"error/0\.5 have 7 entries for n = 8"):
        save_evaluation(tmp_path, make_record(), {"error": {"0.5": np.zeros(7, bool)}})
    assert not list(tmp_path.iterdir())


def test_find_records_sorts_selects_and_keeps_flagged_ones(tmp_path, make_record):
    for record in (
        make_record("original", 10, dirty=True),
        make_record("original", 2),
        make_record("equivariant"),
        make_record("x", table=3, experiment="table3_x"),
        make_record("y", table=None, experiment="a_sketch"),
    ):
        write_record(record, record_path(tmp_path, record.experiment, record.seed))
    found = [(r.experiment, r.seed) for r in find_records(tmp_path)]
    table1 = [("table1_equivariant", 0), ("table1_original", 2), ("table1_original", 10)]
    assert found == [*table1, ("table3_x", 0), ("a_sketch", 0)]
    assert [(r.experiment, r.seed) for r in find_records(tmp_path, table=1)] == table1
    assert find_records(tmp_path, table=1)[-1].flags == ("dirty evaluation",)
    assert find_records(tmp_path / "nowhere") == []


def test_record_under_another_name_is_refused(tmp_path, make_record):
    write_record(make_record(seed=1), record_path(tmp_path, "table1_original", 0))
    with pytest.raises(RecordError, match=r"seed0\.json: holds experiment 'table1_original', seed 1"):
        find_records(Path(tmp_path))
