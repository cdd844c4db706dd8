"""iGSM by the number of operations, with and without retry data: what Ye et al. 2024 (parts 2.1 and 2.2) plot, small.

python -m experiments.igsm.run [--ops=3,4,5,6] [--seeds=0] [--retry_rate=0.3] [--num_problems=300]

Trains two models by the imitation of configs/igsm_cpu.py, one on plain worked solutions and one on solutions that make
mistakes and take them back (BACK). Then it answers test problems of each number of operations, more than trained on
included: greedily, and by the majority of sampled answers. Self-play is left out: it does not raise igsm's solve rate
yet (experiments/LOG.md). A run that is recorded is not trained again and one that was stopped goes on, so the same
command may be given again at any time. Runs go to OUTPUT; results.json, table.md and figure.png to --results, here by
default.
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
CONFIG = "configs/igsm_cpu.py"
# Imitation alone, and of the evaluation at the end of a run as little as there is.
IMITATION = {"training.num_iterations": 0, "evaluation.num_problems": 8, "evaluation.num_simulations": 2}
SAMPLES = 8  # answers of which the majority is taken.


@dataclasses.dataclass(frozen=True)
class Run:
    retry: bool
    seed: int

    @property
    def title(self) -> str:
        return "retry data" if self.retry else "plain data"

    @property
    def name(self) -> str:
        return f"{self.title} seed {self.seed}".replace(" ", "_")


def define_flags() -> None:
    flags.DEFINE_list("ops", ["3", "4", "5", "6"], "Operations of the test's problems.")
    flags.DEFINE_list("seeds", ["0"], "Seeds of the training.")
    flags.DEFINE_float("retry_rate", 0.3, "Mistakes of retry data, as task.retry_rate.")
    flags.DEFINE_integer("num_problems", 300, "Test problems of each number of operations.")
    flags.DEFINE_list("override", [], "FIELD=VALUE, for every run: a shorter schedule to try it out.")
    flags.DEFINE_string("output", "runs/igsm_study", "The folder of the runs.")
    flags.DEFINE_string("results", HERE, "The folder of results.json, table.md and figure.png.")


def main(arguments: list[str], overrides: dict[str, str]) -> None:
    options = flags.FLAGS
    if arguments or overrides:
        raise UserError(f"{[*arguments, *overrides][0]!r} is not an option; see --help for those that there are.")
    ops, seeds = whole_numbers("ops", options.ops, 1), whole_numbers("seeds", options.seeds, 0)
    base = study_config(CONFIG, IMITATION, options.override)
    settings = {"ops": ops, "config": to_dict(base)}
    settings |= {name: getattr(options, name) for name in ("num_problems", "retry_rate")}
    for run in [Run(retry, seed) for seed in seeds for retry in (False, True)]:
        if run.name not in read_results(options.results, settings):
            outcome = outcome_of(run, base, options, ops)
            # Read again: another process may have added its own in the meantime.
            runs = read_results(options.results, settings) | {run.name: dataclasses.asdict(run) | outcome}
            write_results(options.results, settings, runs)
    report(base.task.max_ops, ops, [*read_results(options.results, settings).values()], options.results)


def outcome_of(run: Run, base: Any, options: Any, ops: Sequence[int]) -> dict[str, Any]:
    """Trains a run, or goes on with it; what it answers of each number of operations, and what that took."""
    from alphallm.evaluation.plans import Strategy
    from alphallm.models import LanguageModel
    from alphallm.search import SearchConfig
    from alphallm.tasks import make_task
    from alphallm.training.loop import load_params, train

    fields = {"seed": run.seed, "task.retry_rate": options.retry_rate if run.retry else 0.0}
    config, began = apply_overrides(base, fields), time.monotonic()
    folder = os.path.join(options.output, run.name)
    print(f"Training {folder}", flush=True)
    train(config, folder)
    seconds = time.monotonic() - began
    task, (_, params) = make_task(config.task), load_params(folder)
    model = LanguageModel(config.model, task.vocabulary.size)
    strategies = {
        "greedy": Strategy("greedy", "both", 0, SearchConfig()),
        f"majority of {SAMPLES}": Strategy("majority", "value_only", SAMPLES, SearchConfig()),
    }
    answers: dict[str, Any] = {name: {} for name in strategies}
    for count in ops:
        rows = rows_of(config.task, count, options.num_problems)
        for name, strategy in strategies.items():
            answers[name][str(count)] = answered(model, task, strategy, params, rows)
            print(f"{run.name}, {name}, {count} operations: {answers[name][str(count)]}", flush=True)
    return {"seconds": round(seconds), "commit": commit(), "answers": answers}


def rows_of(task: Any, ops: int, number: int) -> list[str]:
    """Test problems of one number of operations. No other split has any of them, by their templates."""
    sizes = {"test_problems": number, "train_problems": 1, "validation_problems": 1}
    return dataclasses.replace(task, test_ops=(ops, ops), **sizes).splits()["test"]


def answered(model: Any, task: Any, strategy: Any, params: Any, rows: Sequence[str]) -> dict[str, int]:
    """Of problems asked, how many are solved; of the steps of all answers, how many remain unneeded or are BACK."""
    from alphallm.evaluation import compare
    from alphallm.tasks import data

    result, _ = compare.solve_all(model, task, strategy, params, data.load_problems(task, rows))
    texts = [
        "".join(task.vocabulary.decode(step[:length]) for step, length in zip(steps, lengths, strict=True))
        for steps, lengths in zip(result.tokens_BDL, result.length_BD, strict=True)
    ]
    return {
        "asked": len(rows),
        "solved": int(result.reward_B.sum()),
        "unneeded": sum(task.unneeded(row, text) for row, text in zip(rows, texts, strict=True)),
        "back": sum(text.count("BACK\n") for text in texts),
    }


def report(max_ops: int, ops: Sequence[int], rows: Sequence[dict[str, Any]], folder: str) -> None:
    """Prints and writes the table and the figure of all that is recorded."""
    from alphallm.display import print_table

    lines = table(ops, rows)
    print_table(f"Solve rates of iGSM on test problems, by operations; trained on up to {max_ops}", lines)
    write_markdown(os.path.join(folder, "table.md"), lines)
    draw(max_ops, ops, rows, os.path.join(folder, "figure.png"))


def curves(ops: Sequence[int], rows: Sequence[dict[str, Any]]) -> dict[tuple[bool, str], list[dict[str, int]]]:
    """By retry data and strategy: the counts of each number of operations, summed over seeds."""
    found: dict[tuple[bool, str], list[dict[str, int]]] = {}
    for row in rows:
        for name, by_ops in row["answers"].items():
            here = [by_ops[str(count)] for count in ops]
            before = found.get((row["retry"], name), [dict.fromkeys(each, 0) for each in here])
            found[row["retry"], name] = [{key: a[key] + b[key] for key in a} for a, b in zip(before, here, strict=True)]
    return found


def rate(counts: dict[str, int]):
    """The solve rate, with Wilson's interval over test problems."""
    from alphallm.evaluation import intervals

    return intervals.wilson(counts["solved"] / counts["asked"], counts["asked"])


def table(ops: Sequence[int], rows: Sequence[dict[str, Any]]) -> list[dict[str, object]]:
    lines = []
    for (retry, name), counts in curves(ops, rows).items():
        here = [row for row in rows if row["retry"] == retry]
        asked = sum(each["asked"] for each in counts)
        entry: dict[str, object] = {"": f"{Run(retry, 0).title}, {name}", "seeds": len(here)}
        entry["minutes a run"] = f"{sum(row['seconds'] for row in here) / len(here) / 60:.1f}"
        entry |= {
            f"{count} ops": f"{rate(each).estimate:.2f} {rate(each)}" for count, each in zip(ops, counts, strict=True)
        }
        entry["unneeded steps"] = f"{sum(each['unneeded'] for each in counts) / asked:.2f}"
        entry["BACK"] = f"{sum(each['back'] for each in counts) / asked:.2f}"
        lines.append(entry)
    return lines


def draw(max_ops: int, ops: Sequence[int], rows: Sequence[dict[str, Any]], path: str) -> None:
    """Solve rates by operations; right of the dotted line are more than were trained on."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for (retry, name), counts in curves(ops, rows).items():
        style, colour = "o-" if name == "greedy" else "s--", "C1" if retry else "C0"
        draw_rates(axes, ops, [rate(each) for each in counts], style, colour, f"{Run(retry, 0).title}, {name}")
    axes.axvline(max_ops + 0.5, color="grey", linestyle=":")
    axes.set(xlabel="operations of the problem", ylabel="solve rate", xticks=ops, ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    define_flags()
    run_main(main)
