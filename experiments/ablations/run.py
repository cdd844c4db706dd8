"""What each part is worth: one table of named overrides x seeds, trained, evaluated, printed and drawn by one command.

python -m experiments.ablations.run [--base=configs/game24_cpu.py] [--output=runs/ablations] [--only=puct,iid]

Runs go to OUTPUT/<name>/<seed>. A finished run is left alone and an unfinished one goes on, so the same command may be
given again at any time. All runs share the short schedule `COMMON`; what is compared is therefore learning early on.
Writes results.json, table.json and figure.png to --results, here by default. What results.json has is not trained
again, so that rows and seeds may be added on another machine: delete its entries to have them anew.
"""

import json
import os
import subprocess
import sys
from typing import Any

from absl import flags

from alphallm.config import apply_overrides, load_config, run_main
from alphallm.errors import UserError
from experiments.studies import commit, read_results, write_results

HERE = os.path.dirname(os.path.abspath(__file__))

# A few minutes a run on two cores. Every run is evaluated after its end, on all validation problems.
COMMON = {
    "training.num_iterations": 50, "search.num_simulations": 8, "warm_start.num_steps": 300,
    "targets.candidates_per_node": 4, "evaluation.every": 1000, "evaluation.num_problems": 8, "checkpoints.every": 20,
}  # fmt: skip

ALL_CANDIDATES = {"targets.policy": "candidates", "targets.candidates_per_node": 16}
# Imitation of the few solutions that there are at first is destroyed by Muon, whose updates are as large however small
# the gradient is. So both get AdamW and a warm start that suits it, and `adamw` tells what that alone changes.
ADAMW = {"optimizer.name": "adamw", "optimizer.learning_rate": 1e-3, "warm_start.num_steps": 600}
ABLATIONS: dict[str, dict[str, Any]] = {
    "default": {},
    # The search.
    "prior_twice": {"search.prior": "policy"},
    "mixed_value": {"search.completion": "mixed_value"},
    "backup_value": {"search.backup": "value"},
    "backup_children": {"search.backup": "children"},
    "puct": {"search.policy": "puct", "search.dirichlet_fraction": 0.25},
    # The targets.
    "root_only": {"targets.nodes": "root"},
    "target_candidates": ALL_CANDIDATES,
    "target_sampled": {"targets.policy": "sampled", "targets.legal_share": 0.0},
    "no_legal_share": {"targets.legal_share": 0.0},
    # What the learner is shown.
    "surprise": {"training.surprise_fraction": 0.5},
    "no_augment": {"training.augment": False},
    # Candidates drawn independently; the target's form is the one that fits them, so compare with target_candidates.
    "iid": {"search.proposer": "iid", **ALL_CANDIDATES},
    # What the field does instead.
    "adamw": ADAMW,
    "expert_iteration": {"targets.policy": "verified_paths", "targets.legal_share": 0.0, **ADAMW},
    "best_of_n": ADAMW,
}
MODULES = {"best_of_n": "experiments.ablations.best_of_n"}  # by default alphallm.train.


def define_flags() -> None:
    flags.DEFINE_string("base", "configs/game24_cpu.py", "The config that the overrides change.")
    flags.DEFINE_string("output", "runs/ablations", "The folder of the runs.")
    flags.DEFINE_string("results", HERE, "The folder of the table and the figure.")
    flags.DEFINE_list("only", [], f"Which ablations, of {', '.join(ABLATIONS)}; by default all.")  # fmt: skip
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of the training.")
    flags.DEFINE_list("override", [], "FIELD=VALUE, added to every run: a shorter schedule to try it out.")
    flags.DEFINE_integer("num_problems", 0, "How many validation problems to evaluate on; 0 takes all.")


def main(arguments: list[str], overrides: dict[str, str]) -> None:
    del overrides
    options = flags.FLAGS
    if arguments:
        raise UserError(f"{arguments[0]!r} is not an option; see --help for those that there are.")
    names = options.only or list(ABLATIONS)
    for name in names:
        if name not in ABLATIONS:
            raise UserError(f"There is no ablation {name!r}: give some of {', '.join(ABLATIONS)}.")
    everywhere = COMMON | dict(item.split("=", 1) for item in options.override)
    for name in names:  # A name or a value that a config does not know is told before hours of training.
        apply_overrides(load_config(options.base), {**everywhere, **ABLATIONS[name]})
    settings = {"base": options.base, "common": everywhere, "problems": options.num_problems or "all"}
    # Seed after seed, so that every ablation has a first result early.
    for seed in options.seeds:
        for name in names:
            if seed in read_results(options.results, settings).get(name, {}):
                continue
            folder = os.path.join(options.output, name, seed)
            train(name, options.base, folder, {**everywhere, **ABLATIONS[name], "seed": seed})
            solved = evaluated(folder, options.num_problems)
            # Read again: another process may have added its own in the meantime.
            recorded = read_results(options.results, settings)
            recorded.setdefault(name, {})[seed] = {"commit": commit(), "solved": solved}
            write_results(options.results, settings, recorded)
            report(recorded, options.results, settings)
    report(read_results(options.results, settings), options.results, settings)


def train(name: str, base: str, folder: str, overrides: dict[str, Any]) -> None:
    if os.path.exists(os.path.join(folder, "export", "weights.safetensors")):
        return
    fields = [f"--config.{field}={value}" for field, value in overrides.items()]
    module = MODULES.get(name, "alphallm.train")
    command = [sys.executable, "-m", module, f"--config={base}", f"--workdir={folder}", *fields]
    print("$", " ".join(command), flush=True)
    if subprocess.run(command, check=False).returncode:
        raise UserError(f"{module} failed in {folder!r}, as it says above; the same command goes on from there.")


def evaluated(folder: str, num_problems: int) -> dict[str, list[float]]:
    """Reward on each validation problem by strategy."""
    from alphallm.evaluation import compare
    from alphallm.models import LanguageModel
    from alphallm.tasks import make_task
    from alphallm.training.loop import load_params, problem_rows
    from alphallm.training.validation import Validation

    config, params = load_params(os.path.join(folder, "export"))
    task = make_task(config.task)
    texts = problem_rows(config, "validation")
    validation = Validation(
        LanguageModel(config.model, task.vocabulary.size), task, config, texts[: num_problems or len(texts)]
    )
    return {
        name: compare.solve_all(validation.model, task, strategy, params, validation.problems)[0].reward_B.tolist()
        for name, strategy in validation.strategies.items()
    }


def report(recorded: dict[str, dict[str, Any]], folder: str, settings: dict[str, Any]) -> None:
    """Prints and writes the table and the figure of all that is recorded."""
    from alphallm.display import print_table

    outcomes = {
        name: {seed: run["solved"] for seed, run in sorted(recorded[name].items())}
        for name in ABLATIONS
        if name in recorded
    }
    rows = table(outcomes)
    print_table("Solve rates on validation problems, with 95 % intervals over problems and seeds", printed(rows))
    with open(os.path.join(folder, "table.json"), "w", encoding="utf-8") as file:
        json.dump({**settings, "ablations": ABLATIONS, "rows": rows}, file, indent=1)
    draw(rows, os.path.join(folder, "figure.png"))


def table(outcomes: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each ablation and strategy: solve rate and paired difference from the first ablation, with intervals.

    Differences are taken over the seeds that both have, and their intervals over problems; `by_seed` shows how much of
    a difference is the seed's.
    """
    import dataclasses

    import numpy as np

    from alphallm.evaluation import intervals

    reference, rows = next(iter(outcomes)), []
    for name, by_seed in outcomes.items():
        shared = [seed for seed in by_seed if seed in outcomes[reference]]
        for strategy in next(iter(by_seed.values())):
            solved_SB = np.array([by_seed[seed][strategy] for seed in by_seed])
            row = {"ablation": name, "strategy": strategy, "by_seed": solved_SB.mean(1).tolist()}
            row |= dataclasses.asdict(intervals.solve_rate(solved_SB))
            if name != reference and shared:
                pair = [np.array([one[seed][strategy] for seed in shared]) for one in (by_seed, outcomes[reference])]
                row["difference"] = dataclasses.asdict(intervals.paired_difference(*pair))
            rows.append(row)
    return rows


def printed(rows: list[dict[str, Any]]) -> list[dict[str, object]]:
    """One line for each ablation: "rate [low, high]" and the difference, by strategy."""
    lines: dict[str, dict[str, object]] = {}
    for row in rows:
        line = lines.setdefault(row["ablation"], {"ablation": row["ablation"], "seeds": len(row["by_seed"])})
        text = f"{row['estimate']:.3f} [{row['low']:.2f}, {row['high']:.2f}]"
        if "difference" in row:
            gap = row["difference"]
            text += f" {gap['estimate']:+.3f}{'*' if gap['low'] > 0 or gap['high'] < 0 else ''}"
        line[row["strategy"]] = text
    return list(lines.values())


def draw(rows: list[dict[str, Any]], path: str) -> None:
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["ablation"] for row in rows))
    strategies = list(dict.fromkeys(row["strategy"] for row in rows))
    figure = Figure(figsize=(3 * len(strategies), 1.2 + 0.3 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(strategies), sharey=True, squeeze=False)[0]
    for axes, strategy in zip(panels, strategies, strict=True):
        here = [row for row in rows if row["strategy"] == strategy]
        places = [names.index(row["ablation"]) for row in here]
        rates = [row["estimate"] for row in here]
        spread = [[r["estimate"] - r["low"] for r in here], [r["high"] - r["estimate"] for r in here]]
        axes.errorbar(rates, places, xerr=spread, fmt="o", color="C0", capsize=2)
        for row, place in zip(here, places, strict=True):
            axes.plot(row["by_seed"], [place] * len(row["by_seed"]), "|", color="C1", markersize=8)
        axes.axvline(rates[0], color="0.7", linewidth=1, zorder=0)
        axes.set(title=strategy, xlim=(0, 1), xlabel="solve rate", yticks=range(len(names)), yticklabels=names)
        axes.grid(axis="x", alpha=0.3)
    panels[0].invert_yaxis()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    define_flags()
    run_main(main)
