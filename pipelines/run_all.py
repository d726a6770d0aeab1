"""Run every stage in order, skip what is up to date, and end with the table of results.

python pipelines/run_all.py --config configs/demo.yaml
python pipelines/run_all.py --config configs/demo.yaml --experiments      # and the experiments that the config names
"""

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from ray_app.cli import program_parser, run_parsed

if TYPE_CHECKING:
    from ray_app.base.config import Config
    from ray_app.base.storage import Storage
    from ray_app.tables.manifest import Manifest

_SHOWN_COUNTS = ("rows_in", "rows_out", "rows_quarantined", "computed", "errors")


def stages_of(cfg: "Config", with_experiments: bool) -> "dict[str, Callable[[Config, Storage], Manifest]]":
    """The stages that a config asks for, in order, with their code."""
    from ray_app.stages.order import enabled_stages, load_stage

    def stage(name: str) -> "Callable[[Config, Storage], Manifest]":
        return lambda cfg, store: load_stage(name).run(cfg, store)

    stages = {name: stage(name) for name in enabled_stages(cfg)}
    return (
        stages
        | ({"experiments": _experiments} if with_experiments and cfg.experiments else {})
        | {"evaluate": stage("evaluate")}
    )


def _experiments(cfg: "Config", store: "Storage") -> "Manifest":
    """The experiments that the config names, each arm trained once."""
    from ray_app.analysis.experiment.spec import load_experiment
    from ray_app.analysis.experiment.stage import run

    return [run(*load_experiment(path)[:2], cfg, store, quick=True) for path in cfg.experiments][-1]


def main(cfg: "Config", store: "Storage", with_experiments: bool) -> None:
    """One line per stage as it ends, then the tables."""
    started = time.monotonic()
    stages = stages_of(cfg, with_experiments)
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
    parser = program_parser(__doc__)
    parser.add_argument(
        "--experiments", action="store_true", help="train each variant of the config's experiments once"
    )
    args = parser.parse_args()
    run_parsed(args, partial(main, with_experiments=args.experiments))
