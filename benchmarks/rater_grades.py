"""How grades and a baseline's metrics move when raters who differ count with their mean and not with the lower median.

    python benchmarks/rater_grades.py

Reads the data sets whose raters are known one by one, and the demo's human labels if `make run` was made. Sets with one grade
per pair, or with an adjudicated one (Chorus), do not move.
"""

import csv
import gzip
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from _bench import CHORUS, ROOT, finish, skip

from ray_app.analysis.metrics.bootstrap_result import EvaluationSettings
from ray_app.analysis.metrics.evaluation import evaluate_systems
from ray_app.analysis.metrics.protocol import SystemScores
from ray_app.base.config import load_config
from ray_app.base.schemas import HUMAN_LABELS
from ray_app.base.storage import Storage
from ray_app.features.bm25 import Bm25Index
from ray_app.tables.manifest import read_manifest, read_output
from ray_app.training.targets import combine_raters

DATA = CHORUS.parent
GRADE_OF = {0: 1, 1: 3, 2: 4, 3: 5}
Rating = tuple[str, str, str, str, int]  # query, pin, text, rater, grade


def haystack_party() -> Iterator[Rating]:
    with (DATA / "haystack_party" / "judgements_dev90.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            for rating in row["ratings"].split(";"):
                rater, _, grade = rating.rpartition(":")
                yield row["query"], row["docid"], f"{row['name']} {row['title']}", rater, GRADE_OF[round(float(grade))]


def quati() -> Iterator[Rating]:
    with gzip.open(DATA / "quati-human" / "judgements.tsv.gz", "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            for number in (1, 2, 3):
                yield (
                    row["query"],
                    row["passage_id"],
                    row["passage"],
                    str(number),
                    GRADE_OF[int(row[f"annotator_{number}"])],
                )


def demo() -> Iterator[Rating]:
    cfg = load_config(str(ROOT / "configs" / "demo.yaml"), [])
    store = Storage(str(ROOT / cfg.output))
    made = read_manifest(store, "ingest")
    for row in read_output(store, made.output("human_labels")).to_pylist() if made else []:
        yield row["query"], row["pin_id"], "", row["rater_id"], row["grade"]


def main() -> None:
    if not DATA.exists():
        skip("rater_grades", f"{DATA.name} is missing")
        return
    rows = []
    for name, read in {"haystack_party": haystack_party, "quati-human": quati, "demo": demo}.items():
        ratings = list(read())
        if ratings:
            rows.append({"set": name} | _compare(ratings))
            print(rows[-1])
    moved = max(row["changed"] for row in rows)
    finish("rater_grades", moved, ratio_is="largest share of pairs whose grade changes", rows=rows)


def _compare(ratings: list[Rating]) -> dict[str, Any]:
    labels = pa.Table.from_pylist(
        [
            {"query": q, "locale": "en-US", "pin_id": p, "rater_id": r, "grade": g, "guideline_version": None}
            for q, p, _, r, g in ratings
        ],
        schema=HUMAN_LABELS,
    )
    new = combine_raters(labels, 0.0)
    given = defaultdict(list)
    for row in labels.to_pylist():
        given[" ".join(row["query"].lower().split()), row["pin_id"]].append(row["grade"])
    keys = list(zip(new["query"].to_pylist(), new["pin_id"].to_pylist(), strict=True))
    medians = np.array([sorted(given[key])[(len(given[key]) - 1) // 2] for key in keys], np.int8)
    means = new["grade"].to_numpy()
    out: dict[str, Any] = {
        "pairs": len(keys),
        "raters_per_pair": round(len(ratings) / len(keys), 2),
        "changed": round(float((medians != means).mean()), 3),
        "mean_of_raters": round(float(np.mean([np.mean(given[key]) for key in keys])), 3),
    }
    texts = {pin: text for _, pin, text, _, _ in ratings}
    for rule, grades in (("lower_median", medians), ("rounded_mean", means)):
        out[rule] = {"mean_grade": round(float(grades.mean()), 3), "share_4": round(float((grades >= 4).mean()), 3)}
        if all(texts.values()):
            out[rule] |= _bm25(new.set_column(3, "grade", pa.array(grades, pa.int8())), texts)
    return out


def _bm25(pairs: pa.Table, texts: dict[str, str]) -> dict[str, float]:
    pins = sorted(texts)
    place = {pin: row for row, pin in enumerate(pins)}
    queries = sorted(set(pairs["query"].to_pylist()))
    query_index = np.array([queries.index(query) for query in pairs["query"].to_pylist()])
    pin_index = np.array([place[pin] for pin in pairs["pin_id"].to_pylist()])
    score = Bm25Index.build([texts[pin] for pin in pins]).score_pairs(queries, query_index, pin_index)
    found = evaluate_systems(pairs, {"bm25": SystemScores(score=score)}, EvaluationSettings(samples=10)).points["bm25"]
    return {f"bm25_{name}": round(value, 3) for name, value in found.items() if np.isfinite(value)}


if __name__ == "__main__":
    main()
