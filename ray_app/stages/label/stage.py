"""label: sampled pairs -> `soft_labels`, the teacher's probabilities of the five grades."""

from functools import partial

import numpy as np
import pyarrow as pa

from ray_app.base.config import Config
from ray_app.base.schemas import SOFT_LABEL_RESULTS, SOFT_LABELS, cast_to
from ray_app.base.storage import Storage
from ray_app.cluster.cost_estimate import CostEstimate
from ray_app.cluster.executor import check_error_rate
from ray_app.cluster.retrain import RetrainPolicy
from ray_app.features.catalogue import Catalogue, index_queries, load_catalogue
from ray_app.features.shown_pairs import ShownPairs
from ray_app.stages.label.labeller import Labeller
from ray_app.tables.manifest import Manifest, Output, read_output, require_output
from ray_app.tables.stage_run import Stage, StageResult, StageRun, run_stage

VERSION = 3


def run(cfg: Config, store: Storage) -> Manifest:
    """Write `soft_labels`: the sampled pairs with the teacher's probabilities."""
    pairs, pin_texts = require_output(store, "sample", "pairs"), require_output(store, "enrich", "pin_texts")
    labeller = _labeller(cfg, store)
    stage = Stage(
        name="label",
        version=VERSION,
        inputs=[pairs, labeller.teacher, pin_texts],
        recipe=[labeller.recipe, cfg.pin_text],
        compute=partial(_label, labeller=labeller, pairs=pairs),
        retrain_policy=RetrainPolicy.of(cfg, pin_texts, "pin_texts"),
    )
    return run_stage(stage, cfg, store)


def estimate_cost(cfg: Config, store: Storage) -> CostEstimate:
    """Label the first blocks, and estimate the cost of the rest. Their labels are kept."""
    labeller, label = _labeller(cfg, store), cfg.label
    shown = ShownPairs.of(*_indexed(cfg, store, read_output(store, require_output(store, "sample", "pairs"))))
    sample = -(-label.cost_sample_rows // label.rows_per_block) * label.rows_per_block  # whole blocks, as in the run
    return labeller.work().estimate_cost(labeller.wanted(shown), sample, cfg.prices)[0]


def retry_errors(cfg: Config, store: Storage) -> int:
    """Forget the labels that failed, so that the next run tries them again; returns how many."""
    return _labeller(cfg, store).ledger.drop_errors()


def _labeller(cfg: Config, store: Storage) -> Labeller:
    return Labeller(cfg=cfg, store=store, teacher=require_output(store, "train_teacher", "teacher"))


def _indexed(cfg: Config, store: Storage, pairs: pa.Table) -> tuple[Catalogue, list[str], np.ndarray, np.ndarray]:
    """The catalogue, the pairs' distinct queries, and (num_pairs,) indices of query and pin."""
    catalogue, _ = load_catalogue(cfg, store)
    queries, query_index = index_queries(pairs["query"].to_pylist())
    return catalogue, queries, query_index, catalogue.pairs.pin_rows(pairs["pin_id"].to_pylist())


def _label(run: StageRun, labeller: Labeller, pairs: Output) -> StageResult:
    sampled = read_output(run.store, pairs)
    results, counts = labeller.label(*_indexed(run.cfg, run.store, sampled))
    table = sampled.select(["query", "locale", "pin_id"])
    for name in SOFT_LABEL_RESULTS.names:
        table = table.append_column(name, results[name])
    out = run.write_table("soft_labels", cast_to(table, SOFT_LABELS, "label"))
    failed = table["error"].drop_null()
    # Of all pairs, not only today's: else a job that failed for its errors would pass when it is run again.
    first_error = failed[0].as_py() if len(failed) else None
    check_error_rate(len(failed), len(table), first_error, run.cfg.label.max_error_rate, "soft labels")
    return StageResult(
        counts={
            "rows_in": pairs.rows, "rows_out": out.rows, "computed": counts.computed, "errors": len(failed),
            "recomputed_rows": counts.recomputed_rows,
        },
        info=labeller.work().describe(counts, run.cfg.prices) | {"backend": run.cfg.label.backend},
        device_sec=counts.device_sec,
    )  # fmt: skip
