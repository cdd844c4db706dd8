"""Tables, paired differences, and the files."""

import dataclasses
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


def test_runs_are_pooled_as_seeds_of_one():
    mixed = [ROWS[0], ROWS[2], dataclasses.replace(ROWS[4], tokens=150), ROWS[5]]
    greedy, search, other = report.pooled(mixed)
    assert (greedy.run, search.run, other.run) == ("1 of 2 runs", "2 runs", "1 of 2 runs")
    np.testing.assert_array_equal(search.solved_SB, [[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 1, 0]])
    assert (search.tokens, search.rate.estimate) == (100, 0.5)
    assert report.between_runs([greedy, search, other]) == []


def test_the_tables_as_markdown(tmp_path):
    report.write_tables(tmp_path / report.TABLES, ROWS, "a title")
    lines = (tmp_path / report.TABLES).read_text().splitlines()
    assert lines[0] == "## a title" and lines[2] == "| run | mode | strategy | 100 | 300 |"
    assert lines[4].startswith("| a | both | greedy | 0.250 [0.0")
    rows = lines.index("## Every row")
    assert lines[rows + 2].startswith("| run | strategy | mode | budget |")
    assert lines[rows + 4].startswith("| a | greedy | both |  |  | 0.25 |")
    assert sum(line.startswith("## ") for line in lines) == 5
    assert all(line.count(" | ") == lines[rows + 2].count(" | ") for line in lines[rows + 2 : rows + 10])


def test_the_overview_has_a_column_for_each_budget_and_the_best_first():
    table = report.overview([*ROWS, row("a", "beam", "verified", [1, 1, 1, 0], 300)])
    assert told(table, "run", "mode", "strategy") == [
        ("a", "both", "greedy"), ("a", "verified", "search"), ("a", "verified", "beam"), ("a", "verified", "best_of_n"),
        ("b", "verified", "search"), ("b", "value_only", "search"),
    ]  # fmt: skip
    assert table[1]["100"] == f"0.625 {ROWS[2].rate}" and table[1]["300"] == f"1.000 {ROWS[3].rate}"
    assert table[0]["100"] == table[0]["300"] == f"0.250 {ROWS[0].rate}"
    assert table[2]["100"] is None and table[3]["300"] is None


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


def test_the_figure_has_a_panel_for_each_mode_and_a_line_for_each_run_and_strategy(tmp_path, monkeypatch):
    from matplotlib import axes, figure

    lines, drawn, errorbar = [], [], axes.Axes.errorbar
    monkeypatch.setattr(figure.Figure, "legend", lambda self, handles, labels, **_: lines.extend(labels))
    monkeypatch.setattr(
        axes.Axes, "errorbar", lambda self, x, y, **k: (drawn.append((self, len(x))), errorbar(self, x, y, **k))[1]
    )
    report.plot(tmp_path / report.FIGURE, ROWS, "title")
    assert lines == ["a · greedy", "a · best_of_n", "a · search", "b · search"]
    # Verified: greedy, best_of_n, both searches, one of them with two budgets; value only: greedy and one search.
    assert [points for _, points in drawn] == [1, 1, 2, 1, 1, 1]
    assert len({panel for panel, _ in drawn}) == 2
    assert (tmp_path / report.FIGURE).read_bytes().startswith(b"\x89PNG")
