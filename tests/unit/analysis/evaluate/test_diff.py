"""A comparison that calls chance progress, or compares what cannot be compared, is worse than none."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from ray_app.analysis.evaluate.report.diff import compare_reports, read_report
from ray_app.analysis.evaluate.report.diff_page import diff_text, render_diff, summarize_diff
from ray_app.analysis.metrics.bootstrap_result import EvaluationSettings
from ray_app.analysis.metrics.evaluation import evaluate_systems
from ray_app.base.errors import UserError
from ray_app.base.storage import Storage

FAST = EvaluationSettings(samples=50, confidence_level=0.8)  # the lower, the fewer resamples the correction asks for
EVIL = "<script>alert(1)</script>"


def write_run(folder, pairs, systems, provenance=None, scores=True):
    evaluation = evaluate_systems(pairs, systems, FAST)
    store = Storage(str(folder))
    store.write_json("report/metrics.json", evaluation.to_json(provenance))
    if scores:
        store.write_table("report/pairs.parquet", evaluation.pair_scores())
    return str(folder)


@pytest.fixture
def run_a(synthetic, tmp_path):
    return write_run(
        tmp_path / "a", *synthetic, {"config": {"seed": 1, "train_teacher": {"x": EVIL}}, "versions": {"numpy": "1"}}
    )


@pytest.fixture
def worse(synthetic, tmp_path):
    """A run whose student's scores have noise; with the `provenance` that a test asks for."""
    pairs, systems = synthetic
    noise = np.random.default_rng(9).normal(0, 2.0, len(systems["student"].score))
    systems = systems | {"student": replace(systems["student"], score=systems["student"].score + noise)}
    return lambda provenance=None: write_run(tmp_path / "b", pairs, systems, provenance)


def diff_of(a, b):
    return compare_reports(read_report(a), read_report(b))


def test_a_run_against_itself_is_all_zeros(run_a):
    found = diff_of(run_a, run_a)
    assert {row["difference"] for row in found.rows} == {0.0}
    assert (found.moved(), found.unpaired, [c for c in found.changes.values() if c]) == ([], None, [])


def test_differences_are_those_of_the_figures(run_a, synthetic, worse):
    rows = diff_of(run_a, worse()).rows
    for row in rows:
        assert row["difference"] == pytest.approx(row["after"] - row["before"], abs=2e-6)
    before = {(row["system"], row["metric"]): row["before"] for row in rows}
    assert before["student", "auroc_3"] == evaluate_systems(*synthetic, FAST).rows()[2]["auroc_3"]


def test_a_clear_loss_is_more_than_chance_and_only_the_changed_system_moves(run_a, worse):
    found = diff_of(run_a, worse())
    assert {row["system"] for row in found.moved()} == {"student"}
    assert all(row["p_adjusted"] >= row["p"] for row in found.rows if row["p"] is not None)
    assert found.equal == ["bm25", "teacher"]


@pytest.mark.parametrize("change", ["one grade", "one pair less", "another rating"])
def test_other_judged_pairs_are_not_paired(run_a, synthetic, tmp_path, change):
    """Intervals would treat a change of the test as a change of the models."""
    pairs, systems = synthetic
    if change == "one grade":
        grades = pairs["grade"].to_pylist()
        grades[0] = 5 if grades[0] != 5 else 1
        pairs = pairs.set_column(3, "grade", pa.array(grades, pa.int8()))
    elif change == "one pair less":
        keep = np.arange(1, pairs.num_rows)
        pairs, systems = pairs.take(pa.array(keep)), {n: s.take(keep) for n, s in systems.items()}
    else:
        pairs = pairs.append_column("gain_rating", pa.array([1] * pairs.num_rows, pa.int8()))
    found = diff_of(run_a, write_run(tmp_path / "b", pairs, systems))
    assert "judged pairs are not the same" in found.unpaired
    assert {row["difference_lo"] for row in found.rows} == {None} and found.moved() == []
    assert "cannot be paired" in summarize_diff(found)[0] and "cannot be paired" in render_diff(found)


def test_the_order_of_rows_does_not_keep_runs_apart(run_a, synthetic, tmp_path):
    pairs, systems = synthetic
    order = np.random.default_rng(1).permutation(pairs.num_rows)
    later = write_run(tmp_path / "b", pairs.take(pa.array(order)), {n: s.take(order) for n, s in systems.items()})
    found = diff_of(run_a, later)
    assert (found.unpaired, {row["difference"] for row in found.rows}) == (None, {0.0})


def test_a_run_that_kept_no_scores_is_compared_without_intervals(run_a, synthetic, tmp_path):
    pairs, systems = synthetic
    found = diff_of(write_run(tmp_path / "old", pairs, systems, scores=False), run_a)
    assert "kept no scores" in found.unpaired and {row["difference"] for row in found.rows} == {0.0}


def test_systems_of_one_side_are_named_and_missing_scores_survive(synthetic, tmp_path):
    pairs, systems = synthetic
    gappy = systems["teacher"].score.copy()
    gappy[:5] = np.nan
    probs = np.where(np.isnan(gappy)[:, None], np.nan, systems["teacher"].probs)
    both = {"teacher": replace(systems["teacher"], score=gappy, probs=probs)}
    a = write_run(tmp_path / "a", pairs, both | {"bm25": systems["bm25"]})
    found = diff_of(a, write_run(tmp_path / "b", pairs, both | {"student": systems["student"]}))
    assert (found.only_before, found.only_after) == (["bm25"], ["student"])
    assert {row["difference"] for row in found.rows} == {0.0} and found.equal == ["teacher"]


def test_changes_of_config_data_and_versions_are_named_key_by_key(synthetic, tmp_path):
    def provenance(recipe, pins, rows, config):
        stage = {"recipe": recipe, "inputs": {"pins": pins}, "outputs": {}, "counts": {"rows_in": rows}}
        return {"config": config, "versions": {"numpy": "1"}, "data": {"label": stage}}

    earlier = write_run(tmp_path / "a", *synthetic, provenance("r", "h1", 3, {"seed": 1, "train_teacher": {"x": 0}}))
    later = write_run(
        tmp_path / "b", *synthetic, provenance("s", "h2", 4, {"seed": 2, "train_teacher": {"x": 0}, "new": [1]})
    )
    changes = diff_of(earlier, later).changes
    assert {c.name: (c.before, c.after) for c in changes["config"]} == {"seed": (1, 2), "new": ("(not there)", [1])}
    assert changes["versions"] == []
    assert {c.name for c in changes["data and recipes"]} == {"label.recipe", "label.read.pins"}
    assert [(c.name, c.before, c.after) for c in changes["counts"]] == [("label.rows_in", 3, 4)]


def test_a_run_from_before_data_was_kept_is_one_change_and_not_hundreds(run_a, synthetic, tmp_path):
    stages = {f"s{i}": {"recipe": "r", "inputs": {}, "outputs": {}, "counts": {"rows_in": 3}} for i in range(50)}
    changes = diff_of(run_a, write_run(tmp_path / "b", *synthetic, {"data": stages})).changes
    assert [len(changes[heading]) for heading in ("data and recipes", "counts")] == [1, 1]


def test_a_thousand_changes_do_not_fill_a_terminal(run_a, synthetic, tmp_path):
    later = write_run(tmp_path / "b", *synthetic, {"config": {f"key{i}": "x" * 500 for i in range(1000)}})
    text = diff_text(diff_of(run_a, later))
    assert len(text.splitlines()) < 40 and max(map(len, text.splitlines())) < 300 and "more in diff.html" in text


def test_the_page_escapes_runs_nothing_and_fetches_nothing(run_a, worse):
    later = worse({"config": {EVIL: [EVIL]}, "commit": EVIL})
    page = render_diff(diff_of(run_a, later))
    assert "<script" not in page.lower() and "&lt;script&gt;" in page
    assert re.findall(r"<[^>]*\s(?:src|href)\s*=", page) == []


def test_json_has_no_nan_and_the_text_names_both_runs(run_a, worse):
    found = diff_of(run_a, worse())
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["paired"] is True
    assert run_a in diff_text(found) and worse() in diff_text(found)


def test_an_old_report_without_details_is_still_compared(run_a, synthetic, tmp_path):
    shutil.copytree(run_a, tmp_path / "old")
    path = tmp_path / "old/report/metrics.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({"rows": raw["rows"], "protocol": {}}))
    (tmp_path / "old/report/pairs.parquet").unlink()
    assert diff_of(str(tmp_path / "old"), run_a).unpaired is not None


@pytest.mark.parametrize("suffix", ["", "/", "/report", "/report/metrics.json"])
def test_a_report_is_found_by_run_folder_or_file(run_a, suffix):
    assert read_report(run_a + suffix).pairs.num_rows == 300


def test_a_folder_without_a_report_says_what_to_give_and_a_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"--baseline.*metrics\.json"):
        read_report(str(tmp_path))
    (tmp_path / "metrics.json").write_text("[1]")
    with pytest.raises(UserError, match="not a report"):
        read_report(str(tmp_path / "metrics.json"))
