"""Inputs of a comparison that come from a run: the teacher's labels (missing ones are made), human labels, and strata of the log."""

import logging
from dataclasses import dataclass

import numpy as np

from ray_app.analysis.measurement.paired_rankings import PairedRankings
from ray_app.analysis.measurement.ranking_metrics import Judgments, judge_by_grades, judge_by_probs
from ray_app.analysis.measurement.rankings import QueryKey
from ray_app.analysis.measurement.strata import name_strata
from ray_app.analysis.metrics.bootstrap_result import EvaluationSettings, rating_of_grade
from ray_app.analysis.metrics.systems import teacher_probs
from ray_app.base.config import Config
from ray_app.base.errors import UserError
from ray_app.base.storage import Storage
from ray_app.base.text import query_group
from ray_app.cluster.catalogue_tables import CatalogueTables
from ray_app.features.catalogue import Catalogue, index_queries
from ray_app.sources.human_labels import load_human_labels
from ray_app.sources.sheets import shown_texts
from ray_app.stages.label.labeller import Labeller
from ray_app.stages.sample.log_events import frequency_bands
from ray_app.tables.manifest import read_output, require_output
from ray_app.training.splits import queries_of
from ray_app.training.targets import combine_raters

logger = logging.getLogger(__name__)

RELEVANT_GRADE = EvaluationSettings().relevant_grade


@dataclass(frozen=True, kw_only=True)
class ComparisonInputs:
    """Judgments, strata and texts of a comparison's queries."""

    teacher: Judgments  # of the top pins of both rankings, calibrated
    human: Judgments  # of all that humans graded
    stratum_of: dict[QueryKey, str]  # of each query, see `name_strata`
    texts_of: dict[str, dict[str, str]]  # title and caption of each pin of the rankings' top, for people
    num_pairs: int  # that the teacher judged
    num_labelled_now: int  # of these, for the first time
    notes: list[str]  # cautions


def trained_groups(store: Storage) -> set[str]:
    """`query_group` of the queries that trained the teacher or chose its epoch."""
    splits = read_output(store, require_output(store, "train_teacher", "splits"))
    return {query_group(query) for query in queries_of(splits, "train", "valid")}


def gather(cfg: Config, store: Storage, paired: PairedRankings, depth: int, human_path: str | None) -> ComparisonInputs:
    """Read a run, and label the pairs of the top `depth` that its ledger lacks.

    Args:
        human_path: File of human labels, read as `ingest.human_labels` says; None: the run's own.

    Raises:
        UserError: the run has no teacher yet, or no pin of the rankings is in its catalogue.
    """
    tables = CatalogueTables.of(cfg, store)
    human, notes = _human(cfg, store, tables, human_path)
    pairs = paired.pairs(depth)
    catalogue = tables.pins({pin for _, pin in pairs})
    known = set(catalogue.pairs.pin_ids)
    unknown = sorted({pin for _, pin in pairs} - known)
    kept = [(query, pin) for query, pin in pairs if pin in known]
    if not kept:
        raise UserError(f"no pin of the two rankings is in the catalogue, such as {unknown[0]!r}; is this their run?")
    teacher, num_labelled_now = _teacher(cfg, store, catalogue, kept)
    if unknown:
        notes.append(
            f"{len(unknown):,} pins of the rankings are not in the catalogue, such as {unknown[0]!r}: not judged"
        )
    return ComparisonInputs(
        teacher=teacher, human=human, stratum_of=_strata(store, paired.queries),
        texts_of=shown_texts(catalogue.pin_texts, (pin for _, pin in kept)), num_pairs=len(kept),
        num_labelled_now=num_labelled_now, notes=notes,
    )  # fmt: skip


def _teacher(
    cfg: Config, store: Storage, catalogue: Catalogue, pairs: list[tuple[QueryKey, str]]
) -> tuple[Judgments, int]:
    """Judgments of pairs of the catalogue, and how many had to be labelled."""
    # Pairs that cannot be labelled are counted as not judged here, and are no reason to stop.
    lenient = cfg.model_copy(update={"label": cfg.label.model_copy(update={"max_error_rate": 1.0})})
    labeller = Labeller(cfg=lenient, store=store, teacher=require_output(store, "train_teacher", "teacher"))
    queries, query_index = index_queries([query for (query, _), _ in pairs])
    pin_ids = [pin for _, pin in pairs]
    locales, pin_index = [locale for (_, locale), _ in pairs], catalogue.pairs.pin_rows(pin_ids)
    probs, num_now = teacher_probs(labeller, catalogue, queries, query_index, pin_index, locales)
    logger.info("compare: %d pairs, %d of them labelled now", len(pairs), num_now)
    probs = probs.astype(np.float64)
    return judge_by_probs([query for query, _ in pairs], pin_ids, probs, _ratings(cfg), RELEVANT_GRADE), num_now


def _human(cfg: Config, store: Storage, tables: CatalogueTables, path: str | None) -> tuple[Judgments, list[str]]:
    notes = []
    if path is None:
        labels = read_output(store, require_output(store, "ingest", "human_labels"))
    else:
        labels, refused = load_human_labels(cfg, path, tables.known, key="--human-labels")
        if refused.num_rows:
            reason = refused["reason"][0].as_py()
            notes.append(f"{refused.num_rows:,} rows of {path} cannot be used, the first because of {reason}")
    return judge_by_grades(combine_raters(labels, 0.0), _ratings(cfg), RELEVANT_GRADE), notes


def _strata(store: Storage, queries: list[QueryKey]) -> dict[QueryKey, str]:
    return name_strata(frequency_bands(store, require_output(store, "ingest", "search_log"), queries))


def _ratings(cfg: Config) -> dict[int, int]:
    return rating_of_grade(getattr(cfg.ingest.human_labels, "grade_map", None))
