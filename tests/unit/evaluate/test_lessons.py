"""The lessons' tables: what they claim must follow from the scores."""

import numpy as np
import pyarrow as pa

from ray_app.evaluate.evaluation import evaluate_systems
from ray_app.evaluate.lessons import by_language, ladder, lesson_text
from ray_app.evaluate.measured import EvaluationSettings
from ray_app.evaluate.metrics import SystemScores
from ray_app.evaluate.report import render_report

FAST = EvaluationSettings(samples=60)
RNG = np.random.default_rng(0)


def judged(num_queries=40, locales=("en-US", "de-DE")):
    """Queries with six pins each, half of them good."""
    rows = [
        {"query": f"q{i}", "locale": locales[i % len(locales)], "pin_id": f"p{j}", "grade": 5 if j < 3 else 1}
        for i in range(num_queries)
        for j in range(6)
    ]
    return pa.Table.from_pylist(rows, schema=pa.schema([("query", pa.string()), ("locale", pa.string()), ("pin_id", pa.string()), ("grade", pa.int8())]))  # fmt: skip


def scores(pairs, right, where=None):
    """A system that is right on that share of the pairs; `where`: only there, else it guesses."""
    grade = pairs["grade"].to_numpy()
    hit = RNG.random(len(grade)) < right
    if where is not None:
        hit &= where | (RNG.random(len(grade)) < 0.5)
    predicted = np.where(hit, grade, 6 - grade)
    probs = np.full((len(grade), 5), 0.05)
    probs[np.arange(len(grade)), predicted - 1] = 0.8
    return SystemScores(score=probs @ np.arange(1.0, 6.0), probs=probs)


def test_a_ladder_that_rises_says_so():
    pairs = judged()
    table = ladder("k", "t", "a", pairs, {"low": scores(pairs, 0.6), "high": scores(pairs, 0.95)}, FAST)
    assert table.verdict.startswith("Shown")
    assert [row.name for row in table.rows] == ["low", "high"]
    assert table.rows[1].cells[-2].value > 0.2


def test_a_step_down_is_named_and_not_hidden():
    pairs = judged()
    table = ladder("k", "t", "a", pairs, {"good": scores(pairs, 0.95), "bad": scores(pairs, 0.6)}, FAST)
    assert "not shown: bad over good" in table.verdict
    assert table.verdict in lesson_text(table)


def test_languages_without_labels_are_judged_apart_from_those_with():
    pairs = judged()
    german = np.array([locale == "de-DE" for locale in pairs["locale"].to_pylist()])
    table = by_language(pairs, scores(pairs, 0.95, ~german), scores(pairs, 0.95), ["en-US"], FAST)
    rows = {row.name: row for row in table.rows}
    assert rows["en"].marked and not rows["de"].marked
    assert rows["de"].cells[-2].lo > 0 and rows["all that nobody labelled"].cells[-2] == rows["de"].cells[-2]
    assert table.verdict.startswith("Shown")


def test_the_report_shows_lessons_and_pictures():
    pairs = judged()
    systems = {"bm25": scores(pairs, 0.6), "student": scores(pairs, 0.9)}
    table = ladder("k", "What is <this> worth?", "a", pairs, systems, FAST)
    html = render_report(
        evaluate_systems(pairs, systems, FAST),
        lessons=[table],
        picture_of=lambda pin_id: f"data:image/png;base64,{pin_id}",
    )
    assert "What is &lt;this&gt; worth?" in html
    assert '<img class="pin" src="data:image/png;base64,p0"' in html
