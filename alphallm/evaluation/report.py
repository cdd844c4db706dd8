"""What is told of a comparison: a table, a JSON file, and a figure of solve rate against what it took."""

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from alphallm.display import cell
from alphallm.errors import UserError
from alphallm.evaluation import intervals
from alphallm.evaluation.compare import Row
from alphallm.evaluation.strategies import Result

JSON, FIGURE, TABLES = "evaluation.json", "evaluation.png", "evaluation.md"
AXES = {"tokens": "generated tokens", "flops": "forward FLOPs", "seconds": "seconds"}
# A strategy is "not worse" than another one if it solves at most this much less.
MARGIN = 0.02


def table_rows(rows: Sequence[Row]) -> list[dict[str, object]]:
    """The comparison as a table for `alphallm.display.print_table`; spends are means over problems and seeds."""
    return [
        {
            "run": row.run,
            "strategy": row.strategy,
            "mode": row.mode,
            "budget": row.budget,
            "knob": row.knob,
            "solved": row.rate.estimate,
            "95 %": str(row.rate),
            "illegal": row.illegal,
            "tokens": row.tokens,
            "expansions": row.expansions,
            "calls": row.calls,
            "FLOPs": row.flops,
            "seconds": row.seconds,
        }
        for row in rows
    ]


def overview(rows: Sequence[Row]) -> list[dict[str, object]]:
    """Solve rates with intervals, strategies x budgets for each run and mode, the best at the largest budget first.

    Greedy decoding, which takes what it takes, stands in every budget's column.
    """
    budgets = sorted({row.budget for row in rows if row.budget is not None})
    lines: dict[tuple[str, str, str], dict[int, Row]] = {}
    for row in rows:
        line = lines.setdefault((row.run, row.mode, row.strategy), {})
        line.update(dict.fromkeys(budgets, row) if row.budget is None else {row.budget: row})
    runs, modes = (list(dict.fromkeys(getattr(row, name) for row in rows)) for name in ("run", "mode"))

    def place(item) -> tuple[int, int, list[float]]:
        (run, mode, _), line = item
        rates = [-line[budget].rate.estimate if budget in line else 0.0 for budget in reversed(budgets)]
        return runs.index(run), modes.index(mode), rates

    return [
        {"run": run, "mode": mode, "strategy": strategy}
        | {str(b): f"{line[b].rate.estimate:.3f} {line[b].rate}" if b in line else None for b in budgets}
        for (run, mode, strategy), line in sorted(lines.items(), key=place)
    ]


def pooled(rows: Sequence[Row]) -> list[Row]:
    """Rows of several runs as if those were seeds of one: their outcomes side by side, [all seeds, B], mean spends.

    The interval of such a row is for problems like these and any seed of training and search.
    """
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault((row.strategy, row.mode, row.budget, row.knob), []).append(row)
    runs = len(dict.fromkeys(row.run for row in rows))
    together = []
    for members in groups.values():
        replaced: dict[str, Any] = {
            "run": f"{runs} runs" if len(members) == runs else f"{len(members)} of {runs} runs",
            "solved_SB": np.concatenate([row.solved_SB for row in members]),
        }
        for name in ("illegal", "tokens", "expansions", "calls", "flops", "seconds"):
            replaced[name] = float(np.mean([getattr(row, name) for row in members]))
        together.append(dataclasses.replace(members[0], **replaced))
    return together


def between_runs(rows: Sequence[Row]) -> list[dict[str, object]]:
    """Paired differences between runs, for each strategy, mode and budget."""
    found: list[dict[str, object]] = []
    for at, row in enumerate(rows):
        for other in rows[:at]:
            same = (row.strategy, row.mode, row.budget) == (other.strategy, other.mode, other.budget)
            if same and row.run != other.run:
                interval = intervals.paired_difference(row.solved_SB, other.solved_SB)
                found.append(
                    {
                        "difference": f"{row.run} - {other.run}",
                        "strategy": row.strategy,
                        "mode": row.mode,
                        "budget": row.budget,
                        "solved": interval.estimate,
                        "95 %": str(interval),
                    }
                )
    return found


def at_equal_compute(rows: Sequence[Row], first: str | None, second: str | None) -> list[dict[str, object]]:
    """Paired differences of solve rates, first - second, within a run and mode; None stands for every other strategy.

    Each row of the other strategies is paired with the one of the named strategy that has the nearest forward FLOPs.
    "not worse" is the p-value of a one-sided test that the first solves more than the second less 2 points, corrected
    for the number of tests (Holm 1979).
    """
    name = first or second
    pairs = []
    for row in rows:
        named = [other for other in rows if (other.run, other.mode, other.strategy) == (row.run, row.mode, name)]
        if row.strategy != name and named and row.flops > 0:
            ratios = [abs(math.log(other.flops / row.flops)) for other in named]
            nearest = named[ratios.index(min(ratios))]
            pairs.append((nearest, row) if first else (row, nearest))
    p_values = intervals.holm([intervals.not_worse(one.solved_SB, two.solved_SB, MARGIN) for one, two in pairs])
    found: list[dict[str, object]] = []
    for (one, two), p_value in zip(pairs, p_values, strict=True):
        interval = intervals.paired_difference(one.solved_SB, two.solved_SB)
        found.append(
            {
                "difference": f"{one.strategy} - {two.strategy}",
                "run": one.run,
                "mode": one.mode,
                "budget": (two if first else one).budget,
                "FLOPs, ratio": one.flops / two.flops,
                "solved": interval.estimate,
                "95 %": str(interval),
                "not worse": p_value,
            }
        )
    return found


def difference_tables(rows: Sequence[Row]) -> dict[str, list[dict[str, object]]]:
    """The paired differences that are told, by title."""
    return {
        "Between runs": between_runs(rows),
        "Against best_of_n at the nearest equal compute": at_equal_compute(rows, None, "best_of_n"),
        "search against all others at the nearest equal compute": at_equal_compute(rows, "search", None),
    }


def write_json(path: str | os.PathLike, rows: Sequence[Row], about: Mapping[str, Any]) -> None:
    """Writes rows, differences and every single outcome; the file appears whole or not at all."""
    content = {
        **about,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "rows": [
            {
                **plain,
                "weights": row.weights,
                "search": row.search,
                "solved_by_seed_and_problem": row.solved_SB.tolist(),
            }
            for row, plain in zip(rows, table_rows(rows), strict=True)
        ],
        "differences": difference_tables(rows),
    }
    partial = f"{os.fspath(path)}.partial"
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        with open(partial, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"{os.fspath(path)!r} can not be written ({error}): give another --output.") from error


def read_json(path: str | os.PathLike) -> tuple[list[Row], dict[str, Any]]:
    """The rows that `write_json` wrote, and what it was told about them. A file that is no such file is a UserError."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        rows = [
            Row(
                solved_SB=np.array(plain["solved_by_seed_and_problem"], np.float32),
                flops=plain["FLOPs"],
                **{
                    field.name: plain[field.name]
                    for field in dataclasses.fields(Row)
                    if field.name not in ("solved_SB", "flops")
                },
            )
            for plain in content["rows"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{os.fspath(path)!r} holds no results of alphallm.evaluate ({error!r}).") from error
    return rows, content


def plot(path: str | os.PathLike, rows: Sequence[Row], title: str = "", axis: str = "tokens") -> None:
    """Draws solve rate against what it took (log, one of AXES), a panel for each mode: a line for each run and
    strategy, with intervals; `search` in black."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    modes = list(dict.fromkeys(row.mode for row in rows if row.mode != "both")) or ["both"]
    runs = list(dict.fromkeys(row.run for row in rows))
    names = list(dict.fromkeys(row.strategy for row in rows))
    figure, panels = pyplot.subplots(1, len(modes), figsize=(1 + 6 * len(modes), 5), sharey=True, squeeze=False)
    handles: dict[str, Any] = {}
    for mode, axes in zip(modes, panels[0], strict=True):
        lines: dict[tuple[str, str], list[Row]] = {}
        for row in rows:
            if row.mode in (mode, "both"):
                lines.setdefault((row.run, row.strategy), []).append(row)
        for (run, name), members in lines.items():
            members = sorted(members, key=lambda row: getattr(row, axis))
            rate = [row.rate.estimate for row in members]
            below = [row.rate.estimate - row.rate.low for row in members]
            above = [row.rate.high - row.rate.estimate for row in members]
            label = " · ".join([*([run] if len(runs) > 1 else []), name])
            handles[label] = axes.errorbar(
                [max(1e-6, getattr(row, axis)) for row in members], rate, yerr=[below, above], capsize=2,
                color="black" if name == "search" else pyplot.colormaps["tab20"](names.index(name) % 20),
                linewidth=2.5 if name == "search" else 1.2, marker="osD^v<>*"[runs.index(run) % 8],
                linestyle="-" if names.index(name) < 10 else "--", zorder=3 if name == "search" else 2,
            )  # fmt: skip
        axes.set(xscale="log", xlabel=f"{AXES[axis]} per problem", ylim=(-0.02, 1.02), title=mode.replace("_", " "))
        axes.grid(alpha=0.3)
    panels[0, 0].set_ylabel("solve rate")
    figure.suptitle(title)
    figure.legend(handles.values(), handles.keys(), fontsize=7, loc="center left", bbox_to_anchor=(0.92, 0.5))
    figure.savefig(path, dpi=150, bbox_inches="tight")
    pyplot.close(figure)


def write_tables(path: str | os.PathLike, rows: Sequence[Row], title: str) -> None:
    """The overview, the table of rows and those of paired differences, as Markdown."""
    tables = {title: overview(rows), "Every row": table_rows(rows), **difference_tables(rows)}
    parts = [f"## {name}\n\n{_markdown(table)}" for name, table in tables.items() if table]
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join(parts))


def _markdown(table: Sequence[Mapping[str, object]]) -> str:
    columns = list(table[0])
    lines = [columns, ["---"] * len(columns), *([cell(row[name]) for name in columns] for row in table)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def answer_text(task, result: Result, i: int) -> list[str]:
    """The steps of the i-th answer as text, a string each, without their step-end newline."""
    steps = zip(result.tokens_BDL[i], result.length_BD[i], strict=True)
    return [task.vocabulary.decode(tokens[:length]).rstrip("\n") for tokens, length in steps if length > 0]
