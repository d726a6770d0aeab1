"""graph: boards and zero-shot vectors -> graph_pins, graph_boards and the model graph_model."""

import logging

import numpy as np
import pandas as pd
import pyarrow as pa
import ray

from ray_app.config import Config, GraphConfig
from ray_app.errors import UserError
from ray_app.graph.sage import Graph, train
from ray_app.manifest import Drift, Manifest, StageRun, read_output, require_output
from ray_app.models.side_tower import aligned, keep_model, nullable_vectors
from ray_app.storage import Storage
from ray_app.text import TEXT_VERSION, normalise_query
from ray_app.training.examples import matrix_of
from ray_app.zero_shot.stage import zero_shot_tower

logger = logging.getLogger(__name__)

VERSION = 1


@ray.remote(num_cpus=1)
def _train(
    board: np.ndarray, pin: np.ndarray, boards: np.ndarray, pins: np.ndarray, cfg: GraphConfig, seed: int
) -> Graph:
    import torch

    torch.set_num_threads(1)
    return train(board, pin, boards, pins, cfg, seed)


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
    run = StageRun(
        "graph", cfg, store, VERSION,
        settings=[cfg.graph, cfg.seed, encoder.recipe, TEXT_VERSION],
        inputs=[pin_texts, vectors, saves],
        drift=Drift(
            pin_texts=pin_texts, inputs=("pin_texts", "zero_shot_pins"), max_share=cfg.retrain.max_changed_share
        ),
    )  # fmt: skip
    pin_ids = read_output(store, pin_texts, ["pin_id"])["pin_id"]
    if (finished := run.finished) is not None:
        if finished.fingerprint == run.fingerprint:
            return finished
        table = aligned(read_output(store, finished.output("graph_pins")), pin_ids)
        run.write_table("graph_pins", table)
        run.write_table("graph_boards", read_output(store, finished.output("graph_boards")))
        return keep_model(run, finished, "graph_model", _counts(table))

    zero_shot = read_output(store, vectors, ["pin_id", "text_embedding"])
    if not zero_shot["pin_id"].equals(pin_ids):
        raise UserError("zero_shot was made from other pins; run `python pipelines/zero_shot.py --config ...` again")
    board_ids, titles, board, pin_row = board_edges(read_output(store, saves), pin_ids.to_pylist())
    if not board_ids:
        logger.warning("graph: no pin is on a board, so no pin gets a vector")
    on_board, pin = np.unique(pin_row, return_inverse=True)  # the model sees no other pins
    texts = matrix_of(zero_shot["text_embedding"])[on_board]
    trained = ray.get(_train.remote(board, pin, encoder.encode(titles), texts, cfg.graph, cfg.seed))

    found, known = np.zeros((len(pin_ids), cfg.graph.dim), np.float32), np.zeros(len(pin_ids), bool)
    found[on_board], known[on_board] = trained.pin_vectors, True
    table = pa.table({"pin_id": pin_ids, "graph_embedding": nullable_vectors(found, known)})
    run.write_table("graph_pins", table)
    every = np.ones(len(board_ids), bool)
    run.write_table(
        "graph_boards",
        pa.table(
            {
                "board_id": pa.array(board_ids, pa.string()),
                "graph_embedding": nullable_vectors(trained.board_vectors, every),
            }
        ),
    )
    folder = f"models/graph_model/{run.fingerprint}"
    run.add_output("graph_model", folder, trained.tower.save(store, folder))
    return run.finish(_counts(table) | {"boards": len(board_ids), "saves": len(board)}, info=trained.info)


def board_edges(saves: pa.Table, pin_ids: list[str]) -> tuple[list[str], list[str], np.ndarray, np.ndarray]:
    """The distinct saves of known pins.

    Args:
        saves: Schema BOARDS.
        pin_ids: The catalogue.

    Returns:
        Boards with a known pin, sorted; their titles, normalised as queries are ("" without one; of several the first
        by alphabet); and for each save the number of its board and of its pin, sorted.
    """
    frame = saves.select(["board_id", "pin_id", "board_title"]).to_pandas()
    frame["pin"] = pd.Index(pin_ids).get_indexer(frame["pin_id"])
    frame = frame[frame["pin"] >= 0]
    named = frame.groupby("board_id")["board_title"].agg(lambda titles: min(titles.dropna(), default=""))
    edges = frame[["board_id", "pin"]].drop_duplicates().sort_values(["board_id", "pin"])
    board = named.index.get_indexer(edges["board_id"]).astype(np.int64)
    return list(named.index), [normalise_query(t) for t in named], board, edges["pin"].to_numpy(np.int64)


def _counts(table: pa.Table) -> dict[str, int]:
    with_vector = table.num_rows - table["graph_embedding"].null_count
    return {"rows_in": table.num_rows, "rows_out": table.num_rows, "with_vector": with_vector}
