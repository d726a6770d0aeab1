"""One release with all that answering from it takes: vectors, texts, features, models, indexes."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from ray_app.config import Config, ServeConfig
from ray_app.distill.features import StudentFeatures
from ray_app.distill.student import Student
from ray_app.errors import UserError
from ray_app.ledger.release import Release
from ray_app.manifest import Output, read_output
from ray_app.models.head import expected_grade
from ray_app.online.blend import blend, engagement_scores, order
from ray_app.online.matched import matched_fields
from ray_app.online.pictures import PinPictures
from ray_app.online.pin_store import PinStore
from ray_app.online.problems import BadRequest, NotFound
from ray_app.online.query_model import QueryModel
from ray_app.online.retrieval import Retriever
from ray_app.online.teacher_scores import TeacherScores
from ray_app.online.understanding import Vocabulary, understand
from ray_app.storage import Storage
from ray_app.text import field_text

logger = logging.getLogger(__name__)

SHOWN_CHARS = 160  # of a pin's text
_EXAMPLES = 6


@dataclass(frozen=True, kw_only=True)
class Served:
    """A loaded release. Rows are those of the release: its pins by pin_id.

    Args:
        release: What it was loaded from.
        cfg: The release's, with the section `serve` of today.
        pins: Vectors.
        catalogue_rows: (num_pins,) row of each pin in the features' catalogue.
        features: The student's.
        student: Scores pairs.
        feature_student: Scores pairs of queries that have no vector.
        encoder: Embeds queries.
        retriever: Finds candidates.
        vocabulary: Of the pins' words.
        engagement: (num_pins,) 0..1, NaN where nobody met the pin.
        teacher: What the teacher said of pairs, for the page.
        pictures: By row of the catalogue.
        examples: Queries to try.
    """

    release: Release
    cfg: Config
    pins: PinStore
    catalogue_rows: np.ndarray
    features: StudentFeatures
    student: Student
    feature_student: Student
    encoder: QueryModel
    retriever: Retriever
    vocabulary: Vocabulary
    engagement: np.ndarray
    teacher: TeacherScores
    pictures: PinPictures
    examples: list[str]

    @classmethod
    def load(
        cls, store: Storage, serve: ServeConfig, local_dir: Path, release: Release, before: "Served | None" = None
    ) -> "Served":
        """Load a release, all of it checked, or raise.

        Args:
            store: The run's.
            serve: Settings.
            local_dir: Where this machine keeps what it makes of releases.
            release: Which.
            before: What is served now; its query encoder goes on if the student is the same.

        Raises:
            UserError: a part is missing, damaged, or made by another student; the message says which.
        """
        from ray_app.teach.catalogue import Catalogue

        find = _Sources(release)
        cfg = _config_of(release).model_copy(update={"serve": serve})
        student_output = find("distill", "student")
        if student_output.content_hash != release.student_id:
            raise UserError(
                f"release {release.id} was made by student {release.student_id}, but names "
                f"{student_output.content_hash}; run embed again"
            )
        pins = PinStore.open(store, release, local_dir, serve.vectors)
        pin_texts = read_output(store, find("enrich", "pin_texts"))
        catalogue = Catalogue.of_texts(cfg, pin_texts)
        encoder = QueryModel.load(store, cfg, student_output, release, local_dir, before.encoder if before else None)
        features = StudentFeatures.load(catalogue, store, encoder.zero_shot, find)
        student = Student(store, student_output)
        if student.model.cfg.dim != release.dim and release.dim not in student.model.cfg.nested_dims:
            raise UserError(
                f"release {release.id} has vectors of {release.dim} numbers, its student {student.model.cfg.dim}"
            )
        rows = catalogue.pairs.pin_rows(pins.all_pin_ids())
        rendered = catalogue.pairs.rendered
        retriever = Retriever.open_or_build(
            local_dir / f"{release.id}-retrieval", [rendered[row] for row in rows], pins.matrix
        )
        known_rates = features.rates
        engagement = np.full(len(rows), np.nan, np.float32)
        if known_rates is not None:
            engagement = engagement_scores(known_rates[0][rows], known_rates[1][rows, 0] > 0)
        labels = release.sources.get("soft_labels")
        teacher = TeacherScores.load(store, labels) if labels else TeacherScores.none()
        return cls(
            release=release, cfg=cfg, pins=pins, catalogue_rows=rows, features=features, student=student,
            feature_student=Student(store, find("distill", "feature_student")), encoder=encoder, retriever=retriever,
            vocabulary=Vocabulary.of(rendered, _languages(pin_texts)), engagement=engagement, teacher=teacher,
            pictures=PinPictures(read_output(store, find("ingest", "pins"), ["image", "image_bytes"]), cfg.caption.limits),
            examples=teacher.examples(_EXAMPLES),
        )  # fmt: skip

    # --- what it is ---

    @property
    def dim(self) -> int:
        """Numbers per vector."""
        return self.release.dim

    @property
    def num_pins(self) -> int:
        """Pins with a vector."""
        return self.pins.num_pins

    @property
    def student_id(self) -> str:
        """Of the student that made the vectors."""
        return self.release.student_id

    def about(self) -> dict[str, Any]:
        """See serve.models.About."""
        counts = self.features.catalogue.pin_texts["locale"].value_counts().to_pylist()
        locales = [c["values"] for c in sorted(counts, key=lambda c: (-c["counts"], c["values"] or "")) if c["values"]]
        return {
            "release": self.release.id, "student": self.student_id, "num_pins": self.num_pins, "dim": self.dim,
            "engine": self.encoder.engine_name, "locales": locales, "examples": self.examples,
        }  # fmt: skip

    # --- requests; each is CPU work of one thread ---

    def score(self, query: str, vector: np.ndarray | None, locale: str, rows: np.ndarray) -> np.ndarray:
        """Calibrated probabilities of grades 1..5 of one query's candidates, (len(rows), 5) float32.

        Args:
            query: Normalised.
            vector: (1, width) as `encoder` makes it; None: the feature-only student answers.
            locale: From where it is asked.
            rows: Candidates.
        """
        n = len(rows)
        if n == 0:
            return np.zeros((0, 5), np.float32)
        locales = [locale] * n
        zero_shot = self.encoder.zero_shot_part(vector)
        features = self.features.compute(
            [query], np.zeros(n, np.int64), self.catalogue_rows[rows], locales, zero_shot=zero_shot
        )
        if vector is None:
            nothing = np.zeros((n, 0), np.float32)
            return self.feature_student.score(nothing, nothing, features, locales)
        return self.student.score(vector[:, : self.dim], self.pins.vectors(rows), features, locales)

    def rerank(
        self, query: str, vector: np.ndarray | None, locale: str, pin_ids: Sequence[str], top_k: int | None
    ) -> dict[str, Any]:
        """Candidates by expected grade; ties by pin id. A pin that is named twice is ranked once."""
        distinct = list(dict.fromkeys(pin_ids))
        rows = self.pins.rows(distinct)
        known = rows >= 0
        names = np.array(distinct, dtype=object)
        probs = self.score(query, vector, locale, rows[known])
        scores = expected_grade(probs)
        best = order(scores, names[known])[:top_k]
        return {
            "release": self.release.id, "student": self.student_id,
            "results": [_relevance(names[known][i], scores[i], probs[i]) for i in best],
            "unknown_pin_ids": names[~known].tolist(),
        }  # fmt: skip

    def search(self, query: str, vector: np.ndarray | None, locale: str, top_k: int) -> dict[str, Any]:
        """Understand, retrieve, rerank, blend."""
        serve = self.cfg.serve
        said = understand(query, self.vocabulary)
        own = None if vector is None else vector[0, : self.dim]
        found = self.retriever.retrieve(
            said, own, num_bm25=serve.retrieve_bm25, num_vectors=serve.retrieve_vectors, limit=serve.candidates
        )
        rows = found.rows
        probs = self.score(query, vector, locale, rows)
        scores = expected_grade(probs)
        blended = blend(scores, self.engagement[rows], serve.blend)
        names = np.array(self.pins.pin_ids(rows), dtype=object)
        best = [i for i in order(blended, names) if scores[i] >= serve.blend.min_score][:top_k]
        hits = []
        for rank, i in enumerate(best, 1):
            row = int(rows[i])
            engagement = float(self.engagement[row])
            hits.append(
                _relevance(names[i], scores[i], probs[i])
                | self._shown(row)
                | {
                    "rank": rank,
                    "blended": round(float(blended[i]), 4),
                    "engagement": None if np.isnan(engagement) else round(engagement, 4),
                    "text": self._text(row),
                    "matched": matched_fields(said.tokens, self._texts_of(row), self.cfg.pin_text.fields),
                    "sources": list(found.sources[i]),
                    "teacher_score": self.teacher.score(query, locale, names[i]),
                }
            )
        return {
            "release": self.release.id, "student": self.student_id, "results": hits, "num_candidates": len(rows),
            "query": {"text": query, "language": said.language, "corrections": said.corrections},
        }  # fmt: skip

    def related(self, pin_id: str, k: int) -> dict[str, Any]:
        """Pins nearest to a pin, without itself."""
        row = int(self.pins.rows([pin_id])[0])
        if row < 0:
            raise NotFound("unknown_pin", f"pin_id: release {self.release.id} has no such pin")
        rows, cosines = self.retriever.nearest(self.pins.vectors(np.array([row]))[0], k + 1)
        pairs = [(int(r), float(c)) for r, c in zip(rows, cosines, strict=True) if r != row][:k]
        return {
            "release": self.release.id, "pin_id": pin_id,
            "results": [{"cosine": round(c, 4)} | self._shown(r) | self._named(r) for r, c in pairs],
        }  # fmt: skip

    def board(self, of_title: np.ndarray | None, pin_ids: Sequence[str]) -> dict[str, Any]:
        """The mean of the title's vector and the pins' mean vector, unit length."""
        distinct = list(dict.fromkeys(pin_ids))
        rows = self.pins.rows(distinct)
        known = rows[rows >= 0]
        parts = [] if of_title is None else [of_title]
        if len(known):
            parts.append(_unit(self.pins.vectors(known).mean(0)))
        if not parts:
            raise BadRequest("empty_board", "title, pin_ids: neither says anything that this release knows")
        return {
            "student": self.student_id, "dim": self.dim, "embedding": _unit(np.mean(parts, 0)).tolist(),
            "num_pins": len(known), "unknown_pin_ids": [p for p, r in zip(distinct, rows, strict=True) if r < 0],
        }  # fmt: skip

    def image(self, pin_id: str) -> bytes:
        """A small JPEG of a pin's picture."""
        row = int(self.pins.rows([pin_id])[0])
        if row < 0:
            raise NotFound("unknown_pin", f"pin_id: release {self.release.id} has no such pin")
        return self.pictures.jpeg(int(self.catalogue_rows[row]))

    # --- helpers ---

    def _named(self, row: int) -> dict[str, Any]:
        return {"pin_id": self.pins.pin_ids(np.array([row]))[0]}

    def _shown(self, row: int) -> dict[str, Any]:
        """Title, picture and locale of a pin."""
        at = int(self.catalogue_rows[row])
        texts = self.features.catalogue.pin_texts
        pin_id = texts["pin_id"][at].as_py()
        title = field_text(texts["title"][at].as_py()) or self._text(row)[:80]
        return {"title": title, "image_url": self.pictures.url(pin_id, at), "locale": texts["locale"][at].as_py()}

    def _text(self, row: int) -> str:
        return self.features.catalogue.pairs.rendered[int(self.catalogue_rows[row])][:SHOWN_CHARS]

    def _texts_of(self, row: int) -> dict[str, Any]:
        return self.features.catalogue.pin_texts.slice(int(self.catalogue_rows[row]), 1).to_pylist()[0]


@dataclass(frozen=True)
class _Sources:
    """A release's inputs by name; whoever asks also names the stage, which does not matter here."""

    release: Release

    def __call__(self, stage: str, name: str) -> Output:
        if name not in self.release.sources:
            raise UserError(f"release {self.release.id} does not say which {name} it belongs to; run embed again")
        return self.release.sources[name]


def _config_of(release: Release) -> Config:
    try:
        return Config.model_validate(release.config)
    except ValidationError as error:
        fields = sorted({".".join(str(part) for part in problem["loc"]) for problem in error.errors()})
        raise UserError(
            f"release {release.id} was published with settings that this version does not know ({', '.join(fields)}); "
            "run embed again"
        ) from None


def _relevance(pin_id: str, score: float, probs: np.ndarray) -> dict[str, Any]:
    return {
        "pin_id": str(pin_id), "score": round(float(score), 4), "probs": [round(float(p), 5) for p in probs],
        "grade": int(np.argmax(probs)) + 1,
    }  # fmt: skip


def _unit(vector: np.ndarray) -> np.ndarray:
    length = float(np.linalg.norm(vector))
    return np.asarray(vector / length if length else vector, np.float32)


def _languages(pin_texts: pa.Table) -> list[str]:
    return sorted({locale.split("-")[0] for locale in pin_texts["locale"].to_pylist() if locale})
