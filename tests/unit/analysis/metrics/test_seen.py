"""A report on queries that were trained on says so first, with numbers."""

from dataclasses import asdict

import pyarrow as pa
import pytest
from tiny_config import finished_stage, tiny_config

from ray_app.analysis.evaluate.render_text import render_table
from ray_app.analysis.evaluate.report.render import render_report
from ray_app.analysis.metrics.evaluation import EvaluationSettings, evaluate_systems
from ray_app.analysis.metrics.seen import Seen, seen_in_training
from ray_app.base.schemas import SPLITS
from ray_app.base.storage import Storage

FAST = EvaluationSettings(samples=20)
SOFT_LINE = (
    "CAUTION: 2 of 3 judged queries (near-duplicates included) are in the soft labels that the student was trained on "
    "(3 of 4 pairs): the figures flatter."
)


def seen(human=(), soft=(), engaged=(), engagement=None, judged=("laptops", "red mug", "lamp")):
    return Seen.of(judged, human, soft, engaged, engagement)


def test_near_duplicates_in_the_soft_labels_are_counted_by_query_and_by_pair():
    """`laptop` taught the student what `laptops` is judged by; only exact texts were counted before."""
    found = seen(soft=["laptop", "laptop", "redmug", "desk"])
    assert (found.soft_labels, found.soft_label_pairs, found.all_soft_label_pairs) == (2, 3, 4)
    assert found.cautions == [SOFT_LINE]


def test_each_place_has_its_own_line():
    found = seen(human=["laptop"], engaged=["lamps", "desk"], engagement=["lamp", "laptop"])
    assert [line.split(" are ")[0].split(" is ")[0] for line in found.cautions] == [
        f"CAUTION: {n} of 3 judged queries (near-duplicates included)" for n in (1, 1, 2)
    ]
    assert ["human labels" in found.cautions[0], "engaged queries" in found.cautions[1], "log" in found.cautions[2]]


def test_queries_that_nothing_has_met_bring_no_caution():
    assert seen(human=["desk"], soft=["chair"], engaged=["sofa"], engagement=["bed"]).cautions == []


@pytest.fixture
def run(tmp_path):
    """(config, store) of a run whose soft labels, one of them an error, and engagement model met `laptop`."""
    cfg, store = tiny_config(tmp_path, engagement={}), Storage(str(tmp_path))
    labels = pa.table({"query": ["laptop", "desk", "lamp"], "error": [None, None, "x"]})
    finished_stage(cfg, store, "label", soft_labels=labels)
    finished_stage(cfg, store, "engagement", engagement_queries=pa.table({"query": ["laptop"]}))
    return cfg, store


def texts(cfg, store, engaged):
    return finished_stage(cfg, store, "enrich", pin_texts=pa.table({"engaged_queries": engaged})).outputs["pin_texts"]


def test_a_finished_run_is_looked_through(run):
    cfg, store = run
    splits = pa.table({"query": ["red mugs", "lamp"], "split": ["valid", "test"]}, schema=SPLITS)
    lists = pa.array([["lamps", "desk"], None], pa.list_(pa.string()))
    found = seen_in_training(cfg, store, ["laptops", "red mug", "lamp"], splits, texts(cfg, store, lists))
    assert asdict(found) == {
        "judged": 3, "human_labels": 1, "soft_labels": 1, "soft_label_pairs": 1, "all_soft_label_pairs": 2,
        "engaged_queries": 1, "engagement": 1,
    }  # fmt: skip


def test_what_the_models_do_not_read_is_not_counted(run):
    cfg, store = run
    cfg = cfg.model_copy(update={"engagement": None, "pin_text": cfg.pin_text.model_copy(update={"fields": ["title"]})})
    lists = pa.array([["lamp"]], pa.list_(pa.string()))
    found = seen_in_training(cfg, store, ["lamp"], SPLITS.empty_table(), texts(cfg, store, lists))
    assert (found.engaged_queries, found.engagement) == (0, None)


def test_a_caution_is_the_first_line_of_every_form_of_the_report(synthetic):
    evaluation = evaluate_systems(*synthetic, FAST, notes=[SOFT_LINE, "something else"])
    lines = render_table(evaluation).splitlines()
    assert lines[0] == SOFT_LINE and "note: something else" in lines and f"note: {SOFT_LINE}" not in lines
    html = render_report(evaluation)
    assert html.count(SOFT_LINE) == 1
    assert html.index(SOFT_LINE) < html.index('class="keys"') < html.index("something else")
    assert evaluation.to_json()["notes"][0] == SOFT_LINE
