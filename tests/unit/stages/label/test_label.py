"""A bad row becomes data, and the teacher's answer belongs to its row."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.base.columns import matrix_column, matrix_or_zero
from ray_app.base.schemas import SOFT_LABEL_RESULTS, embedding_results
from ray_app.cluster.embedding import NO_TEXT, embed_batch, wanted_texts
from ray_app.stages.label.batch import label_batch
from ray_app.stages.label.pair_scorer import PairScores, query_too_long


class Overlap:
    """Grade 5 where the pin says the query, else grade 1; NaN for the query "unscorable"."""

    def score(self, queries: list[str], pin_texts: list[str], features: np.ndarray) -> PairScores:
        probs = np.zeros((len(queries), 5), np.float32)
        for i, (query, text) in enumerate(zip(queries, pin_texts, strict=True)):
            probs[i, 4 if query in text else 0] = np.nan if query == "unscorable" else 1.0
        errors = [query_too_long(len(query), 20) for query in queries]
        return PairScores(probs=probs, errors=errors, tokens=np.full(len(queries), 7), computed_tokens=5 * len(queries))


class Length:
    """Vector = (length, 1); NaN for "unscorable"."""

    dim = 2

    def encode(self, texts: list[str], batch_size: int) -> np.ndarray:
        return np.array([[np.nan if t == "unscorable" else len(t), 1] for t in texts], np.float32)


def pairs(*rows: tuple[str, str | None]) -> pa.Table:
    return pa.table(
        {
            "content_key": [f"k{i}" for i in range(len(rows))],
            "query": pa.array([q for q, _ in rows], pa.string()),
            "pin_text": pa.array([t for _, t in rows], pa.string()),
            "features": matrix_column(np.zeros((len(rows), 2), np.float32)),
        }
    )


def test_unscorable_pair_yields_error_row() -> None:
    rows = [("cup", "red cup"), ("unscorable", "x"), ("cup", "mug"), ("", "x"), (" \u3000", "x"), ("cup", None), ("cup", " "),
            ("x" * 50, "a"), ("\x00\u202e\ufffd👩\u200d🚀", "\u0301\u0301")]  # fmt: skip
    result = label_batch(pairs(*rows), Overlap())
    codes = [(error or "").split(":")[0] for error in result["error"].to_pylist()]
    assert codes == ["", "not_finite", "", "empty_query", "empty_query", "empty_pin", "empty_pin", "query_too_long", ""]
    probs = result["probs"].to_pylist()
    assert [row is None for row in probs] == [code != "" for code in codes]
    assert (probs[0][4], probs[2][0]) == (1.0, 1.0)
    assert (pc.sum(result["tokens"]).as_py(), pc.sum(result["computed_tokens"]).as_py()) == (5 * 7, 5 * 5)


def test_a_block_of_unscorable_pairs_does_not_reach_the_teacher() -> None:
    result = label_batch(pairs(("", "x"), ("x", "")), None)
    assert result["error"].null_count == 0


def test_an_empty_block_has_the_ledgers_columns() -> None:
    assert label_batch(pairs(), Overlap()).select(SOFT_LABEL_RESULTS.names).schema.equals(SOFT_LABEL_RESULTS)


def test_an_empty_text_and_a_broken_vector_are_error_rows() -> None:
    result = embed_batch(wanted_texts("r", ["cup", "", "unscorable"]), Length(), 8)
    assert result.schema.equals(embedding_results(2))
    assert [(row["error"] or "").split(":")[0] for row in result.to_pylist()] == [
        "",
        NO_TEXT.split(":")[0],
        "not_finite",
    ]


def test_a_missing_vector_is_zero_and_the_rows_keep_their_place() -> None:
    result = embed_batch(wanted_texts("r", ["", "cup", ""]), Length(), 8)
    assert matrix_or_zero(result["embedding"]).tolist() == [[0, 0], [3, 1], [0, 0]]


def test_equal_texts_have_equal_keys_and_another_recipe_others() -> None:
    one, two = wanted_texts("r", ["cup", "cup"])["content_key"].to_pylist()
    assert one == two
    assert wanted_texts("s", ["cup"])["content_key"][0].as_py() != one
