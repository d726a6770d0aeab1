"""A program for test_no_process_holds_a_table: stages over many buckets, each read of a table noted with the task that reads.

python recorded_reads.py CONFIG FOLDER_OF_NOTES STAGE...
"""

import functools
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))


def note_reads() -> None:
    """Let this process note which task reads which file. Ray calls it in each worker."""
    import ray

    from ray_app.base.storage import Storage

    read_bytes, folder = Storage.read_bytes, Path(os.environ["NOTES_OF_READS"])

    @functools.wraps(read_bytes)
    def noted(self: Storage, path: str) -> bytes:
        task = ray.get_runtime_context().get_task_id() if ray.is_initialized() else None
        with (folder / f"{os.getpid()}").open("a") as notes:
            notes.write(f"{task or 'driver'} {path}\n")
        return read_bytes(self, path)

    Storage.read_bytes = noted


def main() -> None:
    from ray_app.base.config import load_config
    from ray_app.base.storage import Storage
    from ray_app.cluster.resources import start_local
    from ray_app.stages.order import load_stage

    cfg = load_config(sys.argv[1])
    os.environ["NOTES_OF_READS"] = sys.argv[2]
    start_local(
        num_cpus=6, include_dashboard=False, object_store_memory=300_000_000, log_to_driver=False,
        runtime_env={"worker_process_setup_hook": note_reads},
    )  # fmt: skip
    note_reads()
    store = Storage(cfg.output)
    for name in sys.argv[3:]:
        load_stage(name).run(cfg, store)


if __name__ == "__main__":
    main()
