"""Two reports side by side: which figures moved, whether significantly, and what else is not the same.

found = compare_reports(read_report("runs/old", ["report"]), read_report("runs/new", ["report"]))
render_diff(found)                                      # in diff_page.py: one self-contained HTML page

Figures are compared on the same resamples of the same queries, system by system, if both runs kept their scores
(`pairs.parquet`) and were measured on the same judged pairs, grade for grade. Otherwise a change of figures mixes a
change of models with a change of the test, and has no interval here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ray_app.analysis.metrics.bootstrap_result import GRADE_AS_RATING, BootstrapResult, EvaluationSettings, measure
from ray_app.analysis.metrics.corrections import holm, raised_samples
from ray_app.analysis.metrics.evaluation import judged_hash
from ray_app.analysis.metrics.formatting import interval_fields, plain
from ray_app.analysis.metrics.protocol import METRICS, JudgedPairs, SystemScores, validate_judgments
from ray_app.base.errors import UserError
from ray_app.base.schemas import NUM_GRADES
from ray_app.base.storage import Storage

METRICS_FILE, PAIRS_FILE = "metrics.json", "pairs.parquet"
DETAILS = (EvaluationSettings().ece, "kappa", "log_loss")
_ABSENT = "(not there)"


@dataclass(frozen=True, kw_only=True)
class Report:
    """One run's report, as it is read back."""

    where: str
    metrics: dict[str, Any]
    pairs: pa.Table | None  # None: the run kept no scores


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """Something that is not the same in both runs."""

    name: str
    before: Any
    after: Any


@dataclass(frozen=True, kw_only=True)
class ReportDiff:
    """All that differs; figures that do not are among the rows too, with difference 0."""

    before: str
    after: str
    unpaired: str | None  # why there are no intervals; None: paired
    rows: list[dict[str, Any]]
    equal: list[str]  # systems whose scores are the same, pair by pair: nothing to test
    only_before: list[str]  # systems
    only_after: list[str]
    changes: dict[str, list[Change]]  # heading -> what changed; empty lists: nothing did
    num_samples: int
    confidence_level: float

    def moved(self) -> list[dict[str, Any]]:
        """Rows whose difference is significant."""
        return [row for row in self.rows if row["significant"]]

    def to_json(self) -> dict[str, Any]:
        """Content of diff.json."""
        return {
            "before": self.before, "after": self.after, "paired": self.unpaired is None,
            "unpaired_because": self.unpaired, "num_resamples": self.num_samples, "rows": self.rows,
            "systems_equal": self.equal, "systems_only_before": self.only_before, "systems_only_after": self.only_after,
            "changes": {heading: [asdict(change) for change in found] for heading, found in self.changes.items()},
        }  # fmt: skip


def read_report(path: str, folders: Sequence[str] = ("report",)) -> Report:
    """Read a run's report.

    Args:
        folders: Where in a run's output a report may lie, first choice first.

    Raises:
        UserError: there is no report, or it is not one.
    """
    if path.endswith(".json"):
        root, _, name = path.rpartition("/")
        places = [name]
    else:
        root, places = path.rstrip("/"), [*(f"{folder}/{METRICS_FILE}" for folder in folders), METRICS_FILE]
    store = Storage(root or ".")
    found = next((place for place in places if store.exists(place)), None)
    if found is None:
        raise UserError(
            f"--baseline: {path} has no {' or '.join(places)}; give a run's output folder or its {METRICS_FILE}"
        )
    metrics = store.read_json(found)
    if not isinstance(metrics, dict) or not {"rows", "protocol"} <= metrics.keys():
        raise UserError(f"--baseline: {root}/{found} is not a report's {METRICS_FILE}")
    pairs = found.rpartition("/")[0]
    pairs = f"{pairs}/{PAIRS_FILE}" if pairs else PAIRS_FILE
    return Report(
        where=f"{root or '.'}/{found}", metrics=metrics, pairs=store.read_table(pairs) if store.exists(pairs) else None
    )


def compare_reports(before: Report, after: Report) -> ReportDiff:
    """Compare one report with another."""
    names_before = [row["system"] for row in before.metrics["rows"]]
    names_after = [row["system"] for row in after.metrics["rows"]]
    both = [name for name in names_after if name in names_before]
    unpaired, judged = _pairing(before, after)
    equal, measured = [], None
    settings = _settings(after.metrics["protocol"], len(both))
    if judged is not None:
        sides = {"before": _sorted(before.pairs), "after": _sorted(after.pairs)}
        scores = {name: {side: _scores(pairs, name) for side, pairs in sides.items()} for name in both}
        equal = [name for name, of in scores.items() if _same(of["before"], of["after"])]
        changed = {f"{side}/{name}": of[side] for name, of in scores.items() if name not in equal for side in of}
        measured = measure(judged, changed, settings) if changed else None
    return ReportDiff(
        before=before.where, after=after.where, unpaired=unpaired,
        rows=_rows(before.metrics, after.metrics, both, measured, settings.confidence_level), equal=equal,
        only_before=[name for name in names_before if name not in names_after],
        only_after=[name for name in names_after if name not in names_before],
        changes=_changes(before.metrics, after.metrics), num_samples=settings.samples if measured else 0,
        confidence_level=settings.confidence_level,
    )  # fmt: skip


def _pairing(before: Report, after: Report) -> tuple[str | None, JudgedPairs | None]:
    """Why the two cannot be paired, or the judged pairs that both were measured on."""
    for side, name in ((before, "the earlier"), (after, "the later")):
        if side.pairs is None:
            return f"{name} run kept no scores ({PAIRS_FILE} is not beside its {METRICS_FILE}).", None
    old, new = _sorted(before.pairs), _sorted(after.pairs)
    if judged_hash(old) != judged_hash(new):
        shared = len(_keys(old) & _keys(new))
        why = f"{len(old.grade):,} before, {len(new.grade):,} after; {shared:,} are in both with the same grade"
        return f"the judged pairs are not the same ({why}).", None
    if before.metrics["protocol"].get("relevant_grade") != after.metrics["protocol"].get("relevant_grade"):
        return "they count another grade as relevant.", None
    return None, new


def _sorted(pairs: pa.Table | None) -> JudgedPairs:
    assert pairs is not None
    return validate_judgments(pairs, GRADE_AS_RATING)[0]  # gain_rating, which the table holds, overrides the mapping


def _keys(judged: JudgedPairs) -> set[tuple[Any, ...]]:
    columns = [judged.table[c].to_pylist() for c in ("query", "locale", "pin_id", "grade", "gain_rating")]
    return set(zip(*columns, strict=True))


def _scores(judged: JudgedPairs, system: str) -> SystemScores:
    """A system as the file has it: scores, and its grades as probabilities of one."""
    table = judged.table
    score = np.array([np.nan if s is None else s for s in table[f"score/{system}"].to_pylist()], dtype=np.float64)
    if f"grade/{system}" not in table.column_names:
        return SystemScores(score=score)
    grades = table[f"grade/{system}"].to_numpy().astype(np.int64)
    probs = np.eye(NUM_GRADES)[np.maximum(grades, 1) - 1]
    probs[grades == 0] = np.nan
    return SystemScores(score=score, probs=probs)


def _same(a: SystemScores, b: SystemScores) -> bool:
    if not np.array_equal(a.score, b.score, equal_nan=True):
        return False
    if a.grades is None or b.grades is None:
        return a.grades is b.grades
    return np.array_equal(a.grades, b.grades)


def _settings(protocol: Mapping[str, Any], num_systems: int) -> EvaluationSettings:
    """Those of the later report, with resamples enough for the correction."""
    confidence_level = protocol.get("confidence_level", 0.95)
    comparisons = len(METRICS) * max(num_systems, 1)
    return EvaluationSettings(
        samples=raised_samples(protocol.get("num_resamples", 0), comparisons, confidence_level),
        confidence_level=confidence_level,
        seed=protocol.get("seed", 17),
        relevant_grade=protocol.get("relevant_grade", 4),
    )


def _rows(
    before: Mapping[str, Any], after: Mapping[str, Any], systems: Sequence[str], measured: BootstrapResult | None, confidence_level: float
) -> list[dict[str, Any]]:  # fmt: skip
    found = [{row["system"]: row for row in side["rows"]} for side in (before, after)]
    details = [side.get("details", {}) for side in (before, after)]
    rows = []
    for system in systems:
        for metric in (*METRICS, *DETAILS):
            source = details if metric in DETAILS else found
            old, new = (side.get(system, {}).get(metric) for side in source)
            if old is None and new is None:
                continue
            gap = plain(new - old) if old is not None and new is not None else None
            row = {"system": system, "metric": metric, "before": old, "after": new, "difference": gap}
            row |= {"difference_lo": None, "difference_hi": None, "p": None, "p_adjusted": None, "significant": False}
            if measured is not None and metric in METRICS and f"after/{system}" in measured.points:
                sides = f"after/{system}", f"before/{system}", metric
                row |= {side: plain(measured.points[f"{side}/{system}"][metric]) for side in ("before", "after")}
                row |= interval_fields("difference", measured.difference(*sides))
                row["p"] = plain(measured.p_value(*sides))
            rows.append(row)
    for row, adjusted in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row |= {
            "p_adjusted": plain(adjusted),
            "significant": adjusted is not None and adjusted < 1.0 - confidence_level,
        }
    return rows


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, list[Change]]:
    """List the differences in config, code, data and protocol, key by key."""
    old, new = before.get("provenance", {}), after.get("provenance", {})
    kept = [side.get("data", {}) for side in (old, new)]
    # A run from before reports kept this differs in everything, which says nothing.
    data = [_lineage(side) if all(kept) or not side else ({"all stages": "kept"},) * 2 for side in kept]
    rest = [{k: v for k, v in side.items() if k not in ("config", "versions", "data")} for side in (old, new)]
    parts = {
        "config": (old.get("config", {}), new.get("config", {})),
        "versions": (old.get("versions", {}), new.get("versions", {})),
        "data and recipes": (data[0][0], data[1][0]),
        "counts": (data[0][1], data[1][1]),
        "protocol": (before["protocol"], after["protocol"]),
        "provenance": (rest[0], rest[1]),
    }
    return {heading: _differing(_flat(a), _flat(b)) for heading, (a, b) in parts.items()}


def _lineage(stages: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Content hashes and recipes by stage, and counts by stage."""
    content = {
        stage: {
            "recipe": made.get("recipe"),
            "read": made.get("inputs", {}),
            "wrote": {name: out.get("content") for name, out in made.get("outputs", {}).items()},
        }
        for stage, made in stages.items()
    }
    return content, {stage: made.get("counts", {}) for stage, made in stages.items()}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    out: dict[str, Any] = {}
    for name, inner in value.items():
        out |= _flat(inner, f"{prefix}.{name}" if prefix else str(name))
    return out


def _differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    names = [*after, *(name for name in before if name not in after)]
    found = [Change(name=n, before=before.get(n, _ABSENT), after=after.get(n, _ABSENT)) for n in names]
    return [change for change in found if change.before != change.after]
