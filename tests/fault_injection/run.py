"""Inject faults into running stages, run them again, and compare with a fault-free run.

    python tests/fault_injection/run.py --minutes 10 --seed 1
    python tests/fault_injection/run.py --seed 1 --case 17        one case of that seed again
    python tests/fault_injection/run.py --minutes 3 --only raylet

One line per case: what was struck at which moment, how the stage took it, and whether its tables are equal after a rerun.
Ends with a table and one JSON line; exit code 1 if a row was lost or doubled, or anything else differs.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import paths  # noqa: F401
from _bench import finish
from records import HARNESS_FAILED, Record, summarize, table
from stage_cases import Runner

QUICK = [  # of the first stages only: one of them has a ledger, as the dear ones have
    ("driver", "zero_shot"), ("worker", "zero_shot"), ("full_disk", "zero_shot"), ("s3_errors", "enrich"),
]  # fmt: skip


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="no case begins later")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="kinds of fault, with commas between")
    parser.add_argument("--case", type=int, help="this case of the seed, and no other")
    parser.add_argument("--quick", action="store_true", help="a handful of cases, for CI")
    kept = "a folder for what is written, and for the fault-free run of a next time; by default a temporary one"
    parser.add_argument("--keep", help=kept)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is stopped then, too
    folder = Path(args.keep or tempfile.mkdtemp(prefix="faults-"))
    records: list[Record] = []
    started = time.monotonic()
    try:
        with Runner(folder, args.seed, args.only, QUICK if args.quick else None) as runner:
            about = f"{len(runner.deck)} kinds of case; fault-free run: {runner.made_in_sec:.0f} s"
            print(f"seed {args.seed}: {about}", flush=True)
            for note in runner.left_out:
                print(f"left out: {note}", flush=True)
            number = args.case or 0
            limit = time.monotonic() + 60 * args.minutes
            while args.case in (None, number) and not (args.quick and number == len(QUICK)):
                records.append(runner.run_case(number))
                print(records[-1].line(args.seed), flush=True)
                number += 1
                broken = [record.outcome for record in records[-3:]] == [HARNESS_FAILED] * 3
                if broken or time.monotonic() > limit:
                    break
            left_out = runner.left_out
    finally:
        if not args.keep:
            shutil.rmtree(folder, ignore_errors=True)
    figures = summarize(records)
    print()
    print(table(records))
    failed = [record.number for record in records if not record.good]
    if failed:
        print(
            f"\nfailed: {failed}; again with: python tests/fault_injection/run.py --seed {args.seed} --case {failed[0]}"
        )
    about = {"seed": args.seed, "minutes": round((time.monotonic() - started) / 60, 1), "left_out": left_out}
    if args.only is None and args.case is None and not args.quick:
        finish("faults", figures["survived"] / max(1, figures["injected"]), **about, **figures)
    else:
        print(json.dumps({"bench": "faults", **about, **figures}))
    sys.stdout.flush()
    os._exit(1 if failed else 0)  # threads of servers that were killed would be waited for


if __name__ == "__main__":
    main()
