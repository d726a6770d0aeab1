"""Clicks that lose their query, or count twice, turn into wrong training pairs."""

import json

import pytest

from ray_app.base.config import IngestLimits, UbiSource
from ray_app.sources.adapters.ubi import join_ubi, read_ubi_file
from ray_app.sources.files import find_files
from ray_app.sources.validate import check_batch, settle, table_rules

NOW = 1717527761998


def query(query_id="q1", text="shoe", shown=("p1", "p2"), **more):
    document = {"query_id": query_id, "user_query": text, "query_response_object_ids": list(shown), "timestamp": NOW}
    return document | more


def event(query_id="q1", action="item_click", pin="p2", **more):
    attributes = {"object": {"object_id": pin, "object_id_field": "ean"}, "position": {"ordinal": 7}}
    return {"action_name": action, "query_id": query_id, "client_id": "c", "timestamp": NOW + 5, "event_attributes": attributes, **more}  # fmt: skip


def load(folder, *files, pin_id_of=None, **source):
    """Valid rows, quarantine and ignored lines of files that are lists of documents or raw lines."""
    for i, documents in enumerate(files):
        lines = [d if isinstance(d, str) else json.dumps(d) for d in documents]
        (folder / f"{i}.jsonl").write_text("\n".join(lines))
    made = UbiSource(path=str(folder), **source)
    tables = [read_ubi_file(file, made) for file in find_files(made.path, "ingest.search_log.path")]
    batches, ignored = join_ubi(reversed(tables), made, pin_id_of)
    rules = table_rules("search_log", IngestLimits())
    return *settle([check_batch(b, rules) for b in batches], rules), ignored


def rows(table, *names):
    return sorted(tuple(row[name] for name in names) for row in table.to_pylist())


def test_what_a_query_showed_becomes_impressions_with_positions(tmp_path):
    valid, _, _ = load(tmp_path, [query()])
    assert rows(valid, "query", "pin_id", "position", "action") == [("shoe", "p1", 1, "impression"), ("shoe", "p2", 2, "impression")]  # fmt: skip


def test_a_query_that_showed_nothing_is_kept(tmp_path):
    """Zero-result queries are what a search engineer looks for first."""
    valid, _, _ = load(tmp_path, [query(shown=())])
    assert rows(valid, "query", "pin_id", "action") == [("shoe", None, "impression")]


def test_an_event_gets_the_text_of_its_query_from_another_file(tmp_path):
    valid, _, _ = load(tmp_path, [event()], [query(shown=())])
    assert ("shoe", "p2", "click") in rows(valid.filter(valid["pin_id"].is_valid()), "query", "pin_id", "action")


@pytest.mark.parametrize(("shown", "position"), [(["p1", "p2"], 2), (["p1"], 7)])
def test_the_position_of_an_event_is_where_the_query_showed_it_or_what_the_client_says(tmp_path, shown, position):
    valid, _, _ = load(tmp_path, [query(shown=shown), event()])
    assert ("click", position) in rows(valid, "action", "position")


@pytest.mark.parametrize(
    "form",
    [
        lambda kind, doc: doc,
        lambda kind, doc: f"ubi_{kind}\t{json.dumps(doc)}",
        lambda kind, doc: {"_index": f"ubi_{kind}", "_source": doc},
    ],
)
def test_all_spellings_of_a_log_give_the_same_rows(tmp_path, form):
    valid, _, _ = load(tmp_path, [form("queries", query()), form("events", event())])
    assert rows(valid, "action", "pin_id") == [("click", "p2"), ("impression", "p1"), ("impression", "p2")]


@pytest.mark.parametrize("name", ["query_response_hit_ids", "query_response_objects_ids"])
def test_older_versions_name_the_objects_otherwise(tmp_path, name):
    document = query()
    document[name] = document.pop("query_response_object_ids")
    assert load(tmp_path, [document])[0].num_rows == 2


def test_actions_are_mapped_and_others_ignored(tmp_path):
    log = [query(shown=["p1"]), event(action="wink"), event(action="page_exit"), event(action="item_click")]
    valid, _, ignored = load(tmp_path, log, actions={"wink": "save"})
    assert (rows(valid, "action"), ignored) == ([("impression",), ("save",)], 2)


def test_events_of_other_object_fields_are_ignored(tmp_path):
    valid, _, ignored = load(tmp_path, [query(), event()], object_id_field="sku")
    assert (valid.num_rows, ignored) == (2, 1)


def test_object_ids_are_translated_and_unknown_ones_stay(tmp_path):
    """An unknown object must reach validation, which refuses it with its id in the quarantine row."""
    valid, _, _ = load(tmp_path, [query(shown=["111", "999"])], pin_id_of={"111": "pin-1"})
    assert rows(valid, "pin_id") == [("999",), ("pin-1",)]


def test_an_event_sent_twice_counts_once_and_two_clicks_at_different_times_twice(tmp_path):
    valid, quarantine, _ = load(tmp_path, [query(shown=()), event(), event(timestamp=NOW + 6)], [event()])
    assert rows(valid, "action") == [("click",), ("click",), ("impression",)]
    assert quarantine["reason"][0].as_py().partition(":")[0] == "duplicate_key"


def test_an_event_without_its_query_is_quarantined_unless_it_carries_the_text(tmp_path):
    valid, quarantine, _ = load(tmp_path, [event(query_id="lost"), event(query_id="lost", user_query="boot")])
    assert quarantine["reason"].to_pylist() == ["null_key: query is missing"]
    assert rows(valid, "query", "action") == [("boot", "click")]


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "ubi_events\t", '{"hello": 1}', '{"_source": 5}', json.dumps(query(shown="p1") | {"query_response_object_ids": "p1"})],
)  # fmt: skip
def test_a_line_that_is_no_document_is_quarantined_with_its_number(tmp_path, line):
    valid, quarantine, _ = load(tmp_path, [query(shown=["p1"]), line])
    assert (valid.num_rows, quarantine["row"].to_pylist()) == (1, [1])


@pytest.mark.parametrize(
    "document",
    [
        event(query_id=["q1"]),
        event(pin={"id": 3}),
        event(timestamp="soon"),
        event(event_attributes={"object": {"object_id": "p1"}, "position": "top"}, query_id="lost"),
        query(query_id=None, text=17, shown=[{"id": 1}]),
        query(timestamp=None),
    ],
)
def test_dirty_documents_never_stop_the_job(tmp_path, document):
    _, quarantine, _ = load(tmp_path, [document])
    assert quarantine.num_rows > 0


def test_the_same_log_gives_the_same_event_ids(tmp_path):
    one, _, _ = load(tmp_path, [query(), event()], [])
    two, _, _ = load(tmp_path, [event()], [query()])
    assert one.equals(two)


def test_rows_have_the_locale_of_the_config_or_say_that_nobody_knows_it(tmp_path):
    assert set(load(tmp_path, [query()], locale="de_AT")[0]["locale"].to_pylist()) == {"de-AT"}
    assert set(load(tmp_path, [query()])[0]["locale"].to_pylist()) == {"und"}
