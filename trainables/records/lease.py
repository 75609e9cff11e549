"""Leases: the right of one process at a time to train a trial, kept in the run storage.

    leases/SIGNATURE/NUMBER.json    rewritten every BEAT_S by its holder
    leases/SIGNATURE/NUMBER.now     written by other processes, to read the storage's clock

A lease is created exclusively: if several processes try to acquire a number, one succeeds. The lease with the highest
number is valid until it is released, its process is known to have ended, or EXPIRES_S seconds have passed without a
heartbeat. Then the next number can be acquired. Numbers are fencing tokens: a training writes its checkpoints into a
folder named after the number of its lease, so a holder that stalls and resumes cannot overwrite its successor's
checkpoints.
"""

import contextlib
import functools
import json
import logging
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

import psutil  # type: ignore[import-untyped]
from obstore.exceptions import BaseError

from trainables.records.mlflow_log import with_retries
from trainables.records.run_storage import RunStorage

logger = logging.getLogger("chorale.lease")

BEAT_S, EXPIRES_S = 10.0, 60.0

POLL_EVERY_S = 1.0
"""Interval in seconds at which a result that another process computes is looked for."""

COMMAND_ID = uuid.uuid4().hex
"""Identifier of this command, passed on to the processes that train for it."""


class LeaseLostError(Exception):
    """Error raised in a process whose lease another process has taken over."""


@dataclass(frozen=True)
class Holder:
    """Identity of a process that holds a lease, from which other processes can tell whether it has ended."""

    command: str  # identifier of the command that the process works for
    host: str
    kernel: str  # identifier of the machine's boot and of the namespace of process numbers
    process: int
    started: float  # time at which the process was created, in seconds since 1970

    @classmethod
    def current(cls, command: str = COMMAND_ID) -> "Holder":
        """Return the identity of this process, working for the command with the given identifier."""
        process = psutil.Process()
        return cls(command, socket.gethostname(), kernel_id(), process.pid, process.create_time())

    def has_ended(self) -> bool:
        """Return whether the process is known to have ended. The result is False for a process on another machine,
        since this can't be seen from here.
        """
        if self.kernel != kernel_id():
            return False
        try:
            started: float = psutil.Process(self.process).create_time()
        except psutil.NoSuchProcess:
            return True
        return abs(started - self.started) > 1  # the process ended, and another one has its number

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"


def kernel_id() -> str:
    """Return a string that identifies this machine's current boot and the namespace of its process ids. Processes with
    the same string have different process ids; each container has a string of its own.
    """
    boot = Path("/proc/sys/kernel/random/boot_id")
    if not boot.exists():  # not Linux
        return f"{socket.gethostname()} {psutil.boot_time():.0f}"
    return f"{boot.read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"


@dataclass(frozen=True)
class Lease:
    """The right of one process to train a trial. Each new lease of a trial has a higher number, after which its folder
    of checkpoints is named, so a stalled holder cannot overwrite its successor's checkpoints.
    """

    signature: str
    number: int

    @property
    def folder(self) -> str:
        """Name of the folder, in `trials/` of the run storage, of the checkpoints written under the lease."""
        return f"{self.signature}-{self.number}"

    def is_held(self, runs: RunStorage) -> bool:
        """Return whether this is the trial's newest lease, that is, no other process has taken the trial over."""
        return find_newest_number(runs, self.signature) == self.number

    def require(self, runs: RunStorage) -> None:
        """Raise LeaseLostError if another process has taken the trial over."""
        if not self.is_held(runs):
            holder = find_holder(runs, self.signature) or "another process"
            raise LeaseLostError(f"the lease of trial {self.signature} was taken over by {holder}")


def lease_file(signature: str, number: int) -> str:
    """Return the name, in the run storage, of the file of the lease with this number of the trial with this
    signature.
    """
    return f"leases/{signature}/{number}.json"


def find_newest_number(runs: RunStorage, signature: str) -> int:
    """Return the number of a trial's newest lease; 0 if the trial has never had one."""
    names = [Path(name) for name in runs.list_names(f"leases/{signature}")]
    return max((int(name.stem) for name in names if name.suffix == ".json"), default=0)


def find_last_holder(runs: RunStorage, signature: str) -> tuple[int, Holder | None]:
    """Return two values for the trial with this signature: the number of its newest lease, 0 if there is none; and the
    process that acquired it, even if that process has ended, or None if there is no lease or it was released.
    """
    number = find_newest_number(runs, signature)
    contents = runs.read(lease_file(signature, number)) if number else None
    fields = json.loads(contents) if contents else None
    return number, Holder(**fields) if fields else None


def find_holder(runs: RunStorage, signature: str, expires_s: float = EXPIRES_S) -> Holder | None:
    """Return the process that holds a valid lease of the trial with this signature. Return None if there is no lease,
    if it was released, if it was renewed `expires_s` seconds ago or earlier, or if its process has ended.
    """
    number, current = find_last_holder(runs, signature)
    if current is None or current.has_ended():
        return None
    clock_file = f"leases/{signature}/{number}.now"
    with_retries(lambda: runs.write(clock_file, b""))
    return (
        current if runs.age_difference(lease_file(signature, number), clock_file).total_seconds() < expires_s else None
    )


def acquire(
    runs: RunStorage, signature: str, command: str = COMMAND_ID, expires_s: float = EXPIRES_S
) -> "Lease | Holder":
    """Try to acquire the lease of the trial with this signature. Return the lease or, if a process of another command
    holds one, that process. A lease expires if it isn't renewed for `expires_s` seconds.

    A command has at most one process per trial, so a lease that is held by the same command belongs to a lost process,
    and is taken over immediately.
    """
    while True:
        current = find_holder(runs, signature, expires_s)
        if current and current.command != command:
            return current
        number = find_newest_number(runs, signature) + 1
        contents = json.dumps(asdict(Holder.current(command))).encode()
        if with_retries(functools.partial(runs.create, lease_file(signature, number), contents)):
            return Lease(signature, number)


def release(runs: RunStorage, lease: Lease) -> None:
    """Release a lease if it is still held, so that the trial's next lease can be acquired at once.

    If the run storage is full or unreachable, the lease is left to expire.
    """
    with log_storage_errors(lease.signature):
        if lease.is_held(runs):
            runs.write(lease_file(lease.signature, lease.number), b"null")


@contextlib.contextmanager
def log_storage_errors(signature: str) -> Iterator[None]:
    """Log errors of the run storage in the `with` block, which releases a lease of the trial with this signature,
    instead of raising them.
    """
    try:
        yield
    except (OSError, BaseError) as error:
        logger.warning("the lease of %s can't be released (%s); it expires in %.0f s", signature, error, EXPIRES_S)


class Heartbeat:
    """Context manager that renews a lease every `beat_s` seconds in the background, and releases it at the end."""

    def __init__(self, runs: RunStorage, lease: Lease, command: str = COMMAND_ID, beat_s: float = BEAT_S) -> None:
        self.runs, self.lease, self.beat_s = runs, lease, beat_s
        self.contents = json.dumps(asdict(Holder.current(command))).encode()
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.renew, daemon=True)

    def __enter__(self) -> "Heartbeat":
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stopped.set()
        self.thread.join()
        release(self.runs, self.lease)

    def renew(self) -> None:
        """Renew the lease at each heartbeat until the context manager exits or the lease is lost. If storage is full or
        unreachable, the next heartbeat tries again.
        """
        while not self.stopped.wait(self.beat_s):
            try:
                if not self.lease.is_held(self.runs):
                    return
                self.runs.write(lease_file(self.lease.signature, self.lease.number), self.contents)
            except (OSError, BaseError):
                continue


def compute_once(
    runs: RunStorage,
    signature: str,
    is_done: Callable[[], bool],
    compute: Callable[[Lease], None],
    description: str,
    command: str = COMMAND_ID,
) -> None:
    """Call `compute` under the lease with this signature, unless `is_done` returns True. While a process of another
    command holds the lease, it is waited for. Messages call the result `description`.
    """
    is_waiting = False
    while not is_done():
        lease = acquire(runs, signature, command)
        if isinstance(lease, Lease):
            with Heartbeat(runs, lease, command):
                if not is_done():  # another process may have finished it just now
                    compute(lease)
            return
        if not is_waiting:
            logger.info("%s is awaited: %s computes it", description, lease)
        is_waiting = True
        time.sleep(POLL_EVERY_S)


def release_own(runs: RunStorage, signature: str, command: str = COMMAND_ID) -> None:
    """Release the lease of the trial with this signature if a process of the command with the identifier `command`
    acquired it, even if that process has ended. Leases of other commands are kept.
    """
    with log_storage_errors(signature):
        number, current = find_last_holder(runs, signature)
        if current and current.command == command:
            runs.write(lease_file(signature, number), b"null")
