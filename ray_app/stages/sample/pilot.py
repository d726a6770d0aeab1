"""Standard deviation of the teacher's grades within each stratum, from the soft labels of an earlier run (Neyman allocation).

The earlier run is one that the config names, never the run's own last labels: those change with each sample, and each
change would make another sample, so that no rerun would ever be up to date.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ray_app.base.columns import matrix_of
from ray_app.base.errors import UserError
from ray_app.base.schemas import NUM_GRADES
from ray_app.base.storage import Storage
from ray_app.tables.manifest import Output, read_manifest, read_output

_PRIOR_LABELS = 20.0  # guessed: with so many labels a stratum's own deviation and the overall one count alike
_LEAST_VARIANCE = 1e-12  # below that the grades differ by rounding
# Guessed: of the overall deviation. A teacher may be surely wrong; with rate 0 nobody would see it.
LEAST_DEVIATION = 0.25

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Deviations:
    """Standard deviation of the teacher's expected grade within strata of the log, all above 0."""

    overall: float
    by_stratum: dict[str, float]
    num_labels: int

    def of(self, strata: Sequence[str]) -> Floats:
        """(num_strata,) deviations; the overall one for strata that the earlier run does not know."""
        return np.array([self.by_stratum.get(name, self.overall) for name in strata], np.float64)


def pilot_outputs(pilot: Storage, store: Storage) -> list[Output]:
    """`pairs` and `soft_labels` of the earlier run in `pilot`.

    Raises:
        UserError: it has not finished, or is the run in `store` itself.
    """
    if (pilot.fs.type_name, pilot.full_path("")) == (store.fs.type_name, store.full_path("")):
        raise UserError(
            "sample.pilot must be another run's output: with its own labels each run would sample again; "
            "copy manifests/ and tables/ elsewhere, and name that folder"
        )
    sample, label = read_manifest(pilot, "sample"), read_manifest(pilot, "label")
    if sample is None or label is None:
        stage = "sample" if sample is None else "label"
        raise UserError(f"sample.pilot: {pilot.shown} has no finished {stage} stage; name the output of a whole run")
    if label.inputs.get("pairs") != sample.output("pairs").content_hash:
        raise UserError(f"sample.pilot: {pilot.shown} has labels of an older sample; run its label stage first")
    return [sample.output("pairs"), label.output("soft_labels")]


def read_deviations(pilot: Storage, outputs: list[Output]) -> Deviations | None:
    """`stratum_deviations` of what `pilot_outputs` found."""
    key = ["query", "locale", "pin_id"]
    pairs = read_output(pilot, outputs[0], [*key, "stratum", "inclusion_prob"])
    labels = read_output(pilot, outputs[1], [*key, "probs"]).filter(pc.field("probs").is_valid())
    grades = matrix_of(labels["probs"]) @ np.arange(1.0, NUM_GRADES + 1.0)
    joined = pairs.join(labels.select(key).append_column("grade", pa.array(grades)), key, join_type="inner")
    joined = joined.sort_by([(name, "ascending") for name in key])  # sums of floats depend on the order
    return stratum_deviations(
        joined["stratum"].to_pylist(), joined["grade"].to_numpy(), 1.0 / joined["inclusion_prob"].to_numpy()
    )


def stratum_deviations(strata: Sequence[str], grades: Floats, weights: Floats) -> Deviations | None:
    """Deviation of the expected grade within each stratum of the log, design-weighted and shrunk.

    A stratum's variance is averaged with the overall one, which counts like `_PRIOR_LABELS` labels. Overall means within
    strata: what separates the strata is not what more pairs of a stratum would tell.

    Args:
        strata: (num_labels,) names; pairs that no user saw (`.../retrieved`) are left out, they are not drawn by strata.
        grades: (num_labels,) expected grade, 1..5.
        weights: (num_labels,) 1 / inclusion_prob.

    Returns:
        None: no stratum has two labels that differ.
    """
    in_log = np.array([not name.endswith("/retrieved") for name in strata], bool)
    if not in_log.any():
        return None
    grade, weight = np.asarray(grades)[in_log], np.asarray(weights)[in_log]
    names, stratum = np.unique(np.array(strata, str)[in_log], return_inverse=True)
    total = np.bincount(stratum, weight)
    mean = np.bincount(stratum, weight * grade) / total
    own = np.bincount(stratum, weight * (grade - mean[stratum]) ** 2) / total
    size = total**2 / np.bincount(stratum, weight**2)  # as `effective_size`
    if not own.max() > _LEAST_VARIANCE:
        return None
    overall = float((size * own).sum() / (size - 1.0).sum())
    shrunk = np.sqrt((size * own + _PRIOR_LABELS * overall) / (size - 1.0 + _PRIOR_LABELS))
    deviation = float(np.sqrt(overall))
    return Deviations(
        overall=deviation,
        by_stratum=dict(zip(names.tolist(), np.maximum(shrunk, LEAST_DEVIATION * deviation).tolist(), strict=True)),
        num_labels=len(grade),
    )
