"""Caption all pictures with a vision-language model; `--plan` quotes time and cost before they are spent.

python pipelines/caption.py --config configs/demo.yaml --plan
python pipelines/caption.py --config configs/demo.yaml --set caption.engine=vllm
"""

import json
from dataclasses import asdict

from runner import run_stage

from ray_app.caption.stage import plan, run
from ray_app.config import Config
from ray_app.quote import render_quote
from ray_app.storage import Storage


def show_plan(cfg: Config, store: Storage) -> None:
    """Print the quote for people, then as one JSON line."""
    quote = plan(cfg, store)
    print(render_quote(quote))
    print(json.dumps({"stage": "caption", "plan": asdict(quote)}))


if __name__ == "__main__":
    flags = {"plan": (show_plan, "caption a small random sample, keep it, and quote the rest")}
    run_stage(run, __doc__, flags)
