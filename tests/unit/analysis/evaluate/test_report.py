"""A page that misleads, leaks or breaks is worse than none."""

import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from tiny_config import tiny_manifest

from ray_app.analysis.agreement.agreement_table import agreement_tables
from ray_app.analysis.evaluate.report.plots import difference_plot, interval_plot, roc_points
from ray_app.analysis.evaluate.report.render import lineage, render_report, stage_row
from ray_app.analysis.evaluate.sampling import SampleSummary, StrataTable, StratumRow
from ray_app.analysis.experiment.ablation_table import ExperimentRow, ExperimentTable
from ray_app.analysis.metrics.bootstrap import Interval
from ray_app.analysis.metrics.bootstrap_result import EvaluationSettings
from ray_app.analysis.metrics.evaluation import evaluate_systems
from ray_app.base.config import PriceConfig
from ray_app.tables.manifest import Output

pytestmark = pytest.mark.slow

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


@pytest.fixture(scope="module")
def full_page(module_world):
    """Every section, and all text from outside hostile."""
    pairs, systems = module_world
    evaluation = evaluate_systems(pairs, systems, FAST)
    raters = {"rater_id": [EVIL] * pairs.num_rows, "guideline_version": pa.nulls(pairs.num_rows, pa.string())}
    labels = pa.table({name: pairs[name] for name in pairs.column_names} | raters)
    grades = SimpleNamespace(grades=np.array([3] * pairs.num_rows))
    cells = [Interval(0.5, 0.4, 0.6), Interval(None, None, None)]
    experiment = ExperimentTable(
        key="k", title=EVIL, about=EVIL, verdict=EVIL, columns=[EVIL, "gain"], num_gains=1, cost_columns=[EVIL],
        rows=[ExperimentRow(name=EVIL, marked=True, cells=cells, costs=[EVIL])],
    )  # fmt: skip
    strata = StrataTable(title=EVIL, rest=None, rows=[
        StratumRow(name=EVIL, num_pairs=2, num_sampled=1, estimated_pairs=2.0, effective_size=1.0)
    ])  # fmt: skip
    sample = SampleSummary(
        num_pairs=1, num_queries=1, num_by_source={EVIL: 1}, effective_size=1.0, effective_size_log=1.0, allocation=EVIL,
        window=EVIL, num_trending=1, trending=[EVIL], notes=[EVIL], tables=[strata],
    )  # fmt: skip
    output = Output(name="labels", path="x", files=[], rows=3, content_hash="c" * 64)
    manifest = tiny_manifest(
        EVIL, outputs={EVIL: output}, counts={"rows_in": 3}, inputs={EVIL: EVIL}, git_commit=EVIL,
        info={"recipe": EVIL, "cost": {"gpu_hours": 1.0, "cpu_hours": 1.0}},
    )  # fmt: skip
    return render_report(
        evaluation,
        title=EVIL,
        titles=dict.fromkeys(pairs["pin_id"].to_pylist(), EVIL),
        experiments=[experiment],
        image_of=lambda pin_id: "data:image/png;base64,AA==",
        agreement=agreement_tables(labels, {EVIL: grades}, EvaluationSettings(samples=20)),
        simulation={"title": EVIL, "columns": [EVIL], "rows": [[EVIL, 3, None, (0.5, 0.4, 0.6)]], "notes": [EVIL]},
        sample=sample,
        stages=[stage_row(manifest, PriceConfig(gpu_hour=2.0))],
        provenance={"config": {EVIL: EVIL}} | lineage([manifest]),
    )


@pytest.fixture(scope="module")
def module_world(make_pairs, make_system, make_probs):
    """24 queries in two locales; the student guesses in one of them."""
    rng = np.random.default_rng(0)
    rows = [(f"{EVIL}{q:02d}", f"p{p}", int(rng.choice([1, 5]))) for q in range(24) for p in range(8)]
    locale = np.repeat(["de-DE", f"en{EVIL}"], len(rows) // 2)
    pairs = make_pairs(rows, locale=locale)
    probs = make_probs(np.where(locale == "de-DE", rng.choice([1, 5], len(rows)), pairs["grade"].to_numpy()))
    return pairs, {EVIL: make_system(rng.random(len(rows))), "student": make_system(probs @ np.arange(1, 6), probs)}


def test_tags_are_balanced(full_page):
    tags = Tags(full_page)
    assert (tags.unbalanced, tags.open) == ([], [])


def test_every_table_has_a_caption(full_page):
    """A screen reader, or a page of a print, has nothing else to say which table it is."""
    tables, captions = (len(re.findall(f"<{tag}[ >]", full_page)) for tag in ("table", "caption"))
    assert tables == captions > 10


def test_links_lead_to_sections_of_the_page(full_page):
    tags = Tags(full_page).found
    ids = {a["id"] for _, a in tags if "id" in a}
    links = [a["href"].removeprefix("#") for tag, a in tags if tag == "a"]
    assert len(links) > 8 and set(links) <= ids


def test_the_full_page_names_no_address(full_page):
    loads = [v for _, a in Tags(full_page).found for k, v in a.items() if k in ("src", "href", "xlink:href", "data")]
    assert [v for v in loads if not v.startswith(("#", "data:"))] == []
    assert re.findall(r"@import|url\((?!#)|<(?:link|script|iframe|object)", full_page) == []


def test_hostile_text_of_every_section_is_text(full_page):
    assert "<script" not in full_page and full_page.count("&lt;script&gt;") > 15


def test_sections_come_in_the_order_of_a_readers_questions(full_page):
    ids = re.findall(r'<section id="(\w+)"', full_page)
    expected = (
        "systems experiments slices worst calibration confusion examples agreement simulation sample cost provenance"
    )
    assert ids == expected.split()


def test_worst_slices_have_pairs_to_read_with_pictures(full_page):
    worst = full_page[full_page.index('id="worst"') : full_page.index('id="calibration"')]
    assert worst.count('<img class="pin" src="data:image/png;base64,AA=="') >= 3


def test_the_page_says_once_what_significant_means(full_page):
    assert full_page.count("Holm&#39;s correction over all") == 1


def test_money_is_there_only_with_prices():
    made = tiny_manifest("label", info={"cost": {"gpu_hours": 0, "cpu_hours": 2.0, "money": None, "currency": "USD"}})
    priced = stage_row(made, PriceConfig(cpu_hour=0.5, currency="EUR"))
    assert (priced["money"], priced["currency"], stage_row(made)["money"]) == (1.0, "EUR", None)


@pytest.mark.parametrize("info", [{"actual": {"cost": {"gpu_hours": 3.0, "cpu_hours": 2.0}}}, {}])
def test_a_gpu_without_a_price_or_a_stage_that_does_not_say_what_it_held_has_no_cost(info):
    """Its CPUs' price alone would be a bill that is far too small."""
    assert stage_row(tiny_manifest("label", info=info), PriceConfig(cpu_hour=0.5))["money"] is None


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
