"""Run every stage in order, skip what is up to date, and end with the table of results.

python pipelines/run_all.py --config configs/demo.yaml
"""

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ray_app.cli import run_program

if TYPE_CHECKING:
    from ray_app.base.config import Config
    from ray_app.base.storage import Storage
    from ray_app.tables.manifest import Manifest

_SHOWN_COUNTS = ("rows_in", "rows_out", "rows_quarantined", "computed", "errors")


def stages_of(cfg: "Config") -> "dict[str, Callable[[Config, Storage], Manifest]]":
    """The stages that a config asks for, in order, with their code."""
    from ray_app.stages.order import enabled_stages, load_stage

    def stage(name: str) -> "Callable[[Config, Storage], Manifest]":
        return lambda cfg, store: load_stage(name).run(cfg, store)

    stages = {name: stage(name) for name in enabled_stages(cfg)}
    return stages | ({"experiments": _experiments} if cfg.experiments else {}) | {"evaluate": stage("evaluate")}


def _experiments(cfg: "Config", store: "Storage") -> "Manifest":
    """The experiments that the config names, each arm trained once."""
    from ray_app.analysis.experiment.spec import load_experiment
    from ray_app.analysis.experiment.stage import run

    return [run(*load_experiment(path)[:2], cfg, store, quick=True) for path in cfg.experiments][-1]


def main(cfg: "Config", store: "Storage") -> None:
    """One line per stage as it ends, then the tables."""
    started = time.monotonic()
    stages = stages_of(cfg)
    for number, (name, stage) in enumerate(stages.items(), 1):
        label, before = f"[{number}/{len(stages)}] {name}", time.time()
        logging.info("%s ...", label, extra={"progress": "terminal"})
        manifest = stage(cfg, store)
        counts = [
            f"{key.removeprefix('rows_')} {manifest.counts[key]:,}" for key in _SHOWN_COUNTS if manifest.counts.get(key)
        ]
        state = "up to date" if manifest.created_at < before else f"{time.time() - before:.1f} s"
        print(f"{label:22} {state:>10}  {', '.join(counts)}", flush=True)
    print()
    print(manifest.info["table"])
    print(f"\nreport: {cfg.output}/{manifest.info['report']}   all stages: {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    run_program(main, __doc__)
