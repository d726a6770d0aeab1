"""Embed all pins with the student's pin tower on Ray Data, through the ledger, and publish a release."""

from ray_app.base.config import Config
from ray_app.base.storage import Storage
from ray_app.cluster.encoders import student_tower
from ray_app.cluster.executor import check_error_rate
from ray_app.models.model_sources import pinned_revision
from ray_app.tables.garbage import collect_releases
from ray_app.tables.manifest import Manifest, Output, read_manifest, require_output
from ray_app.tables.publish import publish_release
from ray_app.tables.release import is_complete
from ray_app.tables.stage_run import StageRun

VERSION = 2


def release_sources(cfg: Config, store: Storage, student: Output, pin_texts: Output) -> dict[str, Output]:
    """What serving a release reads besides its vectors, by name: models, texts, and what the features are made of.

    Raises:
        UserError: a stage has not run.
    """
    from ray_app.features.student import feature_inputs  # it imports zero_shot, which imports this file

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
