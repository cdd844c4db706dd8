"""Tables, paired differences, and the files."""

import json

import numpy as np
import pytest

from alphallm import display
from alphallm.errors import UserError
from alphallm.evaluation import Row, intervals, report


def row(run, name, mode, solved, budget=100, tokens=50):
    solved = np.atleast_2d(np.asarray(solved, np.float32))
    knob = "" if name == "greedy" else f"N={tokens}"
    illegal = 1.0 - float(solved.mean())
    return Row(run, "weights", name, mode, budget, knob, {}, solved, illegal, tokens, tokens / 5, 7, tokens * 1e6, 0.5)


ROWS = [
    row("a", "greedy", "both", [1, 0, 0, 0], None, 20),
    row("a", "best_of_n", "verified", [1, 1, 0, 0]),
    row("a", "search", "verified", [[1, 1, 1, 0], [1, 1, 0, 0]]),
    row("a", "search", "verified", [1, 1, 1, 1], 300, 200),
    row("b", "search", "verified", [0, 0, 1, 0]),
    row("b", "search", "value_only", [0, 0, 1, 0]),
]


def test_a_table_row_has_knob_rate_interval_and_mean_spend():
    table = report.table_rows(ROWS)
    assert list(table[0]) == [
        "run", "strategy", "mode", "budget", "knob", "solved", "95 %", "illegal", "tokens", "expansions", "calls",
        "FLOPs", "seconds",
    ]  # fmt: skip
    assert table[2] | {"95 %": ""} == {
        "run": "a", "strategy": "search", "mode": "verified", "budget": 100, "knob": "N=50", "solved": 0.625,
        "95 %": "", "illegal": 0.375, "tokens": 50, "expansions": 10, "calls": 7, "FLOPs": 5e7, "seconds": 0.5,
    }  # fmt: skip
    assert table[1]["95 %"] == str(intervals.wilson(0.5, 4))
    assert table[0]["knob"] == ""
    display.print_table("it can be printed", table)


def told(table, *columns):
    return [tuple(row[name] for name in columns) for row in table]


def test_runs_are_compared_strategy_by_strategy():
    found = report.between_runs(ROWS)
    assert told(found, "difference", "strategy", "mode", "budget", "solved") == [
        ("b - a", "search", "verified", 100, 0.25 - 0.625)
    ]


def test_strategies_are_compared_at_the_nearest_equal_compute():
    found = report.at_equal_compute(ROWS, None, "best_of_n")
    assert told(found, "difference", "run", "mode", "budget", "FLOPs, ratio", "solved") == [
        ("search - best_of_n", "a", "verified", 100, 1.0, 0.125),
        ("search - best_of_n", "a", "verified", 300, 4.0, 0.5),
    ]
    more = [*ROWS, row("a", "best_of_n", "verified", [1, 1, 1, 1], 300, 150)]
    found = report.at_equal_compute(more, "search", None)
    assert told(found, "difference", "budget", "FLOPs, ratio", "solved") == [
        ("search - best_of_n", 100, 1.0, 0.125),
        ("search - best_of_n", 300, 200 / 150, 0.0),
    ]


def test_what_was_written_is_read_again(tmp_path):
    path = tmp_path / report.JSON
    report.write_json(path, ROWS, {"split": "test"})
    rows, content = report.read_json(path)
    assert content["split"] == "test"
    assert [one.identity for one in rows] == [one.identity for one in ROWS]
    assert report.table_rows(rows) == report.table_rows(ROWS)
    assert report.difference_tables(rows) == report.difference_tables(ROWS)
    path.write_text("{}")
    with pytest.raises(UserError, match="holds no results"):
        report.read_json(path)


def test_json_holds_rows_differences_and_outcomes(tmp_path):
    path = tmp_path / "new" / report.JSON
    report.write_json(path, ROWS, {"split": "test"})
    content = json.loads(path.read_text())
    assert content["split"] == "test"
    assert content["rows"][1]["solved_by_seed_and_problem"] == [[1, 1, 0, 0]]
    assert [r["strategy"] for r in content["rows"]] == [r.strategy for r in ROWS]
    assert len(content["differences"]) == 3
    assert [p.name for p in path.parent.iterdir()] == [report.JSON]


def test_a_place_that_can_not_be_written_to_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can not be written"):
        report.write_json(tmp_path / "file" / report.JSON, ROWS, {})


def test_the_figure_has_a_line_for_each_run_strategy_and_mode(tmp_path, monkeypatch):
    from matplotlib import axes

    lines = []
    monkeypatch.setattr(axes.Axes, "legend", lambda self, **_: lines.extend(self.get_legend_handles_labels()[1]))
    report.plot(tmp_path / report.FIGURE, ROWS, "title")
    assert lines == ["a · greedy", "a · best_of_n · verified", "a · search · verified", "b · search · verified",
                     "b · search · value_only"]  # fmt: skip
    assert (tmp_path / report.FIGURE).read_bytes().startswith(b"\x89PNG")
