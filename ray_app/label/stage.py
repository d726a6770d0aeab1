"""Label pairs with the teacher on Ray Data, through the ledger."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from ray_app.config import Config
from ray_app.label.label import LabelUDF
from ray_app.label.teacher import Teacher
from ray_app.ledger.content_key import content_keys, recipe_id
from ray_app.ledger.ledger import Ledger
from ray_app.ledger.stage import LedgerCounts, check_error_rate, run_missing
from ray_app.manifest import Drift, Manifest, Output, StageRun, read_output, require_output
from ray_app.models import versions
from ray_app.models.text_encoder import actor_threads
from ray_app.schemas import SOFT_LABEL_RESULTS, SOFT_LABELS, cast_to
from ray_app.storage import Storage
from ray_app.teach.catalogue import Catalogue, index_queries
from ray_app.teach.pairs import load_catalogue, load_cosine_features
from ray_app.text import TEXT_VERSION
from ray_app.training.examples import matrix_column
from ray_app.zero_shot.stage import zero_shot_tower

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Labeller:
    """A trained teacher with its ledger of soft labels."""

    cfg: Config
    store: Storage
    teacher: Output

    @property
    def recipe(self) -> str:
        """All that decides a label besides query and pin. The teacher's hash covers its texts and features."""
        return recipe_id(
            stage="label", teacher=self.teacher.content_hash, dtype=self.cfg.label.dtype,
            preprocessing=versions.CROSS_ENCODER, text=TEXT_VERSION,
        )  # fmt: skip

    def label(
        self, catalogue: Catalogue, queries: list[str], query_index: np.ndarray, pin_index: np.ndarray
    ) -> tuple[pa.Table, LedgerCounts]:
        """Soft labels of pairs (queries[query_index[i]], pin pin_index[i]); known pairs cost nothing.

        Returns:
            Table of schema SOFT_LABEL_RESULTS, row i for pair i, and what was computed.
        """
        cfg = self.cfg
        pin_keys = catalogue.pin_keys(pin_index.tolist())
        pair_queries = [queries[i] for i in query_index]
        keys = content_keys(self.recipe, pair_queries, [pin_keys[row] for row in pin_index.tolist()])
        ledger = Ledger(self.store, "soft_labels", self.recipe, SOFT_LABEL_RESULTS)
        # Pairs of one pin stand together, and pins of similar length: little padding, and shared prefixes.
        texts = [catalogue.pairs.rendered[row] for row in pin_index]
        order = np.array(sorted(range(len(texts)), key=lambda i: (-len(texts[i]), pin_index[i], pair_queries[i])), int)
        wanted = pa.table({"content_key": keys, "row": pa.array(range(len(keys)), pa.int64())}).take(order)
        todo = ledger.missing(wanted)
        if todo.num_rows:
            rows = todo["row"].to_numpy()
            if cfg.teach.use_features:
                vectors = zero_shot_tower(cfg, self.store).encode(queries)
                cosine = load_cosine_features(self.store, self.teacher)
                features = catalogue.teacher_features(cosine, queries, vectors, query_index[rows], pin_index[rows])
            else:
                features = np.zeros((len(rows), 0), np.float32)
            todo = pa.table(
                {
                    "content_key": todo["content_key"],
                    "query": pa.array([pair_queries[i] for i in rows], pa.string()),
                    "pin_text": pa.array([texts[i] for i in rows], pa.string()),
                    "features": matrix_column(features),
                }
            )
        label = cfg.label
        threads = actor_threads(label.num_actors, label.num_cpus)
        counts = run_missing(
            ledger,
            todo,
            LabelUDF,
            {"build": partial(Teacher, self.store, self.teacher, label.dtype, label.batch_size, threads)},
            rows_per_block=label.rows_per_block,
            num_actors=label.num_actors,
            num_cpus=label.num_cpus,
            num_gpus=label.num_gpus,
        )
        return ledger.lookup(keys), counts


def run(cfg: Config, store: Storage) -> Manifest:
    """Write `soft_labels`: the sampled pairs with the teacher's probabilities."""
    pairs_output = require_output(store, "sample", "pairs")
    teacher = require_output(store, "teach", "teacher")
    pin_texts = require_output(store, "enrich", "pin_texts")
    labeller = Labeller(cfg=cfg, store=store, teacher=teacher)
    run = StageRun(
        "label",
        cfg,
        store,
        VERSION,
        settings=[labeller.recipe, cfg.pin_text],
        inputs=[pairs_output, teacher, pin_texts],
        drift=Drift(pin_texts=pin_texts, inputs=("pin_texts",), max_share=cfg.retrain.max_changed_share),
    )
    if (finished := run.finished) is not None:
        return finished
    catalogue, _ = load_catalogue(cfg, store)
    pairs = read_output(store, pairs_output)
    queries, query_index = index_queries(pairs["query"].to_pylist())
    pin_index = catalogue.pairs.pin_rows(pairs["pin_id"].to_pylist())
    results, counts = labeller.label(catalogue, queries, query_index, pin_index)
    table = pa.table({name: pairs[name] for name in ("query", "locale", "pin_id")})
    for name in SOFT_LABEL_RESULTS.names:
        table = table.append_column(name, results[name])
    table = cast_to(table, SOFT_LABELS, "label")
    errors = table.num_rows - table["error"].null_count
    out = run.write_table("soft_labels", table)
    check_error_rate(counts, cfg.label.max_error_rate, "soft labels")
    return run.finish(
        counts={
            "rows_in": pairs.num_rows, "rows_out": out.rows, "computed": counts.computed, "errors": errors,
        },
        info={"recipe": labeller.recipe},
        device_sec=counts.device_sec,
    )  # fmt: skip
