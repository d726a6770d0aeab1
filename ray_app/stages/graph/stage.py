"""graph: boards and zero-shot vectors -> graph_pins, graph_boards and the model graph_model."""

import logging
from functools import partial

import numpy as np
import pyarrow as pa

from ray_app.base.columns import matrix_column, matrix_of
from ray_app.base.config import Config
from ray_app.base.errors import UserError
from ray_app.base.storage import Storage
from ray_app.base.text import TEXT_VERSION
from ray_app.cluster.encoders import CachedEncoder, zero_shot_tower
from ray_app.cluster.retrain import RetrainPolicy
from ray_app.cluster.tasks import run_task
from ray_app.stages.graph.edges import board_edges
from ray_app.stages.graph.sage import train
from ray_app.tables.buckets import write_by_pin
from ray_app.tables.manifest import Manifest, Output, read_output, require_output
from ray_app.tables.model_files import keep_model
from ray_app.tables.stage_run import Stage, StageResult, StageRun, run_stage

logger = logging.getLogger(__name__)

VERSION = 1


def run(cfg: Config, store: Storage) -> Manifest:
    """Write `graph_pins` (pin_id, graph_embedding), `graph_boards` (board_id, graph_embedding) and `graph_model`.

    When few pins have changed and the boards have not, all vectors stand (`retrain` in the config), and pins that are
    new have nulls.

    Raises:
        UserError: the section is missing, or an earlier stage has not run.
    """
    if cfg.graph is None:
        raise UserError("graph is off; switch it on with `graph: {}` in the config")
    pin_texts = require_output(store, "enrich", "pin_texts")
    vectors = require_output(store, "zero_shot", "zero_shot_pins")
    saves = require_output(store, "ingest", "boards")
    encoder = zero_shot_tower(cfg, store, "query")  # a board's title asks, as a query does
    stage = Stage(
        name="graph",
        version=VERSION,
        inputs=[pin_texts, vectors, saves],
        recipe=[cfg.graph, cfg.seed, encoder.recipe, TEXT_VERSION],
        compute=partial(_learn, pin_texts=pin_texts, vectors=vectors, saves=saves, encoder=encoder),
        retrain_policy=RetrainPolicy.of(cfg, pin_texts, "pin_texts", "zero_shot_pins"),
        adapt=partial(keep_model, model="graph_model", pins="graph_pins", others="graph_boards", counts=_counts),
    )
    return run_stage(stage, cfg, store)


def _learn(run: StageRun, pin_texts: Output, vectors: Output, saves: Output, encoder: CachedEncoder) -> StageResult:
    cfg, store = run.cfg, run.store
    assert cfg.graph is not None
    pin_ids = read_output(store, pin_texts, ["pin_id"])["pin_id"]
    zero_shot = read_output(store, vectors, ["pin_id", "text_embedding"])
    if not zero_shot["pin_id"].equals(pin_ids):
        raise UserError("zero_shot was made from other pins; run `python pipelines/zero_shot.py --config ...` again")
    board_ids, titles, board, pin_row = board_edges(read_output(store, saves), pin_ids.to_pylist())
    if not board_ids:
        logger.warning("graph: no pin is on a board, so no pin gets a vector")
    on_board, pin = np.unique(pin_row, return_inverse=True)  # the model sees no other pins
    texts = matrix_of(zero_shot["text_embedding"])[on_board]
    trained = run_task(train, board, pin, encoder.encode(titles), texts, cfg.graph, cfg.seed, torch_threads=1)

    found, known = np.zeros((len(pin_ids), cfg.graph.dim), np.float32), np.zeros(len(pin_ids), bool)
    found[on_board], known[on_board] = trained.pin_vectors, True
    table = pa.table({"pin_id": pin_ids, "graph_embedding": matrix_column(found, known)})
    write_by_pin(run, "graph_pins", table, pin_texts.num_buckets)
    every = np.ones(len(board_ids), bool)
    run.write_table(
        "graph_boards",
        pa.table(
            {
                "board_id": pa.array(board_ids, pa.string()),
                "graph_embedding": matrix_column(trained.board_vectors, every),
            }
        ),
    )
    folder = f"models/graph_model/{run.fingerprint}"
    run.add_output("graph_model", folder, trained.tower.save(store, folder))
    counts = _counts(table) | {"boards": len(board_ids), "saves": len(board)}
    return StageResult(counts=counts, info=trained.info)


def _counts(table: pa.Table) -> dict[str, int]:
    with_vector = table.num_rows - table["graph_embedding"].null_count
    return {"rows_in": table.num_rows, "rows_out": table.num_rows, "with_vector": with_vector}
