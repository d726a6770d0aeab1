"""What people see on the terminal."""

import numpy as np
import pytest

from ray_app.analysis.evaluate.render_text import render_table, retention_text
from ray_app.analysis.metrics.bootstrap import Interval
from ray_app.analysis.metrics.bootstrap_result import EvaluationSettings
from ray_app.analysis.metrics.evaluation import evaluate_systems
from ray_app.analysis.metrics.formatting import format_interval
from ray_app.analysis.metrics.protocol import SystemScores

FAST = EvaluationSettings(samples=50)


@pytest.mark.parametrize(
    ("interval", "text"),
    [((0.8891, 0.84, 0.934), ".889 [.84, .93]"), ((1.0, 0.995, 1.0), "1.000 [.99, 1.00]"), ((None, None, None), "-")],
    ids=["a figure", "a perfect one", "an undefined one"],
)
def test_a_figure_carries_its_interval(interval, text):
    assert format_interval(Interval(*interval)) == text


def test_each_system_has_one_line_of_aligned_columns_that_fits_a_wide_terminal(synthetic):
    lines = render_table(evaluate_systems(*synthetic, FAST)).splitlines()
    assert lines[0].startswith("300 judged pairs of 30 queries")
    start = next(line for line in lines if line.startswith("system")).index("nDCG@20")
    rows = [line for line in lines if line.startswith(("bm25 ", "teacher ", "student  "))]
    assert [row[start - 1] + row[start] for row in rows] == [" ."] * 3
    assert max(len(line) for line in lines if not line.startswith("note:")) <= 130


def test_a_student_equal_to_its_teacher_keeps_all(synthetic):
    pairs, systems = synthetic
    found = evaluate_systems(pairs, systems | {"student": systems["teacher"]}, FAST)
    assert "keeps 100.0% [100.0, 100.0] of the teacher's AUROC 3+" in retention_text(found)


def test_without_a_teacher_nothing_is_said_about_keeping(synthetic):
    pairs, systems = synthetic
    assert retention_text(evaluate_systems(pairs, {"student": systems["student"]}, FAST)) is None


def test_chance_is_judged_after_the_correction(synthetic):
    table = render_table(evaluate_systems(*synthetic, FAST))
    assert "(significant)" in table and "Holm over" in table


def test_judged_at_k_is_shown_where_pins_are_not_judged_or_not_scored(synthetic):
    pairs, systems = synthetic
    assert "judged@8" not in render_table(evaluate_systems(pairs, systems, FAST))
    gappy = systems["bm25"].score.copy()
    gappy[:5] = np.nan
    table = render_table(evaluate_systems(pairs, systems | {"bm25": SystemScores(score=gappy)}, FAST))
    assert any(line.startswith("bm25: judged@8 0.9") for line in table.splitlines())
