"""Training examples: pairs with features, a target distribution and a weight."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ray_app.base.columns import matrix_column, matrix_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Examples:
    """Pairs to train on; all sequences have length N."""

    queries: Sequence[str]  # N strings
    pin_texts: Sequence[str]  # N strings
    features: np.ndarray  # (N, num_features) float32, not standardised
    targets: np.ndarray  # (N, 5) float32, each row a distribution over grades
    weights: np.ndarray  # (N,) float32, >= 0
    locales: Sequence[str] | None = None  # N locales that the queries were searched from; None: unknown

    def __post_init__(self) -> None:
        n = len(self.queries)
        lengths = {len(self.pin_texts), len(self.features), len(self.targets), len(self.weights)}
        lengths |= set() if self.locales is None else {len(self.locales)}
        if lengths != {n}:
            raise ValueError(f"examples must have one length, found {n} queries and {sorted(lengths)}")
        if n and not np.allclose(self.targets.sum(1), 1.0, atol=1e-3):
            raise ValueError("each target must be a distribution that sums to 1; else the loss trains towards nothing")

    def __len__(self) -> int:
        return len(self.queries)

    def rows(self, index: np.ndarray) -> "Examples":
        """The examples at those positions."""
        return Examples(
            queries=[self.queries[i] for i in index], pin_texts=[self.pin_texts[i] for i in index],
            features=self.features[index], targets=self.targets[index], weights=self.weights[index],
            locales=None if self.locales is None else [self.locales[i] for i in index],
        )  # fmt: skip

    @classmethod
    def concatenate(cls, parts: Sequence["Examples"]) -> "Examples":
        """Concatenate the parts; without locales if one of them has none."""
        locales = [part.locales for part in parts if part.locales is not None]
        return cls(
            queries=[query for part in parts for query in part.queries],
            pin_texts=[text for part in parts for text in part.pin_texts],
            features=np.concatenate([part.features for part in parts]),
            targets=np.concatenate([part.targets for part in parts]),
            weights=np.concatenate([part.weights for part in parts]),
            locales=[locale for some in locales for locale in some] if len(locales) == len(parts) else None,
        )

    def to_table(self) -> pa.Table:
        """Convert to an Arrow table that training workers can read from storage."""
        columns = {
            "query": pa.array(list(self.queries), pa.string()),
            "pin_text": pa.array(list(self.pin_texts), pa.string()),
            "target": matrix_column(self.targets),
            "weight": pa.array(self.weights.astype(np.float32)),
        }
        if self.features.shape[1]:  # Parquet misreads lists of length 0
            columns["features"] = matrix_column(self.features)
        if self.locales is not None:
            columns["locale"] = pa.array(list(self.locales), pa.string())
        return pa.table(columns)

    @classmethod
    def from_table(cls, table: pa.Table) -> "Examples":
        """The inverse of `to_table`."""
        return cls(
            queries=table["query"].to_pylist(),
            pin_texts=table["pin_text"].to_pylist(),
            features=matrix_of(table["features"])
            if "features" in table.column_names
            else np.zeros((table.num_rows, 0), np.float32),
            targets=matrix_of(table["target"]),
            weights=table["weight"].to_numpy().astype(np.float32),
            locales=table["locale"].to_pylist() if "locale" in table.column_names else None,
        )
