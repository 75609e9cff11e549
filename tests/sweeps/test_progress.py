"""What a display prints where there is no terminal, and shows where there is one."""

import io

import pytest
from rich.console import Console

from sweeps.progress import Display, Line, status, time_left
from sweeps.spaces import Splits, demo
from trainables.ledger import create_ledger


@pytest.fixture(scope="module")
def ledger(tmp_path_factory):
    return create_ledger(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def make_display(ledger):
    def make(**settings):
        console = Console(file=io.StringIO(), width=160, **settings)
        return Display({"a": Line("first", "pretraining", 3), "b": Line("second", "pretraining", 3)}, console, ledger)

    return make


def metrics(epoch):
    return {"epoch": epoch, "train_loss": 2.0, "best_map10": 0.1 * epoch, "pairs_per_second": 7.5}


def test_without_a_terminal_each_epoch_is_a_line(make_display):
    display = make_display()
    with display:
        display.start("a")
        for epoch in (1, 2, 3):
            display.epoch("a", metrics(epoch))
        display.end("a", "finished")
        display.finished("a")
        display.finished("b")
    lines = display.console.file.getvalue().splitlines()
    assert lines[0] == "first: started"
    assert lines[1] == "first: epoch 1/3, loss 2.000, best validation mAP@10 0.100"
    assert [line.partition(",")[0] for line in lines[1:4]] == [f"first: epoch {epoch}/3" for epoch in (1, 2, 3)]
    assert lines[4].startswith("first: finished after ")
    assert lines[5:] == ["second: finished by another command"]


def shown(renderable):
    console = Console(file=io.StringIO(), width=160)
    console.print(renderable)
    return console.file.getvalue()


def test_the_view_shows_what_runs_and_counts_the_rest(make_display):
    display = make_display()
    display.start("a")
    display.epoch("a", metrics(1))
    display.lines["a"].update({"step/epoch": 1.25, "step/loss": 1.5, "step/pairs_per_second": 8.0, "step/left_s": 70.0})
    text = shown(display.view())
    assert "2 trials: 0 finished, 1 running, 1 waiting; about 0:03:10 left" in text
    for figure in ("first", "pretraining", "1.25/3", "1.500", "0.1000", "8.0", "0:01:10"):
        assert figure in text
    assert "second" not in text


def test_the_time_left_is_known_once_a_trial_has_told_its_own():
    running, waiting = Line("a", "pretraining", 4, cost=10.0, state="running"), Line("b", "fine-tuning", 4, cost=5.0)
    assert time_left([running, waiting]) is None
    running.epoch, running.left_s = 2.0, 60.0  # of 120 s
    assert time_left([running]) == 60
    assert time_left([running, waiting]) == 60 + 60  # 5 of 10 units, which take 120 s
    other = Line("c", "pretraining", 4, cost=10.0, state="running", epoch=2.0, left_s=60.0)
    assert time_left([running, other, waiting]) == 90
    running.state = waiting.state = "finished"
    assert time_left([running, waiting]) == 0


def test_on_a_terminal_the_table_renews_itself_and_leaves_nothing_behind(make_display):
    display = make_display(force_terminal=True)
    with display:
        display.start("a")
        display.epoch("a", metrics(1))
    written = display.console.file.getvalue()
    assert "1 running" in written
    assert "epoch 1/3, loss" not in written
    assert written.endswith("\x1b[2K")  # the last line erased


def test_status_tells_what_is_trained_from_what_was_interrupted(ledger):
    trial = demo(Splits("c/train", "c/validation", "c/test", ("c/train",)), "float32")[0]
    runs = {name: ledger.claim(trial, name, None) for name in ("trained", "interrupted", "finished", "stopped")}
    ledger.finish(runs["finished"])
    ledger.give_up(runs["stopped"], "KILLED")
    described = {name: {"name": name, "stage": "fine-tuning", "epochs": 1, "cost": 1.0} for name in [*runs, "waiting"]}
    lines = status(ledger, described, {name: name == "trained" for name in described})
    assert [(line.name, line.state) for line in lines] == [
        ("trained", "running"), ("interrupted", "interrupted"), ("finished", "finished"), ("stopped", "stopped"),
        ("waiting", "waiting"),
    ]  # fmt: skip
