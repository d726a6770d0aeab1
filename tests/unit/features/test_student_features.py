"""The student's features: what they say of locales."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from side_world import build

from ray_app.features.catalogue import Catalogue
from ray_app.features.student import LOCALE_NAMES, StudentFeatures


@pytest.fixture
def features():
    """Pins of each of `locales`, without lexical features."""

    def make(*locales):
        pairs = SimpleNamespace(names=[], compute=lambda queries, query_index, *_: np.zeros((len(query_index), 0)))
        catalogue = SimpleNamespace(pin_texts=pa.table({"locale": pa.array(locales, pa.string())}), pairs=pairs)
        nothing = np.zeros((len(locales), 0), np.float32)
        return StudentFeatures(catalogue=catalogue, vectors=nothing, vector_known=nothing, vector_dims={})  # type: ignore[arg-type]

    return make


def of(found, locale):
    """Each pin's locale features for a query of a locale."""
    n = found.catalogue.pin_texts.num_rows
    rows = found.compute(["q"], np.zeros(n, np.int64), np.arange(n), [locale] * n)
    assert tuple(found.names) == LOCALE_NAMES
    return [tuple(map(int, row)) for row in rows]


def test_same_locale_same_language_pin_known_query_known(features):
    found = features("en-US", "en-GB", "de-DE", None)
    assert of(found, "en-US") == [(1, 1, 1, 1), (0, 1, 1, 1), (0, 0, 1, 1), (0, 0, 0, 1)]


def test_an_unknown_locale_is_the_same_as_none(features):
    """Two unknown ones neither; and it is not en-US."""
    assert of(features("en-US", "de-DE", None), "und") == [(0, 0, 1, 0), (0, 0, 1, 0), (0, 0, 0, 0)]


def test_a_script_does_not_hide_the_language(features):
    assert of(features("zh-Hant-TW", "zh", "sr-Latn"), "zh-Hans-CN") == [(0, 1, 1, 1), (0, 1, 1, 1), (0, 0, 1, 1)]


def test_a_spelling_of_the_source_reaches_no_feature(tmp_path):
    """From a file to features: `en_US` of a pin and `en-us` of a log are one locale."""
    (tmp_path / "spelled.csv").write_text("pin_id,title,locale\np1,apple,en_US\np2,banana,EN\n")
    cfg, store = build(
        tmp_path, pins={"p1": "apple", "p2": "banana"}, log=[("apple", "p1", "click")], boards=[], labelled=("zebra",)
    )
    from ray_app.stages.enrich.stage import run as enrich
    from ray_app.stages.ingest.stage import run as ingest
    from ray_app.tables.manifest import read_output, require_output

    pins = cfg.ingest.pins.model_copy(update={"path": str(tmp_path / "spelled.csv")})
    cfg = cfg.model_copy(update={"ingest": cfg.ingest.model_copy(update={"pins": pins})})
    ingest(cfg, store)
    enrich(cfg, store)
    texts = read_output(store, require_output(store, "enrich", "pin_texts"))
    (asked,) = set(read_output(store, require_output(store, "ingest", "search_log"))["locale"].to_pylist())
    catalogue = Catalogue.of_texts(cfg, texts)
    nothing = np.zeros((2, 0), np.float32)
    found = StudentFeatures(catalogue=catalogue, vectors=nothing, vector_known=nothing, vector_dims={})
    rows = found.compute(["apple"], np.zeros(2, np.int64), np.arange(2), [asked] * 2)
    assert rows[:, -4:].astype(int).tolist() == [[1, 1, 1, 1], [0, 1, 1, 1]]
