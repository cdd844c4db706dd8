"""Tables, paired differences, and the files."""

import json

import numpy as np
import pytest

from alphallm import display
from alphallm.errors import UserError
from alphallm.evaluation import Row, Strategy, intervals, report
from alphallm.search import SearchConfig


def row(run, name, mode, solved, budget=100, tokens=50):
    solved = np.atleast_2d(np.asarray(solved, np.float32))
    spent = np.full(solved.shape, tokens)
    strategy = Strategy(name, mode, 4, SearchConfig(num_candidates=8))
    return Row(run, strategy, budget, solved, 1 - solved, spent, spent // 5, spent * 1e6, 0.5)


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
        "run", "strategy", "mode", "budget", "knob", "solved", "95 %", "illegal", "tokens", "expansions", "FLOPs",
        "seconds",
    ]  # fmt: skip
    assert table[2] | {"95 %": ""} == {
        "run": "a", "strategy": "search", "mode": "verified", "budget": 100, "knob": "4 simulations x 8",
        "solved": 0.625, "95 %": "", "illegal": 0.375, "tokens": 50.0, "expansions": 10.0, "FLOPs": 5e7, "seconds": 0.5,
    }  # fmt: skip
    assert table[1]["95 %"] == str(intervals.wilson(0.5, 4))
    assert table[0]["knob"] == ""
    display.print_table("it can be printed", table)


def test_differences_pair_equal_methods_of_runs_and_methods_with_best_of_n():
    found = report.differences(ROWS)
    assert [(d["difference"], d["of"], d["mode"], d["budget"], d["solved"]) for d in found] == [
        ("b - a", "search", "verified", 100, 0.25 - 0.625),
        ("search - best_of_n", "a", "verified", 100, 0.125),
    ]


def test_json_holds_rows_differences_and_outcomes(tmp_path):
    path = tmp_path / "new" / report.JSON
    report.write_json(path, ROWS, {"split": "test"})
    content = json.loads(path.read_text())
    assert content["split"] == "test"
    assert content["rows"][1]["solved_by_seed_and_problem"] == [[1, 1, 0, 0]]
    assert [r["strategy"] for r in content["rows"]] == [r.strategy.name for r in ROWS]
    assert len(content["differences"]) == 2
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
