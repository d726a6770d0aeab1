"""Inputs of a release: its tables and models, and the rows of them that a shard needs."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from ray_app.base.config import Config, ServeConfig
from ray_app.base.errors import UserError
from ray_app.base.hashing import shards_of
from ray_app.base.storage import Storage
from ray_app.online.pin_files import Shard
from ray_app.tables.manifest import Output, read_output_files
from ray_app.tables.release import Release

Keep = Callable[[Sequence[str]], np.ndarray]  # pin ids -> (num_ids,) bool


@dataclass(frozen=True)
class ReleaseInputs:
    """A release's inputs by name; whoever asks also names the stage, which does not matter here."""

    release: Release

    def __call__(self, stage: str, name: str) -> Output:
        """See `FindOutput`."""
        if name not in self.release.sources:
            raise UserError(f"release {self.release.id} does not say which {name} it belongs to; run embed again")
        return self.release.sources[name]


# Keys of earlier versions that decide nothing in serving: their releases are served on.
_RETIRED = (("enrich", "min_support"), ("engagement", "min_events"))


def config_of(release: Release, serve: ServeConfig) -> Config:
    """The settings that a release was made with, but for how it is served, which is the operator's of today.

    Raises:
        UserError: another version of this code wrote them.
    """
    settings = copy.deepcopy(release.config) | {"serve": serve}
    for section, key in _RETIRED:
        (settings.get(section) or {}).pop(key, None)
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        fields = sorted({".".join(str(part) for part in problem["loc"]) for problem in error.errors()})
        raise UserError(
            f"release {release.id} was published with settings that this version does not know ({', '.join(fields)}); "
            "run embed again"
        ) from None


def is_in(shard: Shard) -> Keep:
    """Return a mask of the pins that belong to the shard."""
    return lambda pin_ids: shards_of(pin_ids, shard[1]) == shard[0]


def read_rows(keep: Keep, store: Storage, output: Output, columns: list[str] | None) -> pa.Table:
    """`read_output` of some pins; columns must have pin_id."""
    parts = read_output_files(store, output, columns)
    return pa.concat_tables([part.filter(pa.array(keep(part["pin_id"].to_pylist()))) for part in parts])
