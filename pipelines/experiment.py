"""Answer a question with a table: train the arms that are missing, measure all of them, over several seeds.

python pipelines/experiment.py --config configs/experiments/text_features.yaml [more files]

The run that the files name as `base` must be finished (`make run`). Tables are in `<output>/experiments/<name>/`.
"""

import json
import time
from typing import TYPE_CHECKING

from ray_app.cli import errors_in_one_line, program_parser, run_parsed

if TYPE_CHECKING:
    from ray_app.base.config import Config
    from ray_app.base.storage import Storage


def main() -> None:
    """Run the experiments in the order given; each prints its table, and one JSON line stands at the end."""
    parser = program_parser(__doc__)
    parser.add_argument("more", nargs="*", help="more experiments of the same run")
    parser.add_argument("--quick", action="store_true", help="one training of each arm, with the run's seed")
    args = parser.parse_args()
    from ray_app.analysis.experiment.spec import load_experiment
    from ray_app.base.errors import UserError

    with errors_in_one_line():
        experiments = [load_experiment(path) for path in (args.config, *args.more)]
        bases = {base.resolve() for _, _, base in experiments}
        if len(bases) > 1:
            raise UserError(
                f"these experiments are of {len(bases)} runs ({', '.join(map(str, bases))}): give them apart"
            )
    args.config = bases.pop()

    def body(cfg: "Config", store: "Storage") -> None:
        from ray_app.analysis.experiment.ablation_table import ExperimentTable, table_text
        from ray_app.analysis.experiment.stage import run

        lines = {}
        for key, spec, _ in experiments:
            started = time.monotonic()
            manifest = run(key, spec, cfg, store, args.quick)
            print(table_text(ExperimentTable.from_json(manifest.info["table"])))
            folder = manifest.outputs[key].path
            print(f"  {cfg.output}/{folder}/table.md   {time.monotonic() - started:.0f} s\n", flush=True)
            lines[key] = {"wall_sec": manifest.wall_sec, "table": manifest.info["table"]}
        print(json.dumps({"experiments": lines}))

    run_parsed(args, body)


if __name__ == "__main__":
    main()
