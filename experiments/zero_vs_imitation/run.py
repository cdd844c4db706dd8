"""From the rules alone, by imitation, and by both: one task, one model, as many FLOPs to train with.

python -m experiments.zero_vs_imitation.run [--config=configs/blocksworld_zero_cpu.py] [--seeds=0] [--budgets=300,1000]

Trains for each seed: the config as it is, from random legal play and self-play ("rules alone", as AlphaGo Zero); the
same model on worked solutions alone ("imitation"), for as many steps as cost what the first one did; and half of these
steps, then half of the self-play ("both", as AlphaGo). FLOPs are those of `experiments.scaling`. Each is judged on the
test split, greedily, by the best of N, and by search, at equal tokens. A run that is recorded is not trained again and
one that was stopped goes on, so the same command may be given again at any time. Runs go to OUTPUT; results.json,
table.md and figure.png to --results, here by default.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from alphallm.config import apply_overrides, run_main, to_dict
from alphallm.errors import UserError
from experiments.scaling.run import training_flops
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
ARMS = ("rules alone", "imitation", "both")
# Both imitate like this; after imitation the value head and the policy want smaller steps (experiments/LOG.md).
SOLUTIONS: dict[str, Any] = {
    "warm_start.data": "solutions",
    "warm_start.batch_size": 16,
    "warm_start.sequence_tokens": 256,
}


def define_flags() -> None:
    flags.DEFINE_string("config", "configs/blocksworld_zero_cpu.py", "What is trained from the rules alone.")
    flags.DEFINE_list("seeds", ["0"], "Seeds of the training.")
    flags.DEFINE_list("budgets", ["300", "1000"], "Generated tokens a problem, at most.")
    flags.DEFINE_integer("num_problems", 300, "Test problems.")
    flags.DEFINE_list("override", [], "FIELD=VALUE, for every run: a shorter schedule to try it out.")
    flags.DEFINE_string("output", "runs/zero_vs_imitation", "The folder of the runs.")
    flags.DEFINE_string("results", HERE, "The folder of results.json, table.md and figure.png.")


def main(arguments: list[str], overrides: dict[str, str]) -> None:
    options = flags.FLAGS
    if arguments or overrides:
        raise UserError(f"{[*arguments, *overrides][0]!r} is not an option; see --help for those that there are.")
    seeds, budgets = whole_numbers("seeds", options.seeds, 0), whole_numbers("budgets", options.budgets, 1)
    base = study_config(options.config, {}, options.override)
    if base.warm_start.data == "solutions":
        raise UserError(f"--config={options.config} starts from solutions: give one that starts from the rules alone.")
    settings = {"config": to_dict(base), "budgets": budgets, "num_problems": options.num_problems}
    for seed in seeds:
        for arm in ARMS:
            recorded, name = read_results(options.results, settings), f"{arm}, seed {seed}"
            if name in recorded:
                continue
            zero = recorded.get(f"{ARMS[0]}, seed {seed}")
            config = apply_overrides(base, {"seed": seed, **fields_of(arm, base, zero and zero["FLOPs"])})
            outcome = outcome_of(
                config, os.path.join(options.output, name.replace(", ", "_").replace(" ", "_")), options
            )
            # Read again: another process may have added its own in the meantime.
            runs = read_results(options.results, settings) | {name: {"arm": arm, "seed": seed, **outcome}}
            write_results(options.results, settings, runs)
    report([*read_results(options.results, settings).values()], options.results)


def fields_of(arm: str, base: Any, flops: float | None) -> dict[str, Any]:
    """What an arm changes of the config; `flops` is what the first arm spent."""
    if arm == ARMS[0]:
        return {}
    from alphallm.models import LanguageModel
    from alphallm.tasks import make_task

    assert flops is not None
    model = LanguageModel(base.model, make_task(base.task).vocabulary.size)
    tokens = SOLUTIONS["warm_start.batch_size"] * SOLUTIONS["warm_start.sequence_tokens"]
    steps = flops / (3 * tokens * model.flops_per_token())
    if arm == "imitation":
        return {**SOLUTIONS, "warm_start.num_steps": round(steps), "training.num_iterations": 0}
    iterations = base.training.num_iterations // 2
    slower = base.optimizer.learning_rate / 5
    return {
        **SOLUTIONS,
        "warm_start.num_steps": round(steps / 2),
        "training.num_iterations": iterations,
        "optimizer.self_play_learning_rate": slower,
    }


def outcome_of(config: Any, folder: str, options: Any) -> dict[str, Any]:
    """Trains a run, or goes on with it; its curve, what it spent, and what it answers of the test split."""
    from alphallm.models import LanguageModel
    from alphallm.tasks import make_task
    from alphallm.training.loop import load_params, train
    from alphallm.training.run_folder import read_rows

    print(f"Training {folder}", flush=True)
    train(config, folder)
    task, (_, params) = make_task(config.task), load_params(folder)
    model = LanguageModel(config.model, task.vocabulary.size)
    metrics = read_rows(os.path.join(folder, "metrics.jsonl"))
    spent = lambda step: training_flops(config, task, model, metrics, step)
    curve = [(spent(row["step"]), row["validation/greedy"]) for row in metrics if "validation/greedy" in row]
    answers = judge(model, task, config, params, options)
    last = max(row["step"] for row in metrics)
    return {"FLOPs": spent(last), "commit": commit(), "curve": curve, "answers": answers}


def judge(model: Any, task: Any, config: Any, params: Any, options: Any) -> dict[str, Any]:
    """By strategy: which test problems are solved, and the tokens that it takes."""
    from alphallm.evaluate import places
    from alphallm.evaluation import compare, plans
    from alphallm.evaluation.plans import Strategy
    from alphallm.search import SearchConfig
    from alphallm.tasks import data

    rows = data.load_split(config.task, "test")
    problems = data.load_problems(task, [rows[place] for place in places(len(rows), options.num_problems)])
    mode = plans.modes(task)[-1]  # Without the verifier: what has been learnt decides.
    strategies: dict[str, Any] = {"greedy": Strategy("greedy", "both", 0, SearchConfig())}
    for budget in map(int, options.budgets):
        for name in ("best_of_n", "search"):
            planned = plans.plan(task, config.search, name, mode, budget)
            if planned is not None:
                strategies[f"{name}, {budget}"] = planned
    found = {}
    for label, strategy in strategies.items():
        result, _ = compare.solve_all(model, task, strategy, params, problems)
        solved = [int(reward > 0) for reward in result.reward_B]
        found[label] = {"solved": solved, "tokens": float(result.spend.tokens_B.mean())}
        print(f"{label}: solved {sum(solved)} of {len(solved)}", flush=True)
    return found


def report(runs: Sequence[Mapping[str, Any]], folder: str) -> None:
    """Prints and writes the table and the figure of all that is recorded."""
    from alphallm.display import print_table

    lines = table(runs)
    print_table("Solve rates on the test split, value only, at equal FLOPs of training", lines)
    write_markdown(os.path.join(folder, "table.md"), lines)
    draw(runs, os.path.join(folder, "figure.png"))


@dataclasses.dataclass(frozen=True)
class Arm:
    """An arm's runs, one a seed."""

    runs: Sequence[Mapping[str, Any]]

    def rate(self, strategy: str) -> Any:
        import numpy as np

        from alphallm.evaluation import intervals

        return intervals.solve_rate(np.array([run["answers"][strategy]["solved"] for run in self.runs]))


def arms_of(runs: Sequence[Mapping[str, Any]]) -> dict[str, Arm]:
    by_name = {arm: [run for run in runs if run["arm"] == arm] for arm in ARMS}
    return {name: Arm(members) for name, members in by_name.items() if members}


def table(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, object]]:
    """A line for each arm: rates over seeds and problems, with 95 % intervals."""
    lines = []
    for name, arm in arms_of(runs).items():
        line: dict[str, object] = {"": name, "seeds": len(arm.runs)}
        line["training, PFLOP"] = f"{sum(run['FLOPs'] for run in arm.runs) / len(arm.runs) / 1e15:.2f}"
        for strategy in arm.runs[0]["answers"]:
            rate = arm.rate(strategy)
            line[strategy] = f"{rate.estimate:.3f} [{rate.low:.3f}, {rate.high:.3f}]"
        lines.append(line)
    return lines


def draw(runs: Sequence[Mapping[str, Any]], path: str) -> None:
    """Greedy decoding of validation problems along the training, and the test's rates by strategy."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    along, test = figure.subplots(1, 2, sharey=True)
    for place, (name, arm) in enumerate(arms_of(runs).items()):
        colour, strategies = colormaps["tab10"](place), list(arm.runs[0]["answers"])
        for number, run in enumerate(arm.runs):
            flops, rates = zip(*run["curve"], strict=True)
            along.plot(
                [f / 1e15 for f in flops], rates, "o-", color=colour, label=None if number else name, markersize=3
            )
        at = [index + 0.1 * (place - 1) for index in range(len(strategies))]
        draw_rates(test, at, [arm.rate(strategy) for strategy in strategies], "o", colour, name)
    along.set(title="validation, greedy", xlabel="PFLOP of training", ylabel="solve rate", ylim=(-0.02, 1.02))
    test.set(title="test, value only", xticks=range(len(strategies)), xticklabels=strategies)
    for axes in (along, test):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    define_flags()
    run_main(main)
