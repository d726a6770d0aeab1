"""A pool fits the cluster, or the message says what to change. Ray would wait for ever for what it cannot have."""

import pytest

from ray_app.base.errors import UserError
from ray_app.cluster.resources import PoolRequest, allocate_pool

GPU_NODE = {"CPU": 16.0, "GPU": 8.0, "accelerator_type:H100": 1.0}


def allocation(nodes, may_grow=False, **values):
    return allocate_pool(PoolRequest(section="label", **values), nodes, may_grow)


@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_the_defaults_fit_on_every_machine(cpus):
    """A worker and the tasks that feed it hold their CPUs at the same time: together no more than there are."""
    alone, fed = allocation([{"CPU": cpus}]), allocation([{"CPU": cpus}], upstream_tasks=True)
    assert alone.num_cpus == 1.0
    assert fed.num_actors * fed.num_cpus + fed.task_cpus <= cpus
    assert fed.task_cpus > 0


def test_workers_leave_room_for_those_who_feed_them():
    found = allocation([{"CPU": 4.0}], num_actors=4, num_cpus=1.0, upstream_tasks=True)
    assert (found.num_actors, found.task_cpus) == (3, 1.0)
    assert "label.num_actors is 4, but only 3 fit" in str(found)


def test_a_worker_must_fit_on_one_node():
    """Three nodes of 4 have 12 CPUs, and still no place for a worker with 8."""
    with pytest.raises(UserError, match="label: num_cpus is 8, but no node of the Ray cluster has more than 4"):
        allocation([{"CPU": 4.0}] * 3, num_cpus=8)


def test_gpus_decide_how_many_fit():
    assert allocation([GPU_NODE, GPU_NODE], num_actors=99, num_gpus=1).num_actors == 16
    assert allocation([GPU_NODE], num_actors=99, num_gpus=0.5, num_cpus=0.5).num_actors == 16
    with pytest.raises(UserError, match="num_gpus is 1, but no node of the Ray cluster has more than 0"):
        allocation([{"CPU": 8.0}], num_gpus=1)


def test_a_worker_of_several_processes_takes_a_gpu_for_each():
    found = allocation([GPU_NODE, GPU_NODE], num_actors=9, num_gpus=4, num_processes=4)
    assert found.num_actors == 4
    assert allocation([GPU_NODE, GPU_NODE], num_gpus=16, num_processes=16).num_actors == 1


def test_a_pool_grows_no_further_than_the_cluster():
    found = allocation([GPU_NODE], num_actors=2, max_actors=64, num_gpus=1)
    assert (found.num_actors, found.max_actors) == (2, 8)
    grown = allocation([GPU_NODE], may_grow=True, num_actors=2, max_actors=64, num_gpus=1)
    assert (grown.num_actors, grown.max_actors) == (2, 64)


def test_an_accelerator_that_is_not_there_is_named():
    with pytest.raises(UserError, match=r"accelerator_type is A100, but the Ray cluster has \['H100'\]"):
        allocation([GPU_NODE], num_gpus=1, accelerator_type="A100")
    assert (
        allocation([{"CPU": 64.0, "GPU": 8.0}, GPU_NODE], num_actors=99, num_gpus=1, accelerator_type="H100").num_actors
        == 8
    )


def test_too_small_a_cluster_says_what_to_change():
    with pytest.raises(UserError, match=r"beside the tasks that feed it; it has 2 CPU: lower label\.num_cpus"):
        allocation([{"CPU": 2.0}], num_cpus=2, upstream_tasks=True)
