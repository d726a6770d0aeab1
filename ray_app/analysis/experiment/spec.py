"""Definition of an experiment: a YAML file that names a run's config and the arms that differ from it.

base: ../demo.yaml
title: What is each text of a pin worth?
system: teacher
variants:
  - {name: caption, set: {pin_text.fields: [caption]}}
  - {name: all texts}                                    # the run itself
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from ray_app.base.config import Section, explain, read_tree
from ray_app.base.errors import UserError
from ray_app.base.storage import Storage

_MANIFEST, _QUICK = "experiment-", "-quick"

System = Literal[
    "bm25", "embedding_cosine", "engagement_cosine", "graph_cosine", "feature_only_student", "student", "teacher"
]


class VariantSpec(Section):
    """One row of the table."""

    name: str = Field(min_length=1)
    system: System | None = None
    """System of the arm that is measured; None: as the experiment says."""
    set: dict[str, Any] = Field(default={})
    """`section.key` -> value, over the run's config. Empty: the run itself."""


class ExperimentSpec(Section):
    """A question, and the arms that answer it."""

    base: str
    """Config of the run, seen from this file's folder."""
    title: str
    about: str = ""
    compare_to: Literal["previous", "first", "languages", "transfer"] = "previous"
    """Each arm with the one above it, for arms that are expected to rise; all with the first; two arms language by
    language, the first learned from human labels alone; or no arms: the vectors in other uses (docs/transfer.md)."""
    system: System = "student"
    seeds: list[int] = Field(default=[])
    """Trainings of each arm beside the one with the run's seed. Splits, sample and teacher labels stay."""
    variants: list[VariantSpec] = Field(default=[])

    @model_validator(mode="after")
    def _variants_fit_the_comparison(self) -> "ExperimentSpec":
        names = [variant.name for variant in self.variants]
        if len(set(names)) < len(names):
            raise ValueError("two arms have the same name")
        if self.compare_to == "languages" and len(names) != 2:
            raise ValueError("compare_to: languages takes two arms, the one on human labels first")
        if self.compare_to != "transfer" and len(names) < 2:
            raise ValueError("an experiment takes at least two arms")
        return self


def load_experiment(path: str | Path) -> tuple[str, ExperimentSpec, Path]:
    """Read an experiment's file: its key (the file's name), what it says, and the path of the run's config.

    Raises:
        UserError: the file cannot be read, or says something unknown.
    """
    path = Path(path)
    try:
        spec = ExperimentSpec.model_validate(read_tree(path))
    except ValidationError as error:
        raise UserError(explain(error, str(path), ExperimentSpec)) from None
    return path.stem, spec, path.parent / spec.base


def table_name(key: str, quick: bool) -> str:
    """Name of an experiment's table; `quick`: with one training of each arm."""
    return key + (_QUICK if quick else "")


def manifest_name(key: str, quick: bool) -> str:
    """Name of its manifest."""
    return _MANIFEST + table_name(key, quick)


def experiments_run(store: Storage) -> list[str]:
    """Keys of the experiments that have a table, in alphabetical order."""
    names = (path.removeprefix("manifests/").removesuffix(".json") for path in store.list_files("manifests"))
    return sorted({name.removeprefix(_MANIFEST).removesuffix(_QUICK) for name in names if name.startswith(_MANIFEST)})
