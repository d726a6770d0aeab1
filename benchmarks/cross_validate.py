"""Cross-validate the teacher by query on the human labels of a config: how recipes were chosen (docs/model_selection.md).

    python benchmarks/cross_validate.py --config configs/chorus.yaml [--folds 5] [--set train_teacher.hidden_dim=64] [--systems teacher]

Needs a finished `zero_shot` stage. Every query is tested once, by a teacher that saw no near-duplicate of it. Runs in one
process, without Ray. With `--systems student`, each fold's teacher also labels the sampled pairs (the test queries'
left out), a student is distilled from them, and it is tested on the same queries: minutes per fold.
"""

import argparse
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from _bench import finish

from ray_app.analysis.evaluate.render_text import render_table
from ray_app.analysis.metrics.bootstrap_result import EvaluationSettings, rating_of_grade
from ray_app.analysis.metrics.evaluation import evaluate_systems
from ray_app.analysis.metrics.protocol import SystemScores
from ray_app.base.columns import matrix_of
from ray_app.base.config import Config, load_config
from ray_app.base.content_key import content_key
from ray_app.base.storage import Storage
from ray_app.base.text import query_group
from ray_app.cluster.catalogue_tables import load_catalogue
from ray_app.cluster.encoders import title_and_text
from ray_app.features.bm25 import Bm25Index
from ray_app.features.catalogue import Catalogue, index_queries
from ray_app.features.cosine import CosineFeatures
from ray_app.features.product_types import find_product_types
from ray_app.features.student import StudentFeatures
from ray_app.models.bi_encoder import BiEncoder
from ray_app.models.cross_encoder import CrossEncoder
from ray_app.models.devices import autocast, pick_dtype
from ray_app.models.encoder_usage import zero_shot_usage
from ray_app.models.head import FeatureScaler, expected_grade
from ray_app.models.text_encoder import TextEncoder, build_zero_shot
from ray_app.stages.train_teacher.pretrain import pseudo_labels
from ray_app.tables.manifest import read_output, require_output
from ray_app.training.examples import Examples
from ray_app.training.labelled_pairs import LabelledPairs
from ray_app.training.loop import fit
from ray_app.training.state import Worker
from ray_app.training.targets import query_weights


def main() -> None:
    """Print the table, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/chorus.yaml")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--systems", choices=["teacher", "student"], default="teacher")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    started = time.monotonic()
    cfg = load_config(args.config, args.set)
    store = Storage(cfg.output)
    catalogue, _ = load_catalogue(cfg, store)
    labels = read_output(store, require_output(store, "ingest", "human_labels"))
    pairs = LabelledPairs.of(catalogue, labels, cfg.train_teacher.label_smoothing)
    encoder = build_zero_shot(cfg.features, zero_shot_usage(cfg.features), "query", cfg.embed.dtype, 0)
    vectors = encoder.encode(pairs.queries)
    cosine = CosineFeatures.of(catalogue.title_vectors, catalogue.text_vectors)
    examples = Examples(
        queries=pairs.table["query"].to_pylist(),
        pin_texts=[catalogue.pairs.rendered[row] for row in pairs.pin_index],
        locales=pairs.table["locale"].to_pylist(),
        features=catalogue.teacher_features(cosine, pairs.queries, vectors, pairs.query_index, pairs.pin_index),
        targets=matrix_of(pairs.table["target"]),
        weights=query_weights(pairs.query_index, cfg.train_teacher.query_weight_exponent),
    )
    warm = _pretrain(cfg, catalogue, encoder, examples.features.shape[1])
    folds = _folds(examples.queries, args.folds, cfg.seed)
    probs = {"teacher": np.zeros((len(examples), 5)), "student": np.zeros((len(examples), 5))}
    pool = _Pool(cfg, store, catalogue, encoder) if args.systems == "student" else None
    for fold in range(args.folds):
        test = np.flatnonzero(folds == fold)
        rest = np.flatnonzero(folds != fold)
        valid_groups = _valid_groups(examples.rows(rest).queries, cfg)
        is_valid = np.array([query_group(query) in valid_groups for query in examples.rows(rest).queries])
        teacher = _train_teacher(cfg, warm, examples.rows(rest[~is_valid]), examples.rows(rest[is_valid]))
        probs["teacher"][test] = _probs(teacher, examples.rows(test), cfg)
        if pool is not None:
            student = pool.distill(
                teacher, set(examples.rows(test).queries), examples.rows(rest[~is_valid]), pairs, rest[~is_valid]
            )
            features = pool.beside.compute(
                pairs.queries, pairs.query_index[test], pairs.pin_index[test], examples.rows(test).locales or []
            )
            probs["student"][test] = _probs(student, _with_features(examples.rows(test), features), cfg)
        print(f"fold {fold + 1}/{args.folds}: {time.monotonic() - started:.0f} s", flush=True)
    bm25 = Bm25Index.build(title_and_text(cfg, catalogue.pin_texts)[1])
    similarity = np.einsum("nd,nd->n", vectors[pairs.query_index], catalogue.text_vectors[pairs.pin_index])
    systems = {
        "bm25": SystemScores(score=bm25.score_pairs(pairs.queries, pairs.query_index, pairs.pin_index)),
        "embedding_cosine": SystemScores(score=similarity.astype(np.float64)),
    }
    for name in ("teacher", "student")[: 1 if pool is None else 2]:
        systems[name] = SystemScores(score=expected_grade(probs[name]), probs=probs[name])
    settings = EvaluationSettings(rating_of_grade=rating_of_grade(getattr(cfg.ingest.human_labels, "grade_map", None)))
    evaluation = evaluate_systems(pairs.table, systems, settings)
    print(render_table(evaluation))
    figures = {"rows": evaluation.rows(), "folds": args.folds, "overrides": args.set, "sec": time.monotonic() - started}
    finish("cross_validate", ratio=figures["rows"][2]["auroc_3"] / figures["rows"][1]["auroc_3"], **figures)


class _Pool:
    """The sampled pairs that a fold's teacher labels."""

    def __init__(self, cfg: Config, store: Storage, catalogue: Catalogue, encoder: TextEncoder) -> None:
        self.cfg, self.catalogue = cfg, catalogue
        self.beside = StudentFeatures.load(catalogue, store, encoder.encode)
        table = read_output(store, require_output(store, "sample", "pairs"))
        self.locales = table["locale"].to_pylist()
        self.queries, self.query_index = index_queries(table["query"].to_pylist())
        self.pin_index = catalogue.pairs.pin_rows(table["pin_id"].to_pylist())
        vectors = encoder.encode(self.queries)
        self.teacher_features = catalogue.teacher_features(
            CosineFeatures.of(catalogue.title_vectors, catalogue.text_vectors),
            self.queries,
            vectors,
            self.query_index,
            self.pin_index,
        )
        self.features = self.beside.compute(self.queries, self.query_index, self.pin_index, self.locales)

    def distill(
        self, teacher: CrossEncoder, held_out: set[str], human: Examples, pairs: LabelledPairs, human_rows: np.ndarray
    ) -> BiEncoder:
        """A student of that teacher that saw no held-out query."""
        groups = {query_group(query) for query in held_out}
        keep = np.flatnonzero([query_group(self.queries[i]) not in groups for i in self.query_index])
        plain = Examples(
            queries=[self.queries[self.query_index[i]] for i in keep],
            pin_texts=[self.catalogue.pairs.rendered[self.pin_index[i]] for i in keep],
            locales=[self.locales[i] for i in keep],
            features=self.teacher_features[keep],
            targets=np.full((len(keep), 5), 0.2, np.float32),
            weights=np.ones(len(keep), np.float32),
        )
        soft = _probs(teacher, plain, self.cfg).astype(np.float32)
        taught = Examples(
            queries=plain.queries, pin_texts=plain.pin_texts, features=self.features[keep], targets=soft,
            weights=plain.weights, locales=plain.locales,
        )  # fmt: skip
        distill = self.cfg.distill
        weight = np.full(len(human), distill.human_label_weight, np.float32)
        features = self.beside.compute(
            pairs.queries, pairs.query_index[human_rows], pairs.pin_index[human_rows], human.locales or []
        )
        bound = f"{int(distill.validation_fraction * 16**8):08x}"
        is_valid = np.array([content_key("valid", query_group(q))[:8] < bound for q in taught.queries])
        train = [taught.rows(np.flatnonzero(~is_valid)), _with_features(human, features, weight)]
        train_all = Examples.concatenate(train[: 2 if distill.human_label_weight else 1])
        scaler = FeatureScaler.fit(train_all.features)
        import torch

        torch.manual_seed(self.cfg.seed)
        student = BiEncoder.from_base(distill, scaler)
        fit(student, train_all, taught.rows(np.flatnonzero(is_valid)), distill.train, self.cfg.seed, Worker())
        return student


def _with_features(examples: Examples, features: np.ndarray, weights: np.ndarray | None = None) -> Examples:
    return Examples(
        queries=examples.queries, pin_texts=examples.pin_texts, features=features, targets=examples.targets,
        weights=examples.weights if weights is None else weights, locales=examples.locales,
    )  # fmt: skip


def _pretrain(cfg: Config, catalogue: Catalogue, encoder: TextEncoder, num_features: int) -> Path | None:
    pretrain = cfg.train_teacher.pretrain
    if pretrain is None:
        return None
    import tempfile

    typed = find_product_types(catalogue.pin_texts["title"].to_pylist(), pretrain.min_pins)
    vectors = encoder.encode(sorted({pin.phrase for pin in typed}))
    examples = pseudo_labels(
        catalogue.pin_texts, typed, vectors, catalogue.text_vectors, num_features, cfg.pin_text, pretrain, cfg.seed
    )
    model = _new(cfg, FeatureScaler(np.zeros(num_features), np.ones(num_features)), None)
    started = time.monotonic()
    fit(model, examples, examples.rows(np.arange(0)), pretrain.train, cfg.seed, Worker())
    folder = Path(tempfile.mkdtemp())
    model.save_pretrained(folder)
    print(f"warm-up: {len(examples)} pairs of {len(vectors)} kinds, {time.monotonic() - started:.0f} s", flush=True)
    return folder


def _new(cfg: Config, scaler: FeatureScaler, warm: Path | None) -> CrossEncoder:
    import torch

    torch.manual_seed(cfg.seed)
    return (
        CrossEncoder.from_base(cfg.train_teacher, scaler)
        if warm is None
        else CrossEncoder.from_pretrained(warm, scaler)
    )


def _train_teacher(cfg: Config, warm: Path | None, train: Examples, valid: Examples) -> CrossEncoder:
    model = _new(cfg, FeatureScaler.fit(train.features), warm)
    fit(model, train, valid, cfg.train_teacher.train, cfg.seed, Worker())
    return model


def _probs(model: CrossEncoder | BiEncoder, examples: Examples, cfg: Config) -> np.ndarray:
    import torch

    model.eval()
    if isinstance(model, BiEncoder):
        model.before_training(examples.queries, examples.pin_texts, cfg.distill.train)
    order = np.argsort([-len(text) for text in examples.pin_texts], kind="stable")
    out = np.zeros((len(examples), 5))
    for start in range(0, len(order), 64):
        rows = order[start : start + 64]
        part = examples.rows(rows)
        with torch.inference_mode(), autocast("cpu", pick_dtype(cfg.label.dtype, "cpu")):
            logits = model(model.prepare(part.queries, part.pin_texts, part.features))
        out[rows] = logits.float().softmax(-1).numpy()
    return out


def _folds(queries: Sequence[str], num_folds: int, seed: int) -> np.ndarray:
    """Fold of each pair; near-duplicate queries share one, and folds hold about equally many pairs."""
    groups = [query_group(query) for query in queries]
    sizes = {group: groups.count(group) for group in set(groups)}
    load, fold_of = [0] * num_folds, {}
    for group in sorted(sizes, key=lambda g: content_key(str(seed), g)):
        fold_of[group] = int(np.argmin(load))
        load[fold_of[group]] += sizes[group]
    return np.array([fold_of[group] for group in groups])


def _valid_groups(queries: Sequence[str], cfg: Config) -> set[str]:
    groups = sorted({query_group(query) for query in queries}, key=lambda g: content_key(f"valid {cfg.seed}", g))
    return set(groups[: round(len(groups) * cfg.train_teacher.validation_fraction)])


if __name__ == "__main__":
    main()
