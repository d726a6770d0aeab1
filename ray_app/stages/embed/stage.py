"""embed: pin texts -> pin embeddings by the student's pin tower, those whose text is new, and a release of all."""

from dataclasses import replace
from functools import partial

from ray_app.base.config import Config
from ray_app.base.storage import Storage
from ray_app.cluster.buckets import map_buckets
from ray_app.cluster.catalogue_tables import CatalogueTables
from ray_app.cluster.cost_estimate import CostEstimate
from ray_app.cluster.encoders import CachedEncoder, student_tower
from ray_app.cluster.executor import check_error_rate
from ray_app.features.student import feature_inputs
from ray_app.models.model_sources import pinned_revision
from ray_app.tables.garbage import collect_releases
from ray_app.tables.manifest import Manifest, Output, read_manifest, require_output
from ray_app.tables.publish import publish_release
from ray_app.tables.release import is_complete
from ray_app.tables.stage_run import Stage, StageResult, StageRun, run_stage

VERSION = 3


def run(cfg: Config, store: Storage) -> Manifest:
    """Embed what is new, publish a release, drop old ones."""
    tower, sources = _tower(cfg, store), release_sources(cfg, store)
    stage = Stage(
        name="embed",
        version=VERSION,
        inputs=list(sources.values()),
        recipe=[cfg.pin_text, tower.recipe],
        compute=partial(_embed, tower=tower, sources=sources),
        still_valid=lambda finished: is_complete(store, finished.info["release"]),
    )
    return run_stage(stage, cfg, store)


def estimate_cost(cfg: Config, store: Storage) -> CostEstimate:
    """Embed the first block of each kind that is missing, and estimate the cost of the rest. Its embeddings are kept."""
    tower = _tower(cfg, store)
    texts = tower.pin_texts(require_output(store, "enrich", "pin_texts"))
    return tower.work().estimate_cost(texts.wanted, cfg.embed.rows_per_block, cfg.prices)[0]


def retry_errors(cfg: Config, store: Storage) -> int:
    """Forget the embeddings that failed, so that the next run tries them again; returns how many."""
    return _tower(cfg, store).ledger.drop_errors()


def release_sources(cfg: Config, store: Storage) -> dict[str, Output]:
    """Stage outputs that serving a release reads in addition to its embeddings, by name: models, texts, inputs of features.

    Raises:
        UserError: a stage has not run.
    """
    needed = [require_output(store, "distill", name) for name in ("student", "feature_only_student")]
    tables = CatalogueTables.of(cfg, store)
    needed += [tables.pin_texts, tables.corpus_statistics, *feature_inputs(cfg, store)]
    for stage, name in (("label", "soft_labels"), ("sample", "public_queries")):
        made = read_manifest(store, stage)
        if made is not None and name in made.outputs:
            needed.append(made.outputs[name])
    return {output.name: output for output in needed}


def _tower(cfg: Config, store: Storage) -> CachedEncoder:
    return student_tower(cfg, store, require_output(store, "distill", "student"), "pin")


def _embed(run: StageRun, tower: CachedEncoder, sources: dict[str, Output]) -> StageResult:
    cfg, texts, work = run.cfg, tower.pin_texts(sources["pin_texts"]), tower.work()
    counts = work.compute(texts.wanted)
    check_error_rate(counts.errors, counts.unique, counts.first_error, cfg.embed.max_error_rate, "pin embeddings")
    # Whoever serves the release encodes queries with the zero-shot model that the pins' features were made with.
    source, revision = cfg.features.zero_shot_model, cfg.features.zero_shot_revision
    features = cfg.features.model_copy(update={"zero_shot_revision": pinned_revision(source, revision)})
    release = publish_release(
        run.store,
        texts.keyed,
        replace(tower.ledger, num_buckets=texts.output.num_buckets),
        dim=tower.dim,
        student_id=sources["student"].content_hash,
        info={"recipe": tower.recipe},
        sources=sources,
        config=cfg.model_copy(update={"features": features}).model_dump(mode="json"),
        map_buckets=map_buckets,
    )
    collect_releases(run.store, cfg.embed.num_releases_to_keep)
    return StageResult(
        counts={
            "rows_in": texts.output.rows, "rows_out": release.num_pins, "without_vector": release.num_missing,
            "computed": counts.computed, "errors": counts.errors,
        },
        info={"release": release.id} | work.describe(counts, cfg.prices),
        device_sec=counts.device_sec,
    )  # fmt: skip
