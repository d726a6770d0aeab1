"""Model work of stages on Ray Data: the one place where caption, label, embed and zero_shot compute what their ledgers lack.

A stage declares `ModelWork`; what is missing, blocks, workers, progress, the error rate, what a crash costs, the cost
estimate and the retry of failed rows are decided here. Whether the stage has to run at all, and its manifest, are in
`ray_app.tables.stage_run`.

A block is cut once, computed, and committed by the task that finishes it. So a kill at any moment loses only blocks that
are not finished, and since blocks are cut from the missing rows in a fixed order, and all but the last are full, the blocks
of a second run are those that the first would have computed: equal batches, equal rounding.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ray_app.base.config import PriceConfig
from ray_app.base.errors import UserError
from ray_app.cluster.blocks import BLOCK, Chain, encode_block
from ray_app.cluster.buckets import map_buckets, shuffle
from ray_app.cluster.cost_estimate import CostEstimate, ReservedResources, Timing, cost_of, estimate_cost, timing
from ray_app.cluster.failures import BlockFailedError, explain_failure, fatal_line, line
from ray_app.cluster.progress import Progress
from ray_app.cluster.resources import PoolAllocation, PoolRequest, allocate_pool, cluster_nodes, connect
from ray_app.tables.keys import KeySet, key_numbers
from ray_app.tables.ledger import Ledger, missing_rows

logger = logging.getLogger(__name__)

_PLACE = "__place__"  # internal column
_LEAST_ROWS = 1000  # before a job gives up for its share of errors


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerCounts:
    """Result counts of `ModelWork.compute`. unique = already_present + computed + transient errors."""

    wanted: int  # rows asked for
    unique: int  # content keys among them
    already_present: int  # keys that had a result
    computed: int  # keys that have one now
    errors: int  # keys whose result is an error, old ones included, so that a second run does not hide them
    recomputed_rows: int = 0  # rows of blocks that were begun again after a kill, since the last run that ended well
    corrupt_files: int = 0  # ledger files that were ignored
    first_error: str | None = None  # one of `errors`, to show
    transient: Mapping[str, str] = field(
        default_factory=dict
    )  # key -> error that is not kept, as the next run may succeed
    counters: Mapping[str, float] = field(default_factory=dict)  # summed over the chain's blocks
    tokens: int = 0  # of the computed rows, without prefix sharing; 0: not counted
    prefix_hit_rate: float | None = None  # share of them that the model did not have to compute again
    device_sec: float = 0.0  # model work, summed over the workers
    timing: Timing = field(default_factory=lambda: timing(0, (), 0.0, 0.0))
    allocation: PoolAllocation | None = None  # None: nothing was computed

    @property
    def reserved(self) -> ReservedResources:
        """Resources that the job held from start to end."""
        allocation = self.allocation
        if allocation is None:
            return ReservedResources(gpus=0, cpus=0)
        return ReservedResources(
            gpus=allocation.max_actors * allocation.pool.num_gpus,
            cpus=allocation.max_actors * allocation.num_cpus + allocation.pool.upstream_tasks * allocation.task_cpus,
        )


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Rows that a stage wants to have, bucket by bucket. Picklable: tasks call it, and the driver sees counts.

    Args:
        num_buckets: Of the table that the rows are of, and of the ledger that they are looked for in.
        keyed: Bucket -> table of `content_key` and what `columns` reads, in the order that blocks are to be cut from. Must be
            the same in each run, or so are not the results.
        columns: (bucket, rows of `keyed` that are missing) -> the same rows with all columns that the chain reads.
        place: Missing rows of `keyed` -> the bucket that each is computed with, (num_rows,): where what the chain reads for it
            lies, if that is elsewhere than its result. None: the bucket of its key.
    """

    num_buckets: int
    keyed: Callable[[int], pa.Table]
    columns: Callable[[int, pa.Table], pa.Table]
    place: Callable[[pa.Table], NDArray[np.int64]] | None = None


@dataclass(frozen=True, kw_only=True)
class FewRows:
    """Rows that fit into this process, whatever buckets of the ledger they are of.

    Args:
        keyed: As `Wanted.keyed` of all of them.
        columns: As `Wanted.columns`; called here.
    """

    keyed: pa.Table
    columns: Callable[[pa.Table], pa.Table]


@dataclass(frozen=True, kw_only=True, slots=True)
class _BucketPlan:
    """What a bucket lacks."""

    bucket: int
    wanted: int
    unique: int
    missing: int
    present: int  # keys in the ledger's bucket
    errors: int
    first_error: str | None
    corrupt_files: int
    schema: pa.Schema  # of `Wanted.keyed`
    rows: pa.Table | None  # missing rows of `Wanted.keyed`; None: they are in the file of the plan


@dataclass(frozen=True, kw_only=True)
class ModelWork:
    """Rows that a model computes, each content key once, as a stage declares them.

    Args:
        noun: What a row is, in cost estimates: pairs, pictures.
        ledger: Where results are looked up and committed.
        pool: What the workers ask for.
        chain: Makes what computes and commits blocks, such as `actor_chain`; called if something is missing.
        rows_per_block: Rows that are computed and committed together: what a crash can cost.
        cut: Missing rows -> blocks, where their size is not all that matters; None: `rows_per_block` each.
        max_error_rate: Of the rows done so far (at least 1,000, or all): over it the job stops.
        progress_interval_sec: Between two lines of progress.
        prefix_hits: Starts a meter, see `Progress`; None: tokens are counted.
    """

    noun: str
    ledger: Ledger
    pool: PoolRequest
    chain: Callable[[], Chain]
    rows_per_block: int
    cut: Callable[[pa.Table], list[pa.Table]] | None = None
    max_error_rate: float = 1.0
    progress_interval_sec: float = 30.0
    prefix_hits: Callable[[], Callable[[], float | None]] | None = None

    def compute(self, wanted: Wanted | FewRows | pa.Table, max_rows: int | None = None) -> LedgerCounts:
        """Compute and commit the rows of `wanted` that the ledger lacks. Of one bucket, Ray is not touched when none is missing.

        Each bucket is compared with that of the ledger by one task, which notes what is missing; another one reads these rows
        and cuts them into blocks for the workers. One bucket is done in this process, but for the workers.

        Args:
            wanted: Buckets; or few rows, as a table if it has all that the chain reads.
            max_rows: Only so many, from the first buckets; None: all.

        Raises:
            UserError: the cluster is too small, a worker failed or died too often, or too many rows failed; one line.
                Finished blocks are kept.
        """
        if isinstance(wanted, pa.Table):
            wanted = FewRows(keyed=wanted, columns=lambda missing: missing)
        if isinstance(wanted, FewRows):
            return self._compute_few(wanted, max_rows)
        try:
            plans = map_buckets(partial(self._plan, wanted), range(wanted.num_buckets))
            return self._compute(wanted, plans, max_rows, plans[0].rows)
        finally:
            if wanted.num_buckets > 1:
                self.ledger.store.delete(self._plan_folder)

    def _compute_few(self, few: FewRows, max_rows: int | None) -> LedgerCounts:
        """Buckets of the ledger are read by tasks; what is missing is cut into blocks here, whatever bucket it is of."""
        _require_keys(self.ledger.table, few.keyed)
        rows = few.keyed.append_column(_PLACE, pa.array(range(few.keyed.num_rows), pa.int64()))
        parts = dict(self.ledger.by_bucket(rows)) or {0: rows}
        num_buckets = self.ledger.num_buckets
        wanted = Wanted(num_buckets=num_buckets, keyed=parts.__getitem__, columns=lambda _, missing: missing)
        plans = map_buckets(partial(self._plan, wanted, keep=True), sorted(parts))
        missing = pa.concat_tables([plan.rows for plan in plans if plan.rows is not None]).sort_by(_PLACE)
        with_columns = replace(wanted, columns=lambda _, missing: few.columns(missing))
        return self._compute(with_columns, plans, max_rows, missing.drop_columns([_PLACE]))

    @property
    def _plan_folder(self) -> str:
        return f"tmp/missing/{self.ledger.table}-{self.ledger.recipe}"

    def _plan_file(self, bucket: int, kind: str = "bucket") -> str:
        return f"{self._plan_folder}/{kind}={bucket:04d}.parquet"

    def _plan(self, wanted: Wanted, bucket: int, keep: bool = False) -> _BucketPlan:
        """What a bucket lacks.

        Args:
            keep: Return the missing rows; else they are in a file if there are several buckets.
        """
        keep = keep or wanted.num_buckets == 1
        ledger = replace(self.ledger, num_buckets=wanted.num_buckets)
        rows = wanted.keyed(bucket)
        _require_keys(self.ledger.table, rows)
        before = ledger.keys(bucket)
        todo, unique = missing_rows(rows, before.keys)
        old = before.errors["error"]
        if len(old):
            asked = KeySet(key_numbers(rows["content_key"]))
            old = old.filter(pa.array(asked.contains(key_numbers(before.errors["content_key"]))))
        if not keep and todo.num_rows:
            ledger.store.write_table(self._plan_file(bucket), todo)
        return _BucketPlan(
            bucket=bucket, wanted=rows.num_rows, unique=unique, missing=todo.num_rows, present=len(before.keys),
            errors=len(old), first_error=old[0].as_py() if len(old) else None, corrupt_files=len(before.corrupt_files),
            schema=todo.schema, rows=todo if keep else None,
        )  # fmt: skip

    def _compute(
        self, wanted: Wanted, plans: Sequence[_BucketPlan], max_rows: int | None, missing_rows: pa.Table | None
    ) -> LedgerCounts:
        """`missing_rows`: of `Wanted.keyed`; None: they are in the files of the plans."""
        table = self.ledger.table
        unique, missing = sum(plan.unique for plan in plans), sum(plan.missing for plan in plans)
        before = LedgerCounts(
            wanted=sum(plan.wanted for plan in plans), unique=unique, already_present=unique - missing, computed=0,
            errors=sum(plan.errors for plan in plans), corrupt_files=sum(plan.corrupt_files for plan in plans),
            first_error=next((plan.first_error for plan in plans if plan.first_error), None),
        )  # fmt: skip
        logger.info(
            "%s: %d rows, %d distinct; %d have a result, %d to compute",
            table, before.wanted, unique, unique - missing, missing,
        )  # fmt: skip
        todo = _first_rows(plans, max_rows, self.rows_per_block if self.cut is None and missing_rows is None else 1)
        if not todo:
            return before
        num_present, num_rows = sum(plan.present for plan in plans), sum(rows for _, rows in todo)
        began = ended = time.time()
        chain, meter = self.chain(), self.prefix_hits() if self.prefix_hits else None
        blocks, num_blocks = self._dataset(wanted, todo, missing_rows)
        feeds = max(self.pool.upstream_tasks, int(missing_rows is None))  # a task that reads buckets needs a CPU too
        allocation = _connect_and_allocate(replace(self.pool, upstream_tasks=feeds), num_blocks)
        logger.info("%s: %d blocks, plan: %s", table, num_blocks, allocation)
        ledger = replace(self.ledger, num_buckets=wanted.num_buckets)
        ledger.begin_attempts(num_present)
        progress = Progress(table, num_rows, self.progress_interval_sec, meter)
        spans, first_errors, transient, counters = [], [before.first_error], dict[str, str](), Counter[str]()
        for row in _run_chain(chain, blocks, ledger, allocation):
            ended = time.time()  # the shutdown of Ray's workers is not model work
            progress.add(row["rows"], row["errors"], row["tokens"], row["computed_tokens"], row["started"] or ended)
            self._give_up_over_error_rate(progress, row["first_error"])
            spans += [(row["started"], row["finished"])] if row["started"] else []
            first_errors.append(row["first_error"])
            transient |= dict(row["transient"])
            counters.update(dict(row["counters"]))
        logger.info("%s: done: %s", table, progress)
        map_buckets(ledger.compact, [plan.bucket for plan, _ in todo])
        computed = progress.rows - len(transient)
        return replace(
            before,
            computed=computed,
            errors=before.errors + progress.errors,
            recomputed_rows=ledger.count_recomputed(num_present + computed),
            first_error=next(filter(None, first_errors), None),
            transient=transient,
            counters=dict(counters),
            tokens=progress.tokens,
            prefix_hit_rate=progress.prefix_hit_rate,
            device_sec=sum(end - start for start, end in spans),
            timing=timing(progress.rows, spans, began, ended),
            allocation=allocation,
        )

    def _dataset(
        self, wanted: Wanted, todo: Sequence[tuple[_BucketPlan, int]], missing_rows: pa.Table | None
    ) -> tuple[Callable[[float], Any], int]:
        """What makes the dataset of encoded blocks, given the logical CPUs of a task that feeds workers, and how many they are."""
        if missing_rows is not None:
            rows = wanted.columns(0, missing_rows.slice(0, sum(num_rows for _, num_rows in todo)))
            blocks = [encode_block(block) for block in self._blocks(rows)]
            return lambda _: _rows_as_blocks([{BLOCK: block} for block in blocks]), len(blocks)
        kind, some = "bucket", [(plan.bucket, num_rows) for plan, num_rows in todo]
        if wanted.place is not None:
            kind, some = "place", self._by_place(some, wanted.place, wanted.num_buckets, todo[0][0].schema)

        def load(batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
            try:
                for bucket, num_rows in zip(batch["bucket"].tolist(), batch["num_rows"].tolist(), strict=True):
                    rows = self.ledger.store.read_table(self._plan_file(bucket, kind)).slice(0, num_rows)
                    for block in self._blocks(wanted.columns(bucket, rows)):
                        yield {BLOCK: [encode_block(block)]}
            except Exception as error:
                raise BlockFailedError(fatal_line(self.ledger.table, error)) from error

        def dataset(task_cpus: float) -> Any:
            # A row is a block of Ray's too, so that workers share them evenly and a dead one's are few.
            items = [{"bucket": bucket, "num_rows": num_rows} for bucket, num_rows in some]
            blocks = _rows_as_blocks(items).map_batches(load, batch_size=1, num_cpus=task_cpus)
            return blocks.repartition(target_num_rows_per_block=1)

        return dataset, sum(-(-num_rows // self.rows_per_block) for _, num_rows in some)

    def _by_place(
        self, some: Sequence[tuple[int, int]], place: Callable[[pa.Table], NDArray[np.int64]], num_buckets: int,
        schema: pa.Schema,
    ) -> list[tuple[int, int]]:  # fmt: skip
        """Bring the first missing rows of some buckets together by `Wanted.place`; returns (bucket, its rows), as `some`."""
        store = self.ledger.store

        def split(one: tuple[int, int]) -> tuple[pa.Table, NDArray[np.int64]]:
            bucket, num_rows = one
            rows = store.read_table(self._plan_file(bucket)).slice(0, num_rows)
            return rows, place(rows)

        def write(bucket: int, rows: pa.Table) -> tuple[int, int]:
            # In files of their own: a split that is repeated, as its node died, reads the others again.
            store.write_table(self._plan_file(bucket, "place"), rows.sort_by("content_key"))
            return bucket, rows.num_rows

        return [one for one in shuffle(some, split, write, num_buckets, schema) if one[1]]

    def _blocks(self, todo: pa.Table) -> list[pa.Table]:
        if self.cut is not None:
            return self.cut(todo)
        return [todo.slice(start, self.rows_per_block) for start in range(0, todo.num_rows, self.rows_per_block)]

    def _give_up_over_error_rate(self, progress: Progress, first_error: str | None) -> None:
        enough = progress.rows >= min(_LEAST_ROWS, progress.total)
        if enough and progress.errors > self.max_error_rate * progress.rows:
            raise UserError(
                f"{progress.stage}: stopped after {progress.rows} of {progress.total} rows: {progress.errors} failed "
                f"({progress.errors / progress.rows:.1%}, max_error_rate is {self.max_error_rate:.1%}), such as "
                f"{line(first_error or 'unknown')!r}; fix the cause or raise max_error_rate; finished rows are kept"
            )

    # --- cost ---

    def estimate_cost(
        self, wanted: Wanted | FewRows | pa.Table, sample_rows: int, prices: PriceConfig,
        feeder: Callable[[LedgerCounts], tuple[str, float]] | None = None,
    ) -> tuple[CostEstimate, LedgerCounts]:  # fmt: skip
        """Compute the first missing rows, and estimate what the rest would take. Their results are kept.

        Args:
            wanted: As for `compute`, in an order whose start is a random sample.
            sample_rows: How many, in whole blocks where the size of blocks decides the results.
            prices: Per hour.
            feeder: See `estimate_cost`, from what the sample's chain counted.
        """
        counts = self.compute(wanted, max_rows=sample_rows)
        remaining = counts.unique - counts.already_present - min(sample_rows, counts.unique - counts.already_present)
        told = {"feeder": feeder(counts)} if feeder and counts.allocation else {}
        estimate = estimate_cost(self.noun, counts.timing, counts.errors, remaining, counts.reserved, prices, **told)
        if estimate.remaining and estimate.measured:
            self.ledger.store.write_json(self._estimate_path, asdict(estimate))
        return estimate, counts

    @property
    def _estimate_path(self) -> str:
        """Path of the estimate, for comparison with the run that follows."""
        return f"cost_estimates/{self.pool.section}-{self.ledger.recipe}.json"

    def describe(self, counts: LedgerCounts, prices: PriceConfig) -> dict[str, Any]:
        """Actual time and cost for the manifest, next to the estimate of the same rows if there is one."""
        took, store = counts.timing, self.ledger.store
        actual = {
            "rows": took.rows, "rows_per_sec": took.rows_per_sec, "wall_sec": took.wall_sec,
            "startup_sec": took.startup_sec, "cost": asdict(cost_of(took.wall_sec, counts.reserved, prices)),
        }  # fmt: skip
        info: dict[str, Any] = {
            "recipe": self.ledger.recipe, "actual": actual, "tokens": counts.tokens,
            "prefix_hit_rate": counts.prefix_hit_rate, "allocation": str(counts.allocation) if counts.allocation else None,
        }  # fmt: skip
        estimate = store.read_json(self._estimate_path) if store.exists(self._estimate_path) else None
        if estimate is not None and estimate["remaining"] == took.rows:
            info["cost_estimate"] = estimate
            told = estimate["wall_sec"], took.rows, self.noun, took.wall_sec
            logger.info("%s: estimated %.0f s for %d %s, took %.0f s", self.pool.section, *told)
        return info


def _require_keys(table: str, rows: pa.Table) -> None:
    if rows["content_key"].null_count:
        raise ValueError(f"{table}: {rows['content_key'].null_count} wanted rows have no content key")


def look_up(ledger: Ledger, keys: pa.Array | pa.ChunkedArray) -> pa.Table:
    """Results for keys, row i for key i; few enough for this process. Their buckets are read by tasks.

    Raises:
        KeyError: a key has no result.
    """
    asked = pa.table({"content_key": keys, _PLACE: pa.array(range(len(keys)), pa.int64())})
    parts = dict(ledger.by_bucket(asked)) or {0: asked}

    def found(bucket: int) -> pa.Table:
        part = parts[bucket]
        return ledger.lookup(part["content_key"], bucket).append_column(_PLACE, part[_PLACE])

    return pa.concat_tables(map_buckets(found, sorted(parts))).sort_by(_PLACE).drop_columns([_PLACE])


def check_error_rate(num_errors: int, num_rows: int, first_error: str | None, max_rate: float, what: str) -> None:
    """Refuse to go on with too many failed rows, those of earlier runs included. Call it when the counts are written.

    Raises:
        UserError: more than `max_rate` of the rows failed.
    """
    if num_errors > max_rate * num_rows:
        raise UserError(
            f"{what}: {num_errors} of {num_rows} rows failed ({num_errors / num_rows:.1%}, max_error_rate is "
            f"{max_rate:.1%}), such as {line(first_error or 'unknown')!r}; fix the cause or raise max_error_rate"
        )


def _connect_and_allocate(pool: PoolRequest, num_blocks: int) -> PoolAllocation:
    """Connect to Ray if need be and fit the pool to the cluster; never more workers than blocks."""
    connect()
    pool = replace(
        pool,
        num_actors=min(pool.num_actors, num_blocks),
        max_actors=min(pool.max_actors or pool.num_actors, num_blocks),
    )
    return allocate_pool(pool, *cluster_nodes())


def _first_rows(
    plans: Sequence[_BucketPlan], max_rows: int | None, rows_per_block: int
) -> list[tuple[_BucketPlan, int]]:
    """Buckets that lack something, with how many of their missing rows are to be computed: about `max_rows` together.

    In whole blocks, so that those of the next run are cut where they would have been.
    """
    left, found = max_rows, []
    for plan in plans:
        num_rows = plan.missing
        if left is not None and num_rows > left:
            num_rows = min(num_rows, -(-left // rows_per_block) * rows_per_block)
        if num_rows:
            found.append((plan, num_rows))
        left = None if left is None else max(0, left - num_rows)
    return found


def _rows_as_blocks(rows: list[dict[str, Any]]) -> Any:
    """A dataset in which each row is one of Ray's blocks."""
    import ray.data

    return ray.data.from_items(rows, override_num_blocks=len(rows))


def _run_chain(
    chain: Chain, blocks: Callable[[float], Any], ledger: Ledger, allocation: PoolAllocation
) -> Iterator[dict[str, Any]]:
    """Rows of STATS as blocks are committed."""
    import ray

    dataset = chain(blocks(allocation.task_cpus), ledger, allocation)
    dataset.set_name(ledger.table)
    try:
        # Without read-ahead: what a worker has finished is to be counted now.
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield from batch.to_pylist()
    except ray.exceptions.RayError as error:
        raise explain_failure(ledger.table, error, allocation.pool.max_restarts) from error
