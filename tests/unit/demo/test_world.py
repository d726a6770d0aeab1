"""The demo world: rules that a table of results rests on. A broken one would make systems look better or worse."""

import math
from collections import Counter, defaultdict
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest

from ray_app.base.config import DemoConfig
from ray_app.base.schemas import BOARDS, HUMAN_LABELS, PINS, SEARCH_LOG
from ray_app.base.text import normalize_query, query_group
from ray_app.demo import labels, world
from ray_app.demo.concepts import ATTRIBUTES, CATEGORY_OF, Concept, Request, true_grade
from ray_app.demo.facts import LANGUAGE_OF, LOCALE_NAMES, Draw, generator, grades, pin_facts
from ray_app.demo.log import ETA, LOG_DAYS, LOG_START
from ray_app.demo.queries import pool_queries, split_by_share

pytestmark = pytest.mark.slow

SCHEMAS = {
    "pins": PINS,
    "boards": BOARDS,
    "search_log": SEARCH_LOG,
    "human_labels": HUMAN_LABELS,
    "ground_truth/judgments": HUMAN_LABELS,
}


def config(**changes):
    return DemoConfig(**{"num_pins": 2000, "events_per_pin": 40.0, "image_size": 32} | changes)


def make(cfg, parts=1):
    """Every table, and the tables of the parts laid end to end."""
    pieces = [world.part_tables(cfg, part, parts, "img") for part in range(parts)]
    pieces.append(world.whole_tables(cfg))
    names = dict.fromkeys(name for piece in pieces for name in piece)
    return {name: pa.concat_tables([piece[name] for piece in pieces if name in piece]) for name in names}


@pytest.fixture(scope="module")
def tables():
    return make(config())


@pytest.fixture(scope="module")
def concepts(tables):
    """pin_id -> Concept, as the truth tells it."""
    names = ("object", *ATTRIBUTES)
    return {r["pin_id"]: Concept(**{n: r[n] for n in names}) for r in tables["ground_truth/concepts"].to_pylist()}


@pytest.fixture(scope="module")
def requests(tables):
    """(query, locale) -> Request; texts with two meanings are left out."""
    found = defaultdict(set)
    for row in tables["ground_truth/requests"].to_pylist():
        found[row["query"], row["locale"]].add(Request(row["object"], *(row[name] for name in ATTRIBUTES)))
    return {key: next(iter(same)) for key, same in found.items() if len(same) == 1}


@pytest.fixture(scope="module")
def clicks(tables, concepts, requests):
    """(grade, position) -> [impressions, clicks]"""
    found = defaultdict(lambda: [0, 0])
    for row in tables["search_log"].to_pylist():
        request = requests.get((row["query"], row["locale"]))
        if request and row["pin_id"] and row["action"] in ("impression", "click"):
            grade = true_grade(request, concepts[row["pin_id"]])
            found[grade, row["position"]][row["action"] == "click"] += 1
    return found


def rate(clicks, grade_range, positions):
    shown, clicked = np.sum([clicks[g, p] for g in grade_range for p in positions], axis=0)
    return clicked / shown


# --- the same world, however it is made ---


@pytest.mark.parametrize("parts", [2, 7])
def test_rows_do_not_depend_on_the_number_of_parts(parts):
    cfg = config(num_pins=300, events_per_pin=10.0, ground_truth_queries=30)
    one, many = make(cfg), make(cfg, parts)
    assert [name for name in one if not one[name].equals(many[name])] == []


def test_another_seed_is_another_world():
    a, b = (make(config(num_pins=300, ground_truth_queries=30, seed=seed)) for seed in (1, 2))
    assert [name for name in a if a[name].equals(b[name])] == []


def test_pins_stay_what_they_are_when_the_world_grows():
    """Else a larger world would be another one, and not more of the same."""
    small, large = config(num_pins=300), config(num_pins=5000)
    assert world.pin_rows(small, 0, 300, "img").equals(world.pin_rows(large, 0, 300, "img"))


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_any_whole_number_is_a_seed(seed):
    assert world.pin_rows(config(seed=seed), 0, 5, "img").num_rows == 5


def test_the_smallest_world_has_every_table():
    tables = make(config(num_pins=200, events_per_pin=10.0))
    assert [name for name, table in tables.items() if not table.num_rows] == []


@pytest.mark.parametrize("name", SCHEMAS)
def test_tables_have_the_schemas_that_ingest_reads(tables, name):
    assert tables[name].schema.equals(SCHEMAS[name])


# --- pins ---


def test_shares_of_texts_are_those_of_the_document(tables):
    pins = tables["pins"]
    absent = {n: pins[n].null_count / pins.num_rows for n in ("title", "description", "link_title", "link_description")}
    expected = {"title": 0.20, "description": 0.50, "link_title": 0.36, "link_description": 0.40}
    assert absent == {name: pytest.approx(share, abs=0.04) for name, share in expected.items()}


def test_nearly_half_of_the_pins_are_english(tables):
    locales = Counter(tables["pins"]["locale"].to_pylist())
    english = sum(n for name, n in locales.items() if name.startswith("en")) / 2000
    assert english == pytest.approx(0.45, abs=0.04)
    assert set(locales) == set(LOCALE_NAMES)


def test_every_object_has_its_share_of_the_pins(concepts):
    counts = Counter(concept.object for concept in concepts.values())
    assert set(counts) == set(CATEGORY_OF)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_a_repin_shows_the_picture_and_so_the_concept_of_an_older_pin(tables, concepts):
    """Else a caption of the shared picture would be wrong for one of the two."""
    shown = {row["pin_id"]: row["picture_of"] for row in tables["ground_truth/concepts"].to_pylist()}
    images = dict(zip(tables["pins"]["pin_id"].to_pylist(), tables["pins"]["image"].to_pylist(), strict=True))
    repins = {pin: root for pin, root in shown.items() if pin != root}
    assert len(repins) / len(shown) == pytest.approx(0.05, abs=0.02)
    assert [p for p, root in repins.items() if concepts[p] != concepts[root] or images[p] != images[root]] == []
    assert [p for p, root in repins.items() if shown[root] != root] == []


def test_a_picture_file_lies_where_its_pins_say():
    cfg = config(num_pins=300)
    named = {image for image in world.pin_rows(cfg, 0, 300, "img")["image"].to_pylist() if image}
    assert named == {f"img/{picture.path}" for picture in world.image_files(cfg, 0, 300)}
    assert 0.93 < len(named) / 300 <= 0.99


def test_bytes_are_those_of_the_files():
    files = {picture.path: picture.data for picture in world.image_files(config(num_pins=300), 0, 300)}
    rows = world.pin_rows(config(num_pins=300, pictures="bytes"), 0, 300, "img")
    root = pin_facts(config().seed, np.arange(300)).root
    wanted = [files.get(world.image_path(int(number))) for number in root]
    assert rows["image_bytes"].to_pylist() == wanted
    assert rows["image"].null_count == 300


def test_a_few_pictures_are_broken(monkeypatch):
    monkeypatch.setattr(world.pictures, "image_bytes_of", lambda concept, rng, size: b"x" * 30)
    broken = [picture for picture in world.image_files(config(), 0, 5000) if picture.is_broken]
    assert 3 <= len(broken) <= 20
    assert {len(picture.data) for picture in broken} == {10}


def test_a_uri_keeps_its_options_behind_the_path():
    assert world.join_location("s3://b/run?region=x", "world/1.png") == "s3://b/run/world/1.png?region=x"
    assert world.join_location("runs/demo", "world/1.png") == "runs/demo/world/1.png"


# --- boards ---


def test_most_saves_are_of_one_category_per_board(tables, concepts):
    """Board titles would else be noise."""
    boards = defaultdict(Counter)
    for row in tables["boards"].to_pylist():
        boards[row["board_id"]][concepts[row["pin_id"]].category] += 1
    fitting = sum(max(saves.values()) for saves in boards.values()) / tables["boards"].num_rows
    assert 0.8 < fitting < 0.98


def test_few_pins_have_many_saves(tables):
    saves = sorted(Counter(tables["boards"]["pin_id"].to_pylist()).values(), reverse=True)
    assert sum(saves[:200]) > 0.25 * sum(saves)
    assert sum(saves) / 2000 == pytest.approx(3.0, rel=0.15)


def test_a_pin_is_on_a_board_once(tables):
    pairs = list(zip(tables["boards"]["board_id"].to_pylist(), tables["boards"]["pin_id"].to_pylist(), strict=True))
    assert len(set(pairs)) == len(pairs)


# --- the search log ---


def test_the_log_has_the_rows_asked_for(tables):
    assert tables["search_log"].num_rows == pytest.approx(40 * 2000, rel=0.05)


def test_the_log_lasts_a_month_in_order_of_search(tables):
    shown = tables["search_log"].filter(pa.compute.equal(tables["search_log"]["action"], "impression"))
    times = shown["timestamp"].to_pylist()
    assert times == sorted(times)
    assert LOG_START <= times[0] < times[-1] < LOG_START + timedelta(days=LOG_DAYS)


def test_event_ids_are_unique(tables):
    ids = tables["search_log"]["event_id"].to_pylist()
    assert len(set(ids)) == len(ids)


def test_clicks_rise_with_relevance_at_equal_position(clicks):
    rates = [rate(clicks, grade_range, range(1, 4)) for grade_range in ((1, 2), (3,), (4,), (5,))]
    assert rates == sorted(rates)
    assert rates[-1] > 5 * rates[0]


def test_clicks_fall_with_position_at_equal_relevance(clicks):
    """By the law that the document tells: examined with probability position ** -ETA."""
    top, middle, bottom = (rate(clicks, (5,), positions) for positions in ((1,), (4, 5), (9, 10)))
    assert top > middle > bottom
    assert middle / top == pytest.approx(4.5**-ETA, rel=0.2)
    assert bottom / top == pytest.approx(9.5**-ETA, rel=0.3)


def test_every_grade_is_seen_at_the_top_and_at_the_bottom(clicks):
    """Else position and relevance could not be told apart."""
    assert [(g, p) for g in range(1, 6) for p in (1, 10) if clicks[g, p][0] < 20] == []


def test_people_see_their_own_language_more_than_others(tables):
    language = dict(zip(tables["pins"]["pin_id"].to_pylist(), tables["pins"]["locale"].to_pylist(), strict=True))
    log = tables["search_log"].to_pylist()
    shown = [
        language[r["pin_id"]][:2] for r in log if r["pin_id"] and r["locale"] == "de-DE" and r["action"] == "impression"
    ]
    of_catalogue = sum(1 for locale in language.values() if locale[:2] == "de") / len(language)
    assert shown.count("de") / len(shown) > 1.5 * of_catalogue


def test_an_action_belongs_to_an_impression(tables):
    log = tables["search_log"].to_pylist()
    shown = {row["event_id"].rsplit("-", 1)[0] for row in log if row["action"] == "impression"}
    assert {row["event_id"].rsplit("-", 1)[0] for row in log} == shown


def test_a_search_may_show_nothing(tables):
    empty = [row for row in tables["search_log"].to_pylist() if row["pin_id"] is None]
    assert empty
    assert {(row["action"], row["position"]) for row in empty} == {("impression", None)}


# --- labels and truth ---


def test_grades_of_arrays_are_the_true_grades():
    queries = pool_queries(config(), np.arange(200))
    facts = pin_facts(config().seed, np.arange(400))
    found = grades({name: codes[:, None] for name, codes in queries.asked.items()}, facts)
    requests, concepts = [queries.request(q) for q in range(200)], [facts.concept(i) for i in range(400)]
    assert found.tolist() == [[true_grade(request, concept) for concept in concepts] for request in requests]


def test_judgements_are_the_true_grades(tables, concepts, requests):
    wrong = [
        row
        for row in tables["ground_truth/judgments"].to_pylist()
        if (row["query"], row["locale"]) in requests
        and row["grade"] != true_grade(requests[row["query"], row["locale"]], concepts[row["pin_id"]])
    ]
    assert wrong == []


@pytest.mark.parametrize("key", [normalize_query, query_group])
def test_held_out_queries_are_in_neither_log_nor_labels(tables, key):
    """Else the models would be measured on what they have seen."""
    held_out = {key(text) for text in tables["ground_truth/judgments"]["query"].to_pylist()}
    pool = [row["query"] for row in tables["ground_truth/requests"].to_pylist() if not row["held_out"]]
    seen = [*tables["search_log"]["query"].to_pylist(), *tables["human_labels"]["query"].to_pylist(), *pool]
    assert held_out & set(map(key, seen)) == set()


def test_held_out_queries_are_of_all_languages(tables):
    asked = {(row["query"], row["locale"]) for row in tables["ground_truth/judgments"].to_pylist()}
    locales = Counter(locale for _, locale in asked)
    languages = Counter(LANGUAGE_OF[LOCALE_NAMES.index(locale)] for _, locale in asked)
    assert len(asked) == 240
    assert locales["en-US"] >= 40
    assert set(languages) == set(LANGUAGE_OF)
    assert min(languages.values()) >= 12


@pytest.mark.parametrize("name", ["human_labels", "ground_truth/judgments"])
def test_every_grade_is_frequent(tables, name):
    counts = Counter(tables[name]["grade"].to_pylist())
    assert [grade for grade in range(1, 6) if counts[grade] < 0.05 * tables[name].num_rows] == []


def test_humans_judge_us_english_queries_of_the_log_only(tables):
    rows = tables["human_labels"].to_pylist()
    pool = {(r["query"], r["locale"]) for r in tables["ground_truth/requests"].to_pylist() if not r["held_out"]}
    assert {row["locale"] for row in rows} == {"en-US"}
    assert {(row["query"], row["locale"]) for row in rows} <= pool
    assert len({row["query"] for row in rows}) == 40


def test_a_pair_has_two_different_raters_and_one_guideline(tables):
    raters, guidelines = defaultdict(list), defaultdict(set)
    for row in tables["human_labels"].to_pylist():
        raters[row["query"], row["pin_id"]].append(row["rater_id"])
        guidelines[row["query"]].add(row["guideline_version"])
    assert {(len(ids), len(set(ids))) for ids in raters.values()} == {(2, 2)}
    assert set(map(tuple, guidelines.values())) == {("v1",), ("v2",)}


def test_raters_are_right_three_times_of_four():
    rng = generator(7, Draw.RATING, 0)
    said = np.array([[labels.rate(7, rater, 3, rng) for _ in range(400)] for rater in range(labels.NUM_RATERS)])
    exact, off_by_one = np.mean(said == 3), np.mean(abs(said - 3) == 1)
    assert (exact, off_by_one) == (pytest.approx(0.78, abs=0.05), pytest.approx(0.18, abs=0.05))
    leaning = said.mean(axis=1)
    assert leaning.max() - leaning.min() > 0.05


def test_the_scale_ends_turn_errors_back():
    rng = generator(7, Draw.RATING, 0)
    assert {labels.rate(7, rater, grade, rng) for rater in range(15) for grade in (1, 5) for _ in range(50)} == {
        1,
        2,
        3,
        4,
        5,
    }


def test_the_old_guideline_is_kinder_to_near_objects(tables, concepts, requests):
    """Its rows would else be no reason to keep the version beside the grade."""
    off = defaultdict(list)
    for row in tables["human_labels"].to_pylist():
        request, concept = requests.get((row["query"], row["locale"])), concepts[row["pin_id"]]
        if request and true_grade(request, concept) == 2 and request.category == concept.category:
            off[row["guideline_version"]].append(row["grade"])
    assert np.mean(off["v1"]) > np.mean(off["v2"]) + 0.3


@pytest.mark.parametrize(
    "name", ["boards", "search_log", "human_labels", "ground_truth/judgments", "ground_truth/concepts"]
)
def test_every_pin_that_is_named_exists(tables, name):
    named = {pin for pin in tables[name]["pin_id"].to_pylist() if pin is not None}
    assert named <= set(tables["pins"]["pin_id"].to_pylist())


def test_a_pair_is_judged_once(tables):
    pairs = [(row["query"], row["locale"], row["pin_id"]) for row in tables["ground_truth/judgments"].to_pylist()]
    assert len(set(pairs)) == len(pairs) == 240 * 20


# --- parts ---


def test_parts_cover_every_row_once():
    assert [world.part_bounds(10, part, 3) for part in range(3)] == [(0, 3), (3, 6), (6, 10)]


@pytest.mark.parametrize(("num_pins", "parts"), [(200, 1), (2000, 4), (100_000, 10), (10_000_000, 1000)])
def test_a_part_holds_at_most_the_pins_per_file(num_pins, parts):
    assert world.num_parts(config(num_pins=num_pins)) == parts
    assert math.ceil(num_pins / parts) <= 10_000


def test_shares_are_split_into_whole_numbers():
    assert split_by_share(12, (0.25, 0.2, 0.15, 0.2, 0.1, 0.1)) == [3, 3, 2, 2, 1, 1]
