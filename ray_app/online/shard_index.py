"""One shard of a release: some of its pins, with everything needed to retrieve, score and show them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ray_app.base.columns import matrix_or_zero
from ray_app.base.config import Config, ImageLimits, ServeConfig
from ray_app.base.errors import UserError
from ray_app.base.storage import Storage
from ray_app.base.text import field_text
from ray_app.features.bm25 import CatalogueMatch
from ray_app.features.corpus import CorpusStatistics
from ray_app.features.student import ReadTable, StudentFeatures
from ray_app.models.head import expected_grade
from ray_app.models.student import Student
from ray_app.online.blend import blend, engagement_scores, order
from ray_app.online.matched import matched_terms
from ray_app.online.messages import Hit, Neighbor, QueryInput, ShardCandidates, ShardStats
from ray_app.online.pin_files import Shard
from ray_app.online.pin_images import PinImages
from ray_app.online.pin_store import PinStore
from ray_app.online.query_understanding import count_words
from ray_app.online.release_inputs import ReleaseInputs, config_of, is_in, read_rows
from ray_app.online.retrieval import Ranked, Retriever
from ray_app.tables.local_folder import local_folder
from ray_app.tables.manifest import Output, read_output
from ray_app.tables.release import Release

SHOWN_CHARS = 160  # of a pin's text


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """A loaded part of a release, or all of it. Rows are those of its pins with a vector, by pin_id.

    A pair is scored as from the whole release: statistics are the whole catalogue's. Only BM25 retrieval counts words
    in its own pins alone; they are spread by hash, so that hardly differs.
    """

    release: Release  # what it was loaded from
    cfg: Config  # the release's, with the section `serve` of today
    pins: PinStore  # vectors
    catalogue_rows: np.ndarray  # (num_pins,) row of each pin in the features' catalogue
    features: StudentFeatures  # the student's
    student: Student  # scores pairs
    feature_only_student: Student  # scores pairs of queries that have no vector
    retriever: Retriever  # finds candidates
    engagement: np.ndarray  # (num_pins,) 0..1, NaN where nobody met the pin
    pictures: PinImages  # by row of the catalogue

    @classmethod
    def load(
        cls, store: Storage, serve: ServeConfig, limits: ImageLimits, local_cache_dir: Path, release: Release,
        shard: Shard | None = None,
    ) -> "ShardIndex":  # fmt: skip
        """Load a release, all of it checked, or raise.

        A shard reads tables file by file and keeps its own rows. Words are weighed by the statistics of all pins, which the
        release names. What does not get less with more shards is the time to read the tables, and the peak of memory, which
        holds one whole file of each.

        Args:
            limits: Of pictures that are read: those of the operator's config of today. The release's own are left alone, since
                who can write it would else choose which files and hosts a replica reads, and older ones would outlive a change.
            shard: (i, n): the pins of which `shards_of` n shards says i; None: all.

        Raises:
            UserError: a part is missing, damaged, or made by another student; the message says which.
        """
        from ray_app.features.catalogue import Catalogue

        find = ReleaseInputs(release)
        cfg = config_of(release, serve)
        student_output = find("distill", "student")
        if student_output.content_hash != release.student_id:
            raise UserError(
                f"release {release.id} was made by student {release.student_id}, but names "
                f"{student_output.content_hash}; run embed again"
            )
        pins = PinStore.open(store, release, local_cache_dir, serve.embedding_dtype, shard=shard)
        texts, suffix = find("enrich", "pin_texts"), ""
        read: ReadTable = read_output
        if shard is not None:
            read = partial(read_rows, is_in(shard))
            suffix = f"-shard{shard[0]}of{shard[1]}"
        corpus = CorpusStatistics.open(local_folder(store, find("corpus_statistics", "corpus_statistics")))
        catalogue = Catalogue.of_texts(cfg, read(store, texts, None), corpus)
        features = StudentFeatures.load(catalogue, store, _not_encoded_here, find, read)
        student = Student(store, student_output)
        if student.model.cfg.dim != release.dim and release.dim not in student.model.cfg.matryoshka_dims:
            raise UserError(
                f"release {release.id} has vectors of {release.dim} numbers, its student {student.model.cfg.dim}"
            )
        student.require_width(len(features.names))
        rows = catalogue.pairs.pin_rows(pins.all_pin_ids())
        rendered = catalogue.pairs.rendered
        retriever = Retriever.open_or_build(
            local_cache_dir / f"{release.id}-retrieval{suffix}", [rendered[row] for row in rows], pins.matrix
        )
        engagement = np.full(len(rows), np.nan, np.float32)
        if features.rates is not None:
            rates, known = features.rates[0][rows], features.rates[1][rows, 0] > 0
            engagement = engagement_scores(rates, known, _all_rates(store, find("engagement", "engagement_pins")))
        pictures = read(store, find("ingest", "pins"), ["pin_id", "image", "image_bytes"])
        return cls(
            release=release, cfg=cfg, pins=pins, catalogue_rows=rows, features=features, student=student,
            feature_only_student=Student(store, find("distill", "feature_only_student")), retriever=retriever,
            engagement=engagement, pictures=PinImages(pictures, limits),
        )  # fmt: skip

    def stats(self) -> ShardStats:
        """See the class; takes a while, words are counted for it."""
        catalogue = self.features.catalogue
        locales = Counter(catalogue.pin_texts["locale"].to_pylist())
        return ShardStats(num_pins=self.pins.num_pins, locales=locales, words=count_words(catalogue.pairs.rendered))

    # --- questions; each is CPU work of one thread, but for `image` ---

    def match(self, query: str) -> CatalogueMatch:
        """Title match statistics of this shard for a query; `grade` and `rank` need those of the complete catalogue."""
        return self.features.catalogue.pairs.match_here([query])

    def find(self, asked: QueryInput, stems: Sequence[str]) -> ShardCandidates:
        """Candidates by words and by vector."""
        serve, by_vector = self.cfg.serve, Ranked.nothing()
        if asked.vector is not None:
            by_vector = self.retriever.nearest(asked.vector[0], serve.dense_top_k)
        return ShardCandidates(self.retriever.by_words(stems, serve.bm25_top_k), by_vector, self.match(asked.text))

    def rank(
        self, asked: QueryInput, tokens: Sequence[str], rows: np.ndarray, match: CatalogueMatch, top_k: int
    ) -> list[Hit]:
        """The best of some candidates by relevance and engagement; ties by pin id."""
        serve = self.cfg.serve
        probs = self._score(asked, rows, match)
        scores = expected_grade(probs)
        blended_score = blend(scores, self.engagement[rows], serve.blend)
        names = np.array(self.pins.pin_ids(rows), dtype=object)
        best = [i for i in order(blended_score, names) if scores[i] >= serve.blend.min_score][:top_k]
        hits = []
        for i in best:
            row, engagement = int(rows[i]), float(self.engagement[rows[i]])
            texts = self.features.catalogue.pin_texts.slice(int(self.catalogue_rows[row]), 1).to_pylist()[0]
            shown = relevance(names[i], scores[i], probs[i]) | self._shown(row) | {
                "blended_score": round(float(blended_score[i]), 4),
                "engagement": None if np.isnan(engagement) else round(engagement, 4),
                "text": self._text(row), "matched_terms": matched_terms(tokens, texts, self.cfg.pin_text.fields),
            }  # fmt: skip
            hits.append(Hit(float(blended_score[i]), row, shown))
        return hits

    def grade(self, asked: QueryInput, pin_ids: Sequence[str], match: CatalogueMatch) -> tuple[np.ndarray, np.ndarray]:
        """Calibrated probabilities of grades 1..5.

        Returns:
            (num_pins,) bool, which of them are here, and (number of these, 5) float32.
        """
        rows = self.pins.rows(pin_ids)
        return rows >= 0, self._score(asked, rows[rows >= 0], match)

    def vectors(self, pin_ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Mask of the pins in this shard, (num_pins,) bool, and their embeddings, float32."""
        rows = self.pins.rows(pin_ids)
        return rows >= 0, self.pins.vectors(rows[rows >= 0])

    def near(self, vector: np.ndarray, k: int, without: str) -> list[Neighbor]:
        """The `k` pins nearest to a vector, but for one."""
        rows, cosines = self.retriever.nearest(vector, k + 1)
        left_out = int(self.pins.rows([without])[0])
        pairs = [(int(r), float(c)) for r, c in zip(rows, cosines, strict=True) if r != left_out][:k]
        names = self.pins.pin_ids([row for row, _ in pairs])
        return [
            Neighbor(c, r, {"cosine": round(c, 4)} | self._shown(r) | {"pin_id": name})
            for (r, c), name in zip(pairs, names, strict=True)
        ]

    def image(self, pin_id: str) -> bytes | None:
        """A small JPEG of a pin's picture; None: there is no such pin.

        Raises:
            NotFound: it has no picture that can be read.
        """
        row = int(self.pins.rows([pin_id])[0])
        return None if row < 0 else self.pictures.jpeg(int(self.catalogue_rows[row]))

    # --- helpers ---

    def _score(self, asked: QueryInput, rows: np.ndarray, match: CatalogueMatch) -> np.ndarray:
        n = len(rows)
        if n == 0:
            return np.zeros((0, 5), np.float32)
        locales = [asked.locale] * n
        features = self.features.compute(
            [asked.text], np.zeros(n, np.int64), self.catalogue_rows[rows], locales, asked.zero_shot, match
        )
        if asked.vector is None:
            nothing = np.zeros((n, 0), np.float32)
            return self.feature_only_student.score(nothing, nothing, features, locales)
        query = asked.vector.copy()  # what comes from another process cannot be written to, of which torch warns
        return self.student.score(query, self.pins.vectors(rows), features, locales)

    def _shown(self, row: int) -> dict[str, Any]:
        """Title, picture and locale of a pin."""
        at = int(self.catalogue_rows[row])
        texts = self.features.catalogue.pin_texts
        pin_id = texts["pin_id"][at].as_py()
        title = field_text(texts["title"][at].as_py()) or self._text(row)[:80]
        return {"title": title, "image_url": self.pictures.url(pin_id, at), "locale": texts["locale"][at].as_py()}

    def _text(self, row: int) -> str:
        return self.features.catalogue.pairs.rendered[int(self.catalogue_rows[row])][:SHOWN_CHARS]


def relevance(pin_id: str, score: float, probs: np.ndarray) -> dict[str, Any]:
    """See serve.models.PairRelevance."""
    return {
        "pin_id": str(pin_id), "score": round(float(score), 4), "probs": [round(float(p), 5) for p in probs],
        "grade": int(np.argmax(probs)) + 1,
    }  # fmt: skip


def _all_rates(store: Storage, engagement_pins: Output) -> np.ndarray:
    """(num_met, 5) rates of all pins that somebody has met, whatever shard they are in."""
    rates = read_output(store, engagement_pins, ["rates"])["rates"]
    return matrix_or_zero(rates.drop_null())


def _not_encoded_here(texts: Sequence[str]) -> NoReturn:
    raise AssertionError(f"who asks sends the zero-shot vectors along: {len(texts)} texts")
