"""engagement: search log and zero-shot vectors -> engagement_pins and the model engagement_model."""

import logging
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.base.columns import matrix_column, matrix_of
from ray_app.base.config import Config
from ray_app.base.errors import UserError
from ray_app.base.storage import Storage
from ray_app.base.text import TEXT_VERSION
from ray_app.cluster.retrain import RetrainPolicy
from ray_app.cluster.tasks import run_task
from ray_app.features.engagement_rates import RATE_NAMES, engagement_rates
from ray_app.sources.held_out import HeldOut
from ray_app.stages.engagement.events import allowed_events, engaged_pairs, once_per_client
from ray_app.stages.engagement.two_tower import train
from ray_app.tables.buckets import write_by_pin
from ray_app.tables.manifest import Manifest, Output, read_output, require_output
from ray_app.tables.model_files import keep_model
from ray_app.tables.stage_run import Stage, StageResult, StageRun, run_stage

logger = logging.getLogger(__name__)

VERSION = 3


def run(cfg: Config, store: Storage) -> Manifest:
    """Write `engagement_pins` (pin_id, engagement_embedding, rates), the model `engagement_model`, and `engagement_queries`.

    The last are the queries that the others were learned from. Every human-labelled query, those of
    `evaluate.human_labels`, and near-duplicates of both are left out of all of it, as are events from `sample.until` on. When few pins have changed and the
    log has not, the model and the rates stand (`retrain` in the config), and pins that are new have nulls.

    Raises:
        UserError: the section is missing, or an earlier stage has not run.
    """
    if cfg.engagement is None:
        raise UserError("engagement is off; switch it on with `engagement: {}` in the config")
    needed = {
        "pin_texts": "enrich",
        "zero_shot_pins": "zero_shot",
        "zero_shot_queries": "zero_shot",
        "search_log": "ingest",
        "human_labels": "ingest",
    }
    inputs = {name: require_output(store, stage, name) for name, stage in needed.items()}
    held_out = HeldOut.of(cfg)
    stage = Stage(
        name="engagement",
        version=VERSION,
        inputs=[*inputs.values(), *held_out.inputs],
        recipe=[cfg.engagement, cfg.enrich, cfg.seed, TEXT_VERSION, *held_out.settings],
        compute=partial(_learn, inputs=inputs, held_out=held_out),
        retrain_policy=RetrainPolicy.of(cfg, inputs["pin_texts"], "pin_texts", "zero_shot_pins"),
        adapt=partial(
            keep_model, model="engagement_model", pins="engagement_pins", others="engagement_queries", counts=_counts
        ),
    )
    return run_stage(stage, cfg, store)


def _learn(run: StageRun, inputs: dict[str, Output], held_out: HeldOut) -> StageResult:
    cfg, store = run.cfg, run.store
    assert cfg.engagement is not None
    pin_ids = read_output(store, inputs["pin_texts"], ["pin_id"])["pin_id"]
    labelled = read_output(store, inputs["human_labels"], ["query"])["query"]
    excluded = held_out.queries | set(pc.unique(labelled).to_pylist())
    log = inputs["search_log"]
    past = held_out.past(read_output(store, log, ["event_id", "query", "pin_id", "action", "timestamp", "client_id"]))
    events = allowed_events(past, excluded, pin_ids.to_pylist(), cfg.enrich)
    if len(events) == 0 and past.num_rows:
        logger.warning("engagement: no event of the search log is of a known client and pin, so no pin has rates")
    rates, shown = engagement_rates(once_per_client(events), len(pin_ids), cfg.engagement.prior_impressions)
    pairs = engaged_pairs(events, pin_ids.to_pylist(), cfg.enrich, cfg.engagement, cfg.seed)
    if len(pairs.query) == 0:
        logger.warning("engagement: the search log has no engaged pair to learn from, so no pin gets a vector")
    pin_rows = _rows(
        pairs.pin_ids, read_output(store, inputs["zero_shot_pins"], ["pin_id", "text_embedding"]), "pin_id"
    )
    query_rows = _rows(pairs.queries, read_output(store, inputs["zero_shot_queries"]), "query")
    trained = run_task(train, pairs, query_rows, pin_rows, cfg.engagement, cfg.seed, torch_threads=1)

    place = pc.index_in(pa.array(pairs.pin_ids, pa.string()), value_set=pin_ids).to_numpy(zero_copy_only=False)
    found, known = np.zeros((len(pin_ids), cfg.engagement.dim), np.float32), np.zeros(len(pin_ids), bool)
    if len(pairs.pin_ids):
        found[place], known[place] = trained.pin_vectors, True
    table = pa.table(
        {
            "pin_id": pin_ids,
            "engagement_embedding": matrix_column(found, known),
            "rates": matrix_column(rates, shown),
        }
    )
    write_by_pin(run, "engagement_pins", table, inputs["pin_texts"].num_buckets)
    run.write_table("engagement_queries", pa.table({"query": pa.array(sorted(events["query"].unique()), pa.string())}))
    folder = f"models/engagement_model/{run.fingerprint}"
    run.add_output("engagement_model", folder, trained.tower.save(store, folder))
    counts = _counts(table) | {
        "events": len(events),
        "train_pairs": int((~pairs.held_out).sum()),
        "held_out_pairs": int(pairs.held_out.sum()),
    }
    return StageResult(counts=counts, info=trained.info | {"rates": list(RATE_NAMES)})


def _counts(table: pa.Table) -> dict[str, int]:
    return {
        "rows_in": table.num_rows,
        "rows_out": table.num_rows,
        "with_vector": table.num_rows - table["engagement_embedding"].null_count,
        "with_rates": table.num_rows - table["rates"].null_count,
    }


def _rows(names: list[str], table: pa.Table, key: str) -> np.ndarray:
    """Vectors of the table's second column, row i for names[i]: (len(names), width) float32."""
    place = pc.index_in(pa.array(names, pa.string()), value_set=table[key])
    if place.null_count:
        raise UserError("zero_shot was made from other data; run `python pipelines/zero_shot.py --config ...` again")
    return matrix_of(table.column(1))[place.to_numpy(zero_copy_only=False).astype(np.int64)]
