"""Label pairs with the teacher on Ray Data, through the ledger."""

import logging
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from ray_app.cluster import Pool
from ray_app.config import Config
from ray_app.label.label import LabelUDF
from ray_app.label.teacher import Teacher
from ray_app.label.vllm import vllm_chain
from ray_app.ledger.content_key import content_keys, recipe_id
from ray_app.ledger.ledger import Ledger
from ray_app.ledger.stage import Chain, LedgerCounts, actor_chain, check_error_rate, run_missing
from ray_app.manifest import Drift, Manifest, Output, StageRun, read_output, require_output
from ray_app.models import versions
from ray_app.models.merged import merged_model
from ray_app.models.text_encoder import actor_threads, stage_dtype
from ray_app.quote import Cost, Held, Quote, cost_of, make_quote
from ray_app.schemas import SOFT_LABEL_RESULTS, SOFT_LABELS, cast_to
from ray_app.storage import Storage
from ray_app.teach.catalogue import Catalogue, index_queries
from ray_app.teach.pairs import load_catalogue, load_cosine_features
from ray_app.teach.shown_pairs import ShownPairs
from ray_app.text import TEXT_VERSION
from ray_app.training.examples import matrix_column
from ray_app.vllm_engine import prefix_hit_meter, require_vllm
from ray_app.zero_shot.stage import zero_shot_tower

logger = logging.getLogger(__name__)

VERSION = 3


@dataclass(frozen=True, kw_only=True)
class Labeller:
    """A trained teacher with its ledger of soft labels."""

    cfg: Config
    store: Storage
    teacher: Output

    @property
    def recipe(self) -> str:
        """All that decides a label besides query and pin. The teacher's hash covers its texts and features.

        Not the engine: both give the same labels, so that one may finish what the other began.
        """
        return recipe_id(
            stage="label", teacher=self.teacher.content_hash, dtype=stage_dtype(self.cfg.label),
            preprocessing=versions.CROSS_ENCODER, text=TEXT_VERSION,
        )  # fmt: skip

    @property
    def ledger(self) -> Ledger:
        """Where the labels are."""
        return Ledger(self.store, "soft_labels", self.recipe, SOFT_LABEL_RESULTS)

    @property
    def pool(self) -> Pool:
        """What the workers ask for."""
        label = self.cfg.label
        return Pool(
            section="label",
            num_actors=label.num_actors,
            max_actors=label.max_actors,
            num_cpus=label.num_cpus,
            num_gpus=label.num_gpus,
            num_processes=label.tensor_parallel * label.pipeline_parallel,
            accelerator_type=label.accelerator_type,
            max_restarts=label.max_restarts,
            feeders=label.engine == "vllm",
        )

    def label(
        self, catalogue: Catalogue, queries: list[str], query_index: np.ndarray, pin_index: np.ndarray
    ) -> tuple[pa.Table, LedgerCounts]:
        """Soft labels of pairs (queries[query_index[i]], pin pin_index[i]); known pairs cost nothing.

        A pin does not say the pair's own query among its engaged ones (see `ShownPairs`).

        Returns:
            Table of schema SOFT_LABEL_RESULTS, row i for pair i, and what was computed.
        """
        shown = ShownPairs.of(catalogue, queries, query_index, pin_index)
        keys, order = self.keys(shown)
        counts = self.compute(shown.take(order), keys.take(pa.array(order)))
        return self.ledger.lookup(keys), counts

    def keys(self, pairs: ShownPairs) -> tuple[pa.Array, np.ndarray]:
        """Content keys of pairs, and the order to label them in, (num_pairs,) int64.

        By the hash of what the pin says, then by query: pairs that share a pin's text stand together, and whatever
        comes first is a random sample of pins with all of their queries, so that rates and quotes hold for the rest.
        """
        by_pair = pairs.pin_keys
        pair_queries = [pairs.queries[i] for i in pairs.query_index]
        order = np.lexsort((_ranks(pairs.queries)[pairs.query_index], _ranks(by_pair)))
        return content_keys(self.recipe, pair_queries, by_pair), order

    def compute(self, pairs: ShownPairs, keys: pa.Array) -> LedgerCounts:
        """Label the pairs that the ledger lacks, in the order given, and commit them block by block."""
        todo = self.ledger.missing(pa.table({"content_key": keys, "row": pa.array(range(len(keys)), pa.int64())}))
        if todo.num_rows:
            missing = pairs.take(todo["row"].to_numpy())
            todo = pa.table(
                {
                    "content_key": todo["content_key"],
                    "query": pa.array([missing.queries[i] for i in missing.query_index], pa.string()),
                    "pin_text": pa.array(missing.pin_texts, pa.string()),
                    "features": matrix_column(self._features(missing)),
                }
            )
        return self.compute_texts(todo)

    def compute_texts(self, todo: pa.Table) -> LedgerCounts:
        """Columns content_key, query, pin_text, features -> labels of those that the ledger lacks."""
        label = self.cfg.label
        chain, prefix_hits = self._chain() if todo.num_rows else (_nothing, None)
        return run_missing(
            self.ledger,
            todo,
            chain,
            self.pool,
            rows_per_block=label.rows_per_block,
            max_error_rate=label.max_error_rate,
            progress_sec=label.progress_sec,
            prefix_hits=prefix_hits,
        )

    def _features(self, pairs: ShownPairs) -> np.ndarray:
        if not self.cfg.teach.use_features:
            return np.zeros((len(pairs.query_index), 0), np.float32)
        vectors = zero_shot_tower(self.cfg, self.store, "query").encode(pairs.queries)
        return pairs.features(load_cosine_features(self.store, self.teacher), vectors)

    def _chain(self) -> tuple[Chain, Any]:
        """The engine's chain, and its meter of prefix hits, if it counts them itself."""
        label = self.cfg.label
        if label.engine == "vllm":
            require_vllm("label")
            merged = merged_model(self.store, self.teacher)
            return vllm_chain(self.store, self.teacher, merged, label), prefix_hit_meter()
        threads = actor_threads(label.num_actors, label.num_cpus or 1.0)
        dtype = stage_dtype(label)
        build = partial(Teacher, self.store, self.teacher, dtype, label.batch_size, threads, label.share_prefix)
        return actor_chain(LabelUDF, {"build": build}), None


def _ranks(texts: list[str]) -> np.ndarray:
    """Place of each text among the distinct ones, sorted. Shape (num_texts,), int64."""
    place = {text: i for i, text in enumerate(sorted(set(texts)))}
    return np.fromiter((place[text] for text in texts), np.int64, len(texts))


def _nothing(*_: Any) -> Any:
    raise AssertionError("there is nothing to compute")


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
