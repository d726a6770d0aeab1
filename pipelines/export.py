"""Write the trained student for others: sentence-transformers folders, ONNX, one file of weights (docs/models.md).

python pipelines/export.py --config configs/chorus.yaml
python pipelines/export.py --config configs/chorus.yaml --to /tmp/exports --no-onnx
"""

import argparse
import json
import logging
from functools import partial
from typing import TYPE_CHECKING

from ray_app.cli import program_parser, run_parsed

if TYPE_CHECKING:
    from ray_app.base.config import Config
    from ray_app.base.storage import Storage


def main(_: "Config", store: "Storage", args: argparse.Namespace) -> None:
    """Export, and print one JSON line that says where. Needs no Ray."""
    from ray_app.base.storage import Storage
    from ray_app.models.exports import export_student
    from ray_app.tables.manifest import require_output

    for name in ("onnx_ir", "onnxscript"):  # they log every rewrite of the graph
        logging.getLogger(name).setLevel(logging.WARNING)
    student = require_output(store, "distill", "student")
    target, folder = (Storage(args.to), "") if args.to else (store, "exports")
    path = export_student(store, student, target, folder, onnx=not args.no_onnx)
    print(json.dumps({"stage": "export", "outputs": {"student": f"{target.shown}/{path}"}}))


if __name__ == "__main__":
    parser = program_parser(__doc__)
    parser.add_argument("--to", metavar="DIR", help="folder or URI to write under; default: <output>/exports")
    parser.add_argument("--no-onnx", action="store_true", help="leave the ONNX file out; then no extra is needed")
    arguments = parser.parse_args()
    run_parsed(arguments, partial(main, args=arguments))
