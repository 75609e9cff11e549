"""Call a function for many tuples of arguments, in threads of this process or on a Ray cluster.

Ray takes seconds to start and occupies a core on small machines, so work of a few seconds runs in threads.
"""

import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from data.errors import UserError

logger = logging.getLogger("chorale.ray")

DEFAULT_TEMPORARY_FOLDER = "/tmp"
"""Folder that Ray itself uses without TMPDIR."""

MAX_SOCKET_PATH_BYTES = 107
"""Maximum length of the path of a socket on Linux (unix(7))."""
MAX_SOCKET_NAME = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.10"
"""Longest path of Ray's sockets below the temporary folder."""

START_ATTEMPTS = 3
"""Number of attempts to start Ray, which waits 30 s for its processes; on a busy machine that may be too short."""

TASKS_PER_CPU = 3
"""Number of tasks waiting or running per CPU: no worker waits for the driver, and an autoscaling cluster sees demand.
"""

MAX_THREADS = 8
"""Maximum number of threads: decoding and encoding run in parallel, the Python code between them doesn't."""

MAX_PRELOADED = 8
"""Maximum number of processes that import modules in advance: with torch, each takes half a gigabyte."""

IDLE_WORKER_TIMEOUT_MS = 600_000
"""Time for which a preloaded process waits for work; Ray's default of 1 s ends before the corpus is prepared."""

IndexedResults = Iterator[tuple[int, Any]]
"""Pairs of the index of a tuple of arguments and the result for it, in order of completion."""


def start_ray(preload: Sequence[str] = (), include_dashboard: bool | None = None) -> None:
    """Connect to a running Ray cluster, of this machine or at RAY_ADDRESS, or start one on this machine; do nothing if
    this process is connected already. Ray's output on the console is suppressed.

    Processes of a cluster started here import the modules of `preload` in advance. Ray starts one process per CPU, so
    this is skipped on machines with more than `MAX_PRELOADED` CPUs. `include_dashboard` is passed to Ray; None leaves
    the choice to Ray. Without the dashboard there is no State API, which Ray Train uses to release the resources of a
    stopped trial. Raises UserError if the named cluster doesn't respond.
    """
    import ray

    # Drivers of trials use almost no CPU, so there are more processes than cores, about which Ray would warn.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "16")
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # the first error is reported
    if preload and count_cpus() <= MAX_PRELOADED:
        settings = {
            "preload_python_modules": ",".join(preload),
            "idle_worker_killing_time_threshold_ms": str(IDLE_WORKER_TIMEOUT_MS),
        }
        os.environ.update({f"RAY_{name}": value for name, value in settings.items()})
    if ray.is_initialized():
        return
    require_short_temporary_folder()
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=include_dashboard)
            protect_token()
            return
        except (ConnectionError, ray.exceptions.AuthenticationError) as error:
            reason = str(error).partition(". ")[0]
            raise UserError(
                f"{reason}: check that the cluster is running, RAY_ADDRESS "
                f"({os.environ.get('RAY_ADDRESS', 'not set')}), and, if it requires a token, RAY_AUTH_MODE=token and "
                "the cluster's token in ~/.ray/auth_token; `ray stop` removes the remains of a cluster on this machine"
            ) from error
        except Exception as error:  # Ray raises this class if its processes don't start in time
            ray.shutdown()
            reason = str(error).partition("\n")[0]
            if attempt == START_ATTEMPTS:
                raise UserError(
                    f"Ray doesn't start on this machine ({reason}): wait until other Ray clusters on it have finished, "
                    "or stop them with `ray stop`, then run the command again"
                ) from error
            logger.warning("Ray didn't start (%s); trying again", reason)


def protect_token() -> None:
    """Make the token of this user's Ray clusters, which Ray writes with mode 0644, readable by this user only."""
    token = Path.home() / ".ray" / "auth_token"
    if token.is_file() and token.stat().st_mode & 0o077:
        token.chmod(0o600)


def require_short_temporary_folder() -> None:
    """Make Ray use /tmp if the paths of its sockets below TMPDIR would be too long for the operating system. Raises
    UserError if RAY_TMPDIR, which the user chose for Ray, is too long.
    """
    chosen = os.environ.get("RAY_TMPDIR")
    folder = chosen or os.environ.get("TMPDIR") or DEFAULT_TEMPORARY_FOLDER
    max_bytes = MAX_SOCKET_PATH_BYTES - len(MAX_SOCKET_NAME)
    if "RAY_ADDRESS" in os.environ or len(os.fsencode(folder)) <= max_bytes:
        return
    if chosen:
        raise UserError(f"RAY_TMPDIR={chosen} is too long for Ray's sockets: give at most {max_bytes} bytes")
    logger.warning(
        "TMPDIR=%s is too long for Ray's sockets: Ray uses %s/ray (RAY_TMPDIR=FOLDER, of at most %d bytes, changes it)",
        folder,
        DEFAULT_TEMPORARY_FOLDER,
        max_bytes,
    )
    os.environ["RAY_TMPDIR"] = DEFAULT_TEMPORARY_FOLDER


def count_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def put_in_object_store(value: Any) -> Any:
    """Copy a value into the Ray cluster's shared memory, and return a reference. Pass the reference as an argument
    to `run_on_ray`, so that the value isn't copied for every call.
    """
    import ray

    start_ray()
    return ray.put(value)


def run_in_threads(function: Callable[..., Any], work: Sequence[tuple[Any, ...]]) -> IndexedResults:
    """Call a function with each tuple of arguments in `work`, in threads of this process. Yield pairs of the tuple's
    index and the call's result, in order of completion.

    The first error is raised, and calls that haven't started are cancelled.
    """
    with ThreadPoolExecutor(min(MAX_THREADS, count_cpus())) as threads:
        futures = {threads.submit(function, *arguments): number for number, arguments in enumerate(work)}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise


def run_on_ray(
    function: Callable[..., Any], work: Sequence[tuple[Any, ...]], cpus: float = 1, gpus: float = 0
) -> IndexedResults:
    """Call a function with each tuple of arguments in `work` on a Ray cluster, which is started if none is running.
    Yield pairs of the tuple's index and the call's result, in order of completion.

    Each call reserves `cpus` CPUs and `gpus` GPUs of one node. The first error is raised, and the other calls are
    cancelled; a lost worker raises UserError.
    """
    import ray

    start_ray()
    task = ray.remote(num_cpus=cpus, num_gpus=gpus)(function)
    waiting, running = deque(enumerate(work)), dict[Any, int]()
    while waiting or running:
        max_pending = max(8, round(TASKS_PER_CPU * ray.cluster_resources().get("CPU", 1)))
        while waiting and len(running) < max_pending:
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
            raise UserError(f"a worker was lost: {error}; re-run the same command to resume") from error
