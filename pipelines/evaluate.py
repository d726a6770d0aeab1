"""Measure teacher, student and baselines on human labels; the last line printed is one JSON document.

python pipelines/evaluate.py --config configs/chorus.yaml --set evaluate.human_labels=FILE
"""

import json

from ray_app.analysis.evaluate.stage import run
from ray_app.base.config import Config
from ray_app.base.storage import Storage
from ray_app.cli import run_program


def main(cfg: Config, store: Storage) -> None:
    """Run the stage, then print the table and the JSON line."""
    manifest = run(cfg, store)
    print(manifest.info["table"])
    print(f"report: {cfg.output}/{manifest.info['report']}")
    print(json.dumps({"rows": manifest.info["rows"]}))


if __name__ == "__main__":
    run_program(main, __doc__)
