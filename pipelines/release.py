"""List the releases, or choose the one that is served: replicas follow within serve.poll_interval_sec.

python pipelines/release.py list --config configs/chorus.yaml
python pipelines/release.py promote 3f9c --config configs/chorus.yaml
python pipelines/release.py rollback --config configs/chorus.yaml
"""

import argparse
import json
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from ray_app.cli import add_shared_arguments, run_parsed

if TYPE_CHECKING:
    from ray_app.base.config import Config
    from ray_app.base.storage import Storage


def build_parser() -> argparse.ArgumentParser:
    """The program's arguments."""
    shared = argparse.ArgumentParser(add_help=False)
    add_shared_arguments(shared)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|promote|rollback")
    actions.add_parser("list", parents=[shared], help="a table of all releases, oldest first")
    one = actions.add_parser("promote", parents=[shared], help="serve this release from now on")
    one.add_argument("id", metavar="ID", help="of the release, or its beginning")
    actions.add_parser("rollback", parents=[shared], help="serve the release that was served before")
    return parser


def run(_: "Config", store: "Storage", args: argparse.Namespace) -> None:
    """Do it, and print one JSON line. Needs no Ray."""
    from ray_app.tables.current import promote, read_current, rollback
    from ray_app.tables.release import list_releases

    if args.action == "promote":
        promote(store, args.id)
    elif args.action == "rollback":
        rollback(store)
    else:
        _print_table(store)
    now = read_current(store)
    line = {"stage": "release", "action": args.action, "current": now and now.id, "previous": now and now.previous}
    print(json.dumps(line | {"releases": [release.id for release in list_releases(store)]}))


def _print_table(store: "Storage") -> None:
    from ray_app.tables.current import read_current
    from ray_app.tables.release import list_releases

    now = read_current(store)
    marks = {now.previous: "previous", now.id: "current"} if now else {}
    print(f"{'id':16}  {'created (UTC)':19}  {'pins':>12}  {'missing':>9}  {'dim':>5}  {'student':16}  served")
    for release in list_releases(store):
        created = datetime.fromtimestamp(release.created_at, UTC).strftime("%Y-%m-%d %H:%M:%S")
        counts = f"{release.num_pins:12,}  {release.num_missing:9,}  {release.dim:5}"
        print(f"{release.id:16}  {created}  {counts}  {release.student_id:16}  {marks.get(release.id, '')}".rstrip())


def main() -> None:
    """Parse the arguments and run."""
    args = build_parser().parse_args()
    run_parsed(args, partial(run, args=args))


if __name__ == "__main__":
    main()
