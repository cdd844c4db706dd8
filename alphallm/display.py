"""What a person watches: one progress line and small tables, on a terminal or in a log file."""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Self

import rich.box
import rich.console
import rich.progress
import rich.table
import rich.text

_RECENT = 20  # steps over which the rate is taken, so that compilation is soon forgotten


def make_console() -> rich.console.Console:
    """A console on stdout; wide enough for tables when it is not a terminal."""
    console = rich.console.Console(highlight=False)
    return console if console.is_terminal else rich.console.Console(highlight=False, width=160)


def quiet_console() -> rich.console.Console:
    """A console that shows nothing: for a process whose words another one says as well."""
    return rich.console.Console(quiet=True)


def print_table(title: str, rows: Sequence[Mapping[str, object]], console: rich.console.Console | None = None) -> None:
    """Prints rows, whose keys are the columns. Numbers stand to the right; floats have four digits, None is empty."""
    console = console or make_console()
    table = rich.table.Table(title=title or None, title_justify="left", box=rich.box.SIMPLE_HEAD)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    for name in columns:
        numeric = all(isinstance(row.get(name), (int, float, type(None))) for row in rows)
        table.add_column(name, justify="right" if numeric else "left")
    for row in rows:
        # Text, not markup: an interval "[0.1, 0.2]" is not a style.
        table.add_row(*(rich.text.Text(cell(row.get(name))) for name in columns))
    console.print(table)


def cell(value: object) -> str:
    """A table's entry: floats with four digits, None empty."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """Seconds as "m:ss" or "h:mm:ss"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Progress:
    """One line with what was done, the rate and the time left; where there is no terminal, a line now and then.

    with Progress("iteration", total=100, done=40) as progress:
        progress.update(41, "loss 0.31")
    """

    def __init__(
        self,
        unit: str,
        total: int,
        done: int = 0,
        console: rich.console.Console | None = None,
        seconds_between_lines: float = 30.0,
    ):
        """`done` of `total` steps were made before, for example by the run that is continued."""
        self.console = console or make_console()
        self._unit, self._total = unit, total
        self._times: deque[tuple[int, float]] = deque([(done, time.monotonic())], maxlen=_RECENT + 1)
        self._seconds_between_lines, self._last_line = seconds_between_lines, -float("inf")
        self._bar: rich.progress.Progress | None = None
        if self.console.is_terminal:
            bar, text = (
                rich.progress.BarColumn(bar_width=20),
                rich.progress.TextColumn("{task.description}", markup=False),
            )
            self._bar = rich.progress.Progress(bar, text, console=self.console, transient=True)
            self._task = self._bar.add_task("", total=total, completed=done)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, text: str = "") -> None:
        """`done` steps of the total are made; `text` is shown behind them. Print other things on `self.console`."""
        now = time.monotonic()
        self._times.append((done, now))
        line = " · ".join([f"{self._unit} {done}/{self._total}", *self._speed(), *([text] if text else [])])
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=line)
        elif now - self._last_line >= self._seconds_between_lines or done >= self._total:
            self._last_line = now
            self.console.print(line, soft_wrap=True, markup=False)

    def _speed(self) -> list[str]:
        (first, began), (done, now) = self._times[0], self._times[-1]
        if done <= first:
            return []
        each = (now - began) / (done - first)
        rate = f"{each:.2f} s each" if each >= 1 else f"{1 / max(each, 1e-9):.1f} a second"
        return [rate, f"{duration(each * (self._total - done))} left"]
