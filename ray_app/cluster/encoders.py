"""Encoders whose embeddings are kept in a ledger and computed on Ray Data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.base.columns import matrix_or_zero
from ray_app.base.config import Config, PinTextConfig
from ray_app.base.content_key import recipe_id
from ray_app.base.schemas import embedding_results
from ray_app.base.storage import Storage
from ray_app.base.text import TEXT_VERSION, render_pin_texts
from ray_app.cluster.blocks import actor_chain
from ray_app.cluster.embedding import EmbedUDF, Encoder, longest_first, wanted_texts
from ray_app.cluster.executor import LedgerCounts, ModelWork, look_up
from ray_app.cluster.pin_texts import PinTexts
from ray_app.cluster.resources import PoolRequest
from ray_app.models import versions
from ray_app.models.devices import actor_threads
from ray_app.models.encoder_usage import Role, zero_shot_usage
from ray_app.models.model_sources import model_identity, peek_model_config, pinned_revision
from ray_app.models.text_encoder import build_zero_shot, stage_dtype
from ray_app.tables.buckets import num_buckets_of_run
from ray_app.tables.ledger import Ledger
from ray_app.tables.local_folder import local_folder
from ray_app.tables.manifest import Output


@dataclass(frozen=True, kw_only=True)
class CachedEncoder:
    """One tower of a trained encoder with its ledger of vectors.

    Args:
        cfg: The run's; `embed` decides batches and resources.
        store: Storage.
        table: Name of the ledger.
        recipe: All that decides a vector besides the text.
        dim: Length of the vectors.
        build: Makes the encoder in a Ray actor; picklable.
    """

    cfg: Config
    store: Storage
    table: str
    recipe: str
    dim: int
    build: Callable[[], Encoder]

    @property
    def ledger(self) -> Ledger:
        """Ledger of the embeddings."""
        schema = embedding_results(self.dim)
        return Ledger(self.store, self.table, self.recipe, schema, num_buckets_of_run(self.store))

    def pin_texts(self, pin_texts: Output, configs: Sequence[PinTextConfig] = ()) -> PinTexts:
        """The texts of all pins; of each one per config, or that of the run."""
        return PinTexts(self.store, pin_texts, tuple(configs) or (self.cfg.pin_text,), self.recipe)

    def work(self) -> ModelWork:
        """Model work of embedding texts. Empty texts are error rows in the ledger, not failures."""
        embed = self.cfg.embed
        settings = {"build": self.build, "batch_size": embed.batch_size, "nice": embed.nice}
        return ModelWork(
            noun="texts",
            ledger=self.ledger,
            pool=PoolRequest(
                section="embed",
                num_actors=embed.num_actors,
                num_cpus=embed.num_cpus,
                num_gpus=embed.num_gpus,
                accelerator_type=embed.accelerator_type,
            ),
            chain=partial(actor_chain, EmbedUDF, settings),
            rows_per_block=embed.rows_per_block,
        )

    def encode(self, texts: Sequence[str], pin_ids: Sequence[str] | None = None) -> np.ndarray:
        """Vectors (num_texts, dim) float32, zeros for empty texts; known texts cost nothing.

        Args:
            texts: Few enough for this process.
            pin_ids: Whose texts they are, so that those are known that the stages have embedded; None: nobody's.
        """
        return self.encode_counted(texts, pin_ids)[0]

    def encode_counted(
        self, texts: Sequence[str], pin_ids: Sequence[str] | None = None
    ) -> tuple[np.ndarray, LedgerCounts]:
        """`encode`, and what was computed for it."""
        wanted = wanted_texts(self.recipe, texts, pin_ids)
        order = longest_first(wanted.append_column("length", pc.utf8_length(wanted["text"])))
        counts = self.work().compute(wanted.take(order))
        return matrix_or_zero(look_up(self.ledger, wanted["content_key"])["embedding"]), counts


def embed_threads(cfg: Config) -> int:
    """CPU threads of one of the stage's actors."""
    return cfg.embed.cpu_threads or actor_threads(cfg.embed.num_actors, cfg.embed.num_cpus)


def student_tower(cfg: Config, store: Storage, student: Output, tower: Role) -> CachedEncoder:
    """A tower of the trained student. Its pooling and prompts are in its folder, so its hash covers them."""
    dim, dtype = cfg.embed.truncate_dim or cfg.distill.dim, stage_dtype(cfg.embed)
    recipe = recipe_id(
        stage="embed",
        student=student.content_hash,
        tower=tower,
        dim=dim,
        dtype=dtype,
        text=TEXT_VERSION,
        preprocessing=versions.BI_ENCODER,
    )
    return CachedEncoder(
        cfg=cfg, store=store, table=f"{tower}_embeddings", recipe=recipe, dim=dim,
        build=partial(
            build_tower, store, student, tower, dim, dtype,
            embed_threads(cfg),
        ),
    )  # fmt: skip


def build_tower(store: Storage, student: Output, tower: Role, dim: int, dtype: str, cpu_threads: int) -> Encoder:
    """Load a tower; runs in the Ray actor."""
    from ray_app.models.tower_encoder import TowerEncoder

    return TowerEncoder(local_folder(store, student), tower, dtype, cpu_threads, dim)


def zero_shot_tower(cfg: Config, store: Storage, role: Role) -> CachedEncoder:
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
    return CachedEncoder(
        cfg=cfg, store=store, table="text_embeddings", recipe=recipe,
        dim=peek_model_config(features.zero_shot_model, features.zero_shot_revision).hidden_size,
        build=partial(
            build_zero_shot, features, usage, role, dtype, embed_threads(cfg)
        ),
    )  # fmt: skip


def zero_shot_queries(cfg: Config, store: Storage) -> Callable[[Sequence[str]], np.ndarray]:
    """Zero-shot embeddings of queries, kept in the ledger; nothing of the model is read before the first call."""
    return lambda queries: zero_shot_tower(cfg, store, "query").encode(queries)


def title_and_text(cfg: Config, pin_texts: pa.Table) -> tuple[list[str], list[str]]:
    """Two texts per pin: its title, and its zero-shot fields joined."""
    title, text = title_and_text_configs(cfg)
    return render_pin_texts(pin_texts, title), render_pin_texts(pin_texts, text)


def title_and_text_configs(cfg: Config) -> tuple[PinTextConfig, PinTextConfig]:
    """Of the texts of `title_and_text`."""
    title = cfg.pin_text.model_copy(update={"fields": ["title"]})
    return title, cfg.pin_text.model_copy(update={"fields": cfg.features.zero_shot_fields})
