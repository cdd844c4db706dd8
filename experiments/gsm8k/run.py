"""What a run on GSM8K learnt: its value head on held-out steps, and its losses and solve rates along training.

python -m experiments.gsm8k.run --workdir=runs/gsm8k --manual_dir=DATA [--results=experiments/gsm8k]

Samples --samples chains for every validation problem, reads the value head at the prompt's end and after each step, and
compares with whether the chain's answer was right in the end: accuracy, Brier score and area under the ROC curve beside
those of the best constant, and a reliability table. Writes value_head.json and training.png.
"""

import functools
import json
import os
from typing import Any

from absl import flags

from alphallm.config import run_main
from alphallm.errors import UserError

HERE = os.path.dirname(os.path.abspath(__file__))
_BATCH = 8  # problems at once.


def define_flags() -> None:
    flags.DEFINE_string("workdir", "", "The run's folder.")
    flags.DEFINE_string("manual_dir", "", "The folder with train.jsonl and test.jsonl.")
    flags.DEFINE_string("split", "validation", "Which problems.")
    flags.DEFINE_integer("samples", 16, "Chains for each problem.")
    flags.DEFINE_string("curves", "", "The folder with the metrics.jsonl to draw; by default the run's.")
    flags.DEFINE_string("results", HERE, "The folder to write to.")


def main(arguments: list[str], overrides: dict[str, str]) -> None:
    del arguments, overrides
    from alphallm import evaluate
    from alphallm.display import print_table

    options = flags.FLAGS
    if not options.workdir:
        raise UserError("Give --workdir=FOLDER, the folder of a run.")
    os.makedirs(options.results, exist_ok=True)
    config, params = evaluate.load(options.workdir, "average", options.manual_dir)
    levels = value_head(config, params, options.split, options.samples)
    tables = {
        "by_step": [summary(f"after step {level}" if level else "at the prompt", *read) for level, read in levels]
    }
    values, outcomes = ([x for _, read in levels for x in read[i]] for i in range(2))
    tables["by_step"].append(summary("all", values, outcomes))
    tables["reliability"] = reliability(values, outcomes)
    for name, rows in tables.items():
        print_table(f"The value head on {options.split} problems: {name}", rows)
    content = {"split": options.split, "samples": options.samples, **tables}
    with open(os.path.join(options.results, "value_head.json"), "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
    plot(options.curves or options.workdir, tables["reliability"], os.path.join(options.results, "training.png"))


def value_head(config: Any, params: Any, split: str, samples: int) -> list[tuple[int, tuple[Any, Any]]]:
    """(steps done, (readings, outcomes)) of sampled chains that went on or ended there."""
    import jax
    import numpy as np

    from alphallm.models import LanguageModel
    from alphallm.tasks import data, make_task

    task = make_task(config.task)
    model = LanguageModel(config.model, task.vocabulary.size)
    problems = data.load_problems(task, data.load_split(config.task, split))
    run = jax.jit(functools.partial(read_values, model, task, samples=samples))
    found: dict[int, tuple[list[float], list[float]]] = {level: ([], []) for level in range(task.max_steps + 1)}
    number = len(problems.index)
    for start in range(0, number, _BATCH):
        index = np.minimum(np.arange(start, start + _BATCH), number - 1)
        batch = jax.tree.map(lambda x, index=index: x[index], problems)
        value, there, reward = (np.asarray(x)[: number - start] for x in run(params, batch))
        for level, (values, outcomes) in found.items():
            here = there[..., level]
            values += value[..., level][here].tolist()
            outcomes += np.broadcast_to(reward[..., 0], here.shape)[here].tolist()
    return [(level, read) for level, read in found.items() if read[0]]


def read_values(model, task, params, problem, *, samples: int):
    """Value [B, J, D + 1] at the prompt's end and after each step, whether there is one, and reward [B, J]."""
    import jax
    import jax.numpy as jnp

    from alphallm import decode
    from alphallm.evaluation import chains, strategies
    from alphallm.training import learner

    batch = problem.index.shape[0]
    key_BJ = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(jax.random.key(0), i), samples))(problem.index)
    prefix = decode.prefill(model, params, problem)
    drawn = chains.sample(model, task, params, problem, prefix, key_BJ, temperature=1.0)
    flat = lambda x: x.reshape(batch * samples, *x.shape[2:])
    repeated = jax.tree.map(lambda x: jnp.repeat(x, samples, 0), problem)
    tokens, lengths = flat(drawn.tokens_BJDL), flat(drawn.length_BJD)
    reward_R, _, _ = strategies.judge(task, repeated, tokens, lengths)
    chain = learner.Chain(repeated.tokens_P, repeated.length, tokens, lengths, reward_R)
    sequence, _, is_end, _ = learner.compact(chain, task.tool)
    positions = jnp.broadcast_to(jnp.arange(sequence.shape[1])[None], sequence.shape)
    hidden = model.trunk(params, sequence, positions, decode.causal_mask(*sequence.shape)).hidden_BXE
    value = jax.nn.sigmoid(model.value_logit(params, hidden))
    # The end of step d is the d-th end of its sequence.
    order = jnp.argsort(~is_end, axis=1, stable=True)[:, : task.max_steps + 1]
    there = jnp.take_along_axis(is_end, order, 1)
    # A chain that ran out of room within a step has no reading there.
    back = lambda x: x.reshape(batch, samples, *x.shape[1:])
    finished = drawn.finished_BJ[..., None]
    return back(jnp.take_along_axis(value, order, 1)), back(there) & finished, back(reward_R)[..., None]


def summary(name: str, values, outcomes) -> dict[str, Any]:
    """How well readings tell right chains from wrong ones; the constant is the share of right ones."""
    import numpy as np

    value, outcome = np.asarray(values), np.asarray(outcomes)
    share = outcome.mean()
    ranks = np.empty(len(value))
    order = np.argsort(value, kind="stable")
    ranks[order] = np.arange(len(value))
    for same in np.unique(value):  # readings that are equal share their mean rank
        ranks[value == same] = ranks[value == same].mean()
    right, wrong = outcome > 0, outcome <= 0
    pairs = right.sum() * wrong.sum()
    area = (ranks[right].sum() - right.sum() * (right.sum() - 1) / 2) / pairs if pairs else float("nan")
    return {
        "readings": name, "number": len(value), "right": float(share), "mean value": float(value.mean()),
        "accuracy": float(((value > 0.5) == right).mean()), "of the constant": float(max(share, 1 - share)),
        "Brier": float(np.square(value - outcome).mean()), "Brier of the constant": float(share * (1 - share)),
        "area under ROC": float(area),
    }  # fmt: skip


def reliability(values, outcomes) -> list[dict[str, Any]]:
    """Readings in tenths: how often they should come true, and how often they do."""
    import numpy as np

    value, outcome = np.asarray(values), np.asarray(outcomes)
    tenth = np.minimum((value * 10).astype(int), 9)
    return [
        {
            "readings": f"{i / 10:.1f} to {(i + 1) / 10:.1f}", "number": int((tenth == i).sum()),
            "mean value": float(value[tenth == i].mean()), "right": float(outcome[tenth == i].mean()),
        }
        for i in range(10)
        if (tenth == i).any()
    ]  # fmt: skip


def plot(workdir: str, rows: list[dict[str, Any]], path: str) -> None:
    """Losses and solve rates along training, and the value head's reliability."""
    from matplotlib.figure import Figure

    from alphallm.evaluation.curves import read_curves
    from alphallm.training.run_folder import read_rows

    metrics = read_rows(os.path.join(workdir, "metrics.jsonl"))
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    losses, rates, reliable = figure.subplots(1, 3)
    for name, label in (("loss/policy", "policy"), ("loss/value", "value")):
        points = [(row["step"], row[name]) for row in metrics if name in row]
        losses.plot(*zip(*points, strict=True), label=label)
    losses.set(xlabel="tick (20 steps of the warm start, or an iteration)", ylabel="training loss")
    for name, (ticks, values) in read_curves(workdir).items():
        rates.plot(ticks, values, marker="o", markersize=3, label=name)
    played = [(row["step"], row["search/solved"]) for row in metrics if "search/solved" in row]
    rates.plot(*zip(*played, strict=True), color="0.7", label="training problems, search with the answer", zorder=0)
    rates.set(xlabel="tick", ylabel="solve rate on validation problems", ylim=(0, None))
    reliable.plot([0, 1], [0, 1], color="0.7")
    reliable.plot([row["mean value"] for row in rows], [row["right"] for row in rows], marker="o")
    reliable.set(xlabel="value head's reading", ylabel="share of chains that were right", xlim=(0, 1), ylim=(0, 1))
    for axes in (losses, rates):
        axes.legend(fontsize=8)
    for axes in (losses, rates, reliable):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    define_flags()
    run_main(main)
