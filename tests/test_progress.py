"""How far a command is: a bar at a terminal, elsewhere lines or nothing."""

import sys
from io import StringIO

from addnorm.progress import ProgressBar


class Terminal(StringIO):
    def isatty(self):
        return True


def terminal(monkeypatch):
    """Standard error, at a terminal; for the running test, which has its own standard error."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("COLUMNS", "80")
    return stream


def rich_bar(bar):
    """The bar of rich, once it is there."""
    assert bar._bar is not None
    return bar._bar[0]


def test_a_bar_says_what_is_done_and_is_erased(monkeypatch):
    stderr = terminal(monkeypatch)
    with ProgressBar("counting [all]", 3) as bar:
        bar.advance()
        bar.update(3, note="the [last]")
        bar.begin("writing", 2)
        rich_bar(bar).refresh()
        assert "writing" in stderr.getvalue()
        assert rich_bar(bar).tasks[0].completed == 0
    assert "counting [all]" in stderr.getvalue(), "brackets are no markup"
    assert stderr.getvalue().endswith("\x1b[2K"), "the line is empty again"


def test_the_total_may_be_known_later(monkeypatch):
    terminal(monkeypatch)
    with ProgressBar("examining") as bar:
        assert rich_bar(bar).tasks[0].total is None
        bar.update(2, 5, "a rule")
        task = rich_bar(bar).tasks[0]
        assert (task.completed, task.total, task.fields["note"]) == (2, 5, "a rule")


def test_what_is_soon_over_shows_no_bar(monkeypatch):
    stderr = terminal(monkeypatch)
    with ProgressBar("counting", 3, patience=60) as bar:
        bar.advance(3)
        timer = bar._timer
    assert stderr.getvalue() == ""
    timer.join(10)
    assert not timer.is_alive(), "nothing waits any more"
    bar._start()
    assert stderr.getvalue() == "", "a timer that fires at the end"


def test_what_takes_longer_shows_a_bar_of_what_is_done_by_then(monkeypatch):
    stderr = terminal(monkeypatch)
    with ProgressBar("counting", 3, patience=0.01) as bar:
        bar.advance(2)
        bar._timer.join(10)
        assert rich_bar(bar).tasks[0].completed == 2
    assert "counting" in stderr.getvalue()


def test_a_hidden_bar_shows_nothing(monkeypatch):
    stderr = terminal(monkeypatch)
    with ProgressBar("counting", 3, interval=0.0, hidden=True) as bar:
        bar.advance()
    assert stderr.getvalue() == ""


def test_lines_where_there_is_no_terminal(capsys):
    with ProgressBar("counting", 2000, interval=0.0) as bar:
        bar.advance(1000)
        bar.begin("hashing")
        bar.advance(3)
    with ProgressBar("reading", 4_000_000, in_bytes=True, interval=60.0) as bar:
        bar.advance(2_000_000)
        bar.advance(2_000_000)
    with ProgressBar("writing", 1, patience=1.0, interval=60.0) as bar:
        bar.advance()
    with ProgressBar("scoring", 1) as bar:
        bar.advance()
    lines = ["counting: 1,000 of 2,000", "hashing: 3", "reading: 2 of 4 MB"]
    assert capsys.readouterr().err.splitlines() == lines
