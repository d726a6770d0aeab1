"""Pairs that the catalogue itself grades, so that the teacher knows its things before it sees the few human labels.

Titles of products, recipes and the like name the kind of thing in a run of plain words: "Intel 540 *processor* 1.86
GHz". That phrase is a query which the pin answers and pins of clearly other kinds do not. In half of the positives the
phrase is taken out of the title, so that the teacher must tell the kind from brand, model and description, which is
what words alone cannot do. Measured on Chorus by cross-validation: docs/model_selection.md.
"""

import numpy as np
import pyarrow as pa

from ray_app.base.config import PinTextConfig, PretrainConfig
from ray_app.base.schemas import NUM_GRADES
from ray_app.base.text import render_pin_texts, stem_tokens, tokenize
from ray_app.features.bm25 import Bm25Index
from ray_app.features.neighbors import top_neighbors
from ray_app.features.product_types import ProductTypePin
from ray_app.training.examples import Examples

_TARGET_SURE = 0.9  # probability of the grade that the catalogue suggests; the rest is spread: it errs too


def pseudo_labels(
    pin_texts: pa.Table,
    typed: list[ProductTypePin],
    phrase_vectors: np.ndarray,
    pin_vectors: np.ndarray,
    num_features: int,
    text: PinTextConfig,
    cfg: PretrainConfig,
    seed: int,
) -> Examples:
    """Pseudo-labelled pairs (phrase, pin): grade 5 for pins of that kind, grade 1 for hard pins of other kinds.

    Args:
        pin_texts: Schema PIN_TEXTS.
        typed: From `find_product_types`, with `n` distinct phrases.
        phrase_vectors: (n, dim) zero-shot vectors of the distinct phrases, sorted.
        pin_vectors: (num_pins, dim) zero-shot vectors.
        num_features: Width of the features, which are all 0 here: the texts alone must do.
        text: How a pin becomes text.
        cfg: How many pairs per phrase.
        seed: Of the run.
    """
    phrases = sorted({pin.phrase for pin in typed})
    index = {phrase: i for i, phrase in enumerate(phrases)}
    rows = np.array([pin.row for pin in typed], np.int64)
    kinds = np.array([index[pin.phrase] for pin in typed], np.int64)
    related = _related(phrases, phrase_vectors, cfg.max_product_type_cosine)
    whole = render_pin_texts(pin_texts, text)
    place = pin_texts.column_names.index("title")
    titles = pin_texts["title"].to_pylist()
    for pin in typed:
        titles[pin.row] = pin.title_without
    masked = render_pin_texts(pin_texts.set_column(place, "title", pa.array(titles, pa.string())), text)
    lexical = Bm25Index.build([whole[row] for row in rows], tokenizer=stem_tokens)
    rng = np.random.default_rng(seed)
    pairs: list[tuple[str, str, int]] = []
    for kind, phrase in enumerate(phrases):
        own = rng.permutation(np.flatnonzero(kinds == kind))[: cfg.positives]
        for i in own:
            pairs.append((phrase, (masked if rng.random() < cfg.masked_fraction else whole)[rows[i]], NUM_GRADES))
        other = ~related[kind][kinds]
        found, _ = lexical.top_k(phrase, 20 * cfg.negatives)
        near = top_neighbors(phrase_vectors[kind : kind + 1], pin_vectors[rows], 20 * cfg.negatives)[0][0]
        for pool in (found, near):
            usable = pool[other[pool]][: 5 * cfg.negatives]
            for i in rng.permutation(usable)[: cfg.negatives]:
                pairs.append((phrase, whole[rows[i]], 1))
    targets = np.full((len(pairs), NUM_GRADES), (1 - _TARGET_SURE) / (NUM_GRADES - 1), np.float32)
    targets[np.arange(len(pairs)), [grade - 1 for _, _, grade in pairs]] = _TARGET_SURE
    return Examples(
        queries=[phrase for phrase, _, _ in pairs],
        pin_texts=[shown for _, shown, _ in pairs],
        features=np.zeros((len(pairs), num_features), np.float32),
        targets=targets,
        weights=np.ones(len(pairs), np.float32),
    )


def _related(phrases: list[str], vectors: np.ndarray, max_cosine: float) -> np.ndarray:
    """(n, n) bool: kinds too close for one's pins to be wrong answers to the other ("printer", "inkjet printer")."""
    related = vectors @ vectors.T > max_cosine
    words = [set(tokenize(phrase)) for phrase in phrases]
    heads = [tokenize(phrase)[-1:] for phrase in phrases]
    for i, one in enumerate(words):
        for j, two in enumerate(words):
            if i == j or (heads[i] == heads[j] and (one <= two or two <= one)):
                related[i, j] = True
    return related
