"""The tables of recorded runs."""

from experiments import seeds


def row(run, strategy, solved, budget=300, mode="verified"):
    """A row of evaluation.json; of four problems."""
    return {
        "run": run, "strategy": strategy, "mode": mode, "budget": budget, "knob": "N=4",
        "solved": sum(solved) / 4, "illegal": 0.0, "tokens": 12.0, "expansions": 3.0, "FLOPs": 2e9,
        "solved_by_seed_and_problem": [solved],
    }  # fmt: skip


ROWS = [
    row("seed_0", "search", [1, 1, 1, 0]),
    row("seed_1", "search", [1, 0, 1, 0]),
    row("seed_0", "search_uniform", [1, 0, 0, 0]),
    row("seed_1", "search_uniform", [0, 0, 0, 0]),
    row("seed_0", "greedy", [1, 0, 0, 0], None, "both"),
]


def test_a_line_has_the_mean_over_seeds():
    lines = seeds.table_of(ROWS, [row("warm_start", "greedy", [0, 0, 0, 0], None, "both")])
    rates = {line["strategy"]: line["solve rate"] for line in lines}
    # A search that knows nothing of a run counts once.
    assert rates == {"greedy": "25.0%", "search": "62.5%", "search_uniform": "25.0%", "greedy (warm start)": "0.0%"}
    assert {line["strategy"]: line["seed by seed"] for line in lines}["search"] == "75.0, 50.0"


def test_problems_are_grouped_by_the_steps_that_they_need(tmp_path):
    steps = [2, 2, 4, 4]
    rates = seeds.by_steps(ROWS, steps)
    assert {n: rate.estimate for n, rate in rates[300, "verified", "search"].items()} == {2: 0.75, 4: 0.5}
    lines = seeds.table_by_steps(rates, steps)
    assert [*lines[0]][3:] == ["2 steps (2 problems)", "4 steps (2 problems)"]
    assert [line["strategy"] for line in lines] == ["greedy", "search", "search_uniform"]
    assert lines[0]["tokens"] == "–" and lines[1]["2 steps (2 problems)"].startswith("0.75 [")
    seeds.draw(rates, [2, 4], str(tmp_path / "figure.png"))
    assert (tmp_path / "figure.png").stat().st_size > 1000
