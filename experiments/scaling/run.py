"""The two scaling laws: solve rate against test-time compute along training, and against training compute.

python -m experiments.scaling.run --workdir=runs/x [--budgets=18,100,300,1000,3200] [--mode=value_only]

Takes every checkpoint that the run has kept (train with --config.checkpoints.keep=20), answers the split's problems
by greedy decoding and by search at each budget, and draws the pair of curves that o1's report shows, each with a fit:
the solve rate's log-odds as a straight line in the logarithm of the compute. Both computes are FLOPs by the model's own
count, a backward pass as two forward ones. Writes rows.json and scaling.png to --results, here by default; what is
there already is not run again.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from alphallm.config import run_main
from alphallm.errors import UserError

HERE = os.path.dirname(os.path.abspath(__file__))


def define_flags() -> None:
    flags.DEFINE_string("workdir", "", "The run, with several checkpoints.")
    flags.DEFINE_list("budgets", ["100", "300", "1000", "3200"], "Generated tokens per problem, at most.")
    flags.DEFINE_string("mode", "value_only", "What the search may see: verified or value_only.")
    flags.DEFINE_string("split", "test", "Which problems.")
    flags.DEFINE_integer("seeds", 1, "How often each problem is answered.")
    flags.DEFINE_string("results", HERE, "The folder of rows.json and scaling.png.")


def main(arguments: list[str], overrides: dict[str, str]) -> None:
    del arguments, overrides
    options = flags.FLAGS
    from alphallm import evaluate
    from alphallm.display import Progress, print_table
    from alphallm.evaluation import plan_all, report
    from alphallm.training.checkpoints import Checkpoints
    from alphallm.training.run_folder import read_rows

    steps = Checkpoints(os.path.join(options.workdir, "checkpoints")).steps()
    if len(steps) < 3:
        raise UserError(f"{options.workdir!r} has checkpoints of {steps}: train with --config.checkpoints.keep=20.")
    path = os.path.join(options.results, "rows.json")
    known = {row.identity: row for row in report.read_json(path)[0]} if os.path.exists(path) else {}
    loaded = [evaluate.load(f"{options.workdir}@{step}", "average") for step in steps]
    contestants = evaluate.enter([str(step) for step in steps], loaded)
    config, first = loaded[0][0], contestants[0]
    problems = evaluate.common_problems(contestants, [each for each, _ in loaded], options.split, 0)
    budgets = [int(budget) for budget in options.budgets]
    planned = plan_all(first, ["greedy", "search"], [options.mode], budgets)
    metrics = read_rows(os.path.join(options.workdir, "metrics.jsonl"))
    spent = {str(step): training_flops(config, first.task, first.model, metrics, step) for step in steps}
    rows: list[Any] = []
    with Progress("row", total=len(steps) * len(planned), seconds_between_lines=0.0) as progress:
        for one in contestants:
            for row in evaluate.evaluate(one, problems, planned, options.seeds, known=known):
                rows.append(row)
                about = {"split": options.split, "mode": options.mode, "training_flops": spent}
                report.write_json(path, rows, about)
                progress.update(len(rows), f"step {row.run} {row.strategy} {row.knob}: solved {row.rate.estimate:.3f}")
    print_table("Solve rate by checkpoint and budget", table(rows, spent))
    draw(rows, spent, os.path.join(options.results, "scaling.png"), f"{options.split}, {options.mode}")


def training_flops(config, task, model, metrics: Sequence[dict[str, Any]], step: int) -> float:
    """What a run had spent after `step` ticks: its warm start, what its trees wrote, and what it learnt."""
    chain = config.warm_start.sequence_tokens or task.max_prompt + task.max_steps * task.max_step
    warm = min(step * 20, config.warm_start.num_steps) * config.warm_start.batch_size * chain * 3
    candidates = min(config.targets.candidates_per_node, config.search.num_candidates)
    row = task.max_prompt + config.targets.nodes_per_tree * candidates * task.max_step
    rows = config.training.learner_steps * config.training.trees_per_step
    searched = [entry["search/tokens"] for entry in metrics if "search/tokens" in entry and entry["step"] <= step]
    written = sum(searched) * (1 + 1 / config.search.num_candidates) + len(searched) * task.max_prompt
    positions = warm + written * config.training.problems_per_iteration + len(searched) * rows * row * 3
    return positions * model.flops_per_token()


@dataclasses.dataclass(frozen=True)
class Fit:
    """log-odds of the solve rate = intercept + slope * log10(compute)."""

    intercept: float
    slope: float

    def __call__(self, compute: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-self.intercept - self.slope * np.log10(compute)))


def fit(compute: Sequence[float], solved: Sequence[float], trials: float) -> Fit:
    """Logistic regression by Newton's method; half a success and half a failure more keep it finite."""
    x = np.stack([np.ones(len(compute)), np.log10(np.asarray(compute, float))], 1)
    rate = (np.asarray(solved, float) * trials + 0.5) / (trials + 1)
    centre = x[:, 1].mean()
    x[:, 1] -= centre
    weights = np.zeros(2)
    for _ in range(50):
        p = 1 / (1 + np.exp(-x @ weights))
        hessian = (x * (p * (1 - p))[:, None]).T @ x + 1e-9 * np.eye(2)
        weights += np.linalg.solve(hessian, x.T @ (rate - p))
    return Fit(float(weights[0] - weights[1] * centre), float(weights[1]))


def by_budget(rows: Sequence[Any]) -> dict[str, list[Any]]:
    """Rows of all checkpoints by the name of their budget, greedy decoding first."""
    found: dict[str, list[Any]] = {}
    for row in rows:
        found.setdefault(f"{row.budget} tokens" if row.budget else "greedy", []).append(row)
    return found


def table(rows: Sequence[Any], spent: dict[str, float]) -> list[dict[str, object]]:
    lines: dict[str, dict[str, object]] = {}
    for name, members in by_budget(rows).items():
        for row in members:
            line = lines.setdefault(row.run, {"step": int(row.run), "training FLOPs": spent[row.run]})
            line[name] = f"{row.rate.estimate:.3f} {row.rate}"
    return list(lines.values())


def draw(rows: Sequence[Any], spent: dict[str, float], path: str, title: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout="constrained")
    runs = list(dict.fromkeys(row.run for row in rows))
    for run in runs:
        members = sorted((row for row in rows if row.run == run), key=lambda row: row.flops)
        curve(left, [row.flops for row in members], members, f"step {run}", runs.index(run) / max(1, len(runs) - 1))
    budgets = by_budget(rows)
    for place, (name, members) in enumerate(budgets.items()):
        curve(right, [spent[row.run] for row in members], members, name, place / max(1, len(budgets) - 1))
    left.set(
        xlabel="test-time compute, forward FLOPs per problem", ylabel="solve rate", title=f"{title}, along training"
    )
    right.set(xlabel="training compute, FLOPs", title="at fixed test-time compute", ylim=(-0.02, 1.02))
    for axes in (left, right):
        axes.set_xscale("log")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def curve(axes, compute: Sequence[float], members: Sequence[Any], name: str, shade: float) -> None:
    """Points with their intervals, and the fit as a line."""
    from matplotlib import pyplot

    colour = pyplot.colormaps["viridis"](0.9 * shade)
    rates = [row.rate.estimate for row in members]
    errors = [[r.rate.estimate - r.rate.low for r in members], [r.rate.high - r.rate.estimate for r in members]]
    axes.errorbar(compute, rates, yerr=errors, fmt="o", markersize=4, capsize=2, color=colour)
    line = np.geomspace(min(compute), max(compute), 50)
    fitted = fit(compute, rates, members[0].solved_SB.size)
    axes.plot(line, fitted(line), color=colour, label=f"{name}, slope {fitted.slope:.2f}")


if __name__ == "__main__":
    define_flags()
    run_main(main)
