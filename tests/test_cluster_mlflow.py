"""The MLflow server of a cluster's head, started with the commands of cluster-local.yaml: what it refuses, to whom."""

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import requests
import yaml

from data.errors import UserError
from trainables.records import mlflow_log
from trainables.records.mlflow_ledger import create_ledger

ROOT = Path(__file__).parents[1]
LOCAL = yaml.safe_load((ROOT / "cluster-local.yaml").read_text())
PUBLIC = ("/health", "/static-files/x", "/api/3.0/mlflow/server-info", "/ajax-api/3.0/mlflow/server-info")
"""Paths that need no password: they hold nothing but MLflow's own web page and which features the server has."""


@dataclass
class Server:
    """The server of a head whose home is a folder of the test."""

    home: Path
    port: int
    token: str = ""

    @property
    def uri(self):
        return f"http://127.0.0.1:{self.port}"

    def up(self):
        """Give the cluster a new token, and do with MLflow what `ray up` does."""
        self.token = secrets.token_hex(32)
        (self.home / ".ray").mkdir(exist_ok=True)
        (self.home / ".ray/auth_token").write_text(self.token)
        for command in LOCAL["head_start_ray_commands"]:
            if "~/mlflow" in command and "curl" not in command:
                command = command.replace("--host 0.0.0.0 --port 5000", f"--host 127.0.0.1 --port {self.port}")
                self.run(command.replace("/mnt/chorale/mlflow", "~/artifacts"))
        while True:
            try:
                assert requests.get(f"{self.uri}/health", timeout=5).ok
                return
            except requests.ConnectionError:
                time.sleep(0.1)

    def run(self, command):
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        subprocess.run(
            ["bash", "-c", command], env=os.environ | {"HOME": str(self.home), "PATH": path}, check=True, timeout=120
        )

    def get(self, path, **options):
        return requests.get(f"{self.uri}{path}", timeout=60, **options)

    @property
    def password(self):
        return "chorale", self.token


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server of its own, since this one asks for a password."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = Server(tmp_path_factory.mktemp("head"), port)
    try:
        server.up()
        yield server
    finally:
        os.killpg(int((server.home / "mlflow/pid").read_text()), signal.SIGKILL)
        server.run("flock ~/mlflow/lock true")


@pytest.fixture
def signed_in(server, monkeypatch):
    """The environment of the nodes, by the setup commands that write it."""
    (server.home / ".chorale").unlink(missing_ok=True)
    for command in LOCAL["setup_commands"]:
        if "MLFLOW_TRACKING" in command:
            server.run(command)
    words = ["bash", "-c", '. ~/.chorale; printf "%s\\n" "$MLFLOW_TRACKING_USERNAME" "$MLFLOW_TRACKING_PASSWORD"']
    printed = subprocess.run(words, env={"HOME": str(server.home)}, check=True, capture_output=True, text=True).stdout
    name, password = printed.split()
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)


LIST_ROUTES = """
import json
from mlflow.server import app
from mlflow.server.fastapi_app import create_fastapi_app
routes = [(method, rule.rule) for rule in app.url_map.iter_rules() for method in rule.methods]
paths = create_fastapi_app(app).openapi()["paths"]
routes += [(method.upper(), path) for path, methods in paths.items() for method in methods]
print(json.dumps(routes))
"""
SEARCH = "/api/2.0/mlflow/experiments/search?max_results=1"


def test_runs_need_the_password(server):
    assert server.get(SEARCH).status_code == 401
    assert server.get(SEARCH, auth=("chorale", "another password")).status_code == 401
    assert server.get(SEARCH, auth=("admin", server.token)).status_code == 401
    assert server.get(SEARCH, auth=server.password).json()["experiments"]


def test_artifacts_need_the_password(server):
    path = f"{server.uri}/api/2.0/mlflow-artifacts/artifacts/1/a.txt"
    assert requests.put(path, data=b"code", timeout=60).status_code == 401
    assert not (server.home / "artifacts").exists()
    assert requests.put(path, data=b"code", auth=server.password, timeout=60).status_code == 200
    assert (server.home / "artifacts/1/a.txt").read_bytes() == b"code"
    for auth, expected in ((None, 401), (("chorale", "another password"), 401), (server.password, 200)):
        assert requests.get(path, auth=auth, timeout=60).status_code == expected
    assert requests.delete(path, timeout=60).status_code == 401
    assert (server.home / "artifacts/1/a.txt").exists()


def test_no_route_answers_without_the_password(server):
    """All routes of the installed MLflow; a process of their own lists them, as the server changes its environment."""
    words = [sys.executable, "-W", "ignore", "-c", LIST_ROUTES]
    routes = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    assert len(routes) > 400
    asked = sorted({(method, re.sub(r"<[^>]*>|{[^}]*}", "x", path)) for method, path in routes})
    asked = [(method, path) for method, path in asked if path not in PUBLIC and method not in ("HEAD", "OPTIONS")]
    with ThreadPoolExecutor(8) as threads:
        answers = threads.map(lambda r: requests.request(r[0], server.uri + r[1], timeout=60).status_code, asked)
        assert {route: status for route, status in zip(asked, answers, strict=True) if status != 401} == {}


@pytest.mark.usefixtures("signed_in")
def test_a_ledger_works_with_the_password_of_the_nodes(server, tmp_path):
    ledger = create_ledger(tmp_path, server.uri)
    run_id = ledger.client.create_run(ledger.experiment_id).info.run_id
    (tmp_path / "a.txt").write_text("kept")
    ledger.client.log_artifact(run_id, str(tmp_path / "a.txt"))
    uri = f"{ledger.client.get_run(run_id).info.artifact_uri}/a.txt"
    with mlflow_log.open_artifact(uri, server.uri) as path:
        assert path.read_text() == "kept"


def test_a_missing_password_is_named_with_the_remedy(server, tmp_path):
    with pytest.raises(UserError, match="requires a user name and a password: set MLFLOW_TRACKING_USERNAME"):
        create_ledger(tmp_path, server.uri)


def test_the_secret_is_in_no_command_line_and_no_file_of_the_server(server):
    for process in psutil.process_iter(["cmdline"]):
        assert server.token not in " ".join(process.info["cmdline"] or [])
    folder = server.home / "mlflow"
    assert folder.stat().st_mode & 0o777 == 0o700
    for path in folder.iterdir():
        assert server.token.encode() not in path.read_bytes()


def test_a_new_token_replaces_the_old_and_keeps_the_runs(server):
    old, before = server.password, server.get(SEARCH, auth=server.password).json()
    server.up()
    assert server.token != old[1]
    assert server.get(SEARCH, auth=old).status_code == 401
    assert server.get(SEARCH, auth=server.password).json() == before
