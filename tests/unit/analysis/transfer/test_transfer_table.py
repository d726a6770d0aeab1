"""A verdict that praises what is within chance would be believed."""

import json

from transfer_world import boards_and_vectors

from ray_app.analysis.metrics.bootstrap import Interval
from ray_app.analysis.metrics.bootstrap_result import EvaluationSettings
from ray_app.analysis.transfer.render_text import transfer_table, verdict
from ray_app.analysis.transfer.transfer_metrics import measure


def test_the_verdict_tells_gains_losses_and_chance_apart():
    gains = {
        "related pins": Interval(0.1, 0.05, 0.2),
        "board from its title": Interval(-0.1, -0.2, -0.05),
        "next save": Interval(0.1, -0.1, 0.2),
    }
    said = verdict(gains, "student", "base encoder")
    assert "better in related pins (+0.100 [+0.050, +0.200]); worse in board from its title" in said
    assert "neither significantly better nor worse in next save" in said


def test_a_gain_without_an_interval_is_no_gain():
    assert "neither" in verdict({"next save": Interval(0.5, None, None)}, "a", "b")
    assert verdict({}, "a", "b") == "Nothing to compare."


def test_the_table_is_plain_data_with_a_cell_per_column():
    tasks, knows, mixed = boards_and_vectors()
    found = measure(tasks, [knows, mixed], 2, 10, EvaluationSettings(samples=20, confidence_level=0.9, seed=1))
    table = transfer_table(found, ["mixed", "knows"], "mixed", "knows", 10, {"knows": "too much"})
    assert json.loads(json.dumps(table)) == table
    assert {"key", "title", "columns", "num_gains", "rows", "verdict", "about", "measured_on"} == set(table)
    assert [row["name"] for row in table["rows"]] == ["mixed", "knows (too much)"]
    assert {len(row["cells"]) for row in table["rows"]} == {len(table["columns"])}
    assert table["columns"][-table["num_gains"] :] == [
        "related pins: nDCG@20, gain over the mixed",
        "board from its title: nDCG@20, gain over the mixed",
        "next save: MRR, gain over the mixed",
    ]
    assert table["rows"][0]["cells"][-1] == [None, None, None]  # no gain over itself
    assert table["rows"][1]["cells"][0] == [1.0, 1.0, 1.0]
