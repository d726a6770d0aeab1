"""Delete old table and model versions and ledger rows that nothing refers to. Not beside a running job.

python pipelines/collect_garbage.py --config configs/chorus.yaml
"""

import json
from dataclasses import asdict

from ray_app.base.config import Config
from ray_app.base.storage import Storage
from ray_app.cli import run_program
from ray_app.tables.garbage import collect_all


def main(_: Config, store: Storage) -> None:
    """Collect, and print one JSON line with what was deleted."""
    print(json.dumps(asdict(collect_all(store))))


if __name__ == "__main__":
    run_program(main, __doc__)
