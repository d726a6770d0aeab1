"""Caption all pictures with a vision-language model; `--estimate-cost` quotes time and cost before they are spent.

python pipelines/caption.py --config configs/demo.yaml --estimate-cost
python pipelines/caption.py --config configs/demo.yaml --set caption.backend=vllm
"""

import json
from dataclasses import asdict

from ray_app.base.config import Config
from ray_app.base.storage import Storage
from ray_app.cli import run_stage
from ray_app.cluster.cost_estimate import render_cost_estimate
from ray_app.stages.caption.stage import estimate_cost, run


def show_cost_estimate(cfg: Config, store: Storage) -> None:
    """Print the quote for people, then as one JSON line."""
    estimate = estimate_cost(cfg, store)
    print(render_cost_estimate(estimate))
    print(json.dumps({"stage": "caption", "cost_estimate": asdict(estimate)}))


if __name__ == "__main__":
    flags = {"estimate-cost": (show_cost_estimate, "caption a small random sample, keep it, and quote the rest")}
    run_stage(run, __doc__, flags)
