"""BM25 of many (query, pin) pairs: ours against rank-bm25's own `get_batch_scores`, on the Chorus catalogue.

    python benchmarks/bench_bm25.py

What limits it: rank-bm25 turns the list of all document lengths into an array for every query, and then reads one dict
per pair and token. Ours looks every (pair, token) up in one sparse matrix; about half of its time is tokenising queries.
Both sides get the same pairs and raw query texts, and tokenise them with the same function inside the measured time; the
peer's pairs come grouped by query, for free. Building the indexes is measured apart.

Headline: `sampled`, about as many pairs as the teacher labels. `judged` is the human-judged set: only 85 or so queries.
"""

import csv
import json
import time
import zipfile
from typing import NamedTuple

import numpy as np
from _bench import CHORUS, finish, skip, summary, time_calls
from rank_bm25 import BM25Okapi

from ray_app.base.text import normalize_query, tokenize
from ray_app.features.bm25 import Bm25Index

NUM_SAMPLED = 26_000  # the default of sample.num_pairs
ROUNDS, REPEATS_PER_ROUND = 10, 10  # the peer is called once a round
GOAL = 100.0
TOLERANCE = 1e-6


class Pairs(NamedTuple):
    """Pairs (queries[query_index[i]], document doc_index[i]), sorted by query."""

    queries: list[str]
    query_index: np.ndarray
    doc_index: np.ndarray


def main() -> None:
    if not all((CHORUS / name).exists() for name in ("1.json.zip", "log_events.zip", "Broad_Query_Set_rated.csv")):
        skip("bench_bm25", "the Chorus data is not in ../shared/data/chorus (see its README)")
        return
    ids, texts = read_products()
    start = time.perf_counter()
    index = Bm25Index.build(texts)
    build_sec = time.perf_counter() - start
    start = time.perf_counter()
    peer = BM25Okapi([tokenize(text) for text in texts])
    peer_build_sec = time.perf_counter() - start

    cases = {"judged": judged_pairs(ids), "sampled": sampled_pairs(index)}
    figures = {name: measure(index, peer, pairs) for name, pairs in cases.items()}
    print(
        f"{'case':10}{'pairs':>8}{'queries':>9}{'ours ms':>10}{'p95':>8}{'peer ms':>10}{'p95':>9}{'ratio':>8}{'max diff':>11}"
    )
    for name, f in figures.items():
        ours, other = f["ours"], f["peer"]
        print(
            f"{name:10}{f['num_pairs']:8}{f['num_queries']:9}{ours['median_sec'] * 1e3:10.2f}{ours['p95_sec'] * 1e3:8.2f}"
            f"{other['median_sec'] * 1e3:10.1f}{other['p95_sec'] * 1e3:9.1f}{f['ratio']:8.1f}{f['max_abs_diff']:11.1e}"
        )
    print(f"index of {len(texts)} pins: {build_sec:.2f} s (rank-bm25: {peer_build_sec:.2f} s)")
    max_abs_diff = max(f["max_abs_diff"] for f in figures.values())
    finish(
        "bench_bm25",
        figures["sampled"]["ratio"],
        goal=GOAL,
        headline="sampled",
        max_abs_diff=max_abs_diff,
        equal=max_abs_diff <= TOLERANCE,
        num_pins=len(texts),
        build_sec=round(build_sec, 3),
        peer_build_sec=round(peer_build_sec, 3),
        cases=figures,
    )


def measure(index: Bm25Index, peer: BM25Okapi, pairs: Pairs) -> dict:
    """Time both sides on the same pairs and compare the scores."""
    used, start = np.unique(pairs.query_index, return_index=True)
    grouped = [(pairs.queries[q], d.tolist()) for q, d in zip(used, np.split(pairs.doc_index, start[1:]), strict=True)]

    def score_peer() -> np.ndarray:
        return np.concatenate([peer.get_batch_scores(tokenize(query), docs) for query, docs in grouped])

    def score_ours() -> np.ndarray:
        return index.score_pairs(pairs.queries, pairs.query_index, pairs.doc_index)

    difference = float(np.abs(score_ours() - score_peer()).max())  # and the warm-up
    ours_sec: list[float] = []
    peer_sec: list[float] = []
    for _ in range(ROUNDS):  # in turns, so that other work on the machine hits both
        peer_sec += time_calls(score_peer, 1)
        ours_sec += time_calls(score_ours, REPEATS_PER_ROUND)
    ours, other = summary(ours_sec), summary(peer_sec)
    return {
        "num_pairs": len(pairs.query_index),
        "num_queries": len(used),
        "ours": ours,
        "peer": other,
        "ratio": round(other["median_sec"] / ours["median_sec"], 1),
        "max_abs_diff": difference,
    }


def read_products() -> tuple[list[str], list[str]]:
    """Id and text (title and short description) of every product."""
    ids, texts = [], []
    for path in sorted(CHORUS.glob("[0-9].json.zip")):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.startswith("__MACOSX"):
                    continue
                for product in json.loads(archive.read(name)):
                    ids.append(product["id"])
                    texts.append(f"{product['title']}. {product.get('short_description') or ''}")
    return ids, texts


def judged_pairs(ids: list[str]) -> Pairs:
    """The human-judged pairs."""
    row_of = {product_id: row for row, product_id in enumerate(ids)}
    with (CHORUS / "Broad_Query_Set_rated.csv").open(encoding="utf-8-sig", newline="") as file:
        judged = sorted((row["query"], row_of[row["docid"]]) for row in csv.DictReader(file))
    queries = sorted({query for query, _ in judged})
    place = {query: i for i, query in enumerate(queries)}
    return Pairs(queries, np.array([place[q] for q, _ in judged]), np.array([doc for _, doc in judged]))


def sampled_pairs(index: Bm25Index) -> Pairs:
    """The log's queries, each with its best pins by BM25 and as many random ones: NUM_SAMPLED pairs."""
    queries = sorted(log_queries())
    rng = np.random.default_rng(0)
    per_query = -(-NUM_SAMPLED // len(queries))
    docs = []
    for query in queries:
        best = index.top_k(query, per_query // 2)[0]
        docs.append(np.concatenate([best, rng.integers(0, index.num_docs, per_query - len(best))]))
    query_index = np.repeat(np.arange(len(queries)), per_query)
    kept = np.sort(rng.permutation(len(query_index))[:NUM_SAMPLED])
    return Pairs(queries, query_index[kept], np.concatenate(docs)[kept])


def log_queries() -> set[str]:
    """Distinct normalised queries of the search log that have a word; its broken lines are passed over."""
    found = set()
    with zipfile.ZipFile(CHORUS / "log_events.zip") as archive:
        lines = archive.read(archive.namelist()[0]).decode("utf-8", "replace").splitlines()
    for line in lines:
        kind, _, content = line.partition("\t")
        if kind != "ubi_queries":
            continue
        try:
            query = json.loads(content).get("user_query")
        except json.JSONDecodeError:
            continue
        if tokenize(query):
            found.add(normalize_query(query))
    return found


if __name__ == "__main__":
    main()
