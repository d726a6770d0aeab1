"""One release as requests see it: query encoder, vocabulary and the slices that its pins are spread over."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from ray_app.base.config import Config, ServeConfig
from ray_app.base.errors import UserError
from ray_app.base.hashing import shards_of
from ray_app.base.locales import language_of
from ray_app.base.storage import Storage
from ray_app.features.bm25 import CatalogueMatch
from ray_app.models.head import expected_grade
from ray_app.online.blend import order
from ray_app.online.messages import Hit, Neighbor, QueryInput, ShardCandidates, ShardStats
from ray_app.online.problems import BadRequest, NotFound
from ray_app.online.query_model import QueryModel
from ray_app.online.query_understanding import SpellingDictionary, understand
from ray_app.online.release_inputs import ReleaseInputs, config_of
from ray_app.online.retrieval import BM25, DENSE, Ranked, fuse
from ray_app.online.shard_index import relevance
from ray_app.online.teacher_scores import TeacherScores
from ray_app.tables.release import Release

_EXAMPLES = 6

Answer = TypeVar("Answer")


class Shards(Protocol):
    """The slices of one release, wherever they are. Pins are spread over them by `shards_of`."""

    num: int

    async def ask(self, question: str, args: Mapping[int, tuple[Any, ...]]) -> dict[int, Any]:
        """Call a method of `ShardIndex` on some slices at once.

        Returns:
            Number of the slice -> answer.

        Raises:
            Unavailable: a slice cannot answer now.
        """
        ...

    async def aside(self, work: Callable[..., Answer], *args: Any) -> Answer:
        """Do CPU work of this process where it holds up no other request."""
        ...


@dataclass(frozen=True, kw_only=True)
class LoadedRelease:
    """A loaded release. The answers are the same however many slices there are.

    A request takes at most two rounds of questions to the slices. Pins have numbers over all slices: row * number of
    slices + number of the slice.
    """

    release: Release  # what it was loaded from
    cfg: Config  # the release's, with the section `serve` of today
    shards: Shards  # its pins
    encoder: QueryModel  # embeds queries
    dictionary: SpellingDictionary  # of the pins' words
    locales: list[str]  # of the pins, most frequent first
    teacher: TeacherScores  # what the teacher said of pairs, for the page
    examples: list[str]  # queries to try

    @classmethod
    def load(
        cls, store: Storage, serve: ServeConfig, local_cache_dir: Path, release: Release, shards: Shards, stats: ShardStats,
        before: "LoadedRelease | None" = None,
    ) -> "LoadedRelease":  # fmt: skip
        """Load what requests need beside the pins, or raise.

        Args:
            before: What is served now; its query encoder goes on if the student is the same.

        Raises:
            UserError: a part is missing, damaged, or made by another student; the message says which.
        """
        if stats.num_pins != release.num_pins:
            raise UserError(
                f"the shards hold {stats.num_pins} of the {release.num_pins} pins of release {release.id}; "
                "do all of them run with the same serve.shards?"
            )
        find, cfg = ReleaseInputs(release), config_of(release, serve)
        student = find("distill", "student")
        labels = release.sources.get("soft_labels")
        public = release.sources.get("public_queries")
        teacher = TeacherScores.load(store, labels, public) if labels else TeacherScores.none()
        by_pins = sorted(stats.locales.items(), key=lambda pair: (-pair[1], pair[0] or ""))
        locales = [locale for locale, _ in by_pins if locale]
        return cls(
            release=release, cfg=cfg, shards=shards,
            encoder=QueryModel.load(store, cfg, student, release, local_cache_dir, before.encoder if before else None),
            dictionary=SpellingDictionary.of(stats.words, sorted({language_of(locale) for locale in locales})),
            locales=locales, teacher=teacher, examples=teacher.examples(_EXAMPLES),
        )  # fmt: skip

    # --- what it is ---

    def about(self) -> dict[str, Any]:
        """See serve.models.About."""
        return {
            "release": self.release.id, "student": self.release.student_id, "num_pins": self.release.num_pins, "dim": self.release.dim,
            "backend": self.encoder.backend_name, "locales": self.locales, "examples": self.examples,
        }  # fmt: skip

    # --- requests ---

    async def rerank(
        self, query: str, vector: np.ndarray | None, locale: str, pin_ids: Sequence[str], top_k: int | None
    ) -> dict[str, Any]:
        """Candidates by expected grade; ties by pin id. A pin that is named twice is ranked once.

        Args:
            vector: (1, width) as `encoder` makes it; None: the feature-only student answers.
            locale: From where it is asked, canonical; UNKNOWN: not said.
        """
        names = np.array(list(dict.fromkeys(pin_ids)), dtype=object)
        asked = self._asked(query, vector, locale)
        match = CatalogueMatch.merged(await self._ask_all("match", query))
        places = self._spread(names)
        parts = await self.shards.ask("grade", {i: (asked, names[at].tolist(), match) for i, at in places.items()})
        known, probs = _gathered(len(names), 5, places, parts)
        found = names[known]
        scores = expected_grade(probs)
        best = order(scores, found)[:top_k]
        return {
            "release": self.release.id, "student": self.release.student_id,
            "results": [relevance(found[i], scores[i], probs[i]) for i in best],
            "unknown_pin_ids": names[~known].tolist(),
        }  # fmt: skip

    async def search(self, query: str, vector: np.ndarray | None, locale: str, top_k: int) -> dict[str, Any]:
        """Understand, retrieve, rerank, blend. Arguments: see `rerank`."""
        serve, num = self.cfg.serve, self.shards.num
        said = await self.shards.aside(understand, query, self.dictionary)
        asked = self._asked(query, vector, locale)
        found: list[ShardCandidates] = await self._ask_all("find", asked, said.stems)
        match = CatalogueMatch.merged([part.match for part in found])
        by_words = Ranked.merged([part.by_words for part in found], serve.bm25_top_k)
        by_vector = Ranked.merged([part.by_vector for part in found], serve.dense_top_k)
        candidates = fuse({BM25: by_words.rows, DENSE: by_vector.rows}, serve.rerank_top_k)
        shard_of_row = candidates.rows % num
        parts: dict[int, list[Hit]] = await self.shards.ask(
            "rank",
            {
                int(i): (asked, said.tokens, candidates.rows[shard_of_row == i] // num, match, top_k)
                for i in np.unique(shard_of_row)
            },
        )
        hits = [(hit, hit.row * num + i) for i, part in parts.items() for hit in part]
        hits.sort(key=lambda pair: (-pair[0].blended_score, pair[0].shown["pin_id"]))
        sources = dict(zip(candidates.rows.tolist(), candidates.sources, strict=True))
        results = [
            hit.shown | {
                "rank": rank, "sources": sources[row],
                "teacher_score": self.teacher.score(query, locale, hit.shown["pin_id"]),
            }
            for rank, (hit, row) in enumerate(hits[:top_k], 1)
        ]  # fmt: skip
        return {
            "release": self.release.id, "student": self.release.student_id, "results": results,
            "num_candidates": len(candidates.rows),
            "query": {"text": query, "language": said.language, "corrections": said.corrections},
        }  # fmt: skip

    async def related(self, pin_id: str, k: int) -> dict[str, Any]:
        """Pins nearest to a pin, without itself."""
        known, vectors = await self._ask_one(pin_id, "vectors", [pin_id])
        if not known[0]:
            raise self._no_such_pin()
        parts: list[list[Neighbor]] = await self._ask_all("near", vectors[0], k, pin_id)
        found = [(near, near.row * self.shards.num + i) for i, part in enumerate(parts) for near in part]
        found.sort(key=lambda pair: (-pair[0].cosine, pair[1]))
        return {
            "release": self.release.id, "pin_id": pin_id, "results": [near.shown for near, _ in found[:k]],
        }  # fmt: skip

    async def board(self, of_title: np.ndarray | None, pin_ids: Sequence[str]) -> dict[str, Any]:
        """The mean of the title's vector and the pins' mean vector, unit length."""
        names = np.array(list(dict.fromkeys(pin_ids)), dtype=object)
        places = self._spread(names)
        found = await self.shards.ask("vectors", {i: (names[at].tolist(),) for i, at in places.items()})
        known, vectors = _gathered(len(names), self.release.dim, places, found)
        parts = [] if of_title is None else [of_title]
        if known.any():
            parts.append(_unit(vectors.mean(0)))
        if not parts:
            raise BadRequest("empty_board", "title, pin_ids: neither says anything that this release knows")
        return {
            "student": self.release.student_id, "dim": self.release.dim, "embedding": _unit(np.mean(parts, 0)).tolist(),
            "num_pins": int(known.sum()), "unknown_pin_ids": names[~known].tolist(),
        }  # fmt: skip

    async def image(self, pin_id: str) -> bytes:
        """A small JPEG of a pin's picture."""
        found: bytes | None = await self._ask_one(pin_id, "image", pin_id)
        if found is None:
            raise self._no_such_pin()
        return found

    # --- helpers ---

    def _asked(self, query: str, vector: np.ndarray | None, locale: str) -> QueryInput:
        own = None if vector is None else vector[:, : self.release.dim]
        return QueryInput(query, locale, own, self.encoder.zero_shot_part(vector))

    async def _ask_all(self, question: str, *args: Any) -> list[Any]:
        """Answers by number of the slice."""
        return list((await self.shards.ask(question, dict.fromkeys(range(self.shards.num), args))).values())

    async def _ask_one(self, pin_id: str, question: str, *args: Any) -> Any:
        """The answer of the slice that may hold a pin."""
        (number,) = self._spread(np.array([pin_id], dtype=object))
        return (await self.shards.ask(question, {number: args}))[number]

    def _spread(self, pin_ids: np.ndarray) -> dict[int, np.ndarray]:
        """Number of a slice -> places of the pins that it may hold; only slices that may hold one."""
        if self.shards.num == 1:
            return {0: np.arange(len(pin_ids))} if len(pin_ids) else {}
        shard_of_row = shards_of(pin_ids.tolist(), self.shards.num)
        return {int(i): np.flatnonzero(shard_of_row == i) for i in np.unique(shard_of_row)}

    def _no_such_pin(self) -> NotFound:
        return NotFound("unknown_pin", f"pin_id: release {self.release.id} has no such pin")


def _gathered(
    num_pins: int, width: int, places: Mapping[int, np.ndarray], parts: Mapping[int, tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the pins at `places`, gathered from the shards: a mask of the known pins, (num_pins,) bool, and their rows, float32."""
    known, rows = np.zeros(num_pins, bool), np.zeros((num_pins, width), np.float32)
    for i, (here, of_shard) in parts.items():
        known[places[i]] = here
        rows[places[i][here]] = of_shard
    return known, rows[known]


def _unit(vector: np.ndarray) -> np.ndarray:
    length = float(np.linalg.norm(vector))
    return np.asarray(vector / length if length else vector, np.float32)
