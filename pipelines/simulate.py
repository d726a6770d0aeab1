"""The online experiment in simulation, on the demo dataset: both students before the same people (docs/simulation.md).

python pipelines/simulate.py --config configs/demo.yaml
"""

import json
from typing import TYPE_CHECKING

from ray_app.cli import run_program

if TYPE_CHECKING:
    from ray_app.base.config import Config
    from ray_app.base.storage import Storage


def main(cfg: "Config", store: "Storage") -> None:
    """Run the stage, then print both tables and the JSON line."""
    from ray_app.analysis.simulate.stage import run

    manifest = run(cfg, store)
    print("\n".join(manifest.info["tables"]))
    folder = manifest.outputs["simulation"].path
    print(f"all figures: {cfg.output}/{folder}/")
    line = {"stage": manifest.stage, "wall_sec": manifest.wall_sec, "counts": manifest.counts}
    print(json.dumps(line | {"all_searches": manifest.info["all_searches"]}))


if __name__ == "__main__":
    run_program(main, __doc__)
