"""What is told of a comparison: a table, a JSON file, and a figure of solve rate against generated tokens."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from alphallm.errors import UserError
from alphallm.evaluation import intervals
from alphallm.evaluation.compare import Row
from alphallm.evaluation.strategies import Result

JSON, FIGURE = "evaluation.json", "evaluation.png"


def table_rows(rows: Sequence[Row]) -> list[dict[str, object]]:
    """The comparison as a table for `alphallm.display.print_table`; spends are means over problems and seeds."""
    return [
        {
            "run": row.run,
            "strategy": row.strategy.name,
            "mode": row.strategy.mode,
            "budget": row.budget,
            "knob": row.strategy.knob_text,
            "solved": row.rate.estimate,
            "95 %": str(row.rate),
            "illegal": float(row.illegal_SB.mean()),
            "tokens": float(row.tokens_SB.mean()),
            "expansions": float(row.expansions_SB.mean()),
            "FLOPs": float(row.flops_SB.mean()),
            "seconds": row.seconds,
        }
        for row in rows
    ]


def differences(rows: Sequence[Row]) -> list[dict[str, object]]:
    """Paired differences on the same problems: between runs for each strategy, and to best_of_n within a run."""
    found = []
    for at, row in enumerate(rows):
        for other in rows[:at]:
            if (row.strategy, row.budget) == (other.strategy, other.budget):
                found.append(_difference(row, other, f"{row.run} - {other.run}", row.strategy.name))
    for row in rows:
        for other in rows:
            same = (row.run, row.strategy.mode, row.budget) == (other.run, other.strategy.mode, other.budget)
            if same and other.strategy.name == "best_of_n" and row.strategy.name != "best_of_n":
                found.append(_difference(row, other, f"{row.strategy.name} - best_of_n", row.run))
    return found


def _difference(row: Row, other: Row, what: str, where: str) -> dict[str, object]:
    interval = intervals.paired_difference(row.solved_SB, other.solved_SB)
    return {
        "difference": what,
        "of": where,
        "mode": row.strategy.mode,
        "budget": row.budget,
        "solved": interval.estimate,
        "95 %": str(interval),
    }


def write_json(path: str | os.PathLike, rows: Sequence[Row], about: Mapping[str, Any]) -> None:
    """Writes rows, differences and every single outcome; the file appears whole or not at all."""
    content = {
        **about,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "rows": [
            {**plain, "solved_by_seed_and_problem": row.solved_SB.tolist()}
            for row, plain in zip(rows, table_rows(rows), strict=True)
        ],
        "differences": differences(rows),
    }
    partial = f"{os.fspath(path)}.partial"
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        with open(partial, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"{os.fspath(path)!r} can not be written ({error}): give another --output.") from error


def plot(path: str | os.PathLike, rows: Sequence[Row], title: str = "") -> None:
    """Draws solve rate against generated tokens (log), a line for each run, strategy and mode, with 95 % intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        lines.setdefault((row.run, row.strategy.name, row.strategy.mode), []).append(row)
    runs = list(dict.fromkeys(row.run for row in rows))
    names = list(dict.fromkeys(row.strategy.name for row in rows))
    figure, axes = pyplot.subplots(figsize=(8, 5))
    for (run, name, mode), members in lines.items():
        members = sorted(members, key=lambda row: row.tokens_SB.mean())
        rate = [row.rate.estimate for row in members]
        below = [row.rate.estimate - row.rate.low for row in members]
        above = [row.rate.high - row.rate.estimate for row in members]
        axes.errorbar(
            [max(1.0, float(row.tokens_SB.mean())) for row in members], rate, yerr=[below, above], capsize=2,
            color=f"C{names.index(name)}", marker="osD^v<>*"[runs.index(run) % 8],
            linestyle="--" if mode == "value_only" else "-",
            label=" · ".join([*([run] if len(runs) > 1 else []), name, *([mode] if mode != "both" else [])]),
        )  # fmt: skip
    axes.set(xscale="log", xlabel="generated tokens per problem", ylabel="solve rate", ylim=(-0.02, 1.02), title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=150, bbox_inches="tight")
    pyplot.close(figure)


def answer_text(task, result: Result, i: int) -> list[str]:
    """The steps of the i-th answer as text, a string each, without their step-end newline."""
    steps = zip(result.tokens_BDL[i], result.length_BD[i], strict=True)
    return [task.vocabulary.decode(tokens[:length]).rstrip("\n") for tokens, length in steps if length > 0]
