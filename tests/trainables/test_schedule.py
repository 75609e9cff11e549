"""The learning rate: the authors' shape, without jumps."""

from typing import Any

import numpy as np
import pytest

from data.errors import UserError
from trainables.schedule import Schedule

AUTHORS = Schedule(peak_rate=2e-5, final_rate=1e-7, epochs=16)


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [(0, 0.0), (0.5, 1e-5), (1, 2e-5), (8, (2e-5 + 1e-7) / 2), (15, 1e-7), (15.5, 1e-7), (16, 1e-7)],
)
def test_the_authors_schedule_warms_up_decays_by_a_cosine_and_ends_at_the_final_rate(epoch, rate):
    assert AUTHORS.rate(epoch) == pytest.approx(rate, rel=1e-12)


def test_the_decay_is_a_cosine():
    epochs = np.linspace(1, 15, 57)
    expected = 1e-7 + (2e-5 - 1e-7) * (1 + np.cos(np.pi * (epochs - 1) / 14)) / 2
    np.testing.assert_allclose([AUTHORS.rate(epoch) for epoch in epochs], expected, rtol=1e-12)


@pytest.mark.parametrize(
    "schedule",
    [
        AUTHORS,
        Schedule(8e-6, 1e-7, epochs=5),
        Schedule(1e-3, 0.0, epochs=3, warmup_epochs=0.5, final_epochs=0.0),
        Schedule(1e-3, 1e-3, epochs=4, warmup_epochs=2.0),
    ],
)
def test_the_rate_has_no_jumps_and_stays_within_its_limits(schedule):
    rates = np.array([schedule.rate(epoch) for epoch in np.linspace(0, schedule.epochs, 5001)])
    assert np.abs(np.diff(rates)).max() < 0.01 * schedule.peak_rate
    assert rates[0] == 0
    assert rates.max() == pytest.approx(schedule.peak_rate, rel=1e-3)
    assert rates[-1] == pytest.approx(schedule.final_rate, abs=1e-6 * schedule.peak_rate)


def test_without_warm_up_the_first_step_has_the_peak_rate():
    assert Schedule(1e-3, 0.0, epochs=2, warmup_epochs=0).rate(0) == 1e-3


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"final_rate": 2.0}, "final_rate is 2.0"),
        ({"final_rate": -1e-9}, "final_rate is -1e-09"),
        ({"epochs": 0, "warmup_epochs": 0, "final_epochs": 0}, "epochs is 0"),
        ({"epochs": 1}, "don't fit into 1"),
        ({"warmup_epochs": -1.0}, "don't fit"),
        ({"final_epochs": -1.0}, "don't fit"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(setting: dict[str, Any], message):
    with pytest.raises(UserError, match=message):
        Schedule(**{"peak_rate": 1.0, "final_rate": 0.1, "epochs": 5} | setting)
