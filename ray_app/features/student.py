"""Features that the student reads in addition to its towers' embeddings: one class for distill, evaluate and serving."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from ray_app.base.columns import aligned, matrix_or_zero
from ray_app.base.config import Config
from ray_app.base.locales import UNKNOWN, language_of
from ray_app.base.storage import Storage
from ray_app.features.bm25 import CatalogueMatch
from ray_app.features.catalogue import Catalogue
from ray_app.features.engagement_rates import RATE_NAMES
from ray_app.features.external_embeddings import external_embedding_block
from ray_app.features.query_tower import QueryTower
from ray_app.tables.manifest import Output, read_output, require_output

STUDENT_FEATURES_VERSION = 2  # raised when equal inputs give other features
LOCALE_NAMES = ("same_locale", "same_language", "pin_locale_known", "query_locale_known")
QUERY_LOCALE_NAMES = ("same_locale", "same_language", "query_locale_known")  # 0 where a query's locale is UNKNOWN
AUX_STAGES = ("engagement", "graph")  # stages that give pins a vector, and queries one in the same space

EncodeQueries = Callable[[Sequence[str]], np.ndarray]
FindOutput = Callable[[str, str], Output]  # (stage, name) -> what that stage made
ReadTable = Callable[[Storage, Output, list[str] | None], pa.Table]  # as `read_output`, of all pins or some of them


@dataclass(frozen=True, kw_only=True)
class AuxEmbeddings:
    """Vectors that one stage made."""

    name: str  # of the stage
    pin_vectors: np.ndarray  # (num_pins, dim) float32 unit vectors, zeros where a pin has none
    tower: QueryTower  # makes the queries' vectors


@dataclass(frozen=True, kw_only=True)
class StudentFeatures:
    """The student's features of pairs. A pin that lacks something has zeros there, and a 0 that says so."""

    catalogue: Catalogue  # its lexical features come first
    vectors: np.ndarray  # (num_pins, width) float32, the pins' named vectors side by side
    vector_known: np.ndarray  # (num_pins, number of named vectors), 1 where a pin has that vector
    vector_dims: dict[str, int]  # name -> dimension, in the order of `vectors`
    rates: tuple[np.ndarray, np.ndarray] | None = None
    """(num_pins, 5) engagement rates and (num_pins, 1) whether they are known; None: not made."""
    aux_embeddings: Sequence[AuxEmbeddings] = ()  # vectors whose cosines are features
    encode_queries: EncodeQueries | None = None
    """Texts -> zero-shot vectors, which the sides' towers read; None: there are no sides."""

    @classmethod
    def load(
        cls, catalogue: Catalogue, store: Storage, encode_queries: EncodeQueries,
        find: FindOutput | None = None, read: ReadTable = read_output,
    ) -> "StudentFeatures":  # fmt: skip
        """Read what the stages have made for these pins.

        Args:
            encode_queries: See the class, such as `zero_shot_queries`; not called without sides.
            find: Where the stages' outputs are, such as those of a release; None: the run's latest.
            read: Gives the rows of the catalogue's pins.

        Raises:
            UserError: a stage has not run.
        """
        cfg, find = catalogue.cfg, find or partial(require_output, store)
        pins = read(store, find("ingest", "pins"), ["pin_id", *cfg.features.external_embeddings])
        pins = aligned(pins, catalogue.pin_texts["pin_id"])
        values, known = external_embedding_block(pins, cfg.features.external_embeddings)
        aux_embeddings, rates = [], None
        for name in aux_stages(cfg):
            table = read(store, find(name, f"{name}_pins"), None)
            table = aligned(table, catalogue.pin_texts["pin_id"])
            tower = QueryTower.load(store, find(name, f"{name}_model"))
            aux_embeddings.append(
                AuxEmbeddings(name=name, pin_vectors=matrix_or_zero(table[f"{name}_embedding"]), tower=tower)
            )
            if name == "engagement":
                rates = matrix_or_zero(table["rates"]), table["rates"].is_valid().to_numpy().astype(np.float32)[:, None]
        return cls(
            catalogue=catalogue, vectors=values, vector_known=known, vector_dims=dict(cfg.features.external_embeddings),
            rates=rates, aux_embeddings=aux_embeddings, encode_queries=encode_queries if aux_embeddings else None,
        )  # fmt: skip

    @property
    def names(self) -> list[str]:
        """Name of every feature, in the order of `compute`'s columns."""
        names = [*self.catalogue.pairs.names, *LOCALE_NAMES]
        names += [f"{name}_{i}" for name, dim in self.vector_dims.items() for i in range(dim)]
        names += [f"{name}_known" for name in self.vector_dims]
        if self.rates is not None:
            names += [*RATE_NAMES, "rates_known"]
        return names + [f"{aux.name}_{what}" for aux in self.aux_embeddings for what in ("cosine", "known")]

    def compute(
        self, queries: Sequence[str], query_index: np.ndarray, pin_index: np.ndarray, locales: Sequence[str],
        zero_shot: np.ndarray | None = None, match: CatalogueMatch | None = None,
    ) -> np.ndarray:  # fmt: skip
        """Features of pairs (queries[query_index[i]], pin pin_index[i]), searched from locales[i].

        Args:
            query_index: (num_pairs,).
            pin_index: (num_pairs,) rows of the catalogue.
            locales: num_pairs canonical locales, UNKNOWN among them.
            zero_shot: (num_queries, width) the queries' zero-shot vectors, if they are there already; zeros where one
                is not known, which the features say.
            match: See `LexicalFeatures.compute`.

        Returns:
            (num_pairs, num_features) float32, columns as in `names`.
        """
        lexical = self.catalogue.pairs.compute(queries, query_index, pin_index, match)
        columns = [lexical, self._locales(pin_index, locales)]
        columns += [self.vectors[pin_index], self.vector_known[pin_index]]
        if self.rates is not None:
            columns += [values[pin_index] for values in self.rates]
        if self.aux_embeddings:
            if zero_shot is None:
                assert self.encode_queries is not None
                zero_shot = self.encode_queries(queries)
            for aux in self.aux_embeddings:
                of_queries, pin_vectors = aux.tower.encode(zero_shot), aux.pin_vectors[pin_index]
                query_vectors = of_queries[query_index]
                known = pin_vectors.any(axis=1) & query_vectors.any(axis=1)
                columns += [np.einsum("nd,nd->n", query_vectors, pin_vectors)[:, None], known[:, None]]
        return np.concatenate(columns, axis=1, dtype=np.float32)

    def _locales(self, pin_index: np.ndarray, locales: Sequence[str]) -> np.ndarray:
        own = self.catalogue.pin_texts["locale"].take(pa.array(pin_index)).to_pylist()
        rows = []
        for pin, query in zip(own, locales, strict=True):
            known = bool(pin), query != UNKNOWN
            same = pin == query, all(known) and language_of(pin) == language_of(query)
            rows.append((*same, *known))
        return np.array(rows, np.float32).reshape(len(rows), len(LOCALE_NAMES))


def aux_stages(cfg: Config) -> list[str]:
    """The stages of AUX_STAGES that a config switches on."""
    return [name for name in AUX_STAGES if getattr(cfg, name) is not None]


def feature_inputs(cfg: Config, store: Storage) -> list[Output]:
    """Stage outputs that the features are read from, except the catalogue."""
    made = [require_output(store, name, f"{name}_{what}") for name in aux_stages(cfg) for what in ("pins", "model")]
    return [require_output(store, "ingest", "pins"), *made]


def drifting_inputs(cfg: Config) -> list[str]:
    """Names of the `feature_inputs` that may change with a few new pins without retraining; models are not among them."""
    return ["pins", *(f"{name}_pins" for name in aux_stages(cfg))]
