"""The run's report, made only if it is not up to date; with `--baseline`, compared with another run's.

python pipelines/report.py --config configs/demo.yaml --baseline OTHER_OUTPUT_FOLDER
"""

import json
from typing import TYPE_CHECKING

from ray_app.cli import program_parser, run_parsed

if TYPE_CHECKING:
    from ray_app.base.config import Config
    from ray_app.base.storage import Storage


def main() -> None:
    """Print the report's table and path, or the comparison, which is written beside the report."""
    parser = program_parser(__doc__)
    parser.add_argument("--baseline", metavar="PATH", help="another run's output folder, or its metrics.json")
    args = parser.parse_args()

    def body(cfg: "Config", store: "Storage") -> None:
        from ray_app.analysis.evaluate.report.diff import compare_reports, read_report
        from ray_app.analysis.evaluate.report.diff_page import diff_text, render_diff
        from ray_app.analysis.evaluate.stage import run

        manifest = run(cfg, store)
        report = manifest.info["report"]
        folder = report.rpartition("/")[0]
        if args.baseline is None:
            print(manifest.info["table"])
            print(f"report: {cfg.output}/{report}")
            print(json.dumps({"report": f"{cfg.output}/{report}", "rows": manifest.info["rows"]}))
            return
        before = read_report(args.baseline, [folder, "report"])
        found = compare_reports(before, read_report(f"{cfg.output}/{folder}/metrics.json"))
        store.write_json(f"{folder}/diff.json", found.to_json())
        store.write_bytes(f"{folder}/diff.html", render_diff(found).encode())
        print(diff_text(found))
        print(f"comparison: {cfg.output}/{folder}/diff.html")
        line = {"diff": f"{cfg.output}/{folder}/diff.html", "paired": found.unpaired is None}
        print(
            json.dumps(
                line | {"significant_changes": found.moved(), "changed": {k: len(v) for k, v in found.changes.items()}}
            )
        )

    run_parsed(args, body)


if __name__ == "__main__":
    main()
