"""pipelines/compare.py on the demo dataset, where the truth is known: what it says, and whether its intervals hold it.

    python benchmarks/demo_compare.py --config configs/demo.yaml [--set output=COPY]

Needs a finished run. 600 queries, drawn at random from those of the simulation, are ranked by the feature-only
student (control) and by the student (treatment). The run's teacher labels what they show; of 60 queries, drawn by `--num-next-queries`,
the truth fills in the sheet, which goes back by `--human-labels`. The truth of each figure is its mean over all queries that could
have been drawn. The labels stay in the run's ledger, the sheet in its folder `compare`.
"""

import csv
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from _bench import ROOT, finish

from ray_app.analysis.measurement.compare import CONTROL, DEFAULT_METRICS, DIFFERENCE, TREATMENT
from ray_app.analysis.measurement.paired_rankings import PairedRankings
from ray_app.analysis.measurement.ranking_metrics import judge_by_grades, measure_ranking
from ray_app.analysis.measurement.rankings import QueryKey, Ranking
from ray_app.analysis.measurement.stage import RELEVANT_GRADE, trained_groups
from ray_app.analysis.metrics.bootstrap_result import rating_of_grade
from ray_app.analysis.simulate.outcome import SHOWN
from ray_app.analysis.simulate.policies import NOT_CHOSEN, ranked
from ray_app.analysis.simulate.stage import known_candidates, score_candidates
from ray_app.analysis.simulate.traffic import draw_traffic, retrieve
from ray_app.base.config import Config
from ray_app.base.errors import UserError
from ray_app.base.storage import Storage
from ray_app.cluster.catalogue_tables import load_catalogue
from ray_app.demo.facts import pin_id
from ray_app.sources.sheets import TO_GRADE, restore, write_sheet
from ray_app.tables.manifest import require_output

sys.path.insert(0, str(ROOT))

from pipelines.compare import build_parser
from pipelines.compare import main as compare
from ray_app.cli import program_parser, run_parsed

NUM_QUERIES, NUM_LABELLED, CHANGE = 600, 60, 0.02
RANKED = ("query", "locale", "pin_id", "rank")
SOURCES = ("prediction_powered", "human_only", "teacher_only")
Grades = dict[tuple[QueryKey, str], int]  # (query, pin id) -> true grade


def main() -> None:
    """Print what the program says, then one JSON line."""
    args = program_parser(__doc__ or "").parse_args()
    run_parsed(args, lambda cfg, store: bench(cfg, store, args.config))


def bench(cfg: Config, store: Storage, config: str) -> None:
    """Compare twice, without and with human grades, and set the truth beside it."""
    rankings, grade_of = rank_all(cfg, store)
    keys = sorted(rankings[CONTROL].pins)
    drawn = [keys[i] for i in np.random.default_rng(cfg.seed).choice(len(keys), NUM_QUERIES, replace=False)]
    with tempfile.TemporaryDirectory() as temp:
        files, sheet = [], Path(temp) / "graded.csv"
        for name, ranking in rankings.items():
            path = Path(temp) / f"{name}.csv"
            path.write_bytes(write_sheet(RANKED, list(ranked_rows(ranking, drawn))))
            files += [f"--{name}", str(path)]
        _, asked = run_compare(cfg, store, *files, "--num-next-queries", str(NUM_LABELLED))
        sheet.write_bytes(write_sheet(TO_GRADE, list(graded_rows(Path(asked["next"]["pairs"]), grade_of))))
        text, found = run_compare(cfg, store, *files, "--human-labels", str(sheet), "--mde", str(CHANGE))
    print(text, end="\n\n")
    num_queries, truths = true_figures(cfg, store, rankings, grade_of)
    metrics = [line | {"truth": truths[line["metric"], line["of"]]} for line in found["metrics"]]
    for line in metrics:
        line["holds_truth"] = {name: line[name]["lo"] <= line["truth"] <= line[name]["hi"] for name in SOURCES}
        held = ", ".join(name for name in SOURCES if line["holds_truth"][name])
        print(f"{line['metric']} {line['of']}: truth {line['truth']:.4f}, in the intervals of {held or 'none'}")
    first = next(line for line in metrics if line["of"] == DIFFERENCE)
    finish(
        "demo_compare",
        first["prediction_powered"]["std_error"] / first["human_only"]["std_error"],
        config=config,
        num_drawn=NUM_QUERIES,
        num_queries_of_world=num_queries,
        num_pairs_graded=asked["next"]["num_pairs"],
        **{name: found[name] for name in ("num_queries", "num_human_queries", "num_trained", "power_analyses")},
        metrics=metrics,
    )


def run_compare(cfg: Config, store: Storage, *arguments: str) -> tuple[str, dict[str, Any]]:
    """The program's text, and its JSON line."""
    with redirect_stdout(StringIO()) as out:
        compare(cfg, store, build_parser().parse_args(["--config", "", *arguments]))
    *lines, last = out.getvalue().splitlines()
    return "\n".join(lines), json.loads(last)


def rank_all(cfg: Config, store: Storage) -> tuple[dict[str, Ranking], Grades]:
    """What both students show of the simulation's candidates of each distinct query, and the candidates' true grades."""
    if cfg.demo is None:
        raise UserError("the config has no section `demo`: only the demo dataset has a known truth")
    control, treatment = (require_output(store, "distill", name) for name in ("feature_only_student", "student"))
    catalogue, _ = load_catalogue(cfg, store)
    _, traffic = draw_traffic(cfg.demo, cfg.simulate)
    first: dict[QueryKey, int] = {}  # of a text that two people mean differently the first one counts
    for row, key in enumerate(zip(traffic.texts, traffic.locales, strict=True)):
        first.setdefault(key, row)
    keys, kept = list(first), replace(traffic, queries=traffic.queries.take(list(first.values())))
    found, rows = known_candidates(retrieve(cfg.demo, kept.queries, cfg.simulate.candidates), catalogue, cfg.demo)
    scores = score_candidates(cfg, store, catalogue, kept, found, rows, control, treatment)
    rankings = {}
    for name in (CONTROL, TREATMENT):
        shown = ranked(getattr(scores, name), found.is_pin, SHOWN)
        pages = (
            [pin_id(pins[column]) for column in page if column != NOT_CHOSEN]
            for pins, page in zip(found.pins.tolist(), shown.tolist(), strict=True)
        )
        rankings[name] = Ranking(name=name, pins=dict(zip(keys, pages, strict=True)))
    query, column = np.nonzero(found.is_pin)
    pairs = zip(query.tolist(), found.pins[query, column].tolist(), found.grades[query, column].tolist(), strict=True)
    return rankings, {(keys[at], pin_id(pin)): grade for at, pin, grade in pairs}


def true_figures(
    cfg: Config, store: Storage, rankings: dict[str, Ranking], grade_of: Grades
) -> tuple[int, dict[tuple[str, str], float]]:
    """How many queries could have been drawn, and their means, as if humans had graded all that both students show."""
    paired = PairedRankings.of(rankings[CONTROL], rankings[TREATMENT], "error", trained_groups(store))
    rows = [
        {"query": key[0], "locale": key[1], "pin_id": pin, "grade": grade_of[key, pin]}
        for key, pin in paired.pairs(SHOWN)
    ]
    ratings = rating_of_grade(getattr(cfg.ingest.human_labels, "grade_map", None))
    truth = judge_by_grades(pa.Table.from_pylist(rows), ratings, RELEVANT_GRADE)
    means = {}
    for metric in DEFAULT_METRICS:
        for name in (CONTROL, TREATMENT):
            values = measure_ranking(metric, rankings[name], truth, paired.queries)
            means[metric.name, name] = round(float(values.mean()), 6)
        means[metric.name, DIFFERENCE] = round(means[metric.name, TREATMENT] - means[metric.name, CONTROL], 6)
    return len(paired.queries), means


def ranked_rows(ranking: Ranking, queries: Sequence[QueryKey]) -> Iterator[dict[str, str]]:
    """Rows of a ranked file."""
    for query, locale in queries:
        for rank, pin in enumerate(ranking.pins[query, locale], 1):
            yield {"query": query, "locale": locale, "pin_id": pin, "rank": str(rank)}


def graded_rows(sheet: Path, grade_of: Grades) -> Iterator[dict[str, str]]:
    """Rows of the program's sheet with the true grades."""
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        for cells in csv.DictReader(file):
            row = {name: restore(cell) for name, cell in cells.items()}
            yield row | {"grade": str(grade_of[(row["query"], row["locale"]), row["pin_id"]])}


if __name__ == "__main__":
    main()
