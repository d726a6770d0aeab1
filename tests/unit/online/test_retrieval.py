"""Candidates by words and by vectors, and the files that they come from."""

import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ray_app.base.errors import UserError
from ray_app.base.text import stem_tokens
from ray_app.features.bm25 import Bm25Index
from ray_app.online.query_understanding import SpellingDictionary, count_words, understand
from ray_app.online.retrieval import BM25, DENSE, Ranked, Retriever, fuse

TEXTS = ["red mug", "blue mug", "green chair of wood", "", "mug mug mug red", "赤い マグカップ", "chairs chairs"]
VECTORS_OF = np.eye(7, 8, dtype=np.float16)  # pin i says dimension i
VOCABULARY = SpellingDictionary.of(count_words(TEXTS), ["en"])
ALL = {"num_bm25": 10, "num_vectors": 10, "limit": 10}


def low_rank(num, dim=48, rank=24, seed=0):
    """Vectors that lie as those of a trained tower: in fewer dimensions than they have."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((num, rank)) @ rng.standard_normal((rank, dim))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float16)


def towards(*rows):
    """A query between pins: the nearer, the earlier a row is named."""
    vector = np.zeros(8, np.float32)
    for place, row in enumerate(rows):
        vector[row] = 1.0 - 0.1 * place
    return vector


def retrieve(retriever, query, vector, *, num_bm25, num_vectors, limit):
    """As a search does."""
    by_vector = Ranked.nothing() if vector is None else retriever.nearest(vector, num_vectors)
    return fuse({BM25: retriever.by_words(query.stems, num_bm25).rows, DENSE: by_vector.rows}, limit)


@pytest.fixture(scope="module", params=["exact", "hnsw"])
def retriever(request, tmp_path_factory):
    exact_below = {"exact": 1_000, "hnsw": 0}[request.param]
    return Retriever.build(tmp_path_factory.mktemp("index") / "r", TEXTS, VECTORS_OF, exact_below=exact_below)


# --- by words ---


def test_bm25_is_lucenes_solved_by_hand(retriever):
    """A library that changes its default variant would silently change every search."""
    num_docs, mean_length, k1, b = 7, 16 / 7, 1.5, 0.75

    def share(doc_frequency, frequency, length):
        idf = math.log(1 + (num_docs - doc_frequency + 0.5) / (doc_frequency + 0.5))
        return idf * frequency / (frequency + k1 * (1 - b + b * length / mean_length))

    rows, scores = retriever.by_words(["red", "mug"], 10)
    expected = {
        0: share(2, 1, 2) + share(3, 1, 2),
        1: share(3, 1, 2),
        4: share(2, 1, 4) + share(3, 3, 4),
    }
    assert dict(zip(rows.tolist(), scores.tolist(), strict=True)) == pytest.approx(expected, rel=1e-5)
    assert rows.tolist() == sorted(expected, key=lambda row: -expected[row])


def test_bm25_ranks_as_the_offline_one(tmp_path):
    """`sample` retrieves with `ray_app.features.bm25` (rank-bm25's Okapi): both must mean the same by BM25.

    Their idf differ, by next to nothing for words that few pins have: one word orders pins alike, and of several the
    first hundred are nearly the same.
    """
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(300)]
    texts = [" ".join(rng.choice(words, rng.integers(3, 20))) for _ in range(500)]
    ours = Bm25Index.build(texts, tokenizer=stem_tokens)
    theirs = Retriever.build(tmp_path / "r", texts, np.zeros((500, 4), np.float16))
    assert theirs.by_words(["w7"], 500)[0].tolist() == ours.top_k("w7", 500)[0].tolist()
    shared = [
        len(set(theirs.by_words(query.split(), 20)[0].tolist()) & set(ours.top_k(query, 20)[0].tolist()))
        for query in (" ".join(rng.choice(words, 3, replace=False)) for _ in range(20))
    ]
    assert np.mean(shared) >= 19.5


def test_a_word_that_every_pin_says_still_finds_them(tmp_path):
    """In a catalogue of shoes, `shoe` must not find nothing."""
    retriever = Retriever.build(tmp_path / "r", ["red shoe", "shoes", "blue shoe"], np.zeros((3, 4), np.float16))
    assert sorted(retriever.by_words(["shoe"], 10)[0].tolist()) == [0, 1, 2]


def test_equally_good_pins_are_cut_by_row(tmp_path):
    """Otherwise the same search would show other pins on another machine."""
    retriever = Retriever.build(tmp_path / "r", ["mug", "red mug", *["mug"] * 20], np.zeros((22, 4), np.float16))
    assert retriever.by_words(["mug"], 5)[0].tolist() == [0, 2, 3, 4, 5]


def test_the_order_of_the_words_does_not_matter(retriever):
    """Rounding must not put pins in another order."""
    one, other = retriever.by_words(["red", "mug", "chair"], 10), retriever.by_words(["chair", "mug", "red", "mug"], 10)
    assert one[0].tolist() == other[0].tolist()
    assert one[1].tolist() == other[1].tolist()


@pytest.mark.parametrize("text", ["", "😀", "zzzz", "!!!", "x" * 500, "ab " * 166, "\ud800"])
def test_a_query_of_unknown_words_finds_what_vectors_give_or_nothing(retriever, text):
    """An emoji is a query too."""
    query = understand(text, VOCABULARY)
    assert retrieve(retriever, query, None, **ALL).rows.tolist() == []
    found = retrieve(retriever, query, towards(2, 0), **ALL)
    assert found.rows.tolist()[:2] == [2, 0]
    assert found.sources[0] == [DENSE]


def test_other_scripts_find_their_pins(retriever):
    """Japanese users search as well."""
    assert retrieve(retriever, understand("マグカップ", VOCABULARY), None, **ALL).rows.tolist() == [5]


def test_a_slip_finds_the_pin_and_the_users_own_word_too(tmp_path):
    """Both are looked for: who is right shows in what the student says."""
    texts = ["nixon watch", "nikon camera"]
    retriever = Retriever.build(tmp_path / "r", texts, np.zeros((2, 4), np.float16))
    query = understand("nixxn nikon", SpellingDictionary.of(count_words(texts), []))
    assert sorted(retrieve(retriever, query, None, **ALL).rows.tolist()) == [0, 1]


# --- by vector ---


def test_the_nearest_pins_come_first_with_their_cosines(retriever):
    """Solved by hand: (0.9, 1.0) / sqrt(1.81)."""
    rows, cosines = retriever.nearest(towards(2, 0), 2)
    assert rows.tolist() == [2, 0]
    assert cosines == pytest.approx([1 / math.sqrt(1.81), 0.9 / math.sqrt(1.81)], abs=2e-3)


def test_a_pin_is_nearest_to_itself(retriever):
    """Related pins ask by row."""
    rows, cosines = retriever.nearest(3, 1)
    assert rows.tolist() == [3]
    assert cosines == pytest.approx([1.0], abs=1e-3)


def test_the_length_of_a_query_does_not_matter(retriever):
    """float16 ends at 65,504: a long vector would be infinite."""
    assert retriever.nearest(towards(2, 0) * 1e6, 2)[0].tolist() == [2, 0]
    assert retriever.nearest(towards(2, 0) * 1e-6, 2)[0].tolist() == [2, 0]


def test_a_query_without_a_direction_finds_nothing(retriever):
    """Zeros are as near to every pin, and NaN to none."""
    assert retriever.nearest(np.zeros(8, np.float32), 5)[0].tolist() == []
    assert retriever.nearest(np.full(8, np.nan, np.float32), 5)[0].tolist() == []


def test_a_vector_of_another_student_is_refused(retriever):
    """Its nearest pins would be nonsense."""
    with pytest.raises(ValueError, match="8 numbers"):
        retriever.nearest(np.ones(4, np.float32), 5)
    with pytest.raises(IndexError, match=r"0\.\.6"):
        retriever.nearest(-1, 5)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])
@pytest.mark.parametrize("exact_below", [1_000, 0], ids=["exact", "hnsw"])
def test_pins_without_a_vector_are_never_near(tmp_path, dtype, exact_below):
    """Rows after them must not be shifted, or every related pin would be a wrong one."""
    vectors = (np.eye(7, 8) * 100).astype(dtype)
    vectors[[1, 4]] = 0
    retriever = Retriever.build(tmp_path / "r", TEXTS, vectors, exact_below=exact_below)
    rows = retriever.nearest(towards(5, 4, 1, 0), 10)[0]
    assert rows.tolist()[:2] == [5, 0]
    assert sorted(rows.tolist()) == [0, 2, 3, 5, 6]
    assert retriever.nearest(4, 3)[0].tolist() == []
    assert retriever.nearest(6, 1)[0].tolist() == [6]


def test_broken_vectors_are_none(tmp_path):
    """NaN is near to nothing, and would upset the order of all others."""
    vectors = VECTORS_OF.copy()
    vectors[2], vectors[3, 0] = np.nan, np.inf
    retriever = Retriever.build(tmp_path / "r", TEXTS, vectors)
    assert sorted(retriever.nearest(np.ones(8, np.float32), 10)[0].tolist()) == [0, 1, 4, 5, 6]


def test_hnsw_finds_nearly_all_that_exact_search_finds(tmp_path):
    """Pins that it misses can never be ranked."""
    vectors = low_rank(3_000)
    exact = Retriever.build(tmp_path / "exact", [""] * 3_000, vectors)
    hnsw = Retriever.build(tmp_path / "hnsw", [""] * 3_000, vectors, exact_below=0)
    queries = vectors[:40].astype(np.float32) + 0.02 * np.random.default_rng(1).standard_normal((40, 48))
    shared = [len(set(exact.nearest(q, 100)[0].tolist()) & set(hnsw.nearest(q, 100)[0].tolist())) for q in queries]
    assert np.mean(shared) >= 95  # measured: 100; of 60,000 in 128 dimensions 99.3


def test_exact_search_is_the_product_of_the_matrix(tmp_path):
    """Reference: numpy."""
    vectors = low_rank(500).astype(np.float32)
    retriever = Retriever.build(tmp_path / "r", [""] * 500, vectors)
    rows, cosines = retriever.nearest(vectors[7] * 3, 20)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    wanted = unit @ unit[7]
    assert rows.tolist() == np.argsort(-wanted)[:20].tolist()
    assert cosines == pytest.approx(wanted[rows], abs=1e-4)


# --- both ---


def test_threads_get_what_one_gets(tmp_path):
    """Searches that ran into each other would return pins of another user's query."""
    vectors = low_rank(2_000)
    retriever = Retriever.build(tmp_path / "r", [""] * 2_000, vectors, exact_below=0)
    alone = [retriever.nearest(row, 20)[0].tolist() for row in range(200)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda row: retriever.nearest(row, 20)[0].tolist(), range(200)))
    assert together == alone


@pytest.mark.parametrize("num_pins", [0, 1])
@pytest.mark.parametrize("exact_below", [10, 0], ids=["exact", "hnsw"])
def test_a_catalogue_without_words_and_vectors_finds_nothing(tmp_path, num_pins, exact_below):
    """The first release of a new catalogue must not crash the service."""
    retriever = Retriever.build(
        tmp_path / "r", [""] * num_pins, np.zeros((num_pins, 8), np.float16), exact_below=exact_below
    )
    assert retrieve(retriever, understand("red", VOCABULARY), towards(1), **ALL).rows.tolist() == []


# --- files ---


def test_the_files_of_the_same_pins_are_the_same(tmp_path):
    """Also in another process, where sets have another order: two machines must answer alike."""
    program = (
        "import sys, numpy as np; from pathlib import Path; from ray_app.online.retrieval import Retriever;"
        "v = np.random.default_rng(0).standard_normal((500, 16)).astype(np.float16);"
        "Retriever.build(Path(sys.argv[1]), [f'w{i % 7} word{i} x' for i in range(500)], v, exact_below=0)"
    )
    hashes = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        env = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", program, str(folder)], check=True, env=env)
        hashes.append(json.loads((folder / "meta.json").read_text())["files"])
    assert hashes[0] == hashes[1]


def test_an_opened_index_answers_as_the_built_one(retriever, tmp_path):
    """The next replica maps what the first one made."""
    built = Retriever.build(tmp_path / "r", TEXTS, VECTORS_OF)
    opened = Retriever.open(tmp_path / "r", verify=True)
    query = understand("red mug", VOCABULARY)
    assert (
        retrieve(opened, query, towards(2), **ALL).rows.tolist()
        == retrieve(built, query, towards(2), **ALL).rows.tolist()
    )


def test_an_index_is_made_once(tmp_path):
    """Building takes minutes on a large release; each replica that starts must not repeat it."""
    Retriever.open_or_build(tmp_path / "r", TEXTS, VECTORS_OF)
    made = (tmp_path / "r" / "meta.json").stat().st_mtime_ns
    Retriever.open_or_build(tmp_path / "r", TEXTS, VECTORS_OF)
    assert (tmp_path / "r" / "meta.json").stat().st_mtime_ns == made


def test_replicas_that_start_together_share_one_index(tmp_path):
    """They must neither fail over each other's files nor leave them behind."""
    with ThreadPoolExecutor(6) as pool:
        opened = list(pool.map(lambda _: Retriever.open_or_build(tmp_path / "r", TEXTS, VECTORS_OF), range(6)))
    assert [retriever.by_words(["chair"], 5)[0].tolist() for retriever in opened] == [[6, 2]] * 6
    assert {path.name for path in tmp_path.iterdir()} == {"r", ".lock-r"}


@pytest.mark.parametrize("what", ["a text", "a vector", "a setting", "one pin less"])
def test_an_index_of_other_pins_is_made_again(tmp_path, what):
    """Rows of other pins would be shown under these ids."""
    Retriever.open_or_build(tmp_path / "r", TEXTS, VECTORS_OF)
    texts, vectors, exact_below = [*TEXTS], VECTORS_OF.copy(), 50_000
    if what == "a text":
        texts[3] = "velvet sofa"
    elif what == "a vector":
        vectors[3] = 1
    elif what == "a setting":
        exact_below = 0
    else:
        texts, vectors = texts[:-1], vectors[:-1]
    before = (tmp_path / "r" / "meta.json").read_text()
    Retriever.open_or_build(tmp_path / "r", texts, vectors, exact_below=exact_below)
    assert (tmp_path / "r" / "meta.json").read_text() != before


FILES = [
    "meta.json", "rows.npy", "vectors.npy", "bm25/data.csc.index.npy", "bm25/indices.csc.index.npy",
    "bm25/indptr.csc.index.npy", "bm25/vocab.index.json", "bm25/params.index.json",
]  # fmt: skip


@pytest.mark.parametrize("name", [*FILES, "vectors.usearch"])
@pytest.mark.parametrize("damage", ["missing", "cut", "empty"])
def test_a_damaged_index_is_found_and_made_again(tmp_path, name, damage):
    """A machine that lost power must not fail on every start, nor answer from half an index."""
    exact_below = {"vectors.usearch": 0}.get(name, 1_000)
    folder = tmp_path / "r"
    Retriever.build(folder, TEXTS, VECTORS_OF, exact_below=exact_below)
    path = folder / name
    kept = {"missing": None, "cut": path.read_bytes()[: path.stat().st_size // 2], "empty": b""}[damage]
    path.unlink()
    if kept is not None:
        path.write_bytes(kept)
    with pytest.raises(ValueError, match="no whole index"):
        Retriever.open(folder)
    again = Retriever.open_or_build(folder, TEXTS, VECTORS_OF, exact_below=exact_below)
    assert retrieve(again, understand("red mug", VOCABULARY), towards(0), **ALL).rows.tolist()[0] == 0


@pytest.mark.parametrize("name", [*FILES[1:], "vectors.usearch"])
def test_a_flipped_bit_is_found_when_asked_to(tmp_path, name):
    """Sizes do not show it."""
    folder = tmp_path / "r"
    Retriever.build(folder, TEXTS, VECTORS_OF, exact_below={"vectors.usearch": 0}.get(name, 1_000))
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"{name} was changed"):
        Retriever.open(folder, verify=True)


def test_a_killed_builder_leaves_nothing_that_is_opened(tmp_path, monkeypatch):
    """meta.json and the rename come last."""
    monkeypatch.setattr("ray_app.online.index_files._write_vectors", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Retriever.build(tmp_path / "r", TEXTS, VECTORS_OF)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_says_what_to_do(tmp_path):
    """It is the operator's to fix."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"serve\.local_cache_dir"):
        Retriever.open_or_build(tmp_path / "file" / "r", TEXTS, VECTORS_OF)


def test_texts_and_vectors_of_other_lengths_are_refused(tmp_path):
    """Row i of both must be pin i."""
    with pytest.raises(ValueError, match="row i of both"):
        Retriever.build(tmp_path / "r", TEXTS[:-1], VECTORS_OF)
    with pytest.raises(ValueError, match="float64"):
        Retriever.build(tmp_path / "r", TEXTS, VECTORS_OF.astype(np.float64))
