"""Embed pins and queries with a published bi-encoder, untrained by us, through the ledger."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.config import Config, FeatureConfig
from ray_app.embed.stage import TextTower, embed_threads
from ray_app.ledger.content_key import recipe_id
from ray_app.manifest import Manifest, StageRun, read_output, require_output
from ray_app.models import versions
from ray_app.models.encoder_usage import EncoderUsage, Role, zero_shot_usage
from ray_app.models.sources import load_config, model_identity, pinned_revision
from ray_app.models.text_encoder import TextEncoder, stage_dtype
from ray_app.models.truncation import zero_shot_truncation
from ray_app.storage import Storage
from ray_app.text import TEXT_VERSION, normalise_query, render_pin_texts
from ray_app.training.examples import matrix_column

VERSION = 2


def build_zero_shot(cfg: FeatureConfig, usage: EncoderUsage, role: Role, dtype: str, cpu_threads: int) -> TextEncoder:
    """Load the encoder; runs in the Ray actor."""
    return TextEncoder(
        cfg.zero_shot_model,
        cfg.zero_shot_revision,
        cfg.zero_shot_max_tokens,
        dtype,
        cpu_threads,
        role=role,
        usage=usage,
    )


def zero_shot_tower(cfg: Config, store: Storage, role: Role) -> TextTower:
    """The zero-shot encoder of a config for queries or for pins.

    The prompt is part of the recipe: a text that is both a query and a title has two vectors, and if there are no
    prompts one, computed once.

    Raises:
        UserError: the model cannot be used as its files say.
    """
    source, revision = cfg.features.zero_shot_model, cfg.features.zero_shot_revision
    features = cfg.features.model_copy(update={"zero_shot_revision": pinned_revision(source, revision)})
    usage, dtype = zero_shot_usage(features), stage_dtype(cfg.embed)
    recipe = recipe_id(
        stage="zero_shot",
        model=model_identity(features.zero_shot_model, features.zero_shot_revision),
        pooling=usage.pooling,
        prompt=usage.prompt(role),
        max_tokens=features.zero_shot_max_tokens,
        dtype=dtype,
        version=versions.TEXT_ENCODER,
    )
    return TextTower(
        cfg=cfg, store=store, table="text_embeddings", recipe=recipe,
        dim=load_config(features.zero_shot_model, features.zero_shot_revision).hidden_size,
        build=partial(
            build_zero_shot, features, usage, role, dtype, embed_threads(cfg)
        ),
    )  # fmt: skip


def zero_shot_queries(cfg: Config, store: Storage) -> Callable[[Sequence[str]], np.ndarray]:
    """Zero-shot embeddings of queries, kept in the ledger; nothing of the model is read before the first call."""
    return lambda queries: zero_shot_tower(cfg, store, "query").encode(queries)


def run(cfg: Config, store: Storage) -> Manifest:
    """Write `zero_shot_pins` (pin_id, title_embedding, text_embedding) and `zero_shot_queries` (query, embedding)."""
    pin_texts = require_output(store, "enrich", "pin_texts")
    log = require_output(store, "ingest", "search_log")
    labels = require_output(store, "ingest", "human_labels")
    pin_tower, query_tower = zero_shot_tower(cfg, store, "pin"), zero_shot_tower(cfg, store, "query")
    run = StageRun(
        "zero_shot", cfg, store, VERSION,
        settings=[cfg.features, cfg.pin_text, pin_tower.recipe, query_tower.recipe, TEXT_VERSION],
        inputs=[pin_texts, log, labels],
    )  # fmt: skip
    if (finished := run.finished) is not None:
        return finished
    pins = read_output(store, pin_texts)
    titles, texts = title_and_text(cfg, pins)
    known = pc.unique(pa.concat_tables([read_output(store, t, ["query"]) for t in (log, labels)])["query"])
    queries = sorted({normalise_query(query) for query in known.to_pylist()} - {""})
    pin_vectors, pin_counts = pin_tower.encode_counted([*titles, *texts])
    query_vectors, query_counts = query_tower.encode_counted(queries)
    title_vectors, text_vectors = np.split(pin_vectors, [len(titles)])
    run.write_table(
        "zero_shot_pins",
        pa.table(
            {
                "pin_id": pins["pin_id"],
                "title_embedding": matrix_column(title_vectors),
                "text_embedding": matrix_column(text_vectors),
            }
        ),
    )
    run.write_table(
        "zero_shot_queries",
        pa.table({"query": pa.array(queries, pa.string()), "embedding": matrix_column(query_vectors)}),
    )
    rows = len(pin_vectors) + len(query_vectors)
    return run.finish(
        counts={
            "rows_in": rows,
            "rows_out": rows,
            "computed": pin_counts.computed + query_counts.computed,
            "errors": pin_counts.errors + query_counts.errors,
        },
        info={
            "recipe": pin_tower.recipe,
            "query_recipe": query_tower.recipe,
            "truncation": zero_shot_truncation(cfg, pins),
        },
        device_sec=pin_counts.device_sec + query_counts.device_sec,
    )


def title_and_text(cfg: Config, pin_texts: pa.Table) -> tuple[list[str], list[str]]:
    """What is embedded of each pin: its title, and its zero-shot fields as one text."""
    title = cfg.pin_text.model_copy(update={"fields": ["title"]})
    text = cfg.pin_text.model_copy(update={"fields": cfg.features.zero_shot_fields})
    return render_pin_texts(pin_texts, title), render_pin_texts(pin_texts, text)
