"""label: sampled pairs -> `soft_labels`, the teacher's probabilities of the five grades."""

from dataclasses import replace
from functools import partial

import pyarrow.compute as pc

from ray_app.base.config import Config
from ray_app.base.schemas import SOFT_LABEL_RESULTS, SOFT_LABELS, cast_to
from ray_app.base.storage import Storage
from ray_app.cluster.buckets import map_buckets
from ray_app.cluster.catalogue_tables import CatalogueTables
from ray_app.cluster.cost_estimate import CostEstimate
from ray_app.cluster.executor import check_error_rate
from ray_app.cluster.retrain import RetrainPolicy
from ray_app.stages.label.labeller import Labeller
from ray_app.stages.label.sampled_pairs import SampledPairs
from ray_app.tables.buckets import bucketed_output, write_bucket
from ray_app.tables.manifest import Bucket, Manifest, require_output
from ray_app.tables.stage_run import Stage, StageResult, StageRun, run_stage

VERSION = 4


def run(cfg: Config, store: Storage) -> Manifest:
    """Write `soft_labels`: the sampled pairs with the teacher's probabilities."""
    sampled = _sampled_pairs(cfg, store)
    labeller, pin_texts = sampled.labeller, sampled.tables.pin_texts
    stage = Stage(
        name="label",
        version=VERSION,
        inputs=[sampled.pairs, labeller.teacher, pin_texts],
        recipe=[labeller.recipe, cfg.pin_text],
        compute=partial(_label, sampled=sampled),
        retrain_policy=RetrainPolicy.of(cfg, pin_texts, "pin_texts"),
    )
    return run_stage(stage, cfg, store)


def estimate_cost(cfg: Config, store: Storage) -> CostEstimate:
    """Label the first blocks, and estimate the cost of the rest. Their labels are kept."""
    sampled, label = _sampled_pairs(cfg, store), cfg.label
    sample = -(-label.cost_sample_rows // label.rows_per_block) * label.rows_per_block  # whole blocks, as in the run
    return sampled.labeller.work().estimate_cost(sampled.wanted, sample, cfg.prices)[0]


def retry_errors(cfg: Config, store: Storage) -> int:
    """Forget the labels that failed, so that the next run tries them again; returns how many."""
    return _labeller(cfg, store).ledger.drop_errors()


def _labeller(cfg: Config, store: Storage) -> Labeller:
    return Labeller(cfg=cfg, store=store, teacher=require_output(store, "train_teacher", "teacher"))


def _sampled_pairs(cfg: Config, store: Storage) -> SampledPairs:
    return SampledPairs(
        labeller=_labeller(cfg, store), tables=CatalogueTables.of(cfg, store),
        pairs=require_output(store, "sample", "pairs"), queries=require_output(store, "sample", "queries"),
    )  # fmt: skip


def _label(run: StageRun, sampled: SampledPairs) -> StageResult:
    work, folder = sampled.labeller.work(), run.table_folder("soft_labels")
    counts = work.compute(sampled.wanted)
    write = partial(_write_bucket, sampled, folder, run.cfg.tables.rows_per_file)
    written = map_buckets(write, range(sampled.pairs.num_buckets))
    out = run.add_table(bucketed_output("soft_labels", folder, (bucket for bucket, _, _ in written)))
    num_failed = sum(failed for _, failed, _ in written)
    first_error = next((error for _, _, error in written if error), None)
    # Of all pairs, not only today's: else a job that failed for its errors would pass when it is run again.
    check_error_rate(num_failed, out.rows, first_error, run.cfg.label.max_error_rate, "soft labels")
    return StageResult(
        counts={
            "rows_in": sampled.pairs.rows, "rows_out": out.rows, "computed": counts.computed, "errors": num_failed,
            "recomputed_rows": counts.recomputed_rows,
        },
        info=work.describe(counts, run.cfg.prices) | {"backend": run.cfg.label.backend},
        device_sec=counts.device_sec,
    )  # fmt: skip


def _write_bucket(
    sampled: SampledPairs, folder: str, rows_per_file: int, number: int
) -> tuple[Bucket, int, str | None]:
    """Write the labels of a bucket's pairs; returns how many failed, and the first error."""
    pairs, keys = sampled.keyed_pairs(number)
    ledger = replace(sampled.labeller.ledger, num_buckets=sampled.pairs.num_buckets)
    results = ledger.lookup(keys, number)
    table = pairs.select(["query", "locale", "pin_id"])
    for name in SOFT_LABEL_RESULTS.names:
        table = table.append_column(name, results[name])
    bucket = write_bucket(sampled.labeller.store, folder, number, cast_to(table, SOFT_LABELS, "label"), rows_per_file)
    failed = table["error"].filter(pc.is_valid(table["error"]))
    return bucket, len(failed), failed[0].as_py() if len(failed) else None
