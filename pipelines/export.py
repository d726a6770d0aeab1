"""Write the trained student for others: sentence-transformers folders, ONNX, one file of weights (docs/models.md).

python pipelines/export.py --config configs/chorus.yaml
python pipelines/export.py --config configs/chorus.yaml --to /tmp/exports --no-onnx
"""

import argparse
import json
import logging
import sys

from ray_app.base.config import load_config
from ray_app.base.errors import UserError
from ray_app.base.storage import Storage
from ray_app.base.umask import keep_private
from ray_app.cli import leave_copy
from ray_app.models.exports import export_student
from ray_app.tables.manifest import require_output


def main() -> None:
    """Export, and print one JSON line that says where. Needs no Ray."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file of the run")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="override one key; repeatable")
    parser.add_argument("--to", metavar="DIR", help="folder or URI to write under; default: <output>/exports")
    parser.add_argument("--no-onnx", action="store_true", help="leave the ONNX file out; then no extra is needed")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    for name in ("onnx_ir", "onnxscript"):  # they log every rewrite of the graph
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        keep_private()
        cfg = load_config(args.config, args.set)
        leave_copy()
        store = Storage(cfg.output)
        student = require_output(store, "distill", "student")
        target, folder = (Storage(args.to), "") if args.to else (store, "exports")
        path = export_student(store, student, target, folder, onnx=not args.no_onnx)
        print(json.dumps({"stage": "export", "outputs": {"student": f"{target.shown}/{path}"}}))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
