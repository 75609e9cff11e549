"""Leases between real processes, in a folder and in an object store of moto's."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from trainables.records import lease as leases
from trainables.records.lease import Heartbeat, Holder, Lease, LeaseLostError
from trainables.records.run_storage import RunStorage

ROOT = Path(__file__).parents[3]

TAKE = """
import sys, time
from trainables.records import lease as leases
from trainables.records.run_storage import RunStorage
runs = RunStorage.of(sys.argv[1])
lease = leases.acquire(runs, sys.argv[2])
if isinstance(lease, leases.Holder):
    print("held by", lease, flush=True)
else:
    with leases.Heartbeat(runs, lease, beat_s=0.1):
        print("mine", lease.number, flush=True)
        sys.stdin.readline()
"""


@pytest.fixture
def runs(request, tmp_path):
    if getattr(request, "param", "folder") == "folder":
        return RunStorage.of(tmp_path / "runs")
    server = request.getfixturevalue("object_store")
    return RunStorage.of(server.uri(f"bucket/{tmp_path.name}"))


def other(runs, signature="abc"):
    """A process that asks for a trial, and what it says."""
    process = subprocess.Popen(
        [sys.executable, "-c", TAKE, str(runs), signature], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return process, process.stdout.readline().strip()


BOTH = pytest.mark.parametrize("runs", ["folder", "object store"], indirect=True)


@BOTH
def test_of_many_processes_one_has_the_trial_and_the_rest_know_who(runs):
    asked = [other(runs) for _ in range(4)]
    answers = sorted(answer for _, answer in asked)
    assert answers[-1] == "mine 1"
    winner = next(process for process, answer in asked if answer == "mine 1")
    assert all(answer.startswith(f"held by process {winner.pid} on ") for answer in answers[:-1])
    for process, _ in asked:
        process.communicate("\n")


@BOTH
def test_a_trial_that_was_given_back_can_be_had_at_once(runs):
    process, answer = other(runs)
    assert answer == "mine 1"
    process.communicate("\n")
    assert leases.acquire(runs, "abc") == Lease("abc", 2)


def test_that_of_a_process_that_was_killed_can_be_had_at_once(runs):
    process, _ = other(runs)
    process.kill()
    process.communicate()
    assert leases.acquire(runs, "abc") == Lease("abc", 2)


def elsewhere(runs, lease):
    """Rewrite a lease as that of a process of another machine, which can't be looked for."""
    holder = replace(Holder.current("another command"), kernel="another")
    runs.write(leases.lease_file(lease.signature, lease.number), json.dumps(asdict(holder)).encode())


@BOTH
def test_that_of_a_process_elsewhere_is_over_once_its_heart_has_not_beaten_for_long(runs):
    first = leases.acquire(runs, "abc", "another command")
    elsewhere(runs, first)
    assert isinstance(leases.acquire(runs, "abc"), Holder)
    time.sleep(1.1)
    assert isinstance(leases.acquire(runs, "abc"), Holder)
    assert leases.acquire(runs, "abc", expires_s=1.0) == Lease("abc", 2)
    with pytest.raises(LeaseLostError, match="lease of trial abc was taken over by process"):
        first.require(runs)


def test_a_command_takes_over_from_a_process_of_its_own(runs):
    first = leases.acquire(runs, "abc")
    assert leases.acquire(runs, "abc") == Lease("abc", 2)
    assert not first.is_held(runs)


def test_who_hangs_past_his_lease_and_wakes_has_lost_it(runs):
    process, _ = other(runs)
    process.send_signal(signal.SIGSTOP)
    time.sleep(0.3)
    while isinstance(mine := leases.acquire(runs, "abc", expires_s=0.5), Holder):
        time.sleep(0.1)
    process.send_signal(signal.SIGCONT)
    time.sleep(0.5)
    process.communicate("\n")  # which would give its lease back
    assert mine == Lease("abc", 2)
    assert mine.is_held(runs)
    assert leases.find_holder(runs, "abc") == Holder.current()


def test_a_heart_keeps_a_lease_alive_and_gives_it_back(runs):
    mine = leases.acquire(runs, "abc")
    with Heartbeat(runs, mine, beat_s=0.05):
        time.sleep(0.5)
        assert leases.find_holder(runs, "abc", expires_s=0.4)
    assert leases.find_holder(runs, "abc") is None


def test_only_the_commands_own_lease_is_taken_back(runs):
    mine = leases.acquire(runs, "abc")
    leases.release_own(runs, "abc", "another command")
    assert leases.find_holder(runs, "abc")
    leases.release_own(runs, "abc")
    assert leases.find_holder(runs, "abc") is None
    assert mine.is_held(runs)
    leases.release_own(runs, "never held")
