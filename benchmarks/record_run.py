"""Keep the figures of a finished run as a JSON line in results/, for the README and the docs.

python benchmarks/record_run.py --config configs/demo.yaml --name demo_run --note "make run in a fresh clone"
python benchmarks/record_run.py --config configs/demo.yaml --name experiments_demo --note "make experiments after it"
"""

import argparse
import json
from typing import Any

from _bench import ROOT, hardware

from ray_app.base.config import load_config
from ray_app.base.storage import Storage
from ray_app.tables.manifest import read_manifest

KEPT = (
    "all_searches",
    "calibration",
    "truncation",
    "recall_at_10",
    "recall_at_10_zero_shot",
    "measured_queries",
    "measured_saves",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--name", required=True)
    parser.add_argument("--note", default="")
    args = parser.parse_args()
    store = Storage(load_config(args.config, args.set).output)
    stages: dict[str, dict[str, Any]] = {}
    own = [path for path in store.list_files("manifests") if path.count("/") == 1]  # not those of experiments' arms
    for path in own:
        name = path.rsplit("/", 1)[-1].removesuffix(".json")
        manifest = read_manifest(store, name)
        if manifest is not None:
            info = {key: manifest.info[key] for key in KEPT if key in manifest.info}
            stages[name] = {"wall_sec": round(manifest.wall_sec, 1), "counts": manifest.counts} | info
            if name.startswith("evaluate"):
                report = store.read_json(manifest.info["report"].replace("report.html", "metrics.json"))
    agreement, simulate = read_manifest(store, "agreement"), read_manifest(store, "simulate")
    result = {
        "bench": args.name,
        "note": args.note,
        "stages_sec": round(sum(stage["wall_sec"] for stage in stages.values())),
        "rows": report["rows"],
        "details": {
            system: {name: found.get(name) for name in ("ece_3", "log_loss", "kappa")}
            for system, found in report["details"].items()
        },
        "experiments": report["experiments"],
        "agreement": store.read_json(agreement.info["metrics"])["tables"] if agreement else None,
        "simulation": simulate.info["report"] if simulate else None,
        "protocol": report["protocol"],
        "versions": report["provenance"]["versions"],
        "commit": report["provenance"]["commit"],
        "hardware": hardware(),
        "stages": stages,
    }
    path = ROOT / "benchmarks" / "results" / f"{args.name}.json"
    path.write_text(json.dumps(result) + "\n", encoding="utf-8")
    print(f"{path.name}: {len(stages)} stages, {len(result['rows'])} systems")


if __name__ == "__main__":
    main()
