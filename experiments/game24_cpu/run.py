"""The recorded runs of experiments/README.md: three seeds of configs/game24_cpu.py, judged once on the test split.

python -m experiments.game24_cpu.run --output=runs/game24_cpu [--seeds=0,1,2]
python -m experiments.game24_cpu.run --output=runs/game24 --config=configs/game24.py --results=experiments/game24 \
    --noexport --override=task.manual_dir=FOLDER

Trains each seed into OUTPUT/seed_N (a finished one is left alone, an unfinished one goes on), evaluates them and the
first seed's warm start, and writes what that page shows to RESULTS, by default here: training.png, tables and figures
of both comparisons, its table (table.md), and the first seed's weights.
"""

import json
import os
import shutil
import subprocess
import sys

from absl import flags

from alphallm.config import run_main
from alphallm.errors import UserError

HERE = os.path.dirname(os.path.abspath(__file__))
# Generated tokens a puzzle: 3200 is a search of 32 simulations, 300 is value-greedy's choice among 16 candidates.
BUDGETS = "--budgets=300,1000,3200"


def define_flags() -> None:
    flags.DEFINE_string("output", "runs/game24_cpu", "The folder of the runs.")
    flags.DEFINE_string("config", "configs/game24_cpu.py", "The config to train.")
    flags.DEFINE_string("results", HERE, "The folder of the tables and figures.")
    flags.DEFINE_list("override", [], "FIELD=VALUE, for every seed.")
    flags.DEFINE_bool("export", True, "Also copy the first seed's weights to the results.")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of the training.")


def main(arguments: list[str], overrides: dict[str, str]) -> None:
    del arguments, overrides
    options = flags.FLAGS
    runs = [os.path.join(options.output, f"seed_{seed}") for seed in options.seeds]
    fields = [f"--config.{item}" for item in options.override]
    for seed, run in zip(options.seeds, runs, strict=True):
        _run("alphallm.train", f"--config={options.config}", f"--workdir={run}", f"--config.seed={seed}", *fields)
    compared = {
        "at_equal_tokens": (runs, "greedy,value_greedy,best_of_n,majority,search,search_listed,search_uniform"),
        "warm_start": ([os.path.join(runs[0], "warm_start")], "greedy,value_greedy,search"),
    }
    outputs = [os.path.join(options.results, name) for name in compared]
    for output, (judged, strategies) in zip(outputs, compared.values(), strict=True):
        which = [f"--workdir={','.join(judged)}", "--split=test", f"--strategies={strategies}", BUDGETS]
        _run("alphallm.evaluate", *which, f"--output={output}")
    from alphallm.evaluation.curves import plot_training

    plot_training(runs, os.path.join(options.results, "training.png"))
    table = table_of([os.path.join(output, "evaluation.json") for output in outputs])
    with open(os.path.join(options.results, "table.md"), "w", encoding="utf-8") as file:
        file.write(table)
    if options.export:
        shutil.copytree(os.path.join(runs[0], "export"), os.path.join(options.results, "export"), dirs_exist_ok=True)


def table_of(paths: list[str]) -> str:
    """A line for each strategy, mode and budget, with means over seeds and problems."""
    lines: dict[tuple, list[dict]] = {}
    for path in paths:
        with open(path, encoding="utf-8") as file:
            for row in json.load(file)["rows"]:
                trained = row["run"] != "warm_start"
                key = (not trained, row["budget"] or 0, row["mode"], row["strategy"])
                lines.setdefault(key, []).append(row)
    head = (
        "strategy",
        "mode",
        "knob",
        "solve rate",
        "seed by seed",
        "illegal answers",
        "tokens",
        "expansions",
        "GFLOP",
    )
    out = [f"| {' | '.join(head)} |", f"| {' | '.join('---' for _ in head)} |"]
    for (warm_start, _, mode, strategy), rows in sorted(lines.items(), key=lambda line: line[0]):
        if strategy == "search_uniform":
            rows = rows[:1]  # It knows nothing of a run.
            if warm_start:
                continue
        mean = {
            name: sum(row[name] for row in rows) / len(rows)
            for name in ("solved", "illegal", "tokens", "expansions", "FLOPs")
        }
        cells = [
            f"{strategy} (warm start)" if warm_start else strategy,
            mode.replace("_", " ").replace("both", "–"),
            rows[0]["knob"] or "–",
            f"{mean['solved']:.1%}",
            ", ".join(f"{100 * row['solved']:.1f}" for row in rows) if len(rows) > 1 else "–",
            f"{mean['illegal']:.1%}",
            f"{mean['tokens']:,.0f}",
            f"{mean['expansions']:.0f}",
            f"{mean['FLOPs'] / 1e9:.2f}",
        ]
        out.append(f"| {' | '.join(cells)} |")
    return "\n".join(out) + "\n"


def _run(module: str, *options: str) -> None:
    command = [sys.executable, "-m", module, *options]
    print("$", " ".join(command), flush=True)
    if subprocess.run(command, check=False).returncode:
        raise UserError(f"{module} failed, as it says above; the same command goes on from there.")


if __name__ == "__main__":
    define_flags()
    run_main(main)
