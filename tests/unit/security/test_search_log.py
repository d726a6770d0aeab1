"""The search log is written by whoever searches: what a few of them, or one line of theirs, may not do."""

import itertools
import json
from datetime import UTC, datetime, timedelta

import pytest
from minimal import peak_bytes
from sampling import public_queries

from ray_app.base.config import EnrichConfig, IngestLimits, SampleConfig, UbiSource, load_config
from ray_app.base.errors import UserError
from ray_app.base.storage import Storage
from ray_app.features.engagement_rates import engagement_rates
from ray_app.sources.adapters.ubi import join_ubi, read_ubi_file
from ray_app.sources.files import find_files
from ray_app.sources.validate import check_batch, settle, table_rules
from ray_app.stages.engagement.events import allowed_events, engaged_pairs, once_per_client
from ray_app.stages.enrich.engaged_queries import top_engaged_queries
from ray_app.stages.ingest import stage
from ray_app.stages.sample.window import Window
from ray_app.tables.manifest import read_output

DAY = datetime(2024, 5, 1, tzinfo=UTC)
PRIVATE = "jane doe 12 elm street divorce lawyer"
_numbers = itertools.count()
SHOWN = {"query_id": "x", "client_id": "c", "user_query": "q", "timestamp": DAY.isoformat()}  # a UBI query
OF_P1 = {"object": {"object_id": "p1"}}


def later(seconds):
    return DAY + timedelta(seconds=seconds)


def ubi_click(at):
    return {"action_name": "item_click", "query_id": "q", "client_id": "c", "user_query": "red mug",
            "timestamp": at.isoformat(), "event_attributes": OF_P1}  # fmt: skip


def event(client, query="red mug", pin="p1", action="save", at=DAY, **more):
    """A row of a log, as JSON has it."""
    return {
        "event_id": f"e{next(_numbers)}", "timestamp": at.isoformat(), "query": query,
        "locale": "en-US", "pin_id": pin, "position": 1, "action": action, "client_id": client,
    } | more  # fmt: skip


def config(tmp_path, log, **ingest):
    """Of a run over 50 pins and this log: lines of JSON, or a UBI log."""
    tmp_path.mkdir(exist_ok=True)
    pins = [{"pin_id": f"p{i}", "title": "mug"} for i in range(50)]
    for name, lines in (("pins", pins), ("log", log)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    adapter = "ubi" if log and "event_id" not in log[0] else "table"
    base = {"pins": {"adapter": "table", "path": f"{tmp_path}/pins.jsonl", "constants": {"locale": "en-US"}},
            "search_log": {"adapter": adapter, "path": f"{tmp_path}/log.jsonl"}, "boards": None, "human_labels": None}  # fmt: skip
    settings = [f"ingest={json.dumps(base | ingest)}", "demo=null", f"output={tmp_path}/run"]
    return load_config("configs/demo.yaml", [*settings, "enrich={}"])


def ingested(tmp_path, log, **ingest):
    """The manifest, the log, and the quarantine."""
    cfg = config(tmp_path, log, **ingest)
    store = Storage(cfg.output)
    made = stage.run(cfg, store)
    return made, read_output(store, made.output("search_log")), read_output(store, made.output("quarantine"))


def engaged(tmp_path, log, **cfg):
    """Engaged queries by pin, from the source to the texts."""
    return top_engaged_queries(ingested(tmp_path, log)[1], [], EnrichConfig(**cfg))


# --- what one visitor can write into a pin (H4) ---


def test_clicks_of_one_visitor_write_nothing(tmp_path):
    """A private search would become a pin's text, which every search result shows."""
    log = [event("jane", PRIVATE, action=a, at=later(i)) for i in range(50) for a in ("click", "save")]
    assert engaged(tmp_path, log) == {}


@pytest.mark.parametrize(("clients", "found"), [(4, {}), (5, {"p1": ["red mug"]})])
def test_five_visitors_make_an_engaged_query(tmp_path, clients, found):
    assert engaged(tmp_path, [event(f"c{i}", action="click") for i in range(clients)]) == found


def test_one_visitor_cannot_push_a_query_up(tmp_path):
    """1,000 saves of one client weigh as one: the query that more people saved stays first."""
    honest = [event(f"h{i}", "red mug") for i in range(6)]
    forged = [event(f"f{i}", "scam") for i in range(5)]
    many = [event("f0", "scam", at=later(1 + i)) for i in range(1000)]
    assert engaged(tmp_path, honest + forged + many) == {"p1": ["red mug", "scam"]}


def test_ubi_events_keep_their_client(tmp_path):
    log = [ubi_click(DAY) | {"query_id": f"q{i}", "client_id": f"c{i}"} for i in range(5)]
    assert engaged(tmp_path, log) == {"p1": ["red mug"]}


@pytest.mark.parametrize("none", [{}, *({"client_id": odd} for odd in (None, "", False, {}))], ids=repr)
def test_an_event_without_a_client_has_that_of_its_query(tmp_path, none):
    log = []
    for i in range(5):
        shown = SHOWN | {"client_id": f"c{i}", "user_query": "red mug", "query_response_object_ids": ["p1"]}
        click = {"action_name": "item_click", "timestamp": DAY.isoformat(), "event_attributes": OF_P1}
        log += [line | {"query_id": f"q{i}"} for line in (shown, click | none)]
    assert engaged(tmp_path, log) == {"p1": ["red mug"]}


def test_events_of_unknown_clients_do_not_count_unless_the_config_says_so(tmp_path):
    """A log without client ids must not silently be counted by events, which one visitor makes as many of as they like."""
    log = [event(None, at=later(i)) for i in range(5)]
    assert engaged(tmp_path, log) == {}
    assert engaged(tmp_path, log, count_events_without_client=True) == {"p1": ["red mug"]}


def test_a_log_without_clients_is_said_to_support_nothing(tmp_path, caplog):
    """Else its owner would look for the reason why no pin has an engaged query."""
    made, *_ = ingested(tmp_path, [event(None), event("c")])
    assert made.counts["search_log_unknown_clients"] == 1
    assert "1 of 2 rows of the search log do not say whose they are" in caplog.text


@pytest.mark.parametrize(
    ("line", "fix"),
    [(event(None), "map client_id in ingest.search_log.columns"),
     (SHOWN | {"client_id": None}, "let the collector of the UBI log write client_id")],
    ids=["table", "ubi"],
)  # fmt: skip
def test_the_warning_names_a_fix_that_the_adapter_has(tmp_path, caplog, line, fix):
    """A UBI log has no columns to map."""
    ingested(tmp_path, [line])
    assert fix in caplog.text


def test_a_number_is_one_client_however_it_is_written(tmp_path):
    rows = ingested(tmp_path, [event(value) for value in (12, 12.0, "12")])[1]
    assert rows["client_id"].null_count == 0 and len(set(rows["client_id"].to_pylist())) == 1


@pytest.mark.parametrize("line", [event, lambda client: ubi_click(DAY) | {"client_id": client}], ids=["table", "ubi"])
@pytest.mark.parametrize("client", [True, 1.5, 1e300, {"id": "jane"}, ["jane"], "", " ", "caf\udce9"], ids=repr)
def test_an_event_of_an_odd_client_is_one_of_an_unknown_client(tmp_path, line, client):
    """Events were thrown away for an id that nothing needs, and a fifth of them stopped the run."""
    made, rows, refused = ingested(tmp_path, [line(client)])
    assert (rows["client_id"].to_pylist(), refused.num_rows) == ([None], 0)
    assert made.counts["search_log_unknown_clients"] == 1


def test_a_clients_id_may_be_a_long_token_or_a_number(tmp_path):
    ids = ["e" * 1_000 + "a", "e" * 1_000 + "b", 12, "12"]
    log = [ubi_click(later(i)) | {"client_id": client} for i, client in enumerate(ids)]
    _, rows, refused = ingested(tmp_path, log)
    hashes = [row["client_id"] for row in sorted(rows.to_pylist(), key=lambda row: row["timestamp"])]
    assert refused.num_rows == 0 and {len(value) for value in hashes} == {32}
    assert len(set(hashes)) == 3 and hashes[2] == hashes[3]


# --- what is kept of a visitor ---


def test_the_clients_id_itself_is_kept_nowhere(tmp_path):
    log = [event("jane@example.com", **more) for more in ({}, {"pin": "unknown"}, {"action": "dance"})]
    _, rows, refused = ingested(tmp_path, log, limits={"max_error_rate": 1.0})
    assert (rows.num_rows, refused.num_rows) == (1, 2)
    assert rows["client_id"].null_count == 0
    assert "jane" not in json.dumps([*rows.to_pylist(), *refused.to_pylist()], default=str)


def test_a_key_makes_hashes_that_nobody_else_can_make(tmp_path, monkeypatch):
    plain = ingested(tmp_path, [event("jane")])[1]["client_id"][0].as_py()
    keyed = []
    for key in ("0123456789abcdef", "0123456789abcdef", "fedcba9876543210"):
        monkeypatch.setenv("CLIENT_KEY", key)
        keyed.append(ingested(tmp_path, [event("jane")], client_key_env="CLIENT_KEY")[1]["client_id"][0].as_py())
    assert keyed[0] == keyed[1] and len({plain, *keyed}) == 3


@pytest.mark.parametrize("key", [None, "", "short"])
def test_a_key_that_is_not_there_is_an_error(tmp_path, monkeypatch, key):
    """Else ids are hashed without one, which the operator did not want."""
    monkeypatch.delenv("CLIENT_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("CLIENT_KEY", key)
    with pytest.raises(UserError, match=r"ingest\.client_key_env: .*CLIENT_KEY"):
        ingested(tmp_path, [event("jane")], client_key_env="CLIENT_KEY")


# --- rates and the two-tower (H4) ---


def rates(tmp_path, log):
    """(50, 5) engagement rates."""
    table = ingested(tmp_path, log)[1]
    events = allowed_events(table, [], [f"p{i}" for i in range(50)], EnrichConfig())
    return engagement_rates(once_per_client(events), 50, 20.0)[0]


def test_one_visitor_counts_once_in_a_pins_rates(tmp_path):
    """Millions of impressions of one forged line would bury a rival's rates, saves of one client make a hit."""
    honest = [event(f"c{i}", pin=f"p{i % 3}", action=a) for i in range(60) for a in ("impression", "click")]
    once = [event("x", pin="p0", action=a) for a in ("impression", "hide")]
    often = [event("x", pin="p0", action=a, at=later(i)) for i in range(300) for a in ("impression", "hide")]
    assert rates(tmp_path, honest + once).tolist() == rates(tmp_path, honest + often).tolist()


def test_one_visitor_counts_once_in_a_training_pair(tmp_path):
    cfg = load_config("configs/demo.yaml", [])

    def weight(log):
        events = allowed_events(ingested(tmp_path, log)[1], [], [f"p{i}" for i in range(50)], cfg.enrich)
        return engaged_pairs(events, [f"p{i}" for i in range(50)], cfg.enrich, cfg.engagement, 1).weight.tolist()

    assert weight([event("x")]) == weight([event("x", at=later(i)) for i in range(50)])


# --- events of the future (H4, L2) ---


@pytest.mark.parametrize("line", [lambda at: event("c", at=at), ubi_click])
def test_events_of_the_future_are_quarantined(tmp_path, line):
    """One event of 2199 would be the newest: it alone would be sampled, and all others would weigh nothing beside it."""
    times = [DAY, DAY + timedelta(hours=23), DAY + timedelta(hours=25), datetime(2199, 12, 31, tzinfo=UTC)]
    log = [line(at) for at in times]
    _, rows, refused = ingested(tmp_path, log, until=DAY.isoformat(), limits={"max_error_rate": 1.0})
    assert sorted(rows["timestamp"].to_pylist()) == times[:2]
    assert [reason.partition(":")[0] for reason in refused["reason"].to_pylist()] == ["future_event"] * 2


def test_without_a_bound_the_clock_is_one(tmp_path):
    log = [event("c", at=datetime.now(UTC) + timedelta(hours=hours)) for hours in (-1, 23, 25)]
    _, rows, refused = ingested(tmp_path, log, limits={"max_error_rate": 1.0})
    assert (rows.num_rows, refused["row"].to_pylist()) == (2, [2])


def test_other_tables_may_speak_of_the_future(tmp_path):
    """A pin that is announced for next year is no forged event."""
    (tmp_path / "other.jsonl").write_text(json.dumps({"pin_id": "p1", "created_at": "2031-01-01", "locale": "en-US"}))
    pins = {"adapter": "table", "path": f"{tmp_path}/other.jsonl"}
    made, *_ = ingested(tmp_path, [event("c")], until=DAY.isoformat(), pins=pins)
    assert made.counts["pins_out"] == 1


def test_an_event_of_tomorrow_does_not_move_the_window(tmp_path):
    """A day's tolerance for wrong clocks must not be a day that one client has to itself."""
    noon = DAY + timedelta(hours=12)
    honest = [event(f"c{i}", at=noon - timedelta(hours=i)) for i in range(20)]
    forged = [event("x", at=noon + timedelta(hours=23))]
    _, rows, _ = ingested(tmp_path, honest + forged, until=noon.isoformat())
    inside, _ = Window.of(SampleConfig(days=1), max(rows["timestamp"].to_pylist()), noon).split(rows)
    assert (rows.num_rows, inside.num_rows, max(inside["timestamp"].to_pylist())) == (21, 13, noon)


# --- one line (M1) ---


def test_one_line_of_unknown_objects_does_not_stop_the_run(tmp_path):
    """Whoever can post one event would stop the daily cycle: its 400 rows were more than a fifth of all."""
    honest = [ubi_click(later(i)) for i in range(1000)]
    unknown = SHOWN | {"query_response_object_ids": [f"u{i}" for i in range(400)]}
    made, rows, refused = ingested(tmp_path, [*honest, unknown])
    assert (rows.num_rows, refused.num_rows) == (1000, 400)
    assert made.counts["search_log_quarantined"] == 400


def test_many_bad_lines_still_stop_it(tmp_path):
    bad = [SHOWN | {"query_id": f"x{i}", "query_response_object_ids": ["u"]} for i in range(300)]
    with pytest.raises(UserError, match=r"search_log: 300 of 1,300 lines are bad"):
        ingested(tmp_path, [ubi_click(later(i)) for i in range(1000)] + bad)


def test_a_line_is_as_bad_as_its_rows(tmp_path):
    """Result pages that show one pin of ten which has been deleted since are no reason to stop."""
    ids = [f"p{i}" for i in range(9)]
    log = [SHOWN | {"query_id": f"x{i}", "query_response_object_ids": [*ids, f"u{i}"]} for i in range(10)]
    assert ingested(tmp_path, log)[1].num_rows == 90


def ubi_file(tmp_path, text):
    (tmp_path / "log.jsonl").write_text(text)
    source = UbiSource(path=str(tmp_path / "log.jsonl"))
    (file,) = find_files(source.path, "ingest.search_log.path")
    return file, source


def test_a_query_that_showed_too_much_is_one_broken_row(tmp_path):
    """A line of 300 kB took 220 MB, one of 16 MB some 12 GB."""
    file, source = ubi_file(tmp_path, json.dumps(SHOWN | {"query_response_object_ids": [0] * 100_000}))
    rules = table_rules("search_log", IngestLimits())

    def look():
        batches, _ = join_ubi([read_ubi_file(file, source)], source, None)
        valid, refused = settle([check_batch(batch, rules) for batch in batches], rules)
        assert (valid.num_rows, refused.num_rows) == (0, 1)
        assert refused["reason"][0].as_py().startswith("too_long: ")

    assert peak_bytes(look) < 10_000_000


def test_a_line_without_end_is_one_row(tmp_path):
    """Cut into pieces it was many bad rows, of which a few stop the run."""
    click = json.dumps(ubi_click(DAY))
    kinds = read_ubi_file(*ubi_file(tmp_path, "\n".join([click, "x" * 40_000_000, click])))
    assert kinds["kind"].to_pylist() == ["event", "broken", "event", "ignored"]
    assert kinds["row"].to_pylist()[:3] == [0, 1, 2]


@pytest.mark.parametrize("name", [b"query_id", b"client_id"])
def test_an_id_that_is_not_utf8_does_not_stop_the_run(tmp_path, name):
    """It stopped at that byte, with a traceback: found by the fuzzer."""
    cfg = config(tmp_path, [ubi_click(later(i)) for i in range(10)])
    line = json.dumps(ubi_click(DAY) | {"query_id": "q", "client_id": "c"}).encode()
    with (tmp_path / "log.jsonl").open("ab") as log:
        log.write(line.replace(b'"%s": "' % name, b'"%s": "\xb6' % name) + b"\n")
    made = stage.run(cfg, Storage(cfg.output))
    assert made.counts["search_log_in"] == 11 and made.counts["search_log_out"] >= 10


# --- what is shown to others (M8) ---


def test_only_queries_of_five_visitors_are_public(tmp_path):
    """The start page offered everybody what one person had searched."""
    log = [event(f"c{i}", "Red  Mug", action="impression") for i in range(5)]
    log += [event("jane", PRIVATE, action="impression", at=later(i)) for i in range(50)]
    rows = ingested(tmp_path, log)[1]
    assert public_queries(rows, EnrichConfig()) == [{"query": "red mug", "num_clients": 5}]
