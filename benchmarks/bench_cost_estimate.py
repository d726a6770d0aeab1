"""How near `label.py --estimate-cost` comes: its quote against what the run then took, on finished runs of the pipeline.

    python benchmarks/bench_cost_estimate.py [CONFIG ...]        # default: the demo and Chorus; run them first with `make run`

Each run's folder is copied without its labels; then the two programs run as a user would run them. `ratio` is quoted over
actual seconds of the labelling itself, start-up included; the goal is within 15% for each config.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _bench import ROOT, finish, skip

from ray_app.base.config import load_config
from ray_app.base.storage import Storage

LEFT_OUT = shutil.ignore_patterns("soft_labels", "soft_labels_merged", "quotes", "label.json", "training", "releases")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", default=["configs/demo.yaml", "configs/chorus.yaml"])
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    found = {}
    for config in args.configs:
        output = Path(load_config(ROOT / config).output)
        if not (ROOT / output / "manifests" / "sample.json").exists():
            skip("bench_cost_estimate", f"{output} has no sample yet: make run CONFIG={config}")
            continue
        with tempfile.TemporaryDirectory() as temp:
            copy = Path(temp) / output.name
            shutil.copytree(ROOT / output, copy, ignore=LEFT_OUT)
            found[config] = quote_and_run(config, copy, args.set)
    if found:
        worst = max(found.values(), key=lambda row: abs(row["ratio"] - 1))
        finish("bench_cost_estimate", worst["ratio"], goal="0.85 to 1.15", settings=args.set, configs=found)


def quote_and_run(config: str, output: Path, overrides: list[str]) -> dict[str, Any]:
    """Quoted and actual seconds and rates."""
    command = [sys.executable, "pipelines/label.py", "--config", config]
    for override in [f"output={output}", *overrides]:
        command += ["--set", override]
    for flags in (["--estimate-cost"], []):
        subprocess.run([*command, *flags], cwd=ROOT, check=True, capture_output=True)
    info = json.loads(Storage(str(output)).read_bytes("manifests/label.json"))["info"]
    estimate, actual = info["cost_estimate"], info["actual"]
    return {
        "measured": estimate["measured"], "remaining": actual["rows"],
        "quoted_sec": round(estimate["wall_sec"], 1), "actual_sec": round(actual["wall_sec"], 1),
        "quoted_per_sec": round(estimate["rows_per_sec"], 1), "actual_per_sec": round(actual["rows_per_sec"], 1),
        "prefix_hit_rate": info["prefix_hit_rate"], "engine": info["backend"],
        "ratio": round(estimate["wall_sec"] / actual["wall_sec"], 3),
    }  # fmt: skip


if __name__ == "__main__":
    main()
