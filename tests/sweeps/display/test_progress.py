"""What a display prints where there is no terminal, and shows where there is one of any width."""

import io
import re

import pytest

from data.runtime.console import PlainConsole
from data.runtime.tables import Column, TextTable, print_table
from sweeps.display.progress import SweepDisplay, TrialProgress, build_table, estimate_time_left, load_progress
from sweeps.spaces import Splits, demo


@pytest.fixture
def ledger(make_memory_ledger, tmp_path):
    return make_memory_ledger(tmp_path)


@pytest.fixture
def make_display(ledger):
    def make(**settings):
        console = PlainConsole(file=io.StringIO(), width=160, **settings)
        return SweepDisplay(
            {"a": TrialProgress("first", "pretraining", 3), "b": TrialProgress("second", "pretraining", 3)},
            console,
            ledger,
        )

    return make


def metrics(epoch):
    return {"epoch": epoch, "train_loss": 2.0, "best_map10": 0.1 * epoch, "pairs_per_second": 7.5}


def test_without_a_terminal_each_epoch_is_a_line(make_display):
    display = make_display()
    with display:
        display.show_start("a")
        for epoch in (1, 2, 3):
            display.show_epoch("a", metrics(epoch))
        display.show_end("a", "finished")
        display.show_finished("a")
        display.show_finished("b")
    lines = display.console.file.getvalue().splitlines()
    assert lines[0] == "first: started"
    assert lines[1] == "first: epoch 1/3, loss 2.000, best validation mAP@10 0.100"
    assert [line.partition(",")[0] for line in lines[1:4]] == [f"first: epoch {epoch}/3" for epoch in (1, 2, 3)]
    assert lines[4].startswith("first: finished after ")
    assert lines[5:] == ["second: finished by another command"]


def shown(sheet, width=160, **settings):
    console = PlainConsole(file=io.StringIO(), width=width, **settings)
    print_table(console, sheet)
    return console.file.getvalue()


def test_the_view_shows_what_runs_and_counts_the_rest(make_display):
    display = make_display()
    display.show_start("a")
    display.show_epoch("a", metrics(1))
    display.lines["a"].update({"step/epoch": 1.25, "step/loss": 1.5, "step/pairs_per_second": 8.0, "step/left_s": 70.0})
    text = shown(display.render())
    assert "2 trials: 0 finished, 1 running, 1 waiting; about 0:03:10 left" in text
    for figure in ("first", "pretraining", "1.25/3", "1.500", "0.1000", "8.0", "0:01:10"):
        assert figure in text
    assert "second" not in text


def test_the_time_left_is_known_once_a_trial_has_told_its_own():
    running, waiting = (
        TrialProgress("a", "pretraining", 4, cost=10.0, state="running"),
        TrialProgress("b", "fine-tuning", 4, cost=5.0),
    )
    assert estimate_time_left([running, waiting]) is None
    running.epoch, running.left_s = 2.0, 60.0  # of 120 s
    assert estimate_time_left([running]) == 60
    assert estimate_time_left([running, waiting]) == 60 + 60  # 5 of 10 units, which take 120 s
    other = TrialProgress("c", "pretraining", 4, cost=10.0, state="running", epoch=2.0, left_s=60.0)
    assert estimate_time_left([running, other, waiting]) == 90
    running.state = waiting.state = "finished"
    assert estimate_time_left([running, waiting]) == 0


def test_on_a_terminal_the_table_renews_itself_and_leaves_nothing_behind(make_display):
    display = make_display(force_terminal=True)
    with display:
        display.show_start("a")
        display.show_epoch("a", metrics(1))
    written = display.console.file.getvalue()
    assert "1 running" in written
    assert "epoch 1/3, loss" not in written
    assert written.endswith("\x1b[2K")  # the last line erased


def test_status_tells_what_is_trained_from_what_was_interrupted(ledger):
    trial = demo(Splits("c/train", "c/validation", "c/test", ("c/train",)), "float32")[0]
    runs = {name: ledger.claim(trial, name, None) for name in ("trained", "interrupted", "finished", "stopped")}
    ledger.finish(runs["finished"])
    ledger.mark_ended(runs["stopped"], "KILLED")
    described = {name: {"name": name, "stage": "fine-tuning", "epochs": 1, "cost": 1.0} for name in [*runs, "waiting"]}
    lines = load_progress(ledger, described, {name: name == "trained" for name in described})
    assert [(line.name, line.state) for line in lines] == [
        ("trained", "running"), ("interrupted", "interrupted"), ("finished", "finished"), ("stopped", "stopped"),
        ("waiting", "waiting"),
    ]  # fmt: skip


# Tables in terminals of any width.

LONGEST = "passt:tiny5 transformer:shallow rate 0.00028 frozen audio p 0.3 final epoch 3 seed 12"


def busy_line(name="cnn:small5 transformer:small rate 0.0004 p 0.3 seed 0", state="running"):
    return TrialProgress(
        name, "fine-tuning", 16, state=state, epoch=10.25, loss=1.5, best_map10=0.1234, pairs_per_second=123.4,
        left_s=36_001.0,
    )  # fmt: skip


FIGURES = ("fine-tuning", "10.25/16", "1.500", "0.1234", "123.4", "10:00:01")


@pytest.mark.parametrize("width", [40, 80, 100, 200])
@pytest.mark.parametrize("state", ["running", "failed", "stopped", "interrupted", "held by another command"])
def test_no_figure_is_cut_and_no_line_is_longer_than_the_terminal(width, state):
    lines = [busy_line(), busy_line(LONGEST, state)]
    text = shown(build_table(lines, "1:23:45, "), width, force_terminal=True, color_system=None)
    assert max(map(len, text.splitlines())) <= width
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    words = " ".join(text.split())
    for line in lines:
        assert line.name in words
    assert state in words
    for figure in FIGURES:
        assert len(re.findall(rf"(?<!\S){re.escape(figure)}(?=[\s,]|$)", words)) >= 2, figure


def test_in_80_columns_a_trial_takes_two_lines_with_its_figures_under_their_headings():
    title, trial, heading, name, figures = shown(
        build_table([busy_line()], ""), 80, force_terminal=True, color_system=None
    ).splitlines()
    assert title == "1 trials: 0 finished, 1 running; about 10:00:01 left"
    assert (trial, name) == ("trial", busy_line().name)
    for value, column in {"10.25/16": "epoch", "1.500": "loss", "123.4": "pairs/s", "10:00:01": "time left"}.items():
        assert figures.index(value) + len(value) == heading.index(column) + len(column)


def test_a_wide_terminal_has_a_trial_a_line():
    lines = shown(build_table([busy_line(), busy_line()], ""), 160, force_terminal=True, color_system=None).splitlines()
    assert len(lines) == 1 + 1 + 2
    assert lines[1].split()[0] == "trial"


def test_the_live_table_cuts_nothing_off_in_80_columns(ledger):
    console = PlainConsole(
        file=io.StringIO(), width=80, height=25, force_terminal=True, color_system=None, soft_wrap=True
    )
    with SweepDisplay({"a": busy_line(), "b": busy_line(LONGEST)}, console, ledger):
        pass
    frame = re.sub(r"\x1b\[[0-9?;]*[A-Za-z]", "", console.file.getvalue())
    for figure in FIGURES:
        assert frame.count(figure) >= 2
    assert max(map(len, frame.replace("\r", "\n").splitlines())) <= 80


def test_into_a_file_a_row_is_a_plain_line_with_tabs():
    columns = [Column("trial", is_numeric=False), Column("epoch"), Column("state", is_numeric=False)]
    text = shown(TextTable("Trials", columns, [(LONGEST, "1", "running"), ("short", "12", "")]), width=20)
    assert text == f"Trials\ntrial\tepoch\tstate\n{LONGEST}\t1\trunning\nshort\t12\t\n"


def test_without_rows_there_is_a_title_alone():
    assert shown(TextTable("Trials", [Column("trial")], []), force_terminal=True, color_system=None) == "Trials\n"
    assert shown(TextTable("Trials", [Column("trial")], [])) == "Trials\n"
