"""Query encoders: the student's query tower and, where features need it, the zero-shot encoder."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ray_app.base.config import Config, section_hash
from ray_app.base.errors import UserError
from ray_app.base.storage import Storage
from ray_app.features.student import aux_stages
from ray_app.models.encoder_usage import zero_shot_usage
from ray_app.models.model_sources import model_identity
from ray_app.models.text_encoder import TextEncoder, build_zero_shot
from ray_app.online.query_encoders import Backend, choose_backend
from ray_app.tables.local_folder import local_folder
from ray_app.tables.manifest import Output
from ray_app.tables.release import Release

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class QueryModel:
    """Texts -> rows of the query's vector and, behind it, its zero-shot vector; one forward pass of each per new query."""

    identity: tuple[str, ...]  # all that decides the numbers; two models of one identity share their cache
    backend: Backend  # of the student's query tower
    dim: int  # of the query's vector
    zero_shot_encoder: TextEncoder | None  # None: no feature reads it

    @classmethod
    def load(
        cls, store: Storage, cfg: Config, student: Output, release: Release, local_cache_dir: Path,
        before: "QueryModel | None" = None,
    ) -> "QueryModel":  # fmt: skip
        """Load and warm; `before` itself if it gives the same numbers."""
        features, serve = cfg.features, cfg.serve
        zero_shot = model_identity(features.zero_shot_model, features.zero_shot_revision) if aux_stages(cfg) else ""
        usage = zero_shot_usage(features) if zero_shot else None
        identity = (release.student_id, str(release.dim), f"{zero_shot} {usage}", serve.query_encoder_backend)
        if before is not None and before.identity == identity:
            return before
        folder = local_folder(store, student)
        backend = choose_backend(folder, serve, release.student_id, local_cache_dir / "backends", release.dim)
        encoder = None if usage is None else build_zero_shot(features, usage, "query", "float32", serve.cpu_threads)
        model = cls(identity=identity, backend=backend, dim=release.dim, zero_shot_encoder=encoder)
        found = model.encode(["warm up"])
        if found.shape[1] < release.dim or not np.isfinite(found).all():
            raise UserError(f"student {release.student_id} gives no usable query vectors; run distill again")
        return model

    @property
    def space(self) -> str:
        """Names the numbers for a cache that several releases and replicas share."""
        return section_hash(*self.identity)

    @property
    def backend_name(self) -> str:
        """Name of the chosen backend."""
        return self.backend.name

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """(num_texts, dim + zero-shot width) float32."""
        own = self.backend.encode(texts)
        if self.zero_shot_encoder is None:
            return own
        return np.concatenate([own, self.zero_shot_encoder.encode(texts)], 1)

    def zero_shot_part(self, rows: np.ndarray | None) -> np.ndarray | None:
        """The zero-shot vectors in rows of `encode`; zeros, as "not known", for None; None if no feature reads them."""
        if self.zero_shot_encoder is None:
            return None
        return np.zeros((1, self.zero_shot_encoder.dim), np.float32) if rows is None else rows[:, self.dim :]
