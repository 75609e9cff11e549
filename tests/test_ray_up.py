"""cluster-local.yaml for real: `ray up` on two hosts, a sweep, a selection, `ray down`.

The hosts are namespaces of this machine: each has a network, processes, a name, a home and a folder for Ray of its own,
and an ssh server. They lie in a room, a namespace with the bridge that joins them, whose first process ends when the
tests do and takes all else with it: no process, network device or mount outlives the tests.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
import yaml
from mlflow import MlflowClient

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
ROOT = Path(__file__).parents[1]
PROGRAMS = (
    "bash",
    "curl",
    "flock",
    "ip",
    "mount",
    "nsenter",
    "rsync",
    "setsid",
    "ssh",
    "ssh-keygen",
    "sshd",
    "unshare",
)
HEAD, WORKER = "10.123.45.2", "10.123.45.3"

ROOM = f"""
set -e
mount -t tmpfs tmpfs /run && mkdir /run/netns /run/sshd
mount -t tmpfs tmpfs /mnt && mkdir /mnt/chorale && mount --bind shared /mnt/chorale
mkdir -p /tmp/ray
ip link set lo up
ip link add bridge type bridge && ip address add 10.123.45.1/24 dev bridge && ip link set bridge up
for host in head:{HEAD} worker:{WORKER}; do
    name=${{host%:*}} address=${{host#*:}}
    ip netns add $name
    ip link add $name type veth peer name eth0 netns $name && ip link set $name master bridge up
    ip -n $name link set lo up && ip -n $name address add $address/24 dev eth0 && ip -n $name link set eth0 up
    ip netns exec $name unshare --mount --pid --uts --fork --mount-proc bash host.sh $name >$name/log 2>&1 &
done
echo made
cat; true
"""

HOST = """
set -e
hostname $1
printf '127.0.0.1 localhost\n127.0.1.1 %s\n' $1 >$1/hosts  # as Debian has it: the name stands for the loopback
mount --bind $1/hosts /etc/hosts
mount --bind $1/ray /tmp/ray
mount --bind $1/home home
mount --bind passwd /etc/passwd
"$(which sshd)" -D -e -f $PWD/sshd_config
"""

SSHD = """
HostKey {folder}/key
AuthorizedKeysFile {folder}/key.pub
StrictModes no
PidFile none
"""


@dataclass(frozen=True)
class Room:
    """The room that the hosts lie in."""

    folder: Path
    process: subprocess.Popen
    first_pid: int

    def ray(self, *words, **environment):
        """Run one of Ray's commands in the room, as on a third machine of the hosts' network: the user's."""
        return self.run(Path(sys.prefix) / "bin/ray", *words, **environment)

    def run(self, *words, **environment):
        """Run a command on the user's machine."""
        enter = ["nsenter", "--target", str(self.first_pid), "--net", "--mount", "--pid", f"--wd={ROOT}", "--"]
        return subprocess.run(
            [*enter, *words],
            cwd=ROOT,
            env=os.environ
            | {"HOME": str(self.folder / "user"), "RAY_TMPDIR": str(self.folder), "TMPDIR": str(self.folder)}
            | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
            check=False,
        )

    def execute(self, command):
        """Run a command on the head as a user does; what it printed."""
        done = self.ray("exec", self.folder / "cluster-local.yaml", command)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def processes(self):
        """The names of what runs on the hosts, but for what makes them hosts."""
        names = set()
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                names.add(process.name())
        return names - {"bash", "cat", "ssh", "sshd", "unshare"}


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """Two hosts with ssh, and /mnt/chorale shared by both."""
    if os.geteuid() != 0:
        pytest.skip("namespaces with ssh servers take root")
    if missing := [name for name in PROGRAMS if not shutil.which(name)]:
        pytest.skip(f"not installed: {', '.join(missing)} (Debian: openssh-server, rsync, iproute2, curl)")
    folder = tmp_path_factory.mktemp("room")
    for name in ("shared", "home", "user/.ray", "head/home", "head/ray", "worker/home", "worker/ray"):
        (folder / name).mkdir(parents=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key"], check=True)
    (folder / "sshd_config").write_text(SSHD.format(folder=folder))
    users = Path("/etc/passwd").read_text()
    (folder / "passwd").write_text(re.sub("^root:.*", f"root:x:0:0:root:{folder}/home:/bin/bash", users))
    (folder / "host.sh").write_text(HOST)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "bash", "-c", ROOM],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        if process.stdout.readline() != "made\n":
            pytest.skip(f"namespaces can't be made here: {(folder / 'log').read_text().strip()}")
        (first,) = psutil.Process(process.pid).children()
        yield Room(folder, process, first.pid)
    finally:
        process.stdin.close()
        process.wait(timeout=60)
        process.stdout.close()


@pytest.fixture(scope="module")
def two_hosts(room, tone_store, space_file):
    """cluster-local.yaml with the hosts' addresses and key. This Python stands for the one that it would set up.

    On the head, a sweep of its own has left the token that Ray makes for it.
    """
    write_token(room)
    (room.folder / "head/home/.ray").mkdir()
    earlier = room.folder / "head/home/.ray/auth_token"
    earlier.write_text(secrets.token_hex(32))
    os.utime(earlier, (time.time() - 3600,) * 2)  # rsync takes files of the same size and second for the same
    shutil.copytree(tone_store, room.folder / "shared/store")
    shutil.copy(space_file, room.folder / "shared/own.py")
    config = yaml.safe_load((ROOT / "cluster-local.yaml").read_text())
    config["provider"] |= {"head_ip": HEAD, "worker_ips": [WORKER]}
    config["auth"] = {"ssh_user": "root", "ssh_private_key": str(room.folder / "key")}
    (install,) = [command for command in config["setup_commands"] if "pip install" in command]
    place = config["setup_commands"].index(install)
    config["setup_commands"][place] = "true"
    config["setup_commands"].append("echo 'export PYTHONPATH=~/chorale' >> ~/.chorale")
    for host in ("head", "worker"):
        (room.folder / host / "home/venv").symlink_to(sys.prefix)
    (room.folder / "cluster-local.yaml").write_text(yaml.safe_dump(config))
    return room


def write_token(room):
    """Make a new token on the user's machine, with the mode that Ray gives it."""
    token = room.folder / "user/.ray/auth_token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o644)


def up(room):
    done = room.ray("up", "--yes", room.folder / "cluster-local.yaml", RAY_UP_enable_autoscaler_v2="0")
    assert done.returncode == 0, done.stdout


def wait_for_both(room):
    both = "sum(node['Alive'] for node in ray.nodes()) == 2"
    join = f"import ray, time; ray.init(logging_level='ERROR')\nwhile not {both}: time.sleep(1)"
    room.execute(f'timeout 300 python -c "{join}"')


@pytest.fixture(scope="module")
def cluster_of_two(two_hosts):
    up(two_hosts)
    return two_hosts


def wait_until(fulfilled, limit_s=300):
    deadline = time.monotonic() + limit_s
    while not fulfilled():
        assert time.monotonic() < deadline
        time.sleep(1)


def test_up_refuses_the_autoscaler_that_would_start_no_worker(two_hosts):
    up = two_hosts.ray("up", "--yes", two_hosts.folder / "cluster-local.yaml")
    assert up.returncode != 0
    assert "export RAY_UP_enable_autoscaler_v2=0" in up.stdout


def test_up_without_a_token_names_the_file(two_hosts, tmp_path):
    done = two_hosts.ray(
        "up", "--yes", two_hosts.folder / "cluster-local.yaml", RAY_UP_enable_autoscaler_v2="0", HOME=str(tmp_path)
    )
    assert done.returncode != 0
    assert done.stdout.strip().endswith(f"No such file or directory: '{tmp_path}/.ray/auth_token'")


def test_up_joins_both_hosts_with_the_users_token_and_serves_mlflow(cluster_of_two):
    """An earlier token on the head, with which Ray would ask the worker for what it doesn't have, changes nothing."""
    wait_for_both(cluster_of_two)
    for host in ("head", "worker"):
        token = cluster_of_two.folder / host / "home/.ray/auth_token"
        assert token.read_text() == (cluster_of_two.folder / "user/.ray/auth_token").read_text()
        assert token.stat().st_mode & 0o777 == 0o600
    assert "OK" in cluster_of_two.execute("curl --silent $MLFLOW_TRACKING_URI/health")


def test_ray_answers_those_who_have_the_token_and_no_others(cluster_of_two):
    status = ["status", "--address", f"{HEAD}:6379"]
    assert "Active" in cluster_of_two.ray(*status, RAY_AUTH_MODE="token").stdout
    for environment in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "another one"}):
        refused = cluster_of_two.ray(*status, **environment)
        assert refused.returncode != 0
        assert "InvalidAuthToken" in refused.stdout
        assert "Active" not in refused.stdout


def test_mlflow_answers_those_who_have_the_password_and_no_others(cluster_of_two):
    curl = ["curl", "--silent", "--output", "/dev/null", "--write-out", "%{http_code}"]
    token = (cluster_of_two.folder / "user/.ray/auth_token").read_text()
    for path in ("mlflow/experiments/search?max_results=1", "mlflow-artifacts/artifacts"):
        url = f"http://{HEAD}:5000/api/2.0/{path}"
        assert cluster_of_two.run(*curl, url).stdout == "401"
        assert cluster_of_two.run(*curl, "--user", "chorale:another one", url).stdout == "401"
        assert cluster_of_two.run(*curl, "--user", f"chorale:{token}", url).stdout == "200"


def test_a_sweep_runs_on_both_hosts_and_is_kept_by_the_server_on_the_head(cluster_of_two):
    cluster_of_two.execute(
        "cd ~/chorale && python sweeps/grid.py --space /mnt/chorale/own.py:tiny --corpus folder"
        " --store /mnt/chorale/store --runs /mnt/chorale/runs --name first"
    )
    runs = MlflowClient(f"sqlite:///{cluster_of_two.folder}/head/home/mlflow/mlflow.db").search_runs(["1"])
    trials = [run for run in runs if run.data.tags["kind"] == "trial"]
    assert [run.info.status for run in trials] == ["FINISHED"] * 3
    assert not (cluster_of_two.folder / "shared/runs/mlflow.db").exists()
    cluster_of_two.execute("ray list actors --limit 1000 --format json > /mnt/chorale/actors.json")
    actors = json.loads((cluster_of_two.folder / "shared/actors.json").read_text())
    trained = [
        actor for actor in actors if actor["class_name"].endswith("ImplicitFunc")
    ]  # Tune's processes, one trial or more
    assert len({actor["node_id"] for actor in trained}) == 2


def test_an_ensemble_is_selected_from_what_the_server_holds(cluster_of_two):
    printed = cluster_of_two.execute(
        "cd ~/chorale && python ensemble/select.py --metric map10 --runs /mnt/chorale/runs"
    )
    assert "Wrote " in printed
    ensemble = json.loads((cluster_of_two.folder / "shared/runs/ensembles/first/ensemble.json").read_text())
    assert ensemble["members"]


def test_an_ensemble_is_reported_and_registered_with_the_server(cluster_of_two):
    (cluster_of_two.folder / "shared/sounds").mkdir()
    soundfile.write(cluster_of_two.folder / "shared/sounds/tone.wav", np.zeros(32000) + 0.1, 32000)
    for command in (
        "report.py",
        "export.py --ensemble runs/ensembles/first/ensemble.json --out exported",
        "search.py exported --index index --add sounds",
        "export.py --ensemble runs/ensembles/first/ensemble.json --out again --index index --register tones",
    ):
        cluster_of_two.execute(f"cd /mnt/chorale && python ~/chorale/ensemble/{command}")
    read = "import mlflow; mlflow.artifacts.download_artifacts('models:/tones/1', dst_path='/mnt/chorale/read')"
    cluster_of_two.execute(f'python -c "{read}"')
    assert (cluster_of_two.folder / "shared/read/MLmodel").exists()


def test_a_new_token_replaces_the_old_one_on_both_hosts(cluster_of_two):
    old = (cluster_of_two.folder / "user/.ray/auth_token").read_text()
    write_token(cluster_of_two)
    up(cluster_of_two)
    wait_for_both(cluster_of_two)
    refused = cluster_of_two.ray("status", "--address", f"{HEAD}:6379", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=old)
    assert "InvalidAuthToken" in refused.stdout
    printed = cluster_of_two.execute("cd ~/chorale && python sweeps/grid.py status --runs /mnt/chorale/runs")
    assert "first" in printed


def test_the_end_of_mlflow_and_ray_down_leave_no_process_on_either_host(cluster_of_two):
    cluster_of_two.execute("kill -- -$(cat ~/mlflow/pid)")
    down = cluster_of_two.ray("down", "--yes", cluster_of_two.folder / "cluster-local.yaml")
    assert down.returncode == 0, down.stdout
    wait_until(lambda: not cluster_of_two.processes())
