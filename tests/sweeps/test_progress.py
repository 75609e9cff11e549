"""What a display prints where there is no terminal, and shows where there is one."""

import io

from rich.console import Console

from sweeps.progress import Display, Line


def make_display(**settings):
    console = Console(file=io.StringIO(), width=100, **settings)
    return Display({"a": Line("first", epochs=3), "b": Line("second", epochs=3)}, console)


def test_without_a_terminal_each_epoch_is_a_line_once():
    display = make_display()
    with display:
        display.start("a")
        for epoch in (1, 2, 3):
            display.epoch("a", epoch, 0.1 * epoch)
        display.epoch("a", 2, 0.2)
        display.end("a", "finished")
    lines = display.console.file.getvalue().splitlines()
    assert [line.partition(",")[0] for line in lines[1:4]] == [f"first: epoch {epoch}/3" for epoch in (1, 2, 3)]
    assert lines[0] == "first: started"
    assert lines[4].startswith("first: finished after ")
    assert len(lines) == 5


def test_the_view_shows_what_runs_and_counts_the_rest():
    display = make_display()
    display.start("a")
    display.epoch("a", 1, 0.25)
    shown = Console(file=io.StringIO(), width=100)
    shown.print(display.view())
    text = shown.file.getvalue()
    assert "0 finished, 1 running, 1 waiting, 0 failed of 2 trials" in text
    assert "1/3" in text
    assert "0.250" in text
    assert "second" not in text


def test_on_a_terminal_the_table_renews_itself_and_leaves_nothing_behind():
    display = make_display(force_terminal=True)
    with display:
        display.start("a")
        display.epoch("a", 1, 0.25)
    written = display.console.file.getvalue()
    assert "1 running" in written
    assert "epoch 1/3, best" not in written
    assert written.endswith("\x1b[2K")  # the last line erased
