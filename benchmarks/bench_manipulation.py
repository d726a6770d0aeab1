"""What forged visitors of the search page can do to a pin: how many of them move its grade, and its rank, by how much.

    python benchmarks/bench_manipulation.py [--config configs/demo.yaml] [--pairs 60]

Reads a finished run of the demo dataset and changes nothing in it. Pairs of a query and a pin whose true grade is 1 or 2 are
attacked: forged visitors search the query and click, hold and save the pin, at the end of the log. From the log with their events
the pins' engaged queries and rates are made again by the functions of the stages `enrich` and `engagement`, and the run's student
grades the pairs and ranks each pin among the whole catalogue for its query. Three ways, one at a time, and all at once:

- text: the query becomes part of the pin's text,
- rates: the pin becomes one that people engage with, in the student's features and in the blend of the served order,
- vectors: the two-tower model is trained again, on the forged pairs too.

`before` is the rule of earlier versions: two events, of whoever, make an engaged query; each event counts. `after` is the default
of today: five distinct clients, each of which counts once. Changes are against the same log without the forged events under the same
rule, with 95% intervals of a bootstrap over queries.

What limits it: all pins are attacked at once, so BM25's statistics drift a little. The student was trained on texts of the run's own
rule. A client costs what the collector of the log asks for one: with a UBI log that browsers write it is a made-up id, and five are
as cheap as one.
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from _bench import finish, skip
from bench_injection import one_pair_per_pin

from ray_app.base.columns import matrix_or_zero
from ray_app.base.config import BlendConfig, Config, EnrichConfig, load_config
from ray_app.base.schemas import SEARCH_LOG
from ray_app.base.storage import Storage
from ray_app.base.text import normalize_query
from ray_app.demo.log import num_searches, search_log
from ray_app.features.catalogue import Catalogue, index_queries
from ray_app.features.engagement_rates import engagement_rates
from ray_app.features.student import StudentFeatures
from ray_app.models.encoder_usage import zero_shot_usage
from ray_app.models.head import expected_grade
from ray_app.models.student import Student
from ray_app.models.text_encoder import build_zero_shot
from ray_app.models.tower_encoder import TowerEncoder
from ray_app.online.blend import blend, engagement_scores
from ray_app.stages.engagement.events import allowed_events, engaged_pairs, once_per_client
from ray_app.stages.engagement.two_tower import train
from ray_app.stages.enrich.engaged_queries import top_engaged_queries
from ray_app.tables.local_folder import local_folder
from ray_app.tables.manifest import read_output, require_output

ENGAGED = ("impression", "click", "long_click", "save")
RESAMPLES = 2000
HALF_GRADE = 0.5


@dataclass(frozen=True, eq=False)
class Rule:
    """What counts as support."""

    name: str
    cfg: EnrichConfig
    knows_clients: bool

    def log(self, log: pa.Table) -> pa.Table:
        """The log as this rule sees it."""
        if self.knows_clients:
            return log
        at = log.column_names.index("client_id")
        return log.set_column(at, "client_id", pa.nulls(log.num_rows, pa.string()))


BEFORE = Rule("before", EnrichConfig(min_clients=2, count_events_without_client=True), knows_clients=False)
AFTER = Rule("after", EnrichConfig(), knows_clients=True)


@dataclass(frozen=True)
class Attack:
    """Forged visitors, each with so many events of each kind on each attacked pin."""

    clients: int
    times: int = 1
    actions: tuple[str, ...] = ENGAGED

    def __str__(self) -> str:
        return f"{self.clients} client{'s' * (self.clients > 1)}" + (f" x {self.times}" if self.times > 1 else "")


# The first of `before` is the cheapest that does it: two events of one visitor.
TEXT = {
    BEFORE: [Attack(1, actions=("click", "long_click"))],
    AFTER: [Attack(1, times=300), Attack(2), Attack(4), Attack(5), Attack(10), Attack(25)],
}
RATES = {
    BEFORE: [Attack(1), Attack(1, times=25), Attack(1, times=300)],
    AFTER: [Attack(1), Attack(1, times=300), Attack(5), Attack(25), Attack(100)],
}
VECTORS = {BEFORE: [Attack(1), Attack(1, times=25)], AFTER: [Attack(1), Attack(1, times=25), Attack(5), Attack(25)]}
ALL = {
    BEFORE: [Attack(1), Attack(1, times=25)],
    AFTER: [Attack(1), Attack(1, times=25), Attack(4), Attack(5), Attack(25)],
}


class World:
    """A finished run, its log, and the pairs to attack."""

    def __init__(self, cfg: Config, num_pairs: int, seed: int) -> None:
        assert cfg.demo is not None and cfg.engagement is not None
        self.cfg, self.store = cfg, Storage(cfg.output)
        self.pin_texts = read_output(self.store, require_output(self.store, "enrich", "pin_texts"))
        self.pin_ids = self.pin_texts["pin_id"].to_pylist()
        labels = read_output(self.store, require_output(self.store, "ingest", "human_labels"), ["query"])
        self.excluded = set(map(normalize_query, pc.unique(labels["query"]).to_pylist()))
        self.log = search_log(cfg.demo, 0, num_searches(cfg.demo))
        judged = pq.read_table(Path(cfg.output) / "world" / "ground_truth" / "judgments")
        judged = judged.filter(pc.invert(pc.is_in(judged["query"], value_set=pa.array(sorted(self.excluded)))))
        pairs = one_pair_per_pin(judged, num_pairs, seed)
        self.locales = pairs["locale"].to_pylist()
        self.queries, self.query_index = index_queries(pairs["query"].to_pylist())
        self.catalogue = Catalogue.of_texts(cfg, self.pin_texts)
        self.rows = self.catalogue.pairs.pin_rows(pairs["pin_id"].to_pylist())
        output = require_output(self.store, "distill", "student")
        self.student, folder = Student(self.store, output), local_folder(self.store, output)
        self.pin_tower = TowerEncoder(folder, "pin", "float32")
        self.query_vectors = TowerEncoder(folder, "query", "float32").encode(self.queries, 64)
        zero_shot = build_zero_shot(cfg.features, zero_shot_usage(cfg.features), "query", "float32", 0)
        self.encode = lambda texts: zero_shot.encode(texts, 64)
        self.features = StudentFeatures.load(self.catalogue, self.store, self.encode)
        zero = read_output(self.store, require_output(self.store, "zero_shot", "zero_shot_pins"))
        self.zero_shot_pins = matrix_or_zero(zero["text_embedding"])
        assert zero["pin_id"].to_pylist() == self.pin_ids

    def forged(self, attack: Attack | None) -> pa.Table:
        """The log, and the attack's events on all attacked pairs, in the log's last hour."""
        if attack is None:
            return self.log
        end = pc.max(self.log["timestamp"]).as_py()
        rows = [
            (f"x{pair}-{client}-{n}-{action}", end - timedelta(seconds=n % 3600), self.queries[query], self.locales[pair],
             self.pin_ids[pin], 1, action, f"forged {pair} {client}")
            for pair, (query, pin) in enumerate(zip(self.query_index, self.rows, strict=True))
            for client in range(attack.clients) for n in range(attack.times) for action in attack.actions
        ]  # fmt: skip
        columns = dict(zip(SEARCH_LOG.names, zip(*rows, strict=True), strict=True))
        return pa.concat_tables([self.log, pa.table(columns, SEARCH_LOG)])

    def texts(self, rule: Rule, log: pa.Table) -> pa.Table:
        """The pins' texts with the engaged queries of this log."""
        found = top_engaged_queries(rule.log(log), self.excluded, rule.cfg)
        lists = pa.array([found.get(pin_id) for pin_id in self.pin_ids], pa.list_(pa.string()))
        return self.pin_texts.set_column(self.pin_texts.column_names.index("engaged_queries"), "engaged_queries", lists)

    def events(self, rule: Rule, log: pa.Table) -> pd.DataFrame:
        """What rates and vectors are learned from."""
        return allowed_events(rule.log(log), self.excluded, self.pin_ids, rule.cfg)

    def rates(self, events: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """As the student and the blend read them."""
        assert self.cfg.engagement is not None
        rates, shown = engagement_rates(
            once_per_client(events), len(self.pin_ids), self.cfg.engagement.prior_impressions
        )
        return rates * shown[:, None], shown.astype(np.float32)[:, None]

    def with_vectors(self, features: StudentFeatures, rule: Rule, events: pd.DataFrame) -> StudentFeatures:
        """The features with a two-tower model that was trained on these events."""
        assert self.cfg.engagement is not None
        pairs = engaged_pairs(events, self.pin_ids, rule.cfg, self.cfg.engagement, self.cfg.seed)
        place = {pin_id: row for row, pin_id in enumerate(self.pin_ids)}
        rows = [place[pin_id] for pin_id in pairs.pin_ids]
        trained = train(
            pairs, self.encode(pairs.queries), self.zero_shot_pins[rows], self.cfg.engagement, self.cfg.seed
        )
        vectors = np.zeros((len(self.pin_ids), self.cfg.engagement.dim), np.float32)
        vectors[rows] = trained.pin_vectors
        sides = [
            replace(side, pin_vectors=vectors, tower=trained.tower) if side.name == "engagement" else side
            for side in features.aux_embeddings
        ]
        return replace(features, aux_embeddings=sides)

    def encode_pins(self, features: StudentFeatures, rows: np.ndarray) -> np.ndarray:
        """(num_rows, dim) of pins with the texts that they have now."""
        return self.pin_tower.encode([features.catalogue.pairs.rendered[row] for row in rows], 64)

    def grades(
        self, features: StudentFeatures, query: np.ndarray, pin: np.ndarray, vectors: np.ndarray, locales: Sequence[str]
    ) -> np.ndarray:
        """(num_pairs,) expected grades."""
        computed = features.compute(self.queries, query, pin, locales)
        return np.asarray(expected_grade(self.student.score(self.query_vectors[query], vectors, computed, locales)))

    def state(self, rule: Rule, attack: Attack | None, way: str) -> StudentFeatures:
        """What the student and the blend see after an attack by one way."""
        forged = self.forged(attack)

        def seen(by: str) -> pa.Table:
            return forged if way in (by, "all") else self.log

        catalogue = self.catalogue.with_texts(self.texts(rule, seen("text")))
        features = replace(self.features, catalogue=catalogue, rates=self.rates(self.events(rule, seen("rates"))))
        trains = way in ("vectors", "all")
        return self.with_vectors(features, rule, self.events(rule, seen("vectors"))) if trains else features


@dataclass(frozen=True)
class Scores:
    """The attacked pairs' grades, and those that are served."""

    grade: np.ndarray
    served: np.ndarray


def score_pairs(world: World, features: StudentFeatures) -> Scores:
    """Of the attacked pairs."""
    vectors = world.encode_pins(features, world.rows)
    grade = world.grades(features, world.query_index, world.rows, vectors, world.locales)
    return Scores(grade, blend(grade, met(features)[world.rows], BlendConfig()))


def score_catalogue(world: World, features: StudentFeatures) -> np.ndarray:
    """(num_pairs, num_pins) served scores of all pins for each pair's query."""
    num = len(world.pin_ids)
    rows = np.arange(num)
    vectors = world.encode_pins(features, rows)
    engaging, found = met(features), np.empty((len(world.rows), num), np.float32)
    for pair, query in enumerate(world.query_index):
        grade = world.grades(features, np.full(num, query), rows, vectors, [world.locales[pair]] * num)
        found[pair] = blend(grade, engaging, BlendConfig())
    return found


def met(features: StudentFeatures) -> np.ndarray:
    assert features.rates is not None
    return engagement_scores(features.rates[0], features.rates[1][:, 0] > 0)


def ranks(world: World, catalogue: np.ndarray, served: np.ndarray) -> np.ndarray:
    """Rank of each attacked pin among all others, whose scores nothing has changed."""
    others = catalogue.copy()
    others[np.arange(len(world.rows)), world.rows] = -np.inf
    return 1 + (others > served[:, None]).sum(axis=1)


def interval(values: np.ndarray, groups: np.ndarray) -> list[float]:
    """Mean, and the 95% interval over resampled queries."""
    sums, counts = np.bincount(groups, values), np.bincount(groups).astype(float)
    drawn = np.random.default_rng(0).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), RESAMPLES)
    low, high = np.percentile((drawn @ sums) / (drawn @ counts), [2.5, 97.5])
    return [round(float(number), 4) for number in (values.mean(), low, high)]


def run(world: World, ways: Sequence[str]) -> dict[str, Any]:
    """way/rule/attack -> figures."""
    found: dict[str, Any] = {}
    for rule in (BEFORE, AFTER):
        clean = world.state(rule, None, "text")
        catalogue = score_catalogue(world, clean)
        for way, attacks in (("text", TEXT), ("rates", RATES), ("vectors", VECTORS), ("all", ALL)):
            if way not in ways:
                continue
            base_features = world.state(rule, None, way)
            base = score_pairs(world, base_features)
            base_rank = ranks(world, catalogue, base.served)
            for attack in attacks[rule]:
                features = world.state(rule, attack, way)
                scores = score_pairs(world, features)
                change, rank = scores.grade - base.grade, ranks(world, catalogue, scores.served)
                said = features.catalogue.pin_texts["engaged_queries"].take(pa.array(world.rows)).to_pylist()
                own = [world.queries[q] in (queries or ()) for q, queries in zip(world.query_index, said, strict=True)]
                figures = {
                    "grade_change": interval(change, world.query_index),
                    "served_change": interval(scores.served - base.served, world.query_index),
                    "over_half_a_grade": round(float((change > HALF_GRADE).mean()), 4),
                    "median_rank": [int(np.median(base_rank)), int(np.median(rank))],
                    "in_first_20": [round(float((r <= 20).mean()), 4) for r in (base_rank, rank)],
                    "query_in_text": round(float(np.mean(own)), 4),
                }
                found[f"{way}/{rule.name}/{attack}"] = figures
                print(f"{way}/{rule.name}/{attack}: {figures}", flush=True)
    return found


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ways", nargs="+", default=["text", "rates", "vectors", "all"])
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    cfg = load_config(args.config, args.set)
    if not (Path(cfg.output) / "world" / "ground_truth" / "judgments").exists():
        skip("bench_manipulation", f"there is no finished run of the demo dataset in {cfg.output}: make run")
        return
    world = World(cfg, args.pairs, args.seed)
    found = run(world, args.ways)
    least = min((f["grade_change"][0] for name, f in found.items() if name.startswith("text/before")), default=0.0)
    alone = max(
        (f["grade_change"][0] for name, f in found.items() if name.startswith("text/after/1 client")), default=0.0
    )
    finish(
        "bench_manipulation", least - alone, num_pairs=len(world.rows), num_queries=len(world.queries), seed=args.seed,
        min_clients=AFTER.cfg.min_clients, attacks=found,
        ratio_is="grades that one visitor's two events gave a pin by its text before, minus what 300 times as many give now",
    )  # fmt: skip


if __name__ == "__main__":
    main()
