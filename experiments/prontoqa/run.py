"""PrOntoQA: right answers beside right proofs, by the length of the proof, at equal tokens.

python -m experiments.prontoqa.run --workdir=runs/prontoqa_cpu [--hops=1,2,3,4] [--budgets=300,1000]

Answers new test problems of each length by the parameters of a trained run and of its warm start: greedily, by the best
of N, and by search with as many tokens. "Solved" is strict, the right answer with every step of its proof valid;
"answered" is the share of right answers alone, which a guess has as well (Saparov and He 2023, section 4). Beside them
stands the search that knows nothing, lists all legal steps, and is told at each end whether it is the right one: it
tells learning from enumeration, and nobody has it at test time. results.json, table.md and figure.png go to --results.
"""

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from alphallm.config import run_main, to_dict
from alphallm.errors import UserError
from experiments.studies import commit, whole_numbers, write_markdown

HERE = os.path.dirname(os.path.abspath(__file__))


def define_flags() -> None:
    flags.DEFINE_string("workdir", "runs/prontoqa_cpu", "The folder of the run.")
    flags.DEFINE_list("hops", ["1", "2", "3", "4"], "Lengths of proofs.")
    flags.DEFINE_list("budgets", ["300", "1000"], "Generated tokens a problem, at most.")
    flags.DEFINE_integer("num_problems", 200, "Test problems of each length.")
    flags.DEFINE_string("results", HERE, "The folder of results.json, table.md and figure.png.")


def main(arguments: list[str], overrides: dict[str, str]) -> None:
    options = flags.FLAGS
    if arguments or overrides:
        raise UserError(f"{[*arguments, *overrides][0]!r} is not an option; see --help for those that there are.")
    lengths, budgets = (whole_numbers(name, getattr(options, name), 1) for name in ("hops", "budgets"))
    rows = evaluate(options.workdir, lengths, budgets, options.num_problems)
    os.makedirs(options.results, exist_ok=True)
    with open(os.path.join(options.results, "results.json"), "w", encoding="utf-8") as file:
        json.dump(
            {"workdir": options.workdir, "commit": commit(), "asked": options.num_problems, **rows}, file, indent=1
        )
    report(lengths, rows["rows"], options.num_problems, options.results)


def evaluate(workdir: str, lengths: Sequence[int], budgets: Sequence[int], number: int) -> dict[str, Any]:
    """What each strategy solves and answers of each length, and the tokens that it takes."""
    from alphallm.display import Progress
    from alphallm.evaluation import compare
    from alphallm.models import LanguageModel
    from alphallm.tasks import ProntoqaConfig, data, make_task
    from alphallm.training.loop import load_params

    loaded = {"trained": load_params(workdir), "warm start": load_params(os.path.join(workdir, "warm_start"))}
    config, _ = loaded["trained"]
    if not isinstance(config.task, ProntoqaConfig):
        raise UserError(f"--workdir={workdir} is a run of the task {config.task.name}: give one of prontoqa.")
    task = make_task(config.task)
    model = LanguageModel(config.model, task.vocabulary.size)
    problems = {h: data.load_problems(task, rows_of_length(config.task, h, number)) for h in lengths}
    wanted = [
        (name, params, strategy)
        for name, (_, params) in loaded.items()
        for strategy in strategies(task, config.search, budgets, uniform=name == "trained")
    ]
    rows = []
    with Progress("row", total=len(wanted), seconds_between_lines=0.0) as progress:
        for name, params, (label, budget, strategy) in wanted:
            row: dict[str, Any] = {"params": name, "strategy": label, "budget": budget, "knob": strategy.knob_text}
            row |= {"solved": {}, "answered": {}, "tokens": {}}
            for length in lengths:
                result, _ = compare.solve_all(model, task, strategy, params, problems[length])
                row["solved"][str(length)] = int(result.reward_B.sum())
                row["answered"][str(length)] = int(answered(result, problems[length].state.reference).sum())
                row["tokens"][str(length)] = float(result.spend.tokens_B.mean())
            rows.append(row)
            told = ", ".join(f"{length}: {n / number:.3f}" for length, n in row["solved"].items())
            progress.update(len(rows), f"{name} {label} {budget or ''}: solved {told}")
    return {"config": to_dict(config), "rows": rows}


def rows_of_length(task: Any, hops: int, number: int) -> list[str]:
    """Test problems of one length. No other split has any of them, since a problem says which split it is in."""
    return dataclasses.replace(task, test_hops=(hops,), num_test=number, num_train=1, num_validation=1).splits()["test"]


def strategies(task: Any, search: Any, budgets: Sequence[int], uniform: bool) -> list[tuple[str, int, Any]]:
    """Label, budget and strategy of each row; greedy, which has no knob, has no budget."""
    from alphallm.evaluation import plans
    from alphallm.evaluation.plans import Strategy

    found: list[tuple[str, int, Any]] = [("greedy", 0, Strategy("greedy", "both", 0, search))]
    for budget in budgets:
        for name in ("best_of_n", "search"):
            found.append((name, budget, plans.plan(task, search, name, "value_only", budget)))
    if uniform:
        for budget in budgets:
            # It cannot judge, so that it is told: what `plan` gives only to tasks that verify themselves.
            simulations = max(1, budget // (task.max_step * 4))  # about four legal steps a node.
            strategy = plans.with_simulations(task, search, "search_uniform", "verified", simulations)
            found.append(("search_uniform, told", budget, strategy))
    return [each for each in found if each[2] is not None]


def answered(result: Any, reference_B: np.ndarray) -> np.ndarray:
    """bool [B]: the last step is the right answer, whatever was before it."""
    last_B = np.maximum((result.length_BD > 0).sum(-1) - 1, 0)
    return result.tokens_BDL[np.arange(len(last_B)), last_B, 0] == reference_B


def report(lengths: Sequence[int], rows: Sequence[dict[str, Any]], asked: int, folder: str) -> None:
    """Prints and writes the table, and draws the figure."""
    from alphallm.display import print_table

    lines = []
    for row in rows:
        line: dict[str, object] = {"parameters": row["params"], "strategy": row["strategy"], "knob": row["knob"]}
        line["tokens"] = f"{sum(row['tokens'].values()) / len(lengths):.0f}"
        for h in map(str, lengths):
            line[f"{h} hops"] = f"{row['solved'][h] / asked:.3f} / {row['answered'][h] / asked:.3f}"
        lines.append(line)
    print_table("Solved (right answer and valid proof) / answered right, by hops", lines)
    write_markdown(os.path.join(folder, "table.md"), lines)
    draw(lengths, rows, asked, os.path.join(folder, "figure.png"))


def draw(lengths: Sequence[int], rows: Sequence[dict[str, Any]], asked: int, path: str) -> None:
    """The solve rate by hops, and faintly the share of right answers; the largest budget of each strategy."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2, sharey=True), ("warm start", "trained"), strict=True):
        here = {row["strategy"]: row for row in rows if row["params"] == name}
        for place, (label, row) in enumerate(here.items()):
            colour = colormaps["tab10"](place)
            for field, style, alpha in (("solved", "o-", 1.0), ("answered", "s:", 0.5)):
                shares = [row[field][str(length)] / asked for length in lengths]
                told = f"{label}, {field}" + (f" ({row['budget']} tokens)" if row["budget"] else "")
                axes.plot(lengths, shares, style, color=colour, alpha=alpha, label=told, markersize=4)
        axes.set(title=name, xlabel="hops", ylabel="share of problems", xticks=lengths, ylim=(-0.02, 1.02))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    define_flags()
    run_main(main)
