"""corpus_statistics: how common words are in all pins' texts, and what their vectors have in common.

Features of a pair are measured against the whole catalogue. What they need of it is this: small, so that whoever makes
features of some pins reads those pins and no others.
"""

from dataclasses import asdict
from functools import partial

from ray_app.base.columns import matrix_or_zero
from ray_app.base.config import Config
from ray_app.base.hashing import hash_pin_ids
from ray_app.base.storage import Storage
from ray_app.base.text import TEXT_VERSION
from ray_app.cluster.buckets import map_buckets
from ray_app.cluster.corpus_counts import count_corpus
from ray_app.features.cosine import COSINE_FILE, CosineBackground, CosineFeatures, VectorSums
from ray_app.features.lexical import FEATURES_VERSION, lexical_texts
from ray_app.tables.buckets import read_bucket
from ray_app.tables.manifest import Manifest, Output, require_output
from ray_app.tables.model_files import add_model
from ray_app.tables.stage_run import Stage, StageResult, StageRun, run_stage

VERSION = 1
_BACKGROUND_PINS = 1 << 17  # guessed: so large a random sample gives mean and covariance as well as all pins


def run(cfg: Config, store: Storage) -> Manifest:
    """Write `corpus_statistics`: document frequencies and lengths by text field, and backgrounds of the cosines."""
    pin_texts = require_output(store, "enrich", "pin_texts")
    zero_shot = require_output(store, "zero_shot", "zero_shot_pins")
    stage = Stage(
        name="corpus_statistics",
        version=VERSION,
        inputs=[pin_texts, zero_shot],
        recipe=[
            {"bm25_fields": cfg.features.bm25_fields, "max_terms": cfg.features.max_terms},
            cfg.pin_text,
            TEXT_VERSION,
            FEATURES_VERSION,
        ],
        compute=partial(_count, pin_texts=pin_texts, zero_shot=zero_shot),
    )
    return run_stage(stage, cfg, store)


def _count(run: StageRun, pin_texts: Output, zero_shot: Output) -> StageResult:
    cfg, store = run.cfg, run.store
    texts_of = partial(lexical_texts, features=cfg.features, pin_text=cfg.pin_text)
    corpus = count_corpus(store, pin_texts, texts_of, cfg.features.max_terms)
    per_bucket = -(-_BACKGROUND_PINS // zero_shot.num_buckets)
    sums = map_buckets(partial(_vector_sums, store, zero_shot, per_bucket), range(zero_shot.num_buckets))
    cosine = CosineFeatures(
        title=CosineBackground.of_sums([title for title, _ in sums]),
        text=CosineBackground.of_sums([text for _, text in sums]),
    )
    folder = f"models/corpus_statistics/{run.fingerprint}"
    contents = corpus.to_files() | {COSINE_FILE: cosine.to_json().encode()}
    files = [store.write_bytes(f"{folder}/{name}", data) for name, data in contents.items()]
    store.write_json(f"{folder}/files.json", [asdict(file) for file in files])
    add_model(run, "corpus_statistics", folder)
    return StageResult(
        counts={"rows_in": pin_texts.rows, "rows_out": pin_texts.rows},
        info={
            "num_terms": {name: len(terms.hashes) for name, terms in corpus.terms.items()},
            "unlisted": {name: terms.unlisted for name, terms in corpus.terms.items() if terms.unlisted},
            "num_bytes": sum(map(len, contents.values())),
        },
    )


def _vector_sums(store: Storage, zero_shot: Output, num_pins: int, number: int) -> tuple[VectorSums, VectorSums]:
    """Sums over title and text vectors of some of a bucket's pins."""
    pins = read_bucket(store, zero_shot, number)
    if pins.num_rows > num_pins:
        pins = pins.take(hash_pin_ids(pins["pin_id"].to_pylist()).argsort(kind="stable")[:num_pins])
    title, text = (matrix_or_zero(pins[name]) for name in ("title_embedding", "text_embedding"))
    return VectorSums.of(title), VectorSums.of(text)
