"""List the releases, or choose the one that is served: replicas follow within serve.poll_interval_sec.

python pipelines/release.py list --config configs/chorus.yaml
python pipelines/release.py promote 3f9c --config configs/chorus.yaml
python pipelines/release.py rollback --config configs/chorus.yaml
"""

import argparse
import json
import logging
import sys
from datetime import UTC, datetime

from ray_app.base.config import load_config
from ray_app.base.errors import UserError
from ray_app.base.storage import Storage
from ray_app.base.umask import keep_private
from ray_app.cli import leave_copy
from ray_app.tables.current import promote, read_current, rollback
from ray_app.tables.release import list_releases


def main() -> None:
    """Do it, and print one JSON line. Needs no Ray."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--config", required=True, help="YAML file of the run")
    shared.add_argument("--set", action="append", default=[], metavar="a.b=c", help="override one key; repeatable")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|promote|rollback")
    actions.add_parser("list", parents=[shared], help="a table of all releases, oldest first")
    one = actions.add_parser("promote", parents=[shared], help="serve this release from now on")
    one.add_argument("id", metavar="ID", help="of the release, or its beginning")
    actions.add_parser("rollback", parents=[shared], help="serve the release that was served before")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    try:
        keep_private()
        cfg = load_config(args.config, args.set)
        leave_copy()
        store = Storage(cfg.output)
        if args.action == "promote":
            promote(store, args.id)
        elif args.action == "rollback":
            rollback(store)
        else:
            _print_table(store)
        now = read_current(store)
        line = {"stage": "release", "action": args.action, "current": now and now.id, "previous": now and now.previous}
        print(json.dumps(line | {"releases": [release.id for release in list_releases(store)]}))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _print_table(store: Storage) -> None:
    now = read_current(store)
    marks = {now.previous: "previous", now.id: "current"} if now else {}
    print(f"{'id':16}  {'created (UTC)':19}  {'pins':>12}  {'missing':>9}  {'dim':>5}  {'student':16}  served")
    for release in list_releases(store):
        created = datetime.fromtimestamp(release.created_at, UTC).strftime("%Y-%m-%d %H:%M:%S")
        counts = f"{release.num_pins:12,}  {release.num_missing:9,}  {release.dim:5}"
        print(f"{release.id:16}  {created}  {counts}  {release.student_id:16}  {marks.get(release.id, '')}".rstrip())


if __name__ == "__main__":
    main()
