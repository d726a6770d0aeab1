"""Caption all pictures with a vision-language model; `--plan` quotes time and cost before they are spent.

python pipelines/caption.py --config configs/demo.yaml --plan
python pipelines/caption.py --config configs/demo.yaml --set caption.engine=vllm
"""

import json
from dataclasses import asdict

from ray_app.base.config import Config
from ray_app.base.storage import Storage
from ray_app.cli import run_stage
from ray_app.cluster.cost_estimate import render_quote
from ray_app.stages.caption.stage import plan, run


def show_plan(cfg: Config, store: Storage) -> None:
    """Print the quote for people, then as one JSON line."""
    quote = plan(cfg, store)
    print(render_quote(quote))
    print(json.dumps({"stage": "caption", "plan": asdict(quote)}))


if __name__ == "__main__":
    flags = {"plan": (show_plan, "caption a small random sample, keep it, and quote the rest")}
    run_stage(run, __doc__, flags)
