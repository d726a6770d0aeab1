"""The teacher in vllm: its language model in the engine, its head where the results are committed.

    block -> prepare (CPU task: unscorable pairs out, tokens) -> engine (pooled state of each pair) -> finish (CPU task: head, commit)

The engine pools as the teacher does and normalises nothing, so that the head sees what it was trained on. Pins that
several pairs share stand first in the prompts and next to each other in a block, and prefix caching does the rest.
"""

import time
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ray_app.base.columns import matrix_of
from ray_app.base.config import LabelConfig
from ray_app.base.errors import UserError
from ray_app.base.schemas import NUM_GRADES
from ray_app.base.storage import Storage
from ray_app.cluster.blocks import Chain, commit_block, decode_block, tasks
from ray_app.cluster.failures import BlockFailedError, fatal_line
from ray_app.cluster.resources import PoolAllocation
from ray_app.cluster.vllm_engine import INFERENCE_ERROR, vllm_processor
from ray_app.models.backbone import is_decoder_config
from ray_app.models.checkpoint import read_teacher_config, reads_segments
from ray_app.models.model_sources import load_model_config, open_tokenizer
from ray_app.models.packed import is_plain_causal
from ray_app.models.tokens import max_query_tokens, pair_ids
from ray_app.stages.label.batch import soft_label_results, with_tokens
from ray_app.stages.label.pair_scorer import query_too_long, reject_unscorable
from ray_app.tables.ledger import Ledger
from ray_app.tables.local_folder import local_folder
from ray_app.tables.manifest import Output

if TYPE_CHECKING:
    from ray_app.models.grade_head import GradeHead

_CPU_BLOCK = 32  # tokens that are cached together; vllm's own 128 is longer than most pins
_POOLING = {"last": "LAST", "mean": "MEAN", "cls": "CLS"}

PREPARED = pa.schema(
    [
        pa.field("content_key", pa.string(), nullable=False),
        pa.field("token_ids", pa.list_(pa.int32())),  # null: see error
        pa.field("features", pa.list_(pa.float32())),
        pa.field("error", pa.string()),
    ]
)


def vllm_chain(store: Storage, teacher: Output, merged: Output, cfg: LabelConfig) -> Chain:
    """Prepare, infer, finish.

    Args:
        store: Where the teacher lies.
        teacher: The trained model: its settings.
        merged: The same with adapters, if it has any, merged into the language model; tokenizer and head are there too.
        cfg: Of the run.

    Raises:
        UserError: the teacher pools or reads in a way that the engine cannot.
    """
    folder = local_folder(store, teacher, weights=False)
    about = read_teacher_config(folder)
    if about.pooling is None or about.pooling not in _POOLING:
        raise UserError(
            f"label.backend is vllm, which cannot pool {about.pooling!r}; set label.backend=transformers, or train with "
            f"train_teacher.pooling {' or '.join(_POOLING)}"
        )
    if reads_segments(folder):
        raise UserError(
            "label.backend is vllm, which gives a model no token_type_ids, and this teacher was trained with them (an encoder of "
            "BERT's family); set label.backend=transformers"
        )

    pooling_type = _POOLING[about.pooling]

    prefix_sharing = cfg.prefix_sharing and shares_prefixes(local_folder(store, merged, weights=False))

    def chain(blocks: Any, ledger: Ledger, allocation: PoolAllocation) -> Any:
        engine = {
            "max_model_len": about.max_tokens,
            "pooler_config": {"pooling_type": pooling_type, "use_activation": False},
            "enable_prefix_caching": prefix_sharing,
            "tensor_parallel_size": cfg.tensor_parallel,
            "pipeline_parallel_size": cfg.pipeline_parallel,
        } | ({} if allocation.pool.num_gpus else {"block_size": _CPU_BLOCK})
        lm = f"{merged.path}/lm"
        processor = vllm_processor(
            model_source=store.full_path(lm) if store.is_local else f"{store.uri}/{lm}",
            task_type="embed",
            dtype=cfg.dtype,
            engine_args=engine | cfg.engine_args,
            allocation=allocation,
            batch_size=cfg.batch_size,
            preprocess=to_request,
            postprocess=to_state,
            log_metrics=True,
            on_batch=ledger.claim,
        )
        where = {"store": store, "teacher": merged}  # the folder of a model with adapters has no config of the whole
        prepared = tasks(blocks, prepare_block, allocation, batch_size=1, fn_kwargs=where)
        states = processor(prepared).map(keep_state, num_cpus=allocation.task_cpus)
        return tasks(states, finish_block, allocation, fn_kwargs={**where, "ledger": ledger})

    return chain


def shares_prefixes(folder: Path) -> bool:
    """Return True if a hidden state of this model is the same with and without a prefix cache.

    vllm only warns if it is told to keep one for a model of which that is not true, such as a bidirectional decoder.
    """
    about = read_teacher_config(folder)
    return about.pooling == "last" and is_plain_causal(load_model_config(str(folder / "lm")), about.max_tokens)


def prepare_block(block: pa.Table, store: Storage, teacher: Output) -> pa.Table:
    """One encoded block of pairs -> PREPARED."""
    try:
        return prepare(decode_block(block), local_folder(store, teacher, weights=False))
    except Exception as error:
        raise BlockFailedError(fatal_line("soft_labels", error)) from error


def prepare(block: pa.Table, folder: Path) -> pa.Table:
    """Columns content_key, query, pin_text, features -> PREPARED: the very tokens that the other engine reads."""
    tokenizer, cfg, query_last = _reader(folder)
    queries, pin_texts = block["query"].to_pylist(), block["pin_text"].to_pylist()
    errors = reject_unscorable(queries, pin_texts)
    pairs = pair_ids(tokenizer, [q or "" for q in queries], [t or "" for t in pin_texts], cfg.max_tokens, query_last)
    room = max_query_tokens(tokenizer, cfg.max_tokens, query_last)
    errors = [error or query_too_long(pair.query_tokens, room) for error, pair in zip(errors, pairs, strict=True)]
    return pa.table(
        {
            "content_key": block["content_key"],
            "token_ids": [None if error else pair.ids for error, pair in zip(errors, pairs, strict=True)],
            "features": matrix_of(block["features"]).tolist(),
            "error": errors,
        },
        PREPARED,
    )


def to_request(row: dict[str, Any]) -> dict[str, Any]:
    """Row of PREPARED -> what the engine reads; an error row passes it by."""
    return {"tokenized_prompt": row["token_ids"], INFERENCE_ERROR: row["error"] or "", "began": time.time()}


def to_state(row: dict[str, Any]) -> dict[str, Any]:
    """Row with the engine's columns -> key, state and times."""
    now = time.time()
    return {
        "content_key": row["content_key"], "features": row["features"], "state": row["embeddings"],
        "num_tokens": row["num_input_tokens"], "began": now - row["time_taken_llm"], "ended": now,
    }  # fmt: skip


_STATE_COLUMNS = ("content_key", "features", "state", "num_tokens", "began", "ended", "error")


def keep_state(row: dict[str, Any]) -> dict[str, Any]:
    """The columns that `finish` reads, of good rows and of error rows, which come past `to_state`."""
    kept = {name: row.get(name) for name in _STATE_COLUMNS}
    if (failed := row.get(INFERENCE_ERROR)) and not kept["error"]:
        kept["error"] = f"engine: {' '.join(str(failed).split())[:300]}"
    return kept


def finish_block(block: pa.Table, store: Storage, teacher: Output, ledger: Ledger) -> pa.Table:
    """States of pairs -> committed results -> one row of STATS."""
    try:
        return finish(block, _head(local_folder(store, teacher, weights=False)), ledger)
    except Exception as error:
        raise BlockFailedError(fatal_line("soft_labels", error)) from error


def finish(block: pa.Table, head: "GradeHead", ledger: Ledger) -> pa.Table:
    """Columns of `keep_state` -> grades, committed -> one row of STATS."""
    rows = block.to_pylist()
    good = [i for i, row in enumerate(rows) if row["error"] is None]
    probs = np.full((len(rows), NUM_GRADES), np.nan, np.float32)
    if good:
        states = np.array([rows[i]["state"] for i in good], np.float32)
        features = np.array([rows[i]["features"] for i in good], np.float32).reshape(len(good), -1)
        probs[good] = head.probs(states[:, None], features)
    tokens = np.array([row["num_tokens"] or 0 for row in rows], np.int64)
    results = soft_label_results(block["content_key"], probs, [row["error"] for row in rows])
    # What the engine found cached is its own to say: see `prefix_hits`.
    results = with_tokens(results, tokens, tokens)
    return commit_block(ledger, results, [(row["began"], row["ended"]) for row in rows if row["error"] is None])


@lru_cache(maxsize=4)
def _reader(folder: Path) -> tuple[Any, Any, bool]:
    """Tokenizer, settings, and whether the query stands last."""
    lm = folder / "lm"
    cfg = read_teacher_config(folder)
    tokenizer = open_tokenizer(lm)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer, cfg, is_decoder_config(load_model_config(str(lm)))


@lru_cache(maxsize=4)
def _head(folder: Path) -> "GradeHead":
    from ray_app.models.grade_head import GradeHead

    return GradeHead.load(folder)
