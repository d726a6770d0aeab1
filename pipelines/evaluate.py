"""Measure teacher, student and baselines on human labels; the last line printed is one JSON document.

python pipelines/evaluate.py --config configs/chorus.yaml --set evaluate.human_labels=FILE
"""

import json

from runner import run_program

from ray_app.config import Config
from ray_app.evaluate.stage import run
from ray_app.storage import Storage


def main(cfg: Config, store: Storage) -> None:
    """Run the stage, then print the table and the JSON line."""
    manifest = run(cfg, store)
    print(manifest.info["table"])
    print(f"report: {cfg.output}/{manifest.info['report']}")
    print(json.dumps({"rows": manifest.info["rows"]}))


if __name__ == "__main__":
    run_program(main, __doc__)
