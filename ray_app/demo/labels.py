"""Human labels of some en-US pairs, and ground truth of unlabelled pairs."""

from typing import Any

import numpy as np
import pyarrow as pa

from ray_app.base.config import DemoConfig
from ray_app.base.schemas import HUMAN_LABELS, NUM_GRADES
from ray_app.demo.candidates import CATEGORY, SAME, SIBLING, draw_candidates
from ray_app.demo.concepts import GROUP_OF, OBJECTS
from ray_app.demo.facts import LOCALE_NAMES, Codes, Draw, generator, grades, gumbel, language_fit, pin_facts, pin_id
from ray_app.demo.queries import Queries, ground_truth_queries, labelled_queries, pool_queries, split_by_share

# What is judged for a query, as shares of its pins: (same object, grade 5), (same, 4), (same, 3), near object, same
# category, any pin. Guessed, so that every grade is frequent; what a stratum lacks, any other candidate fills.
STRATUM_SHARES = (0.25, 0.2, 0.15, 0.2, 0.1, 0.1)
_DRAWN = {"same": 399, "siblings": 40, "category": 40, "any_pin": 40}

NUM_RATERS = 15
# Of a rater's judgements; guessed: on five grades, three of four are right.
EXACT_SHARES = (0.70, 0.86)  # the least and the most careful rater; 0.78 in the mean
FAR_SHARE = 0.18  # of the errors that are two grades off, not one: 4% of all judgements
UPWARD_SHARES = (0.3, 0.7)  # errors of the strictest and the most lenient rater that are too high
OLD_GUIDELINE_SHARE = 0.4  # of queries judged under v1, which gave near objects one grade more

CONCEPTS = pa.schema(
    [
        pa.field("pin_id", pa.string(), nullable=False),
        *(pa.field(name, pa.string(), nullable=False) for name in ("object", "colour", "material", "style", "setting")),
        pa.field("category", pa.string(), nullable=False),
        pa.field("locale", pa.string(), nullable=False),
        pa.field("picture_of", pa.string(), nullable=False),  # itself, or the pin whose image a repin shows
    ]
)
REQUESTS = pa.schema(
    [
        pa.field("query", pa.string(), nullable=False),
        pa.field("locale", pa.string(), nullable=False),
        pa.field("object", pa.string(), nullable=False),
        *(pa.field(name, pa.string()) for name in ("colour", "material", "style", "setting")),  # null: any
        pa.field("held_out", pa.bool_(), nullable=False),  # in the judgements; else in the pool of the log
    ]
)


def human_labels(cfg: DemoConfig) -> pa.Table:
    """HUMAN_LABELS: `cfg.raters_per_pair` judgements of each pair, with noise; en-US queries of the log only."""
    queries = labelled_queries(cfg)
    rows: list[dict[str, Any]] = []
    for q, pins in enumerate(judged_pins(cfg, queries, cfg.pins_per_labelled_query)):
        is_old = bool(generator(cfg.seed, Draw.GUIDELINE, int(queries.key[q])).random() < OLD_GUIDELINE_SHARE)
        grade = query_grades(cfg, queries, q, pins)
        if is_old:
            grade = _lenient(cfg, queries, q, pins, grade)
        for pin, true in zip(pins.tolist(), grade.tolist(), strict=True):
            rng = generator(cfg.seed, Draw.RATING, int(queries.key[q]), pin)
            for rater in rng.choice(NUM_RATERS, size=min(cfg.raters_per_pair, NUM_RATERS), replace=False).tolist():
                rows.append(
                    {
                        "query": queries.text[q],
                        "locale": LOCALE_NAMES[queries.locale[q]],
                        "pin_id": pin_id(pin),
                        "rater_id": f"rater-{rater + 1:02d}",
                        "grade": rate(cfg.seed, rater, true, rng),
                        "guideline_version": "v1" if is_old else "v2",
                    }
                )
    return pa.Table.from_pylist(rows, HUMAN_LABELS)


def ground_truth_tables(cfg: DemoConfig) -> tuple[pa.Table, pa.Table]:
    """True grades of pairs of held-out queries (HUMAN_LABELS), and those queries (REQUESTS)."""
    queries = ground_truth_queries(cfg)
    rows = [
        {"query": queries.text[q], "locale": LOCALE_NAMES[queries.locale[q]], "pin_id": pin_id(pin), "grade": grade}
        for q, pins in enumerate(judged_pins(cfg, queries, cfg.pins_per_ground_truth_query))
        for pin, grade in zip(pins.tolist(), query_grades(cfg, queries, q, pins).tolist(), strict=True)
    ]
    same = {"rater_id": "ground_truth", "guideline_version": "ground_truth"}
    return pa.Table.from_pylist([row | same for row in rows], HUMAN_LABELS), _request_rows(queries, held_out=True)


def request_rows(cfg: DemoConfig, start: int, stop: int) -> pa.Table:
    """REQUESTS of queries start..stop-1 of the log's pool."""
    return _request_rows(pool_queries(cfg, np.arange(start, stop)), held_out=False)


def concept_rows(cfg: DemoConfig, start: int, stop: int) -> pa.Table:
    """CONCEPTS of pins start..stop-1."""
    facts = pin_facts(cfg.seed, np.arange(start, stop))
    rows = []
    for i in range(stop - start):
        concept = facts.concept(i)
        attributes = {name: getattr(concept, name) for name in ("object", "colour", "material", "style", "setting")}
        of = {"locale": LOCALE_NAMES[facts.locale[i]], "picture_of": pin_id(facts.root[i])}
        rows.append({"pin_id": pin_id(start + i), **attributes, "category": concept.category, **of})
    return pa.Table.from_pylist(rows, CONCEPTS)


def judged_pins(cfg: DemoConfig, queries: Queries, per_query: int) -> list[Codes]:
    """Pin numbers to judge for each query, by `STRATUM_SHARES`; inside a stratum own-language and English ones first."""
    found = draw_candidates(cfg, queries.key, queries.asked["object"], queries.pin, popular=False, **_DRAWN)
    pins = found.facts.number
    grade = grades({name: codes[:, None] for name, codes in queries.asked.items()}, found.facts)
    kind = np.broadcast_to(found.kind[None, :], pins.shape)
    is_same = kind == SAME
    stratum = np.select(
        [is_same & (grade == 5), is_same & (grade == 4), is_same, kind == SIBLING, kind == CATEGORY], range(5), 5
    )
    weight = language_fit(queries.locale[:, None], found.facts.locale)
    weight = weight + gumbel(cfg.seed, Draw.JUDGED, queries.key[:, None], pins)
    quota = split_by_share(per_query, STRATUM_SHARES)
    chosen = []
    for q in range(len(queries)):
        order = np.argsort(-weight[q], kind="stable")
        order = order[found.is_first[q][order]]
        first = np.concatenate([order[stratum[q][order] == s][:size] for s, size in enumerate(quota)])
        rest = order[~np.isin(order, first)]
        chosen.append(pins[q][np.concatenate([first, rest])[:per_query]])
    return chosen


def query_grades(cfg: DemoConfig, queries: Queries, q: int, pins: Codes) -> Codes:
    """Ground truth grades of one query and some pins."""
    return grades({name: codes[q] for name, codes in queries.asked.items()}, pin_facts(cfg.seed, pins))


def rate(seed: int, rater: int, true: int, rng: np.random.Generator) -> int:
    """Grade that a rater gives to a pair of that true grade. Raters differ in care and in leaning; the ends of the scale turn back."""
    care, lean = generator(seed, Draw.RATER, rater).random(2)
    if rng.random() < EXACT_SHARES[0] + care * (EXACT_SHARES[1] - EXACT_SHARES[0]):
        return true
    off = 2 if rng.random() < FAR_SHARE else 1
    up = rng.random() < UPWARD_SHARES[0] + lean * (UPWARD_SHARES[1] - UPWARD_SHARES[0])
    said = true + off if up else true - off
    return said if 1 <= said <= NUM_GRADES else 2 * true - said


def _lenient(cfg: DemoConfig, queries: Queries, q: int, pins: Codes, grade: Codes) -> Codes:
    """Guideline v1: near objects get one grade more."""
    asked = queries.request(q).object
    shown = [OBJECTS[code] for code in pin_facts(cfg.seed, pins).object]
    near = np.array([obj != asked and obj in GROUP_OF[asked] for obj in shown])
    return np.where(near, grade + 1, grade)


def _request_rows(queries: Queries, *, held_out: bool) -> pa.Table:
    rows = []
    for q, text in enumerate(queries.text):
        request = queries.request(q)
        of = {"query": text, "locale": LOCALE_NAMES[queries.locale[q]], "object": request.object}
        rows.append({**of, **request.asked, "held_out": held_out})
    return pa.Table.from_pylist(rows, REQUESTS)
