"""Judged queries that the models were trained on, near duplicates included, and the notes about them."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from ray_app.base.config import Config
from ray_app.base.storage import Storage
from ray_app.base.text import query_group
from ray_app.cluster.buckets import map_buckets
from ray_app.tables.buckets import read_bucket
from ray_app.tables.manifest import Output, read_manifest, read_output
from ray_app.training.splits import queries_of

CAUTION = "CAUTION: "  # notes that start so are a report's first lines


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Judged queries whose `query_group` is among what was trained on."""

    judged: int  # distinct judged queries
    human_labels: int  # of these, in the splits train or valid
    soft_labels: int  # in the soft labels of the run
    soft_label_pairs: int  # pairs of those soft labels
    all_soft_label_pairs: int  # all pairs of soft labels; 0: the run has none
    engaged_queries: int  # among the engaged queries of a pin's text, as the models were trained on them
    engagement: int | None
    """In the events that the engagement model and the rates were learned from; None: the run has no such model, or it
    was made by a version that did not keep its queries."""

    @classmethod
    def of(
        cls, judged: Collection[str], human: Iterable[str], soft: Iterable[str], engaged: Iterable[str],
        engagement: Iterable[str] | None,
    ) -> "Seen":  # fmt: skip
        """Count; `judged` are distinct, `soft` has the query of each soft-labelled pair, with repeats."""
        groups = [query_group(query) for query in judged]
        wanted, group_of = set(groups), _Groups()

        def met(queries: Iterable[str]) -> int:
            found = {group_of[query] for query in set(queries)} & wanted
            return sum(group in found for group in groups)

        soft = list(soft)
        return cls(
            judged=len(groups), human_labels=met(human), soft_labels=met(soft),
            soft_label_pairs=sum(group_of[query] in wanted for query in soft), all_soft_label_pairs=len(soft),
            engaged_queries=met(engaged), engagement=None if engagement is None else met(engagement),
        )  # fmt: skip

    @property
    def cautions(self) -> list[str]:
        """A sentence for each place where they were met; none: nothing was."""
        share = f"of {self.judged:,} judged queries (near-duplicates included)"
        pairs = f"{self.soft_label_pairs:,} of {self.all_soft_label_pairs:,} pairs"
        told = [
            (self.human_labels, "in the human labels that the models were trained on or chosen by"),
            (self.soft_labels, f"in the soft labels that the student was trained on ({pairs})"),
            (self.engaged_queries, "among the engaged queries in the pins' texts that the models were trained on"),
            (self.engagement or 0, "in the log that the engagement model and the pins' rates were learned from"),
        ]
        return [
            f"{CAUTION}{number:,} {share} {'is' if number == 1 else 'are'} {where}: the figures flatter."
            for number, where in told
            if number
        ]


def seen_in_training(cfg: Config, store: Storage, judged: Collection[str], splits: pa.Table, pin_texts: Output) -> Seen:
    """Overlap of a finished run's training data with the judged queries.

    Args:
        pin_texts: As trained on, before judged queries were taken out of the engaged ones.
    """
    soft = _read(store, "label", "soft_labels", ["query", "error"]) if cfg.distill.soft_label_ratio != 0 else None
    good = [] if soft is None else soft.filter(pc.is_null(soft["error"]))["query"].to_pylist()
    learned = _read(store, "engagement", "engagement_queries", ["query"]) if cfg.engagement else None
    engaged = []
    if "engaged_queries" in {*cfg.pin_text.fields, *cfg.features.bm25_fields}:
        groups = frozenset(map(query_group, judged))
        found = map_buckets(partial(_engaged, store, pin_texts, groups), range(pin_texts.num_buckets))
        engaged = sorted(set().union(*found))
    known = None if learned is None else learned["query"].to_pylist()
    return Seen.of(judged, queries_of(splits, "train", "valid"), good, engaged, known)


def _engaged(store: Storage, pin_texts: Output, groups: frozenset[str], number: int) -> set[str]:
    """Engaged queries of a bucket's pins that are in one of the groups."""
    queries = pc.list_flatten(read_bucket(store, pin_texts, number, ["engaged_queries"])["engaged_queries"])
    return {query for query in queries.unique().drop_null().to_pylist() if query_group(query) in groups}


def _read(store: Storage, stage: str, name: str, columns: list[str]) -> pa.Table | None:
    """A table of a stage; None: the stage has not run, or has no such table."""
    manifest = read_manifest(store, stage)
    if manifest is None or name not in manifest.outputs:
        return None
    return read_output(store, manifest.outputs[name], columns)


class _Groups(dict[str, str]):
    """query -> its `query_group`, computed once: millions of pairs have few distinct queries."""

    def __missing__(self, query: str) -> str:
        self[query] = query_group(query)
        return self[query]
