"""The student's features: what they say of locales."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from side_world import build

from ray_app.features.catalogue import Catalogue
from ray_app.features.student import LOCALE_NAMES, StudentFeatures
from ray_app.stages.enrich.stage import run as enrich
from ray_app.stages.ingest.stage import run as ingest
from ray_app.tables.manifest import read_output, require_output


def nothing(num_pins):
    return np.zeros((num_pins, 0), np.float32)


@pytest.mark.parametrize(
    ("pins", "query", "found"),
    [
        (("en-US", "en-GB", "de-DE", None), "en-US", [(1, 1, 1, 1), (0, 1, 1, 1), (0, 0, 1, 1), (0, 0, 0, 1)]),
        (
            ("en-US", "de-DE", None),
            "und",
            [(0, 0, 1, 0), (0, 0, 1, 0), (0, 0, 0, 0)],
        ),  # two unknown ones are not the same
        (("zh-Hant-TW", "zh", "sr-Latn"), "zh-Hans-CN", [(0, 1, 1, 1), (0, 1, 1, 1), (0, 0, 1, 1)]),
    ],
    ids=["a locale", "an unknown one", "a script"],
)
def test_same_locale_same_language_pin_known_query_known(pins, query, found):
    """Each pin's locale features for a query of a locale; without lexical features."""
    n = len(pins)
    pairs = SimpleNamespace(names=[], compute=lambda queries, query_index, *_: np.zeros((len(query_index), 0)))
    catalogue = SimpleNamespace(pin_texts=pa.table({"locale": pa.array(pins, pa.string())}), pairs=pairs)
    features = StudentFeatures(catalogue=catalogue, vectors=nothing(n), vector_known=nothing(n), vector_dims={})
    rows = features.compute(["q"], np.zeros(n, np.int64), np.arange(n), [query] * n)
    assert tuple(features.names) == LOCALE_NAMES
    assert [tuple(map(int, row)) for row in rows] == found


def test_a_spelling_of_the_source_reaches_no_feature(tmp_path):
    """From a file to features: `en_US` of a pin and `en-us` of a log are one locale."""
    (tmp_path / "spelled.csv").write_text("pin_id,title,locale\np1,apple,en_US\np2,banana,EN\n")
    cfg, store = build(
        tmp_path, pins={"p1": "apple", "p2": "banana"}, log=[("apple", "p1", "click")], boards=[], labelled=("zebra",)
    )
    pins = cfg.ingest.pins.model_copy(update={"path": str(tmp_path / "spelled.csv")})
    cfg = cfg.model_copy(update={"ingest": cfg.ingest.model_copy(update={"pins": pins})})
    ingest(cfg, store)
    enrich(cfg, store)
    texts = read_output(store, require_output(store, "enrich", "pin_texts"))
    (asked,) = set(read_output(store, require_output(store, "ingest", "search_log"))["locale"].to_pylist())
    catalogue = Catalogue.of_texts(cfg, texts)
    found = StudentFeatures(catalogue=catalogue, vectors=nothing(2), vector_known=nothing(2), vector_dims={})
    rows = found.compute(["apple"], np.zeros(2, np.int64), np.arange(2), [asked] * 2)
    assert rows[:, -4:].astype(int).tolist() == [[1, 1, 1, 1], [0, 1, 1, 1]]
