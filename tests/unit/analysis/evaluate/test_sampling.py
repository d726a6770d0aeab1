"""The report's section on the sample."""

import pytest
from tiny_config import tiny_manifest

from ray_app.analysis.evaluate.report.render import render_report
from ray_app.analysis.evaluate.sampling import MAX_SEEN, summarize_sample
from ray_app.analysis.metrics.bootstrap_result import EvaluationSettings
from ray_app.analysis.metrics.evaluation import evaluate_systems

EVIL = "<script>alert(1)</script>"


def stratum(name, num_pairs, num_sampled, effective_size=1.0):
    return {
        "stratum": name, "num_pairs": num_pairs, "num_sampled": num_sampled, "estimated_pairs": float(num_pairs),
        "effective_size": effective_size, "design_effect": 1.0,
    }  # fmt: skip


def summary(**info):
    return summarize_sample(tiny_manifest("sample", counts={"rows_out": 1234}, info=info))


@pytest.fixture
def render(make_pairs, make_system):
    pairs = make_pairs([("q", "a", 5), ("r", "b", 1)])
    evaluation = evaluate_systems(pairs, {"bm25": make_system([1, 2])}, EvaluationSettings(samples=10))
    return lambda found: render_report(evaluation, sample=found)


FULL = {
    "strata": [stratum("en/head/engaged", 40, 20, 20.0), stratum("en/tail/retrieved", 100_000, 50, 12.0)],
    "num_by_source": {"log": 20, "random": 50}, "num_queries": 7, "effective_size": 12.3, "design_effect": 5.7,
    "allocation": "neyman", "allocation_note": f"a note {EVIL}", "num_trending": 2,
    "trending": [{"query": EVIL}, {"query": "rain boots"}],
    "window": {"since": "2024-01-01T00:00:00+00:00", "until": None, "num_before": 5},
}  # fmt: skip


def test_the_section_shows_the_sample(render):
    html = render(summary(**FULL))
    for text in ("1,234 pairs", "7 queries", "log 20", "en/head/engaged", "50.00%", "100,000", "rain boots", "neyman"):
        assert text in html
    assert "2024-01-01 to the last event UTC" in html


def test_what_comes_from_outside_cannot_inject_html(render):
    html = render(summary(**FULL, source_note=EVIL))
    assert EVIL not in html and "&lt;script&gt;" in html


@pytest.mark.parametrize(
    "info",
    [
        {},
        {"strata": [], "num_by_source": {}, "num_queries": 0},
        {"strata": [{"stratum": "en/head/top", "num_pairs": 40, "num_sampled": 20, "estimated_pairs": 39.0}]},
    ],
    ids=["nothing", "an empty sample", "no effective size"],
)
def test_a_run_of_an_older_version_still_makes_a_report(render, info):
    assert "<h2>Sample</h2>" in render(summary(**info))


def test_a_run_without_a_sample_has_no_section(render):
    assert "<h2>Sample</h2>" not in render(None)


def test_small_strata_are_summed_up_in_one_line():
    """Two of 30 and 20 pairs beside many of 1,000; their weights of 10 and 20 pool to (30)^2 / (100 + 400)."""
    small = [stratum("en/tail/top", 10, 1), stratum("en/tail/deep", 20, 1), stratum("en/tail/hidden", 5, 0, 0)]
    found = summary(strata=small + [stratum(f"en/{i}/top", 1000, 10) for i in range(MAX_SEEN)])
    trending, seen, others = found.tables
    assert len(seen.rows) == MAX_SEEN and {row.num_pairs for row in seen.rows} == {1000}
    assert (seen.rest.name, seen.rest.num_pairs, seen.rest.num_sampled) == ("3 smaller strata", 35, 2)
    assert seen.rest.effective_size == pytest.approx(900 / 500)
    assert [(table.rows, table.rest) for table in (trending, others)] == [([], None)] * 2


def test_trending_strata_are_not_lost_among_larger_ones():
    large = [stratum(f"en/{i}/top", 1000, 10) for i in range(MAX_SEEN + 1)]
    found = summary(strata=[*large, stratum("en/trending/top", 3, 3)])
    assert [row.name for row in found.tables[0].rows] == ["en/trending/top"]


def test_the_effective_size_of_what_users_saw_leaves_out_the_rest_of_the_catalogue():
    found = summary(**FULL)
    assert (found.effective_size, found.effective_size_log) == (12.3, 20.0)
