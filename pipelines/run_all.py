"""Run every stage in order, skip what is up to date, and end with the table of results.

python pipelines/run_all.py --config configs/demo.yaml
"""

import time

from ray_app.analysis.evaluate.stage import run as evaluate
from ray_app.analysis.experiment.spec import load_experiment
from ray_app.analysis.experiment.stage import run as experiment
from ray_app.base.config import Config
from ray_app.base.storage import Storage
from ray_app.cli import StageFn, run_program
from ray_app.stages.order import enabled_stages, load_stage
from ray_app.tables.manifest import Manifest


def experiments(cfg: Config, store: Storage) -> Manifest:
    """The experiments that the config names, each arm trained once."""
    return [experiment(*load_experiment(path)[:2], cfg, store, quick=True) for path in cfg.experiments][-1]


def stages_of(cfg: Config) -> dict[str, StageFn]:
    """The stages that a config asks for, in order, with their code."""
    stages: dict[str, StageFn] = {name: load_stage(name).run for name in enabled_stages(cfg)}
    return stages | ({"experiments": experiments} if cfg.experiments else {}) | {"evaluate": evaluate}


def main(cfg: Config, store: Storage) -> None:
    """One line per stage as it ends, then the table."""
    started = time.monotonic()
    stages = stages_of(cfg)
    for number, (name, stage) in enumerate(stages.items(), 1):
        before = time.monotonic()
        print(f"[{number}/{len(stages)}] {name} ...", flush=True)
        manifest = stage(cfg, store)
        done = "up to date" if manifest.created_at < time.time() - (time.monotonic() - before) else "done"
        counts = ", ".join(f"{key} {value:,}" for key, value in manifest.counts.items())
        print(f"[{number}/{len(stages)}] {name}: {done} in {time.monotonic() - before:.1f} s ({counts})", flush=True)
    print()
    print(manifest.info["table"])
    print(f"\nreport: {cfg.output}/{manifest.info['report']}   all stages: {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    run_program(main, __doc__)
