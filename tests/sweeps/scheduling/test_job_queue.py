"""The line of trials: what starts when, with no Ray; and the same through Ray Tune."""

import heapq
import random
import time
from itertools import pairwise

import pytest
from ray import tune

from sweeps.scheduling.job_queue import FreeResources, Job, JobQueue
from sweeps.scheduling.tune_searcher import SEARCHER_ENVIRONMENT, QueueSearcher
from trainables.execution.nodes import list_nodes as cluster_nodes
from trainables.execution.resources import Bundle

CPU = (Bundle(1),)
GPU = (Bundle(1, 1),)


def started(queue):
    """All that starts at this moment."""
    return list(iter(queue.pop, None))


def pair(name, cost=10.0, children=2, bundles=CPU, child_cost=1.0):
    return [
        Job(name, bundles, cost),
        *(Job(f"{name}{number}", bundles, child_cost, (name,)) for number in range(children)),
    ]


def run(queue, durations, fails=()):
    """Run a queue to its end; the events are (time, what, key)."""
    now, ends, events = 0.0, [], []
    while True:
        for key in started(queue):
            events.append((now, "start", key))
            heapq.heappush(ends, (now + durations[key], key))
        if not ends:
            return events
        now, key = heapq.heappop(ends)
        queue.done(key, key not in fails)
        events.append((now, "end", key))


def test_fine_tunings_start_when_their_own_pretraining_is_done_not_when_all_are():
    queue = JobQueue([*pair("a"), *pair("b")], [Bundle(3)])
    assert started(queue) == ["a", "b"]
    queue.done("b", succeeded=True)
    assert started(queue) == ["b0", "b1"]
    queue.done("b0", succeeded=True)
    assert started(queue) == []
    assert not queue.is_exhausted


def test_the_longest_chain_starts_first_and_of_equal_ones_that_with_the_most_work_below():
    jobs = [*pair("short", cost=3), *pair("few", cost=10, children=1), *pair("many", cost=10, children=5)]
    jobs += [Job("alone", CPU, 10.5), *pair("slow children", cost=4, child_cost=9)]
    assert started(JobQueue(jobs, [Bundle(5)])) == ["slow children", "many", "few", "alone", "short"]


def test_a_fine_tuning_is_ready_at_once_where_its_pretraining_finished_before():
    queue = JobQueue([Job("fine-tuning", CPU, 1, ("finished long ago",)), *pair("a")], [Bundle(2)])
    assert started(queue) == ["a", "fine-tuning"]


def test_a_failed_pretraining_drops_all_that_waits_for_it_and_nothing_else():
    jobs = [*pair("a"), Job("a0-distilled", CPU, 1, ("a0",)), *pair("b")]
    queue = JobQueue(jobs, [Bundle(8)])
    assert started(queue) == ["a", "b"]
    queue.done("a", succeeded=False)
    assert queue.dropped == {"a0": "a", "a1": "a", "a0-distilled": "a"}
    assert started(queue) == []
    assert not queue.is_exhausted
    queue.done("b", succeeded=True)
    assert started(queue) == ["b0", "b1"]
    assert queue.is_exhausted


def test_a_sweep_whose_only_pretraining_failed_is_exhausted():
    queue = JobQueue(pair("a"), [Bundle(1)])
    assert started(queue) == ["a"]
    queue.done("a", succeeded=False)
    assert queue.is_exhausted


def test_a_large_trial_starts_though_small_ones_always_wait():
    small = [Job(f"small{number}", GPU, 1.0) for number in range(200)]
    jobs = [*small[:100], Job("large", GPU * 4, 1.0), *small[100:]]
    rng = random.Random(0)
    queue = JobQueue(jobs, [Bundle(8, 8)])
    events = run(queue, {job.key: rng.lognormvariate(0, 0.5) for job in jobs})
    order = [key for _, what, key in events if what == "start"]
    assert order == [job.key for job in jobs]


def test_what_is_behind_a_large_trial_waits_for_it_to_start():
    jobs = [*(Job(f"long{number}", GPU, 9) for number in range(7)), Job("large", GPU * 4, 5), Job("small", GPU, 1)]
    queue = JobQueue(jobs, [Bundle(4, 4), Bundle(4, 4)])
    assert len(started(queue)) == 7
    for number in range(2):
        queue.done(f"long{number}", succeeded=True)
        assert started(queue) == []
    queue.done("long2", succeeded=True)
    assert started(queue) == ["large"]
    queue.done("long3", succeeded=True)
    assert started(queue) == ["small"]


def test_workers_of_one_trial_spread_over_nodes_and_each_has_its_gpus_on_one():
    nodes = [Bundle(4, 2), Bundle(4, 2)]
    assert FreeResources(nodes).take(GPU * 4)
    assert FreeResources(nodes).take([Bundle(1, 2), Bundle(1, 2)])
    assert not FreeResources(nodes).take([Bundle(1, 4)])
    assert not FreeResources(nodes).take([Bundle(5)])
    assert not FreeResources(nodes).take([Bundle(3, 1)] * 3)


def test_a_share_is_of_one_gpu_and_shares_are_packed_so_that_whole_gpus_stay_whole():
    room = FreeResources([Bundle(8, 2)])
    assert room.take([Bundle(1, 0.6)])
    assert room.take([Bundle(1, 0.6)])
    assert room.take([Bundle(1, 0.6)]) is None
    assert room.take([Bundle(1, 0.4)])
    room = FreeResources([Bundle(8, 1), Bundle(8, 2)])
    assert room.take([Bundle(1, 0.5)])
    assert room.take([Bundle(1, 0.5)])
    assert room.take([Bundle(1, 2)])


def test_thirds_of_a_gpu_are_taken_and_given_back_without_drifting():
    room = FreeResources([Bundle(1, 1)])
    for _ in range(1000):
        places = [room.take([Bundle(0.1, 0.3333)]) for _ in range(3)]
        for place in places:
            room.release(place)
    assert room.take([Bundle(1, 1)])


def test_cpu_trials_leave_nodes_with_gpus_free_while_others_have_room():
    room = FreeResources([Bundle(2, 1), Bundle(4)])
    assert [place.node for place in room.take([Bundle(1)] * 4)] == [1, 1, 1, 1]


def test_more_than_a_gpu_must_be_whole_gpus():
    with pytest.raises(ValueError, match=r"gpus is 1\.5: more than one GPU must be a whole number"):
        Bundle(1, 1.5)


def test_no_more_run_at_a_time_than_max_concurrent():
    queue = JobQueue([*pair("a"), *pair("b"), *pair("c")], [Bundle(8)], max_concurrent=2)
    assert started(queue) == ["a", "b"]
    queue.done("a", succeeded=False)
    assert started(queue) == ["c"]


def test_what_never_has_room_on_the_cluster_of_the_moment_holds_up_no_other():
    queue = JobQueue([Job("wide", GPU * 16, 9), Job("a", GPU, 1)], [Bundle(8, 8)])
    assert started(queue) == ["a"]
    queue.resize([Bundle(8, 8)] * 2)
    assert started(queue) == []
    queue.done("a", succeeded=True)
    assert started(queue) == ["wide"]


def test_a_cluster_that_grows_starts_more_and_one_that_shrinks_starts_none_until_there_is_room_again():
    jobs = [Job(f"{number}", GPU, 9 - number) for number in range(9)]
    queue = JobQueue(jobs, [Bundle(2, 2)])
    assert started(queue) == ["0", "1"]
    queue.resize([Bundle(2, 2)] * 2)
    assert started(queue) == ["2", "3"]
    queue.resize([Bundle(2, 2)])
    assert started(queue) == []
    queue.done("0", succeeded=True)
    queue.done("3", succeeded=True)
    assert started(queue) == []
    queue.done("2", succeeded=True)
    assert started(queue) == ["4"]


def test_a_trial_that_lost_its_node_gets_room_before_any_other_starts():
    queue = JobQueue([Job("wide", GPU * 2, 9), *(Job(f"{number}", GPU, 1) for number in range(4))], [Bundle(2, 2)] * 2)
    assert started(queue) == ["wide", "0", "1"]
    queue.resize([Bundle(1, 1), Bundle(2, 2)])  # "wide" has two, so "1" has lost its room
    queue.done("0", succeeded=True)
    assert started(queue) == []
    queue.done("1", succeeded=True)
    assert started(queue) == ["2"]


@pytest.mark.parametrize("seed", range(20))
def test_in_any_sweep_all_starts_once_after_its_pretraining_and_no_slot_idles_while_one_is_ready(seed):
    rng = random.Random(seed)
    slots = rng.randint(1, 12)
    jobs = [job for name in "abcdefgh" for job in pair(name, rng.choice([1, 3, 9]), rng.randint(0, 5))]
    for number in range(rng.randint(0, 4)):  # students, whose teachers may be students
        required = rng.sample([job.key for job in jobs], rng.randint(1, 4))
        jobs.append(Job(f"student{number}", CPU, rng.choice([1, 3]), (*required, required[0])))
    rng.shuffle(jobs)
    durations = {job.key: rng.lognormvariate(0, 0.6) * job.cost for job in jobs}
    fails = {job.key for job in jobs if rng.random() < 0.1}
    queue = JobQueue(jobs, [Bundle(slots)])
    events = run(queue, durations, fails)
    assert queue.is_exhausted
    requires = {job.key: set(job.requires) for job in jobs}
    ready, running, ended, succeeded = {key for key, required in requires.items() if not required}, set(), set(), set()
    for (now, what, key), following in pairwise([*events, (float("inf"), "", "")]):
        if what == "start":
            assert key in ready
            ready.remove(key)
            running.add(key)
        else:
            running.remove(key)
            ended.add(key)
            succeeded |= {key} - fails
            ready |= {other for other, required in requires.items() if key in required and required <= succeeded}
        assert len(running) <= slots
        if following[0] > now:
            assert len(running) == slots or not ready
    assert ended | queue.dropped.keys() == durations.keys()
    assert all(requires[key] & (fails | queue.dropped.keys()) for key in queue.dropped)
    assert not any(requires[key] & (fails | queue.dropped.keys()) for key in ended)


def make_work(folder):
    """A trial that says when it starts and ends, and ends when a file that it waits for is there."""

    def say(line):
        with (folder / "log").open("a") as log:
            log.write(f"{line}\n")

    def work(config):  # inside, as Ray's workers can't import a test
        trial = config["work"]
        say(f"start {trial['key']}")
        while trial["until"] and not (folder / trial["until"]).exists():
            time.sleep(0.05)
        if trial["fails"]:
            raise RuntimeError("as told")
        say(f"end {trial['key']}")
        (folder / trial["key"]).touch()
        return {"epoch": 1}

    return work


@pytest.fixture
def sweep(cluster, tmp_path, monkeypatch):
    for name, value in SEARCHER_ENVIRONMENT.items() | {("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")}:
        monkeypatch.setenv(name, value)

    def run_sweep(jobs, until=None, fails=(), stopped=(), max_concurrent=None):
        configs = {
            job.key: {"work": {"key": job.key, "until": (until or {}).get(job.key), "fails": job.key in fails}}
            for job in jobs
        }
        queue = JobQueue(jobs, cluster_nodes(), max_concurrent)
        searcher = QueueSearcher(queue, configs, lambda key: key not in stopped, cluster_nodes)
        tuner = tune.Tuner(
            tune.with_resources(make_work(tmp_path), {"cpu": 0.01}),
            tune_config=tune.TuneConfig(search_alg=searcher, num_samples=-1, reuse_actors=True),
            run_config=tune.RunConfig(name="sweep", storage_path=str(tmp_path / "tune"), verbose=0),
        )
        results = tuner.fit()
        assert queue.is_exhausted
        return (tmp_path / "log").read_text().splitlines(), queue, results

    return run_sweep


@pytest.mark.cluster
def test_through_tune_a_fine_tuning_runs_while_another_pair_still_pretrains(sweep):
    log, _, results = sweep([*pair("slow", cost=10), *pair("quick", cost=5)], until={"slow": "quick1"})
    assert log.index("end quick1") < log.index("end slow") < log.index("start slow0")
    assert len(results) == 6
    assert not results.errors


@pytest.mark.cluster
def test_through_tune_the_longest_chains_start_first(sweep):
    jobs = [*pair("b", cost=5, children=1), *pair("a", cost=10, children=1)]
    log, _, _ = sweep(jobs, max_concurrent=1)
    assert log == [f"{what} {key}" for key in ("a", "b", "b0", "a0") for what in ("start", "end")]


@pytest.mark.cluster
def test_through_tune_as_many_run_as_have_room(sweep):
    log, _, _ = sweep([Job(f"{number}", CPU) for number in range(6)], until={"0": "3"})
    running = [0]
    for line in log:
        running.append(running[-1] + (1 if line.startswith("start") else -1))
    assert max(running) == sum(node.cpus for node in cluster_nodes()) == 2
    assert log.index("end 3") < log.index("end 0")


@pytest.mark.cluster
def test_through_tune_what_waits_for_a_failed_or_stopped_pretraining_never_runs_and_the_sweep_ends(sweep):
    jobs = [*pair("failed"), *pair("stopped"), *pair("good")]
    log, queue, results = sweep(jobs, fails={"failed"}, stopped={"stopped"})
    assert {line.split()[1] for line in log} == {"failed", "stopped", "good", "good0", "good1"}
    assert queue.dropped == {"failed0": "failed", "failed1": "failed", "stopped0": "stopped", "stopped1": "stopped"}
    assert len(results.errors) == 1
