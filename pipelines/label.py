"""Label the sampled pairs with the teacher, through the ledger; `--plan` quotes time and cost before they are spent.

python pipelines/label.py --config configs/chorus.yaml
ray job submit --working-dir . -- python pipelines/label.py --config configs/X.yaml --set label.engine=vllm
"""

import json
from dataclasses import asdict

from ray_app.base.config import Config
from ray_app.base.storage import Storage
from ray_app.cli import run_stage
from ray_app.cluster.cost_estimate import render_quote
from ray_app.stages.label.stage import plan, retry_errors, run


def show_plan(cfg: Config, store: Storage) -> None:
    """Print the quote for people, then as one JSON line."""
    quote = plan(cfg, store)
    print(render_quote(quote))
    print(json.dumps({"stage": "label", "plan": asdict(quote)}))


def forget_errors(cfg: Config, store: Storage) -> None:
    """Say how many rows the next run will try again."""
    print(json.dumps({"stage": "label", "errors_forgotten": retry_errors(cfg, store)}))


if __name__ == "__main__":
    flags = {
        "plan": (show_plan, "label a small random sample, keep it, and quote the rest"),
        "forget-errors": (forget_errors, "forget the pairs that failed, so that the next run tries them again"),
    }
    run_stage(run, __doc__, flags)
