"""Teacher inference over pairs, through the ledger."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from ray_app.base.columns import matrix_column
from ray_app.base.config import Config
from ray_app.base.content_key import content_keys, pin_keys, recipe_id
from ray_app.base.schemas import SOFT_LABEL_RESULTS
from ray_app.base.storage import Storage
from ray_app.base.text import TEXT_VERSION
from ray_app.cluster.blocks import Chain, actor_chain
from ray_app.cluster.encoders import zero_shot_queries
from ray_app.cluster.executor import FewRows, LedgerCounts, ModelWork, look_up
from ray_app.cluster.resources import PoolRequest
from ray_app.cluster.vllm_engine import prefix_hit_meter, require_vllm
from ray_app.features.catalogue import Catalogue
from ray_app.features.cosine import load_cosine_features
from ray_app.features.shown_pairs import ShownPairs
from ray_app.features.student import EncodeQueries
from ray_app.models import versions
from ray_app.models.devices import actor_threads
from ray_app.models.merged import merged_model
from ray_app.models.text_encoder import stage_dtype
from ray_app.stages.label.batch import LabelUDF
from ray_app.stages.label.teacher import Teacher
from ray_app.stages.label.vllm import vllm_chain
from ray_app.tables.buckets import num_buckets_of_run
from ray_app.tables.ledger import Ledger
from ray_app.tables.manifest import Output


@dataclass(frozen=True, kw_only=True)
class Labeller:
    """A trained teacher with its ledger of soft labels."""

    cfg: Config
    store: Storage
    teacher: Output

    @property
    def recipe(self) -> str:
        """Hash of everything that decides a label besides query and pin. The teacher's hash covers its texts and features.

        Not the engine: both give the same labels, so that one may finish what the other began.
        """
        return recipe_id(
            stage="label", teacher=self.teacher.content_hash, dtype=stage_dtype(self.cfg.label),
            preprocessing=versions.CROSS_ENCODER, text=TEXT_VERSION,
        )  # fmt: skip

    @property
    def ledger(self) -> Ledger:
        """Ledger of the soft labels."""
        num_buckets = num_buckets_of_run(self.store)
        return Ledger(self.store, "soft_labels", self.recipe, SOFT_LABEL_RESULTS, num_buckets)

    def label(
        self, catalogue: Catalogue, queries: list[str], query_index: np.ndarray, pin_index: np.ndarray
    ) -> tuple[pa.Table, LedgerCounts]:
        """Soft labels of pairs (queries[query_index[i]], pin pin_index[i]), few enough for this process.

        Known pairs cost nothing. A pin does not say the pair's own query among its engaged ones (see `ShownPairs`).

        Returns:
            Table of schema SOFT_LABEL_RESULTS, row i for pair i, and what was computed.
        """
        pairs = ShownPairs.of(catalogue, queries, query_index, pin_index)
        encode = zero_shot_queries(self.cfg, self.store)
        keyed = self.keyed(pairs)
        counts = self.work().compute(FewRows(keyed=keyed, columns=lambda missing: self.columns(pairs, missing, encode)))
        return look_up(self.ledger, keyed.sort_by("pair")["content_key"]), counts

    def content_keys(self, pairs: ShownPairs) -> pa.Array:
        """Content key of each pair."""
        pair_queries = [pairs.queries[i] for i in pairs.query_index]
        pin_ids = pairs.catalogue.pin_texts["pin_id"].take(pa.array(pairs.pin_index))
        return pin_keys(content_keys(self.recipe, pair_queries, pairs.pin_keys), pin_ids)

    def keyed(self, pairs: ShownPairs) -> pa.Table:
        """Content keys of pairs, and the number of each pair, in the order to label them in.

        By the hash of what the pin says, then by query: pairs that share a pin's text stand together, and whatever
        comes first is a random sample of pins with all of their queries, so that rates and quotes hold for the rest.
        """
        order = np.lexsort((_ranks(pairs.queries)[pairs.query_index], _ranks(pairs.pin_keys)))
        keys = self.content_keys(pairs).take(pa.array(order))
        return pa.table({"content_key": keys, "pair": pa.array(order, pa.int64())})

    def work(self) -> ModelWork:
        """Model work of labelling: ledger, workers, blocks. Its rows have content_key, query, pin_text and features."""
        label = self.cfg.label
        return ModelWork(
            noun="pairs",
            ledger=self.ledger,
            pool=PoolRequest(
                section="label",
                num_actors=label.num_actors,
                max_actors=label.max_actors,
                num_cpus=label.num_cpus,
                num_gpus=label.num_gpus,
                num_processes=label.tensor_parallel * label.pipeline_parallel,
                accelerator_type=label.accelerator_type,
                max_restarts=label.max_restarts,
                upstream_tasks=int(label.backend == "vllm"),
            ),
            chain=self._chain,
            rows_per_block=label.rows_per_block,
            max_error_rate=label.max_error_rate,
            progress_interval_sec=label.progress_interval_sec,
            prefix_hits=prefix_hit_meter if label.backend == "vllm" else None,  # the engine counts them itself
        )

    def columns(self, pairs: ShownPairs, missing: pa.Table, encode_queries: EncodeQueries) -> pa.Table:
        """Rows of `keyed` -> content_key, query, pin_text, features.

        Args:
            encode_queries: Texts -> zero-shot vectors.
        """
        shown = pairs.take(missing["pair"].to_numpy())
        if self.cfg.train_teacher.use_features:
            features = shown.features(load_cosine_features(self.store, self.teacher), encode_queries(shown.queries))
        else:
            features = np.zeros((len(shown.query_index), 0), np.float32)
        return pa.table(
            {
                "content_key": missing["content_key"],
                "query": pa.array([shown.queries[i] for i in shown.query_index], pa.string()),
                "pin_text": pa.array(shown.pin_texts, pa.string()),
                "features": matrix_column(features),
            }
        )

    def _chain(self) -> Chain:
        label = self.cfg.label
        if label.backend == "vllm":
            require_vllm("label")
            return vllm_chain(self.store, self.teacher, merged_model(self.store, self.teacher), label)
        threads = actor_threads(label.num_actors, label.num_cpus or 1.0)
        dtype = stage_dtype(label)
        build = partial(Teacher, self.store, self.teacher, dtype, label.batch_size, threads, label.prefix_sharing)
        return actor_chain(LabelUDF, {"build": build})


def _ranks(texts: list[str]) -> np.ndarray:
    """Place of each text among the distinct ones, sorted. Shape (num_texts,), int64."""
    place = {text: i for i, text in enumerate(sorted(set(texts)))}
    return np.fromiter((place[text] for text in texts), np.int64, len(texts))
