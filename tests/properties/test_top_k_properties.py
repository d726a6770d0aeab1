"""Finding the best: against sorting everything by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_app.base.hashing import shards_of
from ray_app.online.retrieval import Ranked, Retriever, fuse

SCORES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0]), max_size=30)  # few values: ties are what goes wrong
LISTS = st.lists(st.integers(0, 15), max_size=12, unique=True)
WORDS = ("mug", "cup", "shoe", "lamp", "red", "blue")
few = settings(settings.default, max_examples=max(10, settings.default.max_examples // 2))


@given(SCORES, st.integers(1, 5), st.integers(0, 40))
def test_the_best_of_parts_are_the_best_of_all(scores, num, k):
    """Row r of part i of n is row r * n + i of all."""
    parts = []
    for i in range(num):
        own = np.array(scores[i::num], np.float32)
        order = np.lexsort((np.arange(len(own)), -own))
        parts.append(Ranked(order.astype(np.int64), own[order]))
    found = Ranked.merged(parts, k)
    wanted = sorted(range(len(scores)), key=lambda row: (-scores[row], row))[:k]
    assert found.rows.tolist() == wanted
    assert found.scores.tolist() == [scores[row] for row in wanted]


def fused(by_words, nearest, limit):
    return fuse({"bm25": np.array(by_words, np.int64), "dense": np.array(nearest, np.int64)}, limit)


@given(LISTS, LISTS, st.integers(0, 30))
def test_fusion_is_the_sum_of_reciprocal_ranks(one, other, limit):
    found = fused(one, other, limit)
    score = {row: sum(1 / (61 + rows.index(row)) for rows in (one, other) if row in rows) for row in {*one, *other}}
    assert found.rows.tolist() == sorted(score, key=lambda row: (-score[row], row))[:limit]
    named = (("bm25", one), ("dense", other))
    assert found.sources == [[name for name, rows in named if row in rows] for row in found.rows.tolist()]


@given(LISTS, LISTS, st.integers(0, 15))
def test_who_rises_in_a_list_does_not_fall(one, other, row):
    """To be found better by words can only help."""
    risen = [row, *(r for r in one if r != row)]
    before, after = (fused(by_words, other, 99).rows.tolist() for by_words in (one, risen))
    assert row not in before or after.index(row) <= before.index(row)


@few
@given(
    st.lists(st.lists(st.sampled_from(WORDS), max_size=5).map(" ".join), min_size=1, max_size=20),
    st.lists(st.sampled_from((*WORDS, "unknown")), max_size=4), st.integers(0, 25), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_retrieval_is_sorting_everything(tmp_path_factory, texts, stems, k, seed):
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-2, 3, (len(texts), 4)).astype(np.float32)  # zero rows and ties are likely
    retriever = Retriever.build(tmp_path_factory.mktemp("retriever") / "r", texts, vectors)
    # By words: all that share a word, in the order of their scores.
    everything = retriever.by_words(stems, len(texts))
    sharing = [row for row, text in enumerate(texts) if set(text.split()) & set(stems)]
    assert sorted(everything.rows.tolist()) == sharing
    assert (everything.scores > 0).all() and (np.diff(everything.scores) <= 0).all()
    some = retriever.by_words(stems, k)
    assert some.rows.tolist() == everything.rows[:k].tolist()
    # By vector: cosines, in float16.
    query = rng.integers(-2, 3, 4).astype(np.float32)
    near = retriever.nearest(query, k)
    length = np.linalg.norm(vectors, axis=1)
    good = np.flatnonzero(length > 0)
    if not query.any():
        assert not len(near.rows)
        return
    cosines = vectors[good] @ query / length[good] / np.linalg.norm(query)
    assert len(near.rows) == min(k, len(good)) and set(near.rows.tolist()) <= set(good.tolist())
    assert near.scores == pytest.approx(sorted(cosines, reverse=True)[:k], abs=2e-3)
    own = dict(zip(good.tolist(), cosines.tolist(), strict=True))
    assert near.scores == pytest.approx([own[row] for row in near.rows.tolist()], abs=2e-3)


@given(st.lists(st.text(max_size=6), max_size=40), st.integers(1, 9))
def test_every_pin_is_in_one_shard_whoever_else_is_there(pin_ids, num):
    shards = shards_of(pin_ids, num)
    assert ((shards >= 0) & (shards < num)).all()
    assert shards.tolist() == [int(shards_of([pin], num)[0]) for pin in pin_ids]
