"""What a cluster gives each worker, and what it can't."""

import pytest

from data.errors import UserError
from trainables.execution.nodes import nodes_of_autoscaler
from trainables.execution.resources import (
    Allocation,
    Bundle,
    ResourceRequest,
    allocate,
    count_placeable_workers,
    require_placeable,
)


@pytest.mark.parametrize(
    ("nodes", "trials", "workers", "threads", "gpus"),
    [
        ([Bundle(2)], 8, 1, 1, 0),  # a trial a core
        ([Bundle(2)], 1, 1, 2, 0),
        ([Bundle(4), Bundle(4)], 1, 1, 4, 0),  # a worker can't have cores of two nodes
        ([Bundle(0), Bundle(2)], 3, 1, 1, 0),  # a head that does nothing else
        ([Bundle(8), Bundle(8, 1), Bundle(8, 1)], 20, 1, 8, 1),
        ([Bundle(64, 8)], 20, 1, 8, 1),
        ([Bundle(4), Bundle(4)], 1, 8, 1, 0),
    ],
)
def test_workers_share_what_there_is(nodes, trials, workers, threads, gpus):
    found = allocate(nodes, ResourceRequest(workers=workers), trials)
    assert (found.workers, found.threads, found.gpus_per_worker) == (workers, threads, gpus)
    assert found.cpus_per_worker < threads  # there is room for drivers


def test_two_trials_share_a_gpu_by_halves():
    found = allocate([Bundle(8, 1)], ResourceRequest(gpus_per_worker=0.5), 2)
    assert found.threads == 4
    assert count_placeable_workers(found, [Bundle(8, 1)]) == 2


@pytest.mark.parametrize(
    ("nodes", "wish", "said"),
    [
        (
            [Bundle(2)],
            ResourceRequest(workers=3),
            r"3 workers need 0.98 CPUs each, each worker on one node: the cluster can place 2",
        ),
        (
            [Bundle(2)],
            ResourceRequest(gpus_per_worker=1),
            r"1 workers need .* and 1 GPUs each.*can place 0 \(nodes: 2 CPUs and 0 GPUs",
        ),
        (
            [Bundle(8, 2), Bundle(8, 2)],
            ResourceRequest(gpus_per_worker=4),
            "1 workers need .* and 4 GPUs each.*can place 0",
        ),
        ([Bundle(8, 2)], ResourceRequest(workers=2, gpus_per_worker=0.5), "NCCL refuses two ranks on one GPU"),
        ([Bundle(8, 2)], ResourceRequest(gpus_per_worker=1.5), "more than one GPU must be a whole number"),
        ([Bundle(8, 2)], ResourceRequest(gpus_per_worker=-1), "gpus_per_worker is -1"),
        ([Bundle(2)], ResourceRequest(cpus_per_worker=4), "1 workers need 4 CPUs each"),
    ],
)
def test_what_could_never_be_placed_is_refused(nodes, wish, said):
    with pytest.raises(UserError, match=said):
        allocate(nodes, wish)


def test_pretrainings_of_many_workers_are_checked_by_themselves():
    require_placeable(Allocation(workers=4, cpus_per_worker=1, gpus_per_worker=1), [Bundle(4, 2), Bundle(4, 2)])
    with pytest.raises(UserError, match="can place 4"):
        require_placeable(Allocation(workers=5, cpus_per_worker=1, gpus_per_worker=1), [Bundle(4, 2), Bundle(4, 2)])


def test_what_an_autoscaler_may_start_is_bounded_by_its_cluster():
    types = {
        "head": {"resources": {"CPU": 8}},
        "spot": {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 8},
        "on demand": {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 8},
        "large": {"resources": {"CPU": 48, "GPU": 4}, "max_workers": 1},
    }
    found = nodes_of_autoscaler({"available_node_types": types, "head_node_type": "head", "max_workers": 4})
    assert found == [Bundle(48, 4), Bundle(8, 1), Bundle(8, 1), Bundle(8, 1), Bundle(8)]
