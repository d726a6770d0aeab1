"""The table by country: a star without correction would be there by chance in one of twenty countries."""

import csv
import io
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest
from tiny_config import tiny_config

from ray_app.analysis.metrics.bootstrap import Interval
from ray_app.analysis.metrics.bootstrap_result import EvaluationSettings
from ray_app.analysis.simulate.by_country import (
    ALL,
    COMPARED,
    LABELLED,
    UNLABELLED,
    Gain,
    SearchSlice,
    compare_arms,
    with_holm,
)
from ray_app.analysis.simulate.outcome import NDCG, outcomes
from ray_app.analysis.simulate.plot import trade_off_svg
from ray_app.analysis.simulate.policies import ENGAGEMENT, RELEVANCE, USES
from ray_app.analysis.simulate.simulation_tables import country_markdown, country_rows, rows_as_csv, trade_markdown
from ray_app.analysis.simulate.stage import run
from ray_app.analysis.simulate.trade_off import TRADED, TradeOff, people
from ray_app.analysis.simulate.traffic import draw_traffic, retrieve
from ray_app.base.config import DemoConfig, SimulateConfig
from ray_app.base.errors import UserError
from ray_app.base.storage import Storage

DEMO = DemoConfig(num_pins=400)
CFG = SimulateConfig(num_searches=3000, num_logged_searches=100, unseen_queries=60, candidates=60)
SETTINGS = EvaluationSettings(samples=100, seed=1)
NOTHING = Interval(0.1, 0.05, 0.15)


@pytest.fixture(scope="module")
def world():
    traffic = draw_traffic(DEMO, CFG)[1]
    found = retrieve(DEMO, traffic.queries, CFG.candidates)
    users, _ = people(DEMO.seed, DEMO.num_pins, CFG)
    noise = np.random.default_rng(0).normal(size=found.pins.shape)
    weak, strong = found.grades + 2 * noise, found.grades + 0.5 * noise
    return traffic, outcomes(weak, traffic, found, users), outcomes(strong, traffic, found, users)


def part(name, p, is_country=True):
    gains = {metric: Gain(control=0.5, treatment=0.6, gain=NOTHING, p=p, p_adjusted=None) for metric in COMPARED}
    return SearchSlice(
        name=name, is_country=is_country, has_labels=None, num_searches=1, num_queries=1, gains=gains,
        unpaired=dict.fromkeys(COMPARED, NOTHING),
    )  # fmt: skip


def test_holm_over_countries_alone_by_hand():
    """p = .01, .04, .03: three times the least, then twice the next, and never less than the one before."""
    rows = with_holm([part(ALL, 0.001, is_country=False), part("US", 0.01), part("GB", 0.04), part("DE", 0.03)])
    assert [row.gains[NDCG].p_adjusted for row in rows] == [None, *map(pytest.approx, (0.03, 0.06, 0.06))]


def test_a_star_needs_the_corrected_p():
    for p_values, num_stars in (((0.01, 0.04), 2), ((0.01, 0.04, 0.03), 1)):  # .02 and .04; .03, but .06 and .06
        rows = with_holm([part(name, p) for name, p in zip(("US", "GB", "DE"), p_values, strict=False)])
        assert country_markdown(rows, SETTINGS).count("15.0]*") == num_stars * len(COMPARED)


def test_every_search_is_in_one_country_and_on_one_side_of_the_labels(world):
    slices = {row.name: row for row in compare_arms(*world, ["en-US"], SETTINGS)}
    countries = [row for row in slices.values() if row.is_country]
    assert sum(row.num_searches for row in countries) == CFG.num_searches == slices[ALL].num_searches
    assert slices[LABELLED].num_searches + slices[UNLABELLED].num_searches == CFG.num_searches
    assert [row.name for row in countries if row.has_labels] == ["US"]
    assert countries == sorted(countries, key=lambda row: -row.num_searches)


def test_the_better_arm_gains_in_all_figures(world):
    everyone = compare_arms(*world, ["en-US"], SETTINGS)[0]
    for metric in COMPARED:
        found = everyone.gains[metric]
        assert found.gain.lo > 0
        assert found.gain.value == pytest.approx(found.treatment / found.control - 1)
        assert found.p < 0.001


def test_equal_arms_gain_nothing_anywhere(world):
    traffic, control, _ = world
    for row in compare_arms(traffic, control, control, ["en-US"], SETTINGS):
        assert all(tuple(row.gains[metric].gain) == (0.0, 0.0, 0.0) for metric in COMPARED)
        assert all(row.gains[metric].p == 1.0 for metric in COMPARED)


def test_csv_holds_all_rows_and_leaves_undefined_ones_empty(world):
    slices = compare_arms(*world, ["en-US"], SETTINGS)
    undefined = Gain(0.0, 0.1, Interval(None, None, None), 1.0, None)
    slices[0] = replace(slices[0], gains=slices[0].gains | {NDCG: undefined})
    rows = list(csv.DictReader(io.StringIO(rows_as_csv(country_rows(slices)))))
    assert [row["slice"] for row in rows] == [part.name for part in slices]
    assert rows[0][f"{NDCG}_gain"] == ""
    assert float(rows[1][f"{NDCG}_gain"]) == pytest.approx(slices[1].gains[NDCG].gain.value, abs=1e-6)


@pytest.fixture
def points():
    strengths = {RELEVANCE: None, ENGAGEMENT: None} | dict.fromkeys(USES, 2.0)
    metrics = dict.fromkeys(TRADED, NOTHING)
    return [TradeOff(use, strength, metrics, metrics) for use, strength in strengths.items()]


def test_the_plot_is_a_picture_that_names_every_use(points):
    svg = trade_off_svg(points)
    root = ElementTree.fromstring(svg.encode())
    shown = {element.text for element in root.iter() if element.text}
    assert {*USES, "relevance alone", "engagement alone", "clicks per search"} <= shown
    assert "var(--" not in svg  # a picture of its own has no page to take colours from


def test_the_trade_off_says_whether_there_was_appeal(points):
    assert "Some pins have appeal" in trade_markdown(points, SETTINGS, has_clickbait=True)
    assert "simulate.clickbait is null" in trade_markdown(points, SETTINGS, has_clickbait=False)


@pytest.mark.parametrize(("more", "said"), [({}, "no section `demo`"), ({"demo": {"num_pins": 300}}, "run_all.py")])
def test_a_run_without_a_known_truth_is_refused(tmp_path, more, said):
    """Without one, or with the truth of another world, the people's clicks would mean nothing."""
    with pytest.raises(UserError, match=said):
        run(tiny_config(tmp_path, **more), Storage(str(tmp_path)))
