"""Label the sampled pairs with the teacher, through the ledger; `--estimate-cost` quotes time and cost before they are spent.

python pipelines/label.py --config configs/chorus.yaml
ray job submit --working-dir . -- python pipelines/label.py --config configs/X.yaml --set label.backend=vllm
"""

import json
from dataclasses import asdict

from ray_app.base.config import Config
from ray_app.base.storage import Storage
from ray_app.cli import run_stage
from ray_app.cluster.cost_estimate import render_cost_estimate
from ray_app.stages.label.stage import estimate_cost, retry_errors, run


def show_cost_estimate(cfg: Config, store: Storage) -> None:
    """Print the quote for people, then as one JSON line."""
    estimate = estimate_cost(cfg, store)
    print(render_cost_estimate(estimate))
    print(json.dumps({"stage": "label", "cost_estimate": asdict(estimate)}))


def show_cleared_errors(cfg: Config, store: Storage) -> None:
    """Say how many rows the next run will try again."""
    print(json.dumps({"stage": "label", "errors_cleared": retry_errors(cfg, store)}))


if __name__ == "__main__":
    flags = {
        "estimate-cost": (show_cost_estimate, "label a small random sample, keep it, and quote the rest"),
        "retry-errors": (show_cleared_errors, "forget the pairs that failed, so that the next run tries them again"),
    }
    run_stage(run, __doc__, flags)
