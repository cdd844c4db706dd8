"""Serial problems with and without steps, by depth of the model: what Li et al. 2024 plot, on a small scale.

python -m experiments.serial_depth.run [--problem=s5] [--depths=1,2,4,8] [--lengths=4,6,8,10,12] [--seeds=0]

Trains a model for each depth, with steps and without, on right chains alone (supervised, the same number of tokens for
all), then answers test problems of each length greedily. Words of S5 are of transpositions, whose products deep models
learn soon enough for a CPU (--override=task.letters=all takes all permutations); chance is 1 / 60, since the length
tells whether the answer is even. A run that is recorded is not trained again and one that was stopped goes on, so the
same command may be given again at any time. Runs go to OUTPUT/PROBLEM; results.json, table.md and figure.png to
--results, here by default.
"""

import dataclasses
import os
import time
from collections.abc import Sequence
from typing import Any

from absl import flags

from alphallm.config import apply_overrides, run_main, to_dict
from alphallm.errors import UserError
from experiments.studies import (
    commit,
    draw_rates,
    read_results,
    study_config,
    whole_numbers,
    write_markdown,
    write_results,
)

HERE = os.path.dirname(os.path.abspath(__file__))
CONFIG = "configs/serial_cpu.py"
WITH = {True: "with steps", False: "without steps"}

# Supervised training alone: no self-play, and of the evaluation at the end of a run as little as there is.
COMMON = {
    "training.num_iterations": 0, "warm_start.num_steps": 600, "optimizer.learning_rate": 5e-3,
    "task.letters": "transpositions", "task.max_length": 12, "task.train_problems": 100_000, "task.check_steps": False,
    "evaluation.num_problems": 8, "evaluation.num_simulations": 2, "search.num_candidates": 2, "checkpoints.every": 10,
}  # fmt: skip


def define_flags() -> None:
    flags.DEFINE_string("problem", "s5", "The problem: s5, z60, modular_sum, squaring or circuit.")
    flags.DEFINE_list("depths", ["1", "2", "4", "8"], "Layers of the models.")
    flags.DEFINE_list("lengths", ["4", "6", "8", "10", "12"], "Lengths of the test's problems.")
    flags.DEFINE_list("seeds", ["0"], "Seeds of the training.")
    flags.DEFINE_integer("num_problems", 500, "Test problems of each length.")
    flags.DEFINE_list("override", [], "FIELD=VALUE, for every run: a shorter schedule to try it out.")
    flags.DEFINE_string("output", "runs/serial_depth", "The folder of the runs.")
    flags.DEFINE_string("results", HERE, "The folder of results.json, table.md and figure.png.")


def main(arguments: list[str], overrides: dict[str, str]) -> None:
    options = flags.FLAGS
    if arguments or overrides:
        raise UserError(f"{[*arguments, *overrides][0]!r} is not an option; see --help for those that there are.")
    depths, lengths, seeds = (
        whole_numbers(name, getattr(options, name), least)
        for name, least in (("depths", 1), ("lengths", 1), ("seeds", 0))
    )
    base = base_config(options.problem, lengths, options.override)
    settings = {"num_problems": options.num_problems, "lengths": lengths, "config": to_dict(base)}
    wanted = [Run(steps, depth, seed) for seed in seeds for depth in sorted(depths) for steps in WITH]
    missing = [run for run in wanted if run.name not in read_results(options.results, settings)]
    from alphallm.display import Progress

    with Progress("layer", total=sum(run.depth for run in missing), seconds_between_lines=0.0) as progress:
        done = 0
        for run in missing:
            outcome = outcome_of(
                run, base, os.path.join(options.output, options.problem), lengths, options.num_problems
            )
            # Read again: another process may have added its own in the meantime.
            rows = read_results(options.results, settings) | {run.name: dataclasses.asdict(run) | outcome}
            write_results(options.results, settings, rows)
            done += run.depth
            progress.update(done, f"{run.name}: {summary(outcome)}")
    report(options.problem, lengths, [*read_results(options.results, settings).values()], options.results)


@dataclasses.dataclass(frozen=True)
class Run:
    steps: bool
    depth: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.depth} layers {WITH[self.steps]} seed {self.seed}".replace(" ", "_")


def base_config(problem: str, lengths: Sequence[int], overrides: Sequence[str]):
    """What the runs share. Prompts have room for the longest problem of the test, also where training has none such."""
    fields: dict[str, Any] = {**COMMON, "task.problem": problem}
    fields |= {"task.min_test_length": min(lengths), "task.max_test_length": max(lengths)}
    return study_config(CONFIG, fields, overrides)


def outcome_of(run: Run, base: Any, output: str, lengths: Sequence[int], number: int) -> dict[str, Any]:
    """Trains a run, or goes on with it; how many test problems of each length it solves, and what that took."""
    import jax

    from alphallm.evaluation import compare
    from alphallm.evaluation.plans import Strategy
    from alphallm.models import LanguageModel
    from alphallm.search import SearchConfig
    from alphallm.tasks import data, make_task
    from alphallm.training.loop import load_params, train

    config = apply_overrides(base, {"seed": run.seed, "task.steps": run.steps, "model.num_layers": run.depth})
    folder, began = os.path.join(output, run.name), time.monotonic()
    print(f"Training {folder}", flush=True)
    train(config, folder)
    seconds = time.monotonic() - began
    _, params = load_params(folder)
    task = make_task(config.task)
    model, greedy = LanguageModel(config.model, task.vocabulary.size), Strategy("greedy", "both", 0, SearchConfig())
    solved = {}
    for length in lengths:
        problems = data.load_problems(task, rows_of_length(config.task, length, number))
        result, _ = compare.solve_all(model, task, greedy, params, problems)
        solved[str(length)] = int(result.reward_B.sum())
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    return {"parameters": parameters, "seconds": round(seconds), "commit": commit(), "solved": solved, "asked": number}


def rows_of_length(task: Any, length: int, number: int) -> list[str]:
    """Test problems of one length. No other split has any of them, since a problem's text says which split it is in."""
    of_length = dataclasses.replace(
        task,
        min_test_length=length,
        max_test_length=length,
        test_problems=number,
        train_problems=1,
        validation_problems=1,
    )
    return of_length.splits()["test"]


def summary(outcome: dict[str, Any]) -> str:
    return ", ".join(f"length {length}: {n / outcome['asked']:.3f}" for length, n in outcome["solved"].items())


def report(problem: str, lengths: Sequence[int], rows: Sequence[dict[str, Any]], folder: str) -> None:
    """Prints and writes the table and the figure of all that is recorded."""
    from alphallm.display import print_table

    lines = table(lengths, rows)
    print_table(f"Solve rates of {problem} on test problems, by length", lines)
    write_markdown(os.path.join(folder, "table.md"), lines)
    draw(problem, lengths, rows, os.path.join(folder, "figure.png"))


def rate(rows: Sequence[dict[str, Any]], steps: bool, depth: int, length: int):
    """The solve rate over all seeds, with Wilson's interval over test problems."""
    from alphallm.evaluation import intervals

    here = [row for row in rows if (row["steps"], row["depth"]) == (steps, depth)]
    solved, asked = (
        sum(counts) for counts in zip(*((row["solved"][str(length)], row["asked"]) for row in here), strict=True)
    )
    return intervals.wilson(solved / asked, asked)


def kinds(rows: Sequence[dict[str, Any]]) -> list[tuple[bool, int]]:
    """The pairs of steps and depth that there are, with steps first."""
    return sorted({(row["steps"], row["depth"]) for row in rows}, key=lambda kind: (not kind[0], kind[1]))


def table(lengths: Sequence[int], rows: Sequence[dict[str, Any]]) -> list[dict[str, object]]:
    lines = []
    for steps, depth in kinds(rows):
        here = [row for row in rows if (row["steps"], row["depth"]) == (steps, depth)]
        line: dict[str, object] = {"": WITH[steps], "layers": depth, "parameters": f"{here[0]['parameters']:,}"}
        line |= {"seeds": len(here), "minutes a run": f"{sum(row['seconds'] for row in here) / len(here) / 60:.1f}"}
        for length in lengths:
            found = rate(rows, steps, depth, length)
            line[f"length {length}"] = f"{found.estimate:.3f} {found}"
        lines.append(line)
    return lines


def draw(problem: str, lengths: Sequence[int], rows: Sequence[dict[str, Any]], path: str) -> None:
    """By depth at the longest length, as the paper does; and by length for each depth."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    depths = sorted({row["depth"] for row in rows})
    for steps, style in ((True, "o-"), (False, "s--")):
        here = [depth for depth in depths if (steps, depth) in kinds(rows)]
        draw_rates(left, here, [rate(rows, steps, depth, max(lengths)) for depth in here], style, None, WITH[steps])
        for depth in here:
            colour = colormaps["viridis"](0.9 * depths.index(depth) / max(1, len(depths) - 1))
            label = f"{depth} layer{'s' * (depth > 1)}, {WITH[steps]}"
            draw_rates(right, lengths, [rate(rows, steps, depth, length) for length in lengths], style, colour, label)
    left.set(
        title=f"{problem}, length {max(lengths)}", xlabel="layers", ylabel="solve rate, greedy", ylim=(-0.02, 1.02)
    )
    left.set_xscale("log", base=2)
    left.set_xticks(depths, map(str, depths))
    right.set(title=f"{problem}, by length", xlabel="length of the problem", xticks=lengths)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    define_flags()
    run_main(main)
