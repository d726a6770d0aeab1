"""Delete old table and model versions and ledger rows that nothing refers to. Not beside a running job.

python pipelines/collect_garbage.py --config configs/chorus.yaml
"""

import json
from dataclasses import asdict

from runner import run_program

from ray_app.config import Config
from ray_app.ledger.garbage import collect_all
from ray_app.storage import Storage


def main(_: Config, store: Storage) -> None:
    """Collect, and print one JSON line with what was deleted."""
    print(json.dumps(asdict(collect_all(store))))


if __name__ == "__main__":
    run_program(main, __doc__)
