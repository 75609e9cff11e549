"""Which trials of a sweep have finished, also after a power cut."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from sweeps import spaces
from sweeps.planning.stages import find_finished, mark_damaged
from trainables.records.run_storage import RunStorage


@pytest.fixture
def runs(tmp_path):
    """A run storage with the models of two trials."""
    for signature in ("whole", "torn"):
        folder = tmp_path / "models" / signature
        folder.mkdir(parents=True)
        save_file({"weight": np.ones(1_000, np.float32)}, folder / "model.safetensors")
        (folder / "trial.json").write_text("{}")
    return RunStorage.of(tmp_path)


@pytest.fixture
def ledger(make_memory_ledger, tmp_path):
    """A ledger in which both trials have finished, and a third one, whose model was removed to save space."""
    ledger = make_memory_ledger(tmp_path / "ledger")
    trial = spaces.demo(spaces.Splits("c/train", "c/validation", "c/test", ("c/train",)), "float32")[0]
    for signature in ("whole", "torn", "removed"):
        ledger.finish(ledger.claim(trial, signature, None))
    return ledger


def test_a_trial_with_a_damaged_model_is_trained_again(runs, ledger, caplog):
    signatures = ["whole", "torn", "removed", "new"]
    assert find_finished(signatures, ledger, runs) == {"whole", "torn", "removed"}
    path = runs.folder / "models" / "torn" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:2_000])
    finished = find_finished(signatures, ledger, runs)
    assert finished == {"whole", "removed"}
    assert ledger.find_trial("torn").status == "FINISHED"
    mark_damaged(set(signatures) - finished, ledger, runs)
    assert ledger.find_trial("torn").status == "FAILED"
    assert f"{runs.folder}/models/torn" in caplog.text
    assert "it is trained again" in caplog.text
