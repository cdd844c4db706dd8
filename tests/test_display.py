"""The progress line and tables, on a terminal and in a file."""

import io

from rich.console import Console

from alphallm.display import Progress, duration, print_table


def test_a_table_shows_every_cell_as_it_is():
    out = io.StringIO()
    rows = [
        {"strategy": "search [32]", "rate": 0.91234, "interval": "[0.89, 0.93]"},
        {"strategy": "greedy", "rate": None, "interval": "", "knob": 8},
    ]
    print_table("solve rates", rows, Console(file=out, width=100))
    text = out.getvalue()
    for words in ("solve rates", "search [32]", "0.9123", "[0.89, 0.93]", "greedy", "knob", "8"):
        assert words in text
    assert "None" not in text


def test_progress_in_a_file_is_a_line_now_and_then(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    out = io.StringIO()
    with Progress("iteration", total=10, done=4, console=Console(file=out, width=20)) as progress:
        for done in range(5, 11):
            now[0] += 12.0
            progress.update(done, f"loss [red] {done}")
    lines = out.getvalue().splitlines()
    assert lines == [
        "iteration 5/10 · 12.00 s each · 1:00 left · loss [red] 5",
        "iteration 8/10 · 12.00 s each · 0:24 left · loss [red] 8",
        "iteration 10/10 · 12.00 s each · 0:00 left · loss [red] 10",
    ]


def test_progress_on_a_terminal_is_one_line():
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=True)
    with Progress("iteration", total=3, console=console) as progress:
        progress.update(1)
        console.print("a table")
        progress.update(3, "loss [red]")
    assert "iteration 3/3" in out.getvalue() and "loss [red]" in out.getvalue() and "a table" in out.getvalue()


def test_durations():
    assert [duration(seconds) for seconds in (0, 59.6, 3600, 3725)] == ["0:00", "1:00", "1:00:00", "1:02:05"]
