"""A program for test_buckets_ray: stages on a cluster of several nodes, one of which is killed in their middle.

    python stages_on_nodes.py CONFIG NUM_NODES STAGE [--kill PATH]

Once there is a file below PATH of the output, the last node is killed. Ends with a JSON line: content hashes of the outputs by stage.
"""

import argparse
import json
import os
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    parser.add_argument("num_nodes", type=int)
    parser.add_argument("stages", nargs="+")
    parser.add_argument("--kill")
    args = parser.parse_args()
    from ray_app.base.config import load_config
    from ray_app.base.storage import Storage
    from ray_app.cluster.resources import local_environment
    from ray_app.stages.order import load_stage

    # Several nodes on one machine need their addresses open to each other, as tests of Ray itself do.
    os.environ |= {**local_environment(os.environ), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"}
    import ray
    from ray.cluster_utils import Cluster

    memory = {"object_store_memory": 256_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False, **memory})
    nodes = [cluster.add_node(num_cpus=2, **memory) for _ in range(args.num_nodes - 1)]
    ray.init(address=cluster.address, log_to_driver=False)
    cfg = load_config(args.config)
    store = Storage(cfg.output)
    killed = threading.Event()

    def kill() -> None:
        while not list(Path(store.full_path(args.kill)).rglob("*.parquet")):
            time.sleep(0.02)
        cluster.remove_node(nodes[-1], allow_graceful=False)
        killed.set()

    if args.kill:
        threading.Thread(target=kill, daemon=True).start()
    manifests = {name: load_stage(name).run(cfg, store) for name in args.stages}
    assert not args.kill or killed.wait(10), "the node was killed while the stages ran"
    print(
        json.dumps({name: {out.name: out.content_hash for out in m.outputs.values()} for name, m in manifests.items()})
    )
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
