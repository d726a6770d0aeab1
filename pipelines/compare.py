"""Is a treatment's ranking better than a control's? By the run's teacher on all queries, and by humans on some.

python pipelines/compare.py --config configs/demo.yaml --control a.csv --treatment b.csv
python pipelines/compare.py --config configs/demo.yaml --control a.csv --treatment b.csv --human-labels grades.csv --num-next-queries 100

Columns of a ranked file: query, pin_id, rank or score, maybe locale; or a TREC run. See docs/ranking_comparison.md.
"""

import argparse
import json
from functools import partial
from typing import TYPE_CHECKING, Any

from ray_app.cli import program_parser, run_parsed

if TYPE_CHECKING:
    from ray_app.analysis.measurement.compare import Comparison
    from ray_app.analysis.measurement.stage import ComparisonInputs
    from ray_app.base.config import Config
    from ray_app.base.storage import Storage


def build_parser() -> argparse.ArgumentParser:
    """The program's arguments."""
    parser = program_parser(__doc__)
    parser.add_argument("--control", required=True, metavar="FILE", help="ranked results as they are")
    parser.add_argument("--treatment", required=True, metavar="FILE", help="ranked results as they could be")
    parser.add_argument(
        "--human-labels",
        metavar="FILE",
        help="a sheet of --num-next-queries, or labels read as ingest.human_labels says; default: the run's",
    )
    parser.add_argument("--locale", help="of rows that have none, such as en-US (und: not known)")
    parser.add_argument("--topics", metavar="FILE", help="of TREC runs: lines of id<TAB>query[<TAB>locale]")
    parser.add_argument(
        "--missing", choices=("error", "zero", "drop"), default="error", help="a query in one file only"
    )
    parser.add_argument("--k", type=int, help="also measure nDCG@k and P@k")
    parser.add_argument("--mde", type=float, default=0.01, help="to plan for; default: %(default)s")
    parser.add_argument(
        "--max-unjudged", type=float, default=0.1, metavar="SHARE", help="of a top k; default: %(default)s"
    )
    parser.add_argument(
        "--include-training-queries", action="store_true", help="keep queries that the teacher was trained on"
    )
    parser.add_argument(
        "--num-next-queries", type=int, metavar="N", help="write the N queries that humans should label next"
    )
    parser.add_argument("--seed", type=int, help="of that draw; default: the run's")
    return parser


def main(cfg: "Config", store: "Storage", args: argparse.Namespace) -> None:
    """Print the comparison for people, then as one JSON line."""
    from ray_app.analysis.measurement.compare import DEFAULT_METRICS, CompareSettings, compare
    from ray_app.analysis.measurement.paired_rankings import PairedRankings
    from ray_app.analysis.measurement.ranking_metrics import Metric
    from ray_app.analysis.measurement.rankings import read_ranking, read_topics
    from ray_app.analysis.measurement.render_text import comparison_json, render_comparison
    from ray_app.analysis.measurement.stage import gather, trained_groups
    from ray_app.base.errors import UserError

    if args.k is not None and args.k < 1:
        raise UserError(f"--k must be at least 1, got {args.k}")
    more = () if args.k is None else (Metric(kind="ndcg", k=args.k), Metric(kind="p", k=args.k))
    settings = CompareSettings(
        metrics=tuple(dict.fromkeys((*DEFAULT_METRICS, *more))), max_unjudged=args.max_unjudged, mde=args.mde
    )
    topics = read_topics(args.topics, "--topics") if args.topics else None
    control = read_ranking(args.control, "--control", args.locale, topics)
    treatment = read_ranking(args.treatment, "--treatment", args.locale, topics)
    paired = PairedRankings.of(
        control, treatment, args.missing, () if args.include_training_queries else trained_groups(store)
    )
    inputs = gather(cfg, store, paired, settings.depth, args.human_labels)
    found = compare(paired, inputs.teacher, inputs.human, inputs.stratum_of, settings)
    notes = list(inputs.notes)
    if args.include_training_queries:
        notes.append(
            "queries that the teacher was trained on are in: it looks better than it is, and so do the intervals"
        )
    print(render_comparison(found, notes))
    line: dict[str, Any] = {"stage": "compare", **comparison_json(found, notes)}
    line |= {"num_pairs": inputs.num_pairs, "num_labelled_now": inputs.num_labelled_now}
    if args.num_next_queries is not None:
        line["next"] = _write_next(
            store, found, inputs, args.num_next_queries, cfg.seed if args.seed is None else args.seed
        )
    print(json.dumps(line))


def _write_next(
    store: "Storage", found: "Comparison", inputs: "ComparisonInputs", number: int, seed: int
) -> dict[str, Any]:
    from ray_app.analysis.measurement.next_queries import NEXT_QUERIES, draw_queries, pairs_to_grade
    from ray_app.sources.sheets import TO_GRADE, write_sheet

    chosen = draw_queries(found, number, seed)
    pairs = pairs_to_grade(found, chosen, inputs.human, seed)
    rows = [pair | inputs.texts_of.get(pair["pin_id"], {}) for pair in pairs]
    sheets = {"queries": write_sheet(NEXT_QUERIES, chosen), "pairs": write_sheet(TO_GRADE, rows)}
    paths = {
        name: f"{store.shown}/{store.write_bytes(f'compare/next_{name}.csv', sheet).path}"
        for name, sheet in sheets.items()
    }
    print(f"\nto label next: {len(chosen):,} queries, drawn at random: {paths['queries']}")
    print(f"their {len(pairs):,} pairs, to be graded, and then given back by --human-labels: {paths['pairs']}")
    return {"num_queries": len(chosen), "num_pairs": len(pairs), "seed": seed, **paths}


if __name__ == "__main__":
    arguments = build_parser().parse_args()
    run_parsed(arguments, partial(main, args=arguments))
