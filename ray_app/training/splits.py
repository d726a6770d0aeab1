"""Train, validation and test splits of human-labelled queries: by query, never by pair."""

from collections.abc import Collection, Sequence

import pyarrow as pa

from ray_app.base.content_key import content_key
from ray_app.base.schemas import SPLITS
from ray_app.base.text import normalize_query, query_group


def split_queries(queries: Sequence[str], test_fraction: float, validation_fraction: float, seed: int) -> pa.Table:
    """Assign each distinct query to train, valid or test.

    Near-duplicates (laptop, laptops) always fall together, else a test query would have been seen in training. The
    order of the groups is a hash of group and seed, so that a new query moves few of the others.

    Args:
        test_fraction: Share of the query groups that is only for evaluation.
        validation_fraction: Share that chooses the best epoch.

    Returns:
        Table of schema SPLITS, sorted by query.
    """
    groups = {query: query_group(query) for query in queries}
    ranked = sorted(set(groups.values()), key=lambda group: content_key(str(seed), group))
    num_test, num_valid = round(len(ranked) * test_fraction), round(len(ranked) * validation_fraction)
    split_of = {}
    for rank, group in enumerate(ranked):
        split_of[group] = "test" if rank < num_test else "valid" if rank < num_test + num_valid else "train"
    rows = sorted(groups)
    return pa.table({"query": rows, "split": [split_of[groups[q]] for q in rows]}, schema=SPLITS)


def queries_of(splits: pa.Table, *names: str) -> set[str]:
    """Queries of the named splits."""
    rows = zip(splits["query"].to_pylist(), splits["split"].to_pylist(), strict=True)
    return {query for query, split in rows if split in names}


def of_queries(labels: pa.Table, queries: Collection[str]) -> pa.Table:
    """The labels of some normalised queries."""
    wanted = {raw for raw in set(labels["query"].to_pylist()) if normalize_query(raw) in queries}
    return labels.filter(pa.array([query in wanted for query in labels["query"].to_pylist()], pa.bool_()))
