"""Call a function for many pieces of work: in threads of this process, or on a Ray cluster.

Ray takes seconds to start, and needs a core of its own where there are few: what takes a few seconds is done here.
"""

import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from data.errors import UserError

TASKS_PER_CPU = 3
"""Waiting or running at a time: none waits for the driver, and a cluster that can grow sees that there is work."""

MAX_THREADS = 8
"""Of this process: decoding and encoding run side by side, what Python does between them doesn't."""

MAX_PRELOADED = 8
"""Processes that import modules before there is work for them: with torch, each takes half a gigabyte."""

KEPT_MS = 600_000
"""How long such a process waits for work; Ray's own second is over before the corpus is prepared."""

Results = Iterator[tuple[int, Any]]
"""The number of a piece of work and what the function returned for it, in the order in which they are done."""


def start_ray(preload: Sequence[str] = (), include_dashboard: bool | None = None) -> None:
    """Join the cluster of this machine or of RAY_ADDRESS, or start one, without Ray's own lines on the console.

    The processes of a cluster that is started here import the modules of `preload` before there is work for them. Ray
    starts one for each CPU, so this is left out on machines with more than `MAX_PRELOADED`. Without the dashboard there
    is no State API, by which Ray Train frees what a stopped trial held. Raises UserError where a cluster that is named
    doesn't answer.
    """
    import ray

    # Drivers of trials take next to no CPU, so there are more processes than cores; Ray warns of that on the console.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "16")
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # the first one is reported
    if preload and num_cpus() <= MAX_PRELOADED:
        settings = {"preload_python_modules": ",".join(preload), "idle_worker_killing_time_threshold_ms": str(KEPT_MS)}
        os.environ.update({f"RAY_{name}": value for name, value in settings.items()})
    if not ray.is_initialized():
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=include_dashboard)
        except ConnectionError as error:
            raise UserError(
                f"{error}: check that the cluster is running, RAY_ADDRESS "
                f"({os.environ.get('RAY_ADDRESS', 'not set')}), and RAY_AUTH_MODE=token where it asks for a token; "
                "`ray stop` removes what is left of a cluster on this machine"
            ) from error


def num_cpus() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share(value: Any) -> Any:
    """Put a value where all workers of the cluster read it: what stands for it is an argument of `run_on_ray`."""
    import ray

    start_ray()
    return ray.put(value)


def run_in_threads(function: Callable[..., Any], work: Sequence[tuple[Any, ...]]) -> Results:
    """Call a function with each tuple of arguments, in threads of this process; an error ends what hasn't begun."""
    with ThreadPoolExecutor(min(MAX_THREADS, num_cpus())) as threads:
        futures = {threads.submit(function, *arguments): number for number, arguments in enumerate(work)}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise


def run_on_ray(
    function: Callable[..., Any], work: Sequence[tuple[Any, ...]], cpus: float = 1, gpus: float = 0
) -> Results:
    """Call a function with each tuple of arguments on all of the cluster, which is started if there is none.

    Each call gets so many CPUs and GPUs of one node.
    """
    import ray

    start_ray()
    task = ray.remote(num_cpus=cpus, num_gpus=gpus)(function)
    waiting, running = deque(enumerate(work)), dict[Any, int]()
    while waiting or running:
        most = max(8, round(TASKS_PER_CPU * ray.cluster_resources().get("CPU", 1)))
        while waiting and len(running) < most:
            number, arguments = waiting.popleft()
            running[task.remote(*arguments)] = number
        (done,), _ = ray.wait(list(running), num_returns=1)
        try:
            yield running.pop(done), ray.get(done)
        except ray.exceptions.RayError as error:
            for other in running:
                ray.cancel(other)
            if isinstance(error, ray.exceptions.RayTaskError):
                raise error.cause from None
            raise UserError(f"a worker was lost: {error}; run it again: it goes on where it stopped") from error
