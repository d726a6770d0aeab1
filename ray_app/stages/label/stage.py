"""Label pairs with the teacher on Ray Data, through the ledger."""

import logging
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from ray_app.base.config import Config
from ray_app.base.schemas import SOFT_LABEL_RESULTS, SOFT_LABELS, cast_to
from ray_app.base.storage import Storage
from ray_app.cluster.cost_estimate import Cost, Held, Quote, cost_of, make_quote
from ray_app.cluster.executor import LedgerCounts, check_error_rate
from ray_app.features.catalogue import Catalogue, index_queries, load_catalogue
from ray_app.features.shown_pairs import ShownPairs
from ray_app.stages.label.labeller import Labeller
from ray_app.tables.manifest import Manifest, Output, read_output, require_output
from ray_app.tables.stage_run import Drift, StageRun

logger = logging.getLogger(__name__)

VERSION = 3


@dataclass(frozen=True, kw_only=True)
class _Job:
    """The sampled pairs of a run, ready to be labelled."""

    labeller: Labeller
    inputs: list[Output]
    pairs: Output

    @classmethod
    def of(cls, cfg: Config, store: Storage) -> "_Job":
        pairs = require_output(store, "sample", "pairs")
        teacher = require_output(store, "teach", "teacher")
        pin_texts = require_output(store, "enrich", "pin_texts")
        return cls(
            labeller=Labeller(cfg=cfg, store=store, teacher=teacher), inputs=[pairs, teacher, pin_texts], pairs=pairs
        )

    def read(self) -> tuple[pa.Table, Catalogue, list[str], np.ndarray, np.ndarray]:
        """Pairs, catalogue, distinct queries, and (num_pairs,) indices of query and pin."""
        catalogue, _ = load_catalogue(self.labeller.cfg, self.labeller.store)
        pairs = read_output(self.labeller.store, self.pairs)
        queries, query_index = index_queries(pairs["query"].to_pylist())
        return pairs, catalogue, queries, query_index, catalogue.pairs.pin_rows(pairs["pin_id"].to_pylist())

    @property
    def quote_path(self) -> str:
        """Where `--plan` leaves its quote for the run that follows."""
        return f"quotes/label-{self.labeller.recipe}.json"


def run(cfg: Config, store: Storage) -> Manifest:
    """Write `soft_labels`: the sampled pairs with the teacher's probabilities."""
    job = _Job.of(cfg, store)
    labeller = job.labeller
    run = StageRun(
        "label",
        cfg,
        store,
        VERSION,
        settings=[labeller.recipe, cfg.pin_text],
        inputs=job.inputs,
        drift=Drift(pin_texts=job.inputs[2], inputs=("pin_texts",), max_share=cfg.retrain.max_changed_share),
    )
    if (finished := run.finished) is not None:
        return finished
    pairs, catalogue, queries, query_index, pin_index = job.read()
    results, counts = labeller.label(catalogue, queries, query_index, pin_index)
    table = pa.table({name: pairs[name] for name in ("query", "locale", "pin_id")})
    for name in SOFT_LABEL_RESULTS.names:
        table = table.append_column(name, results[name])
    table = cast_to(table, SOFT_LABELS, "label")
    out = run.write_table("soft_labels", table)
    failed = table["error"].drop_null()
    # Of all pairs, not only today's: else a job that failed for its errors would pass when it is run again.
    seen = replace(
        counts, unique=len(table), errors=len(failed), first_error=failed[0].as_py() if len(failed) else None
    )
    check_error_rate(seen, cfg.label.max_error_rate, "soft labels")
    return run.finish(
        counts={
            "rows_in": pairs.num_rows, "rows_out": out.rows, "computed": counts.computed, "errors": len(failed),
            "repeated_rows": counts.repeated_rows,
        },
        info={"recipe": labeller.recipe, "engine": cfg.label.engine} | _actual(job, counts),
        device_sec=counts.device_sec,
    )  # fmt: skip


def plan(cfg: Config, store: Storage) -> Quote:
    """Label the first blocks, and quote the rest. Their labels are kept, so nothing is wasted."""
    job = _Job.of(cfg, store)
    labeller = job.labeller
    _, catalogue, queries, query_index, pin_index = job.read()
    shown = ShownPairs.of(catalogue, queries, query_index, pin_index)
    keys, order = labeller.keys(shown)
    ordered = keys.take(pa.array(order))
    numbered = pa.table({"content_key": ordered, "row": pa.array(range(len(ordered)), pa.int64())})
    missing = labeller.ledger.missing(numbered)["row"].to_numpy()
    blocks = -(-cfg.label.plan_rows // cfg.label.rows_per_block)
    sample = missing[: blocks * cfg.label.rows_per_block]
    counts = labeller.compute(shown.take(order[sample]), ordered.take(pa.array(sample)))
    quote = make_quote("pairs", counts.timing, counts.errors, len(missing) - len(sample), _held(counts), cfg.prices)
    if quote.remaining and quote.measured:
        store.write_json(job.quote_path, asdict(quote))
    return quote


def retry_errors(cfg: Config, store: Storage) -> int:
    """Forget the labels that failed, so that the next run tries them again; returns how many."""
    return _Job.of(cfg, store).labeller.ledger.drop_errors()


def _held(counts: LedgerCounts) -> Held:
    plan = counts.plan
    if plan is None:
        return Held(gpus=0, cpus=0)
    return Held(gpus=plan.max_actors * plan.pool.num_gpus, cpus=plan.max_actors * plan.num_cpus + plan.task_cpus)


def _actual(job: _Job, counts: LedgerCounts) -> dict[str, Any]:
    """What the run took, beside what `--plan` had quoted for these pairs."""
    labeller = job.labeller
    took = counts.timing
    cost: Cost = cost_of(took.wall_sec, _held(counts), labeller.cfg.prices)
    actual = {
        "rows": took.rows, "rows_per_sec": took.rows_per_sec, "wall_sec": took.wall_sec,
        "startup_sec": took.startup_sec, "cost": asdict(cost),
    }  # fmt: skip
    info: dict[str, Any] = {
        "actual": actual, "tokens": counts.tokens, "prefix_hit_rate": counts.prefix_hit_rate,
        "plan": str(counts.plan) if counts.plan else None,
    }  # fmt: skip
    if labeller.store.exists(job.quote_path):
        quote = labeller.store.read_json(job.quote_path)
        if quote["remaining"] == took.rows:
            info["quote"] = quote
            logger.info("labels: quoted %.0f s for %d pairs, took %.0f s", quote["wall_sec"], took.rows, took.wall_sec)
    return info
