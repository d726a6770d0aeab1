"""A year of daily runs against one ledger: does the 365th day cost what the 30th did?

    python benchmarks/bench_ledger_year.py --days 365 --rows 4000

Each day, with the clock of the ledger moved on: the keys that are wanted are looked for, bucket by bucket, half of them are of the day before;
the others are committed in blocks of 200 rows, small files are merged, and rows older than 30 days that no table names are dropped.
"files" and "mb" are those of the ledger at the end of a day, "sec" is processor time of the day's work without the making of rows.
Each figure is the mean of 16 days, since merging makes every sixteenth day or so dearer. "ratio" is the largest of the last days'
figures over those of days 31 to 46.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from _bench import finish

from ray_app.base.content_key import content_keys
from ray_app.base.schemas import SOFT_LABEL_RESULTS
from ray_app.base.storage import Storage
from ray_app.tables import ledger as ledger_module
from ray_app.tables.keys import KeySet
from ray_app.tables.ledger import Ledger

KEEP_DAYS, NUM_BUCKETS, BLOCK_ROWS, WINDOW = 30, 4, 200, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, default=365)
    parser.add_argument("--rows", type=int, default=4000, help="new ones per day")
    args = parser.parse_args()
    days = []
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Storage(folder), "soft_labels", "0" * 16, SOFT_LABEL_RESULTS, NUM_BUCKETS)
        for day in range(args.days):
            days.append(_run_day(ledger, day, args.rows, Path(folder)))
        held = len(ledger.keys().keys)
    assert held == min(args.days, KEEP_DAYS) * args.rows, held
    early, late = _mean(days[30 : 30 + WINDOW]), _mean(days[-WINDOW:])
    ratios = {name: round(late[name] / early[name], 2) for name in early}
    finish(
        "bench_ledger_year", max(ratios.values()), days=args.days, rows_per_day=args.rows, first_month=_mean(days[:30]),
        after_a_month=early, at_the_end=late, ratios=ratios, goal=1.3, num_buckets=NUM_BUCKETS, keep_days=KEEP_DAYS,
    )  # fmt: skip


def _run_day(ledger: Ledger, day: int, num_rows: int, folder: Path) -> dict[str, float]:
    now = date(2026, 1, 1) + timedelta(days=day)
    ledger_module.today = lambda: now
    first = max(0, day * num_rows - num_rows)
    wanted = pa.table({"content_key": content_keys("r", [str(i) for i in range(first, (day + 1) * num_rows)])})
    probs = pa.array(np.random.default_rng(day).dirichlet(np.ones(5), num_rows).astype(np.float32).tolist())
    started = time.process_time()
    missing = _missing(ledger, wanted)
    assert missing.num_rows == num_rows, (missing.num_rows, day)
    results = pa.table(
        {"content_key": missing["content_key"], "probs": probs, "error": pa.nulls(num_rows, pa.string())}
    )
    results = results.cast(SOFT_LABEL_RESULTS)
    for start in range(0, num_rows, BLOCK_ROWS):
        ledger.commit(results.slice(start, BLOCK_ROWS))
    for bucket in range(NUM_BUCKETS):
        ledger.compact(bucket)
    ledger.collect_garbage(KeySet.of([]), since=now - timedelta(days=KEEP_DAYS - 1))
    sec = time.process_time() - started
    files = ledger.files()
    return {
        "files": len(files),
        "mb": sum((folder / path).stat().st_size for path in files) / 1e6,
        "sec": sec,
    }


def _missing(ledger: Ledger, wanted: pa.Table) -> pa.Table:
    """As the stages do it: bucket by bucket."""
    parts = []
    for bucket, rows in replace(ledger).by_bucket(wanted):
        parts.append(ledger_module.missing_rows(rows, ledger.keys(bucket).keys)[0])
    return pa.concat_tables(parts)


def _mean(days: list[dict[str, float]]) -> dict[str, Any]:
    return {name: round(float(np.mean([day[name] for day in days])), 3) for name in days[0]}


if __name__ == "__main__":
    main()
