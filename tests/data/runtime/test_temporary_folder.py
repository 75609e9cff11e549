"""What Ray writes on this machine: sockets, whose paths must not be too long, and a token."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from data.errors import UserError
from data.runtime.parallel import protect_token, require_short_temporary_folder, start_ray

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("RAY_TMPDIR", "RAY_ADDRESS", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_a_long_folder_is_replaced_with_a_warning(environment, caplog):
    environment.setenv("TMPDIR", "/tmp/" + "x" * 60)
    environment.setenv("RAY_TMPDIR", "")  # so that the fixture restores the variable
    environment.delenv("RAY_TMPDIR")
    require_short_temporary_folder()
    assert os.environ["RAY_TMPDIR"] == "/tmp"
    assert "is too long for Ray's sockets" in caplog.text


def test_a_long_folder_chosen_for_ray_is_refused(environment):
    environment.setenv("RAY_TMPDIR", "/tmp/" + "x" * 60)
    with pytest.raises(UserError, match=r"RAY_TMPDIR=.* give at most"):
        require_short_temporary_folder()


@pytest.mark.parametrize(("name", "value"), [("TMPDIR", "/tmp/short"), ("RAY_ADDRESS", "host:6379"), ("HOME", "/x")])
def test_other_environments_stay_as_they_are(name, value, environment, caplog):
    environment.setenv(name, value)
    require_short_temporary_folder()
    assert "RAY_TMPDIR" not in os.environ
    assert not caplog.messages


def test_the_token_of_ray_is_made_private(environment, tmp_path):
    environment.setenv("HOME", str(tmp_path))
    protect_token()
    (tmp_path / ".ray").mkdir()
    token = tmp_path / ".ray" / "auth_token"
    token.write_text("secret")
    token.chmod(0o644)
    protect_token()
    assert token.stat().st_mode & 0o777 == 0o600


def test_ray_that_does_not_start_is_tried_again_and_then_named(monkeypatch, caplog):
    """The error is Ray's own, of a start that took too long."""
    import ray

    attempts = []

    def time_out(**_):
        attempts.append(1)
        raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "init", time_out)
    with pytest.raises(UserError, match=r"Ray doesn't start on this machine \(The current node timed out.*`ray stop`"):
        start_ray()
    assert len(attempts) == 3
    assert caplog.text.count("trying again") == 2


def test_a_missing_token_of_a_cluster_is_named_with_the_remedy(tmp_path):
    """A process of its own, since Ray reads the mode when it is imported."""
    words = [sys.executable, "-c", "from data.runtime.parallel import start_ray; start_ray()"]
    environment = os.environ | {"HOME": str(tmp_path), "RAY_ADDRESS": "127.0.0.1:1", "RAY_AUTH_MODE": "token"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert "UserError: Token authentication is enabled but no authentication token was found" in done.stderr
    assert "the cluster's token in ~/.ray/auth_token" in done.stderr
