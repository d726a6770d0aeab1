"""Delete old table and model versions and ledger rows that nothing refers to. Not beside a running job.

python pipelines/collect_garbage.py --config configs/chorus.yaml
"""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from ray_app.cli import run_program

if TYPE_CHECKING:
    from ray_app.base.config import Config
    from ray_app.base.storage import Storage


def main(cfg: "Config", store: "Storage") -> None:
    """Collect, and print one JSON line with what was deleted."""
    from ray_app.tables.garbage import collect_all

    print(json.dumps(asdict(collect_all(store, cfg.tables.keep_days))))


if __name__ == "__main__":
    run_program(main, __doc__)
