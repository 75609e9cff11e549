"""The learning rate: the authors' shape, without jumps."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from data.errors import UserError
from trainables.schedule import Plateau, Schedule

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
        Schedule(1e-3, 0.0, epochs=6, final_epochs=0.0, cycles=2),
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
        ({"epochs": -1, "warmup_epochs": 0, "final_epochs": 0}, "epochs is -1"),
        ({"epochs": 0}, "don't fit into 0"),
        ({"epochs": 1}, "don't fit into 1"),
        ({"warmup_epochs": -1.0}, "don't fit"),
        ({"final_epochs": -1.0}, "don't fit"),
        ({"cycles": 0}, "0 cycles don't divide 5 epochs"),
        ({"cycles": 2}, "2 cycles don't divide 5 epochs"),
        ({"cycles": 5}, "don't fit into 1"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(setting: dict[str, Any], message):
    with pytest.raises(UserError, match=message):
        Schedule(**{"peak_rate": 1.0, "final_rate": 0.1, "epochs": 5} | setting)


def test_each_cycle_is_the_schedule_of_its_epochs():
    once, twice = (Schedule(1e-3, 1e-5, epochs=5 * cycles, cycles=cycles) for cycles in (1, 2))
    for epoch in np.linspace(0, 5, 51)[:-1]:
        assert twice.rate(epoch) == pytest.approx(once.rate(epoch))
        assert twice.rate(5 + epoch) == pytest.approx(once.rate(epoch))
    assert twice.rate(10) == once.rate(5) == 1e-5
    assert [twice.is_over(epoch) for epoch in (5, 9, 10)] == [False, False, True]


def test_a_schedule_is_over_after_its_last_epoch_whatever_the_losses():
    assert [AUTHORS.is_over(epoch, [1.0] * epoch) for epoch in (0, 15, 16)] == [False, False, True]


# Plateaus.


PLATEAU = Plateau(
    1e-3, 1e-6, epochs=40, factor=0.1, patience=2, threshold=0.01, settled_std=1e-3, settled_epochs=4, first_end=10
)


def rates_of_torch(plateau, losses):
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=plateau.peak_rate)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer,
        factor=plateau.factor,
        patience=plateau.patience,
        threshold=plateau.threshold,
        threshold_mode="abs",
        min_lr=plateau.final_rate,
        eps=0,
    )
    rates = [plateau.peak_rate]
    for loss in losses:
        scheduler.step(loss)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "change", [{}, {"patience": 0}, {"threshold": 0.0, "factor": 0.5}, {"final_rate": 1e-3}], ids=str
)
def test_the_rate_on_a_plateau_is_that_of_torch(seed, change):
    plateau = replace(PLATEAU, **change)
    losses = 2 * np.exp(-np.arange(40) / 8) + 0.02 * np.random.default_rng(seed).normal(size=40)
    rates = [plateau.rate(epoch + 0.5, losses[:epoch]) for epoch in range(41)]
    assert rates == rates_of_torch(plateau, losses.tolist())
    assert rates[-1] < rates[0] or plateau.final_rate == plateau.peak_rate


def test_a_loss_that_falls_keeps_the_peak_rate():
    assert PLATEAU.rate(30, np.arange(30, 0, -1).tolist()) == 1e-3


def test_training_ends_early_once_the_last_losses_hardly_differ():
    falling, settled = [5.0 - 0.1 * epoch for epoch in range(20)], [3.0] * 4
    assert not PLATEAU.is_over(20, falling)
    assert not PLATEAU.is_over(23, falling + settled[:3])
    assert PLATEAU.is_over(24, falling + settled)


def test_no_training_ends_before_the_first_epoch_at_which_it_may():
    assert [PLATEAU.is_over(epoch, [3.0] * epoch) for epoch in (0, 4, 9, 10)] == [False, False, False, True]


def test_a_training_whose_loss_goes_on_falling_ends_at_its_last_epoch():
    losses = [5.0 - 0.1 * epoch for epoch in range(40)]
    assert [PLATEAU.is_over(epoch, losses[:epoch]) for epoch in (39, 40)] == [False, True]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"final_rate": 2.0}, "final_rate is 2.0"),
        ({"factor": 1.0}, "factor is 1.0"),
        ({"factor": 0.0}, "factor is 0.0"),
        ({"patience": -1}, "patience is -1"),
        ({"threshold": -0.1}, "threshold is -0.1"),
        ({"settled_std": -0.1}, "settled_std is -0.1"),
        ({"epochs": 0}, "epochs is 0"),
        ({"settled_epochs": 0}, "settled_epochs is 0"),
        ({"first_end": 0}, "first_end is 0"),
    ],
)
def test_a_plateau_that_makes_no_sense_is_refused(setting, message):
    with pytest.raises(UserError, match=message):
        replace(PLATEAU, **setting)
