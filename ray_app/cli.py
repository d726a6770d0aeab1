"""Shared parts of the entry points: arguments, console and log file, one JSON line at the end, one line per user error.

Everything heavy is imported when the arguments are known, so that `--help` and a wrong argument answer at once.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray_app.base.config import Config
    from ray_app.base.storage import Storage

Body = Callable[["Config", "Storage"], None]


def run_stage(name: str, description: str | None, flags: Mapping[str, tuple[Body, str]] | None = None) -> None:
    """Run one stage as a program: `--config FILE [--set a.b=c ...]`, exit code 2 on a problem the user can fix."""

    def body(cfg: "Config", store: "Storage") -> None:
        from ray_app.stages.order import load_stage

        manifest = load_stage(name).run(cfg, store)
        line = {"stage": manifest.stage, "wall_sec": manifest.wall_sec, "counts": manifest.counts}
        print(json.dumps(line | {"outputs": {name: out.path for name, out in manifest.outputs.items()}}))

    run_program(body, description, flags)


def run_model_stage(name: str, description: str | None) -> None:
    """Run a stage with model work as a program: as `run_stage`, with `--estimate-cost` and `--retry-errors`."""

    def show_cost_estimate(cfg: "Config", store: "Storage") -> None:
        from ray_app.cluster.cost_estimate import render_cost_estimate
        from ray_app.stages.order import load_stage

        estimate = load_stage(name).estimate_cost(cfg, store)
        print(render_cost_estimate(estimate))
        print(json.dumps({"stage": name, "cost_estimate": asdict(estimate)}))

    def show_cleared_errors(cfg: "Config", store: "Storage") -> None:
        from ray_app.stages.order import load_stage

        print(json.dumps({"stage": name, "errors_cleared": load_stage(name).retry_errors(cfg, store)}))

    flags = {
        "estimate-cost": (
            show_cost_estimate,
            "compute a small sample, keep it, and estimate time and cost of the rest",
        ),
        "retry-errors": (show_cleared_errors, "clear the rows that failed, so that the next run computes them again"),
    }
    run_stage(name, description, flags)


def run_program(body: Body, description: str | None, flags: Mapping[str, tuple[Body, str]] | None = None) -> None:
    """Parse the arguments and run `body`; a `UserError` becomes one line on stderr.

    Args:
        body: What to do.
        description: For `--help`.
        flags: Name -> what to do instead of `body` when that flag is given, and its help.
    """
    parser = program_parser(description)
    parser.set_defaults(body=body)
    for name, (other, text) in (flags or {}).items():
        parser.add_argument(f"--{name}", action="store_const", dest="body", const=other, help=text)
    args = parser.parse_args()
    run_parsed(args, args.body)


def program_parser(description: str | None) -> argparse.ArgumentParser:
    """Parser with the arguments of every program; a program with more adds them, and calls `run_parsed`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shared_arguments(parser)
    return parser


def add_shared_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--config`, `--set` and `--verbose`."""
    parser.add_argument("--config", required=True, help="YAML file, such as configs/chorus.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="override one key; repeatable")
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="show all messages here instead of writing them to a log file"
    )


def run_parsed(args: argparse.Namespace, body: Body) -> None:
    """Load the config and run `body`.

    A `UserError` becomes one line on stderr and exit code 2, an interrupt one line and exit code 130. Ray is started or
    joined by the first code that needs it, as the config's `ray` says.
    """
    from ray_app.base.config import load_config
    from ray_app.base.umask import keep_private
    from ray_app.console import quiet_console

    with errors_in_one_line():
        keep_private()  # before anything can be written
        cfg = load_config(args.config, args.set)
        leave_copy()
        store = open_run(cfg)
        with quiet_console(store, Path(sys.argv[0]).stem, args.verbose):
            body(cfg, store)


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """A `UserError` becomes one line on stderr and exit code 2, an interrupt (Ctrl-C) one line and exit code 130."""
    from ray_app.base.errors import UserError

    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to resume", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # whoever reads our stdout, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def leave_copy() -> None:
    """Let relative paths mean what they mean without Ray.

    `ray job submit --working-dir .` runs in a copy of the folder that Ray throws away, with all that is written there.
    Paths are taken from RELEVANCE_ROOT instead, or from the folder in which the head was started.
    """
    from ray_app.base.errors import UserError

    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    if not job.get("runtime_env", {}).get("working_dir"):
        return
    root = os.environ.get("RELEVANCE_ROOT") or os.environ.get("OLDPWD")  # Ray's shell came from there
    if root is None or not Path(root).is_dir():
        raise UserError(
            'in a Ray job relative paths need a root: --runtime-env-json \'{"env_vars": {"RELEVANCE_ROOT": "/shared/folder"}}\''
        )
    os.chdir(root)
    logging.info("relative paths are taken from %s", root)


def open_run(cfg: "Config") -> "Storage":
    """Prepare this process for the run of a config, and return the run's storage.

    Files that it writes are private, and Ray is started as the config says, if it is needed (`ray_app.cluster.resources.connect`).
    """
    from ray_app.base.storage import Storage
    from ray_app.base.umask import keep_private
    from ray_app.cluster import resources

    keep_private()
    store = Storage(cfg.output)
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")  # ours show rows and the remaining time

    def after_connect() -> None:
        import ray

        for name in ("ray.data", "ray.data._internal.progress.logging_progress"):  # a page a second
            logging.getLogger(name).setLevel(logging.WARNING)
        if store.is_local and len(ray.nodes()) > 1:
            logging.warning("output is the local folder %s: every node of the cluster must see it", store.full_path(""))

    resources.on_connect(
        after_connect,
        # Logical CPUs: stages of one Ray Data chain hold some while they wait for each other, so two would hang.
        num_cpus=cfg.ray.num_cpus or max(6, os.cpu_count() or 1),
        object_store_memory=cfg.ray.object_store_bytes,
        include_dashboard=False,
        logging_level=logging.WARNING,
    )
    return store
