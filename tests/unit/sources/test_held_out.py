"""What a run may not learn from is the same for every stage, and is an input of theirs."""

from datetime import UTC, datetime

import pyarrow as pa
import pytest
from minimal import make_config

from ray_app.base.errors import UserError
from ray_app.sources.held_out import HeldOut


def config(folder, judged=None, **sections):
    if judged is not None:
        (folder / "judged.csv").write_text("query,locale,pin_id,rater_id,grade\n" + judged)
        sections["evaluate"] = {"human_labels": str(folder / "judged.csv")}
    return make_config(folder, **sections)


def test_queries_of_rows_that_evaluation_refuses_are_held_out_too(tmp_path):
    """A grade off the scale today may be fixed tomorrow: by then the query must not have been trained on."""
    found = HeldOut.of(config(tmp_path, "Red Mug,en-US,p1,r1,5\nlamp,en-US,p1,r1,99\n,en-US,p1,r1,3\n"))
    assert found.queries == {"red mug", "lamp"}


def test_other_grades_of_the_same_queries_make_nothing_again(tmp_path):
    first = HeldOut.of(config(tmp_path, "red mug,en-US,p1,r1,5\n")).inputs
    assert HeldOut.of(config(tmp_path, "Red Mugs,de-DE,p2,r2,1\nred mug,en-US,p2,r2,1\n")).inputs == first
    assert HeldOut.of(config(tmp_path, "red mug,en-US,p1,r1,5\nlamp,en-US,p1,r1,5\n")).inputs != first


def test_without_a_file_there_is_nothing_to_hold_out(tmp_path):
    found = HeldOut.of(config(tmp_path))
    assert (found.queries, found.inputs, found.settings) == (frozenset(), [], [])


def test_a_missing_file_names_the_key(tmp_path):
    cfg = config(tmp_path, evaluate={"human_labels": str(tmp_path / "absent.csv")})
    with pytest.raises(UserError, match=r"evaluate\.human_labels"):
        HeldOut.of(cfg)


def test_the_past_ends_before_until(tmp_path):
    """A run for 31 January that reads clicks of 1 February knows the future."""
    times = [datetime(2024, 1, 31, 23, 59, 59, 999000, tzinfo=UTC), datetime(2024, 2, 1, tzinfo=UTC)]
    log = pa.table({"timestamp": pa.array(times, pa.timestamp("ms", tz="UTC")), "query": ["a", "b"]})
    found = HeldOut.of(config(tmp_path, sample={"until": "2024-02-01"}))
    assert found.past(log)["query"].to_pylist() == ["a"]
    assert found.settings != HeldOut.of(config(tmp_path, sample={"until": "2024-02-02"})).settings
    assert HeldOut().past(log) is log
