"""Measure teacher, student and baselines on human labels; the last line printed is one JSON document.

python pipelines/evaluate.py --config configs/chorus.yaml --set evaluate.human_labels=FILE
"""

import json
from typing import TYPE_CHECKING

from ray_app.cli import run_program

if TYPE_CHECKING:
    from ray_app.base.config import Config
    from ray_app.base.storage import Storage


def main(cfg: "Config", store: "Storage") -> None:
    """Run the stage, then print the table and the JSON line."""
    from ray_app.analysis.evaluate.stage import run

    manifest = run(cfg, store)
    print(manifest.info["table"])
    print(f"report: {cfg.output}/{manifest.info['report']}")
    print(json.dumps({"rows": manifest.info["rows"]}))


if __name__ == "__main__":
    run_program(main, __doc__)
