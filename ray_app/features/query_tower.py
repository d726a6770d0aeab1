"""The query side of a stage that gives pins vectors (engagement, graph): a small tower over zero-shot vectors.

Plain numpy, so that whoever makes features, evaluates or serves needs neither Ray nor torch for it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from safetensors.numpy import load, save

from ray_app.base.storage import Storage, StoredFile
from ray_app.tables.manifest import Output
from ray_app.tables.model_files import read_model_file

WEIGHTS = "query_tower.safetensors"
SETTINGS = "query_tower.json"
NAMES = ("skip.weight", "hidden.weight", "hidden.bias", "out.weight", "out.bias")


@dataclass(frozen=True, kw_only=True)
class QueryTower:
    """x -> unit(skip x + out relu(hidden x)).

    Args:
        weights: By `NAMES`, float32: skip.weight (dim, width), hidden.weight (hidden, width), hidden.bias (hidden,),
            out.weight (dim, hidden), out.bias (dim,); width is that of the zero-shot vectors.
    """

    weights: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        if set(self.weights) != set(NAMES):
            raise ValueError(f"a side tower has the weights {NAMES}, found {sorted(self.weights)}")

    @property
    def dim(self) -> int:
        """Length of the vectors made."""
        return len(self.weights["out.bias"])

    @classmethod
    def load(cls, store: Storage, output: Output) -> "QueryTower":
        """The tower in a model folder, `engagement_model` or `graph_model`.

        Raises:
            UserError: it is not there.
        """
        return cls(weights=load(read_model_file(store, output, WEIGHTS)))

    def save(self, store: Storage, folder: str) -> list[StoredFile]:
        """Write a model folder; `files.json` last."""
        weights = {name: np.ascontiguousarray(self.weights[name], np.float32) for name in NAMES}
        settings = {"kind": "query_tower", "shapes": {name: list(value.shape) for name, value in weights.items()}}
        files = [
            store.write_bytes(f"{folder}/{WEIGHTS}", save(weights)),
            store.write_bytes(f"{folder}/{SETTINGS}", json.dumps(settings, indent=1).encode()),
        ]
        store.write_json(f"{folder}/files.json", [asdict(file) for file in files])
        return files

    def encode(self, zero_shot: np.ndarray) -> np.ndarray:
        """Vectors of queries, comparable by dot product with those of pins. A row depends on nothing but itself.

        Args:
            zero_shot: (n, width) float32, as the stage zero_shot makes them of normalised queries.

        Returns:
            (n, dim) float32 unit vectors; zeros where the zero-shot vector is zeros (an empty query).
        """
        w = {name: value.astype(np.float64) for name, value in self.weights.items()}
        x = np.asarray(zero_shot, np.float64)
        if x.ndim != 2 or x.shape[1] != w["skip.weight"].shape[1]:
            raise ValueError(f"the tower reads vectors of {w['skip.weight'].shape[1]} numbers, found shape {x.shape}")
        hidden = np.maximum(x @ w["hidden.weight"].T + w["hidden.bias"], 0.0)
        y = x @ w["skip.weight"].T + hidden @ w["out.weight"].T + w["out.bias"]
        y[~x.any(1)] = 0.0
        length = np.linalg.norm(y, axis=1, keepdims=True)
        return np.divide(y, length, out=np.zeros_like(y), where=length > 0).astype(np.float32)
