"""The tracking URI while an ensemble is registered, and afterwards."""

import os

import mlflow
import pytest

from ensemble.serving.registration import use_tracking_uri


@pytest.mark.parametrize("earlier", [None, "http://127.0.0.1:9"])
def test_the_earlier_tracking_uri_is_used_again_also_by_other_processes(earlier, monkeypatch, tmp_path):
    """MLflow keeps it in a variable of its own and in the environment, which processes inherit."""
    mlflow.set_tracking_uri(None)
    if earlier:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", earlier)
    before = mlflow.get_tracking_uri()
    with pytest.raises(ZeroDivisionError), use_tracking_uri(uri := f"sqlite:///{tmp_path}/mlflow.db"):
        assert mlflow.get_tracking_uri() == os.environ["MLFLOW_TRACKING_URI"] == uri
        raise ZeroDivisionError
    assert mlflow.get_tracking_uri() == before
    assert os.environ.get("MLFLOW_TRACKING_URI") == earlier
    mlflow.set_tracking_uri(None)
