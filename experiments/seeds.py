"""Recorded runs of a config: some seeds of it, judged once on the test split; what experiments/README.md shows.

python -m experiments.seeds --config=configs/game24_cpu.py --output=runs/game24_cpu --results=experiments/game24_cpu
python -m experiments.seeds --config=configs/blocksworld_cpu.py --output=runs/bw --results=experiments/blocksworld

Trains each seed into OUTPUT/seed_N (a finished one is left alone, an unfinished one goes on), evaluates them and the
first seed's warm start, and writes to RESULTS: training.png, tables and figures of both comparisons, all in one table
(table.md), the solve rates by the number of steps that a problem needs (by_steps.md and by_steps.png, where that
differs), and with --export the first seed's weights.
"""

import json
import os
import shutil
import subprocess
import sys
from typing import Any

from absl import flags

from alphallm.config import load_config, run_main
from alphallm.errors import UserError
from experiments.studies import write_markdown

STRATEGIES = ["greedy", "value_greedy", "best_of_n", "majority", "search"]
LISTING = ["search_listed", "search_uniform"]  # of a task that lists its legal steps.


def define_flags() -> None:
    flags.DEFINE_string("config", "configs/game24_cpu.py", "The config to train.")
    flags.DEFINE_string("output", "", "The folder of the runs.")
    flags.DEFINE_string("results", "", "The folder of the tables and figures.")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of the training.")
    flags.DEFINE_list("override", [], "FIELD=VALUE, for every seed.")
    # On game24 3200 is a search of 32 simulations, 300 is value-greedy's choice among 16 candidates.
    flags.DEFINE_list("budgets", ["300", "1000", "3200"], "Generated tokens a problem.")
    flags.DEFINE_list("strategies", [], "Which strategies; by default those of the tables in experiments/README.md.")
    flags.DEFINE_integer("num_problems", 0, "How many test problems; 0 takes all.")
    flags.DEFINE_bool("export", False, "Also copy the first seed's weights to the results.")


def main(arguments: list[str], overrides: dict[str, str]) -> None:
    options = flags.FLAGS
    if arguments or overrides or not options.output or not options.results:
        raise UserError("Give --config, --output (for the runs) and --results (for tables and figures); see --help.")
    runs = [os.path.join(options.output, f"seed_{seed}") for seed in options.seeds]
    fields = [f"--config.{item}" for item in options.override]
    for seed, run in zip(options.seeds, runs, strict=True):
        _run("alphallm.train", f"--config={options.config}", f"--workdir={run}", f"--config.seed={seed}", *fields)
    lists = load_config(options.config).task.make().max_legal_steps
    strategies = options.strategies or [*STRATEGIES, *(LISTING if lists else [])]
    compared = {
        "at_equal_tokens": (runs, strategies),
        "warm_start": ([os.path.join(runs[0], "warm_start")], ["greedy", "value_greedy", "search"]),
    }
    outputs = [os.path.join(options.results, name) for name in compared]
    for output, (judged, names) in zip(outputs, compared.values(), strict=True):
        which = [f"--workdir={','.join(judged)}", "--split=test", f"--num_problems={options.num_problems}"]
        which += [f"--strategies={','.join(names)}", f"--budgets={','.join(options.budgets)}"]
        _run("alphallm.evaluate", *which, f"--output={output}")
    from alphallm.evaluation.curves import plot_training

    plot_training(runs, os.path.join(options.results, "training.png"))
    trained, warm_start = (read(output) for output in outputs)
    write_markdown(os.path.join(options.results, "table.md"), table_of(trained, warm_start))
    steps = steps_needed(runs[0], options.num_problems)
    if len(set(steps)) > 1:
        rates = by_steps(trained, steps)
        write_markdown(os.path.join(options.results, "by_steps.md"), table_by_steps(rates, steps))
        draw(rates, sorted(set(steps)), os.path.join(options.results, "by_steps.png"))
    if options.export:
        shutil.copytree(os.path.join(runs[0], "export"), os.path.join(options.results, "export"), dirs_exist_ok=True)


def read(folder: str) -> list[dict[str, Any]]:
    with open(os.path.join(folder, "evaluation.json"), encoding="utf-8") as file:
        return json.load(file)["rows"]


def table_of(trained: list[dict[str, Any]], warm_start: list[dict[str, Any]]) -> list[dict[str, str]]:
    """A line for each strategy, mode and budget, with means over seeds and problems."""
    lines = []
    for rows, note in ((trained, ""), (warm_start, " (warm start)")):
        for (_, mode, strategy), members in sorted(by_line(rows).items()):
            mean = {
                name: sum(row[name] for row in members) / len(members)
                for name in ("solved", "illegal", "tokens", "expansions", "FLOPs")
            }
            by_seed = ", ".join(f"{100 * row['solved']:.1f}" for row in members)
            lines.append(
                {
                    "strategy": strategy + note,
                    "mode": mode.replace("_", " ").replace("both", "–"),
                    "knob": members[0]["knob"] or "–",
                    "solve rate": f"{mean['solved']:.1%}",
                    "seed by seed": by_seed if len(members) > 1 else "–",
                    "illegal answers": f"{mean['illegal']:.1%}",
                    "tokens": f"{mean['tokens']:,.0f}",
                    "expansions": f"{mean['expansions']:.0f}",
                    "GFLOP": f"{mean['FLOPs'] / 1e9:.2f}",
                }
            )
    return lines


def by_line(rows: list[dict[str, Any]]) -> dict[tuple[int, str, str], list[dict[str, Any]]]:
    """The seeds' rows by budget, mode and strategy. What knows nothing of a run has one row, the first."""
    lines: dict[tuple[int, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        members = lines.setdefault((row["budget"] or 0, row["mode"], row["strategy"]), [])
        if row["strategy"] != "search_uniform" or not members:
            members.append(row)
    return lines


def steps_needed(run: str, num_problems: int) -> list[int]:
    """Steps of the first worked solution, the shortest, of each problem that was judged; nothing without solutions."""
    from alphallm.evaluate import places
    from alphallm.tasks import data
    from alphallm.training.loop import load_params

    config, _ = load_params(run)
    task, rows = config.task.make(), data.load_split(config.task, "test")
    solutions = [task.solutions(rows[place], 1) for place in places(len(rows), num_problems)]
    return [len(found[0]) for found in solutions] if all(solutions) else []


def by_steps(rows: list[dict[str, Any]], steps: list[int]) -> dict[tuple[int, str, str], dict[int, Any]]:
    """The solve rate, over seeds, of the problems that need so many steps; by budget, mode and strategy."""
    import numpy as np

    from alphallm.evaluation import intervals

    found = {}
    for line, members in sorted(by_line(rows).items()):
        solved_SB = np.concatenate([row["solved_by_seed_and_problem"] for row in members])
        groups = {number: solved_SB[:, np.array(steps) == number] for number in sorted(set(steps))}
        found[line] = {number: intervals.solve_rate(group_SB) for number, group_SB in groups.items()}
    return found


def table_by_steps(rates: dict[tuple[int, str, str], dict[int, Any]], steps: list[int]) -> list[dict[str, str]]:
    lines = []
    for (budget, mode, strategy), rate in rates.items():
        line = {"strategy": strategy, "mode": mode.replace("_", " ").replace("both", "–"), "tokens": str(budget or "–")}
        for n in sorted(set(steps)):
            told = f"{rate[n].estimate:.2f} [{rate[n].low:.2f}, {rate[n].high:.2f}]"
            line[f"{n} steps ({steps.count(n)} problems)"] = told
        lines.append(line)
    return lines


def draw(rates: dict[tuple[int, str, str], dict[int, Any]], numbers: list[int], path: str) -> None:
    """A panel for each mode and budget."""
    from matplotlib.figure import Figure

    modes = [mode for mode in ("verified", "value_only") if any(line[1] == mode for line in rates)]
    budgets = sorted({line[0] for line in rates} - {0})
    names = list(dict.fromkeys(line[2] for line in rates))
    figure = Figure(figsize=(1.5 + 3.5 * len(budgets), 3.2 * len(modes)), layout="constrained")
    panels = figure.subplots(len(modes), len(budgets), sharex=True, sharey=True, squeeze=False)
    for mode, row in zip(modes, panels, strict=True):
        for budget, axes in zip(budgets, row, strict=True):
            for (spent, how, name), rate in rates.items():
                if spent in (0, budget) and how in ("both", mode):
                    axes.plot(
                        numbers, [rate[n].estimate for n in numbers], marker="o", markersize=3, label=name,
                        color="black" if name == "search" else f"C{names.index(name)}",
                    )  # fmt: skip
            axes.set(title=f"{mode.replace('_', ' ')}, {budget} tokens", ylim=(-0.02, 1.02))
            axes.grid(alpha=0.3)
        row[0].set_ylabel("solve rate")
    for axes in panels[-1]:
        axes.set_xlabel("steps needed")
    panels[0, -1].legend(fontsize=7)
    figure.savefig(path, dpi=130)


def _run(module: str, *options: str) -> None:
    command = [sys.executable, "-m", module, *options]
    print("$", " ".join(command), flush=True)
    if subprocess.run(command, check=False).returncode:
        raise UserError(f"{module} failed, as it says above; the same command goes on from there.")


if __name__ == "__main__":
    define_flags()
    run_main(main)
