"""A page that misleads, leaks or breaks is worse than none."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from ray_app.evaluate.bootstrap import Interval
from ray_app.evaluate.evaluation import evaluate_systems
from ray_app.evaluate.measured import EvaluationSettings
from ray_app.evaluate.plots import difference_plot, interval_plot, roc_points
from ray_app.evaluate.report import render_report

FAST = EvaluationSettings(samples=50)
EVIL = "<script>alert(1)</script>"


class Tags(HTMLParser):
    """Collects start tags with their attributes, and checks nesting."""

    VOID = frozenset({"meta", "br", "hr", "img", "link", "input"})

    def __init__(self, html):
        super().__init__()
        self.found, self.open, self.unbalanced = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)


def page_of(make_pairs, make_system, make_probs, query=EVIL, **kwargs):
    pairs = make_pairs([(query, "a", 5), (query, "b", 1), ("other", "a", 5), ("other", "b", 1)])
    systems = {"bm25": make_system([1, 2, 2, 1])}
    systems["teacher"] = systems["student"] = make_system([5, 1, 2, 4], make_probs([5, 1, 2, 4]))
    return render_report(evaluate_systems(pairs, systems, FAST), **kwargs)


def test_a_query_cannot_inject_html(make_pairs, make_system, make_probs):
    tags = Tags(page_of(make_pairs, make_system, make_probs)).found
    assert [tag for tag, _ in tags if tag == "script"] == []


def test_the_malicious_query_is_still_shown_as_text(make_pairs, make_system, make_probs):
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page_of(make_pairs, make_system, make_probs)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"title": EVIL},
        {"titles": {"a": EVIL, "b": EVIL}},
        {"provenance": {EVIL: EVIL, "config": {"x": [EVIL]}}},
        {"stages": [dict.fromkeys(("rows_in", "rows_out", "rows_quarantined"), 1) | {"stage": EVIL, "wall_sec": 1.0, "device_sec": None, "rows_per_sec": 1.0}]},
    ],
    ids=["title", "pin title", "provenance", "stage"],
)  # fmt: skip
def test_other_text_cannot_inject_html(make_pairs, make_system, make_probs, kwargs):
    tags = Tags(page_of(make_pairs, make_system, make_probs, query="q", **kwargs)).found
    assert [tag for tag, _ in tags if tag == "script"] == []


def test_a_system_name_cannot_inject_html(make_pairs, make_system):
    pairs = make_pairs([("q", "a", 5), ("r", "b", 1)])
    html = render_report(evaluate_systems(pairs, {EVIL: make_system([1, 2])}, FAST))
    assert [tag for tag, _ in Tags(html).found if tag == "script"] == []


def test_the_page_fetches_nothing(make_pairs, make_system, make_probs):
    html = page_of(make_pairs, make_system, make_probs)
    loads = [v for _, a in Tags(html).found for k, v in a.items() if k in ("src", "href", "xlink:href", "data")]
    outside = [v for v in loads if not v.startswith(("#", "data:"))] + re.findall(r"@import|url\((?!#)", html)
    assert outside == []


def test_tags_are_balanced(make_pairs, make_system, make_probs):
    tags = Tags(page_of(make_pairs, make_system, make_probs))
    assert (tags.unbalanced, tags.open) == ([], [])


def test_a_very_long_query_does_not_fill_the_page(make_pairs, make_system, make_probs):
    assert "x" * 200 not in page_of(make_pairs, make_system, make_probs, query="x" * 10_000)


def test_the_same_evaluation_gives_the_same_page(make_pairs, make_system, make_probs):
    assert page_of(make_pairs, make_system, make_probs) == page_of(make_pairs, make_system, make_probs)


def test_undefined_figures_do_not_break_the_page(make_pairs, make_system, make_probs):
    pairs = make_pairs([("q", "a", 1)])
    systems = {"bm25": make_system([np.nan]), "student": make_system([1], make_probs([1]))}
    assert "AUROC 3+ is undefined" in render_report(evaluate_systems(pairs, systems, FAST))


@pytest.mark.parametrize("only", ["bm25", "teacher", "student"])
def test_any_one_system_makes_a_page(synthetic, only):
    pairs, systems = synthetic
    assert "<h1>" in render_report(evaluate_systems(pairs, {only: systems[only]}, FAST))


def test_plots_show_dollar_signs_as_they_are():
    """matplotlib reads $...$ as mathematics, and fails on what is not."""
    svg = interval_plot({r"$\bad{$": Interval(0.5, 0.4, 0.6)}, {r"$\bad{$": 0})
    assert r"$\bad{$" in svg


def test_a_hundred_thousand_queries_do_not_make_a_heavy_plot():
    assert len(difference_plot(np.linspace(-1, 1, 100_000), "difference", 0, 1)) < 300_000


def test_roc_of_a_hand_computed_case_with_a_tie():
    fpr, tpr = roc_points(np.array([3.0, 2.0, 2.0, 1.0]), np.array([True, True, False, False]))
    assert (fpr.tolist(), tpr.tolist()) == ([0, 0, 0.5, 1], [0, 0.5, 1, 1])
