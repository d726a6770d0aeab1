"""Agreement of raters, teacher and student, and a sheet of labelled pairs to adjudicate; the last line is one JSON document.

python pipelines/agreement.py --config configs/demo.yaml
"""

import json
from typing import TYPE_CHECKING

from ray_app.cli import run_program

if TYPE_CHECKING:
    from ray_app.base.config import Config
    from ray_app.base.storage import Storage


def main(cfg: "Config", store: "Storage") -> None:
    """Run the stage, then print the tables and the JSON line."""
    from ray_app.analysis.agreement.stage import run

    manifest = run(cfg, store)
    print(manifest.info["text"])
    print(f"\nfigures: {store.shown}/{manifest.info['metrics']}")
    print(f"{manifest.counts['sheet_rows']:,} pairs to adjudicate: {store.shown}/{manifest.info['sheet']}")
    print(json.dumps({"stage": manifest.stage, "counts": manifest.counts, "rows": manifest.info["rows"]}))


if __name__ == "__main__":
    run_program(main, __doc__)
