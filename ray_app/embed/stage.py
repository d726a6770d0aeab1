"""Embed all pins with the student's pin tower on Ray Data, through the ledger, and publish a release."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.cluster import Pool
from ray_app.config import Config
from ray_app.embed.encode import EmbedUDF, Encoder, longest_first, matrix_or_zero, wanted_texts
from ray_app.embed.text_files import PinTextFiles
from ray_app.ledger.content_key import recipe_id
from ray_app.ledger.garbage import collect_releases
from ray_app.ledger.ledger import Ledger
from ray_app.ledger.release import is_complete, publish_release
from ray_app.ledger.stage import LedgerCounts, actor_chain, check_error_rate, run_missing
from ray_app.manifest import Manifest, Output, StageRun, read_manifest, require_output
from ray_app.models import versions
from ray_app.models.checkpoint import local_folder
from ray_app.models.encoder_usage import Role
from ray_app.models.sources import pinned_revision
from ray_app.models.text_encoder import actor_threads, stage_dtype
from ray_app.schemas import embedding_results
from ray_app.storage import Storage
from ray_app.text import TEXT_VERSION

VERSION = 2


@dataclass(frozen=True, kw_only=True)
class TextTower:
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
        """Where the vectors are."""
        return Ledger(self.store, self.table, self.recipe, embedding_results(self.dim))

    def compute(self, texts: Sequence[str]) -> tuple[pa.Table, LedgerCounts]:
        """Make sure that each text has a result; returns (content_key, text) row by row, and what was computed."""
        wanted = wanted_texts(self.recipe, texts)
        order = longest_first(wanted.append_column("length", pc.utf8_length(wanted["text"])))
        return wanted, self._run(wanted.take(order), with_texts=None)

    def compute_pins(self, pin_texts: Output) -> tuple[pa.Table, LedgerCounts]:
        """Make sure that each pin's text has a result, without holding the texts.

        Args:
            pin_texts: Of `enrich`.

        Returns:
            A table with (pin_id, content_key) of all pins, in no order, and what was computed.
        """
        files = PinTextFiles(self.store, pin_texts, self.cfg.pin_text, self.recipe)
        pins = files.keyed()
        return pins, self._run(pins.drop_columns(["pin_id"]), files.with_texts)

    def _run(self, wanted: pa.Table, with_texts: Callable[[pa.Table], pa.Table] | None) -> LedgerCounts:
        embed = self.cfg.embed
        settings = {
            "build": self.build, "batch_size": embed.batch_size, "nice": embed.nice, "with_texts": with_texts
        }  # fmt: skip
        return run_missing(
            self.ledger,
            wanted,
            actor_chain(EmbedUDF, settings),
            Pool(
                section="embed",
                num_actors=embed.num_actors,
                num_cpus=embed.num_cpus,
                num_gpus=embed.num_gpus,
                accelerator_type=embed.accelerator_type,
            ),
            rows_per_block=embed.rows_per_block,
            max_error_rate=1.0,  # texts that are empty are no failure; `run` looks at the rest
        )

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors (num_texts, dim) float32, zeros for empty texts; known texts cost nothing."""
        return self.encode_counted(texts)[0]

    def encode_counted(self, texts: Sequence[str]) -> tuple[np.ndarray, LedgerCounts]:
        """`encode`, and what was computed for it."""
        wanted, counts = self.compute(texts)
        return matrix_or_zero(self.ledger.lookup(wanted["content_key"])["embedding"]), counts


def embed_threads(cfg: Config) -> int:
    """CPU threads of one of the stage's actors."""
    return cfg.embed.cpu_threads or actor_threads(cfg.embed.num_actors, cfg.embed.num_cpus)


def student_tower(cfg: Config, store: Storage, student: Output, tower: Role) -> TextTower:
    """A tower of the trained student. Its pooling and prompts are in its folder, so its hash covers them."""
    dim, dtype = cfg.embed.dim or cfg.distill.dim, stage_dtype(cfg.embed)
    recipe = recipe_id(
        stage="embed",
        student=student.content_hash,
        tower=tower,
        dim=dim,
        dtype=dtype,
        text=TEXT_VERSION,
        preprocessing=versions.BI_ENCODER,
    )
    return TextTower(
        cfg=cfg, store=store, table=f"{tower}_embeddings", recipe=recipe, dim=dim,
        build=partial(
            build_tower, store, student, tower, dim, dtype,
            embed_threads(cfg),
        ),
    )  # fmt: skip


def build_tower(store: Storage, student: Output, tower: Role, dim: int, dtype: str, cpu_threads: int) -> Encoder:
    """Load a tower; runs in the Ray actor."""
    from ray_app.models.bi_encoder import TowerEncoder

    return TowerEncoder(local_folder(store, student), tower, dtype, cpu_threads, dim)


def release_sources(cfg: Config, store: Storage, student: Output, pin_texts: Output) -> dict[str, Output]:
    """What serving a release reads besides its vectors, by name: models, texts, and what the features are made of.

    Raises:
        UserError: a stage has not run.
    """
    from ray_app.distill.features import feature_inputs  # it imports zero_shot, which imports this file

    needed = [student, require_output(store, "distill", "feature_student"), pin_texts, *feature_inputs(cfg, store)]
    label = read_manifest(store, "label")
    if label is not None and "soft_labels" in label.outputs:
        needed.append(label.outputs["soft_labels"])
    sample = read_manifest(store, "sample")
    if sample is not None and "public_queries" in sample.outputs:
        needed.append(sample.outputs["public_queries"])
    return {output.name: output for output in needed}


def run(cfg: Config, store: Storage) -> Manifest:
    """Embed what is new, publish a release, drop old ones."""
    student = require_output(store, "distill", "student")
    pin_texts = require_output(store, "enrich", "pin_texts")
    tower = student_tower(cfg, store, student, "pin")
    sources = release_sources(cfg, store, student, pin_texts)
    run = StageRun("embed", cfg, store, VERSION, settings=[cfg.pin_text, tower.recipe], inputs=list(sources.values()))
    if (finished := run.finished) is not None and is_complete(store, finished.info["release"]):
        return finished
    pins, counts = tower.compute_pins(pin_texts)
    check_error_rate(counts, cfg.embed.max_error_rate, "pin embeddings")
    # Whoever serves the release encodes queries with the zero-shot model that the pins' features were made with.
    source, revision = cfg.features.zero_shot_model, cfg.features.zero_shot_revision
    features = cfg.features.model_copy(update={"zero_shot_revision": pinned_revision(source, revision)})
    release = publish_release(
        store,
        pins,
        tower.ledger,
        dim=tower.dim,
        student_id=student.content_hash,
        info={"recipe": tower.recipe},
        sources=sources,
        config=cfg.model_copy(update={"features": features}).model_dump(mode="json"),
    )
    collect_releases(store, cfg.embed.keep_releases)
    return run.finish(
        counts={
            "rows_in": pins.num_rows, "rows_out": release.num_pins, "without_vector": release.num_missing,
            "computed": counts.computed, "errors": counts.errors,
        },
        info={"release": release.id},
        device_sec=counts.device_sec,
    )  # fmt: skip
