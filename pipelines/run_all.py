"""Run every stage in order, skip what is up to date, and end with the table of results.

python pipelines/run_all.py --config configs/demo.yaml
"""

import time

from runner import StageFn, run_program

from ray_app.caption.stage import run as caption
from ray_app.config import Config
from ray_app.demo.stage import run as demo
from ray_app.distill.stage import run as distill
from ray_app.embed.stage import run as embed
from ray_app.engagement.stage import run as engagement
from ray_app.enrich.stage import run as enrich
from ray_app.evaluate.stage import run as evaluate
from ray_app.experiment.spec import load_experiment
from ray_app.experiment.stage import run as experiment
from ray_app.graph.stage import run as graph
from ray_app.ingest.stage import run as ingest
from ray_app.label.stage import run as label
from ray_app.manifest import Manifest
from ray_app.sample.stage import run as sample
from ray_app.storage import Storage
from ray_app.teach.stage import run as teach
from ray_app.zero_shot.stage import run as zero_shot


def experiments(cfg: Config, store: Storage) -> Manifest:
    """The experiments that the config names, each arm trained once."""
    return [experiment(*load_experiment(path)[:2], cfg, store, quick=True) for path in cfg.experiments][-1]


STAGES = {
    "demo": demo,
    "ingest": ingest,
    "caption": caption,
    "enrich": enrich,
    "zero_shot": zero_shot,
    "engagement": engagement,
    "graph": graph,
    "teach": teach,
    "sample": sample,
    "label": label,
    "distill": distill,
    "embed": embed,
    "experiments": experiments,
    "evaluate": evaluate,
}


def stages_of(cfg: Config) -> dict[str, StageFn]:
    """The stages that a config asks for, in order."""
    left_out = {
        "demo": cfg.demo is None,
        "caption": cfg.caption.model is None,
        "engagement": cfg.engagement is None,
        "graph": cfg.graph is None,
        "experiments": not cfg.experiments,
    }
    return {name: stage for name, stage in STAGES.items() if not left_out.get(name)}


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
