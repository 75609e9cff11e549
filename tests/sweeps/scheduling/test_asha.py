"""Asynchronous successive halving: which trials are stopped, in the scheduler of Ray Tune itself."""

from types import SimpleNamespace

import pytest

from sweeps.scheduling.ray_tune import AshaByStage


@pytest.fixture
def report():
    """A function that reports the first epoch of a new trial to one scheduler, and returns the decision."""
    asha = AshaByStage({"pretraining": 8, "fine-tuning": 8})
    numbers = iter(range(100))

    def decide(best_map10, stage="fine-tuning", average_of=(), epochs=8):
        config = {"schedule": {"epochs": epochs}} | ({"average_of": list(average_of)} if average_of else {})
        work = {"stage": stage, "trial": config}
        trial = SimpleNamespace(trial_id=str(next(numbers)), config={"work": work}, stopping_criterion={})
        asha.on_trial_add(None, trial)
        return asha.on_trial_result(None, trial, {"epoch": 1, "training_iteration": 1, "best_map10": best_map10})

    return decide


def test_a_trial_that_is_worse_than_most_is_stopped_and_others_continue(report):
    assert [report(value) for value in (0.5, 0.6, 0.7, 0.8)] == ["CONTINUE"] * 4
    assert report(0.1) == "STOP"
    assert report(0.9) == "CONTINUE"


def test_stages_are_compared_separately(report):
    for value in (0.5, 0.6, 0.7, 0.8):
        report(value)
    assert report(0.1, stage="pretraining") == "CONTINUE"


def test_a_trial_without_training_is_never_stopped(report):
    for value in (0.5, 0.6, 0.7, 0.8):
        report(value)
    assert report(0.1, average_of=["one", "other"]) == "CONTINUE"
    assert report(0.1, epochs=0) == "CONTINUE"
