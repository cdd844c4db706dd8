"""Solves one problem: `python -m alphallm.solve --workdir=runs/x "4 9 10 13"`.

Prints the answer that the search found, step by step, with the visits and values of each step, and what the verifier
says of it. With --targets, also what the tree would teach at each node on the way; with --tree=tree.html, a web page of
the whole tree.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from alphallm.config import run_main
from alphallm.display import make_console, print_table
from alphallm.errors import UserError
from alphallm.evaluation import MODES, Strategy, compare, plans, report, strategies, tree_page
from alphallm.models import LanguageModel
from alphallm.search import CERTAIN, SearchConfig, best_answer, search
from alphallm.tasks import make_task


def define_flags() -> None:
    # Not while the module is imported: several mains have flags of the same name.
    flags.DEFINE_string("workdir", "", "The folder of a run or of exported weights.")
    flags.DEFINE_string("task_file", "", "The problem in the file format of its field, such as PDDL for blocksworld.")
    flags.DEFINE_integer("simulations", 0, "Simulations of the search; 0 takes those that the run evaluates with.")
    flags.DEFINE_string(
        "mode", "", f"What the search may see, of {', '.join(MODES)}; by default all that the task allows."
    )
    flags.DEFINE_bool("targets", False, "Also print the training targets that the tree would give.")
    flags.DEFINE_string("tree", "", "Also write the tree to this file, as a web page that replays the simulations.")
    flags.DEFINE_string("params", "average", "Which of a run's parameters: average or latest.")
    flags.DEFINE_integer("seed", 0, "Of the search's random numbers.")


def main(arguments: list[str], overrides: dict[str, str]) -> None:
    options = flags.FLAGS
    if not options.workdir:
        raise UserError("Give --workdir=FOLDER: the folder of a run or of exported weights.")
    if options.task_file and arguments:
        raise UserError(f"Give one problem: {arguments[0]!r} or --task_file={options.task_file}.")
    if not options.task_file and len(arguments) != 1:
        raise UserError(f'Give one problem in quotes, for example "4 9 10 13", not {len(arguments)}.')
    if options.mode:
        plans.check_names([options.mode], MODES, "mode")
    plans.check_names([options.params], ("average", "latest"), "choice of --params")
    if options.simulations < 0:
        raise UserError(f"--simulations={options.simulations} is out of range: give 1 or more.")
    from alphallm.training.loop import load_params  # takes seconds to import, which a wrong option need not wait for

    config, params = load_params(options.workdir, options.params)
    task = make_task(config.task)
    mode = options.mode or plans.modes(task)[0]
    if mode not in plans.modes(task):
        raise UserError(f"The task {task.name} does not verify itself: leave --mode={mode} out.")
    text = task.from_file(read(options.task_file)) if options.task_file else arguments[0]
    problem = jax.tree.map(lambda x: np.asarray(x)[None], task.problem(text))
    model = LanguageModel(config.model, task.vocabulary.size)
    simulations = options.simulations or config.evaluation.num_simulations
    strategy = plans.with_simulations(task, config.search, "search", mode, simulations)
    verified_B = np.array([mode == "verified"])
    grown = jax.jit(functools.partial(grow, model, task, strategy.search, config.targets))
    tree, best, planned = jax.device_get(grown(params, problem, verified_B, np.int32(options.seed)))

    console = make_console()
    say = functools.partial(console.print, markup=False, soft_wrap=True)
    how = f"{strategy.knob_text} candidates · {mode}"
    spent = f"{int(tree.tokens_generated_B[0])} tokens generated, {int(tree.expanded_BN.sum())} nodes expanded"
    say(f"{text} · {how}")
    say(spent)
    if best.found_B[0]:
        print_table("", path_rows(task, tree, best), console)
        answer = best
    else:
        say("The tree holds no finished answer; this is the model's likeliest one, without a search:")
        greedy = Strategy("greedy", "both", 0, SearchConfig())
        answer, _ = compare.solve_all(model, task, greedy, params, problem, batch_size=1)
        say("\n".join(report.answer_text(task, answer, 0)))
    said = verdict(task, problem, answer)
    say(said)
    if options.tree:
        steps = "; ".join(report.answer_text(task, answer, 0))
        whose = "" if best.found_B[0] else "No finished answer in the tree; the model's likeliest one: "
        found = f"{whose}{steps}. {said}"
        tree_page.write(options.tree, task, text, tree, best, f"{how} · {spent}", found)
        say(f"The tree is in {options.tree}.")
    if options.targets:
        for number, node in enumerate(nodes_on_path(best), 1):
            title = f"Targets at node {number} of the path: value {planned.value_BN[0, node]:.3f}"
            print_table(title, target_rows(task, tree, planned, node), console)


def read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--task_file={path} can not be read ({error}): give a text file.") from error


def grow(model, task, config, target_config, params, problem, verified_B, seed):
    """The tree, its best answer and its training targets."""
    from alphallm.training import targets

    key_B = jax.vmap(lambda index: jax.random.fold_in(jax.random.key(seed), index))(problem.index)
    tree = search(model, task, config, params, problem, key_B, verified_B, verified_B)
    scale = jnp.where(verified_B, CERTAIN, config.answer_scale)
    best = best_answer(tree, task.max_steps, task.vocabulary.pad, scale)
    return tree, best, targets.plan(tree, config, target_config, jnp.asarray(verified_B))


def nodes_on_path(best: Any) -> list[int]:
    """The nodes that the answer's steps start from; the root if there is no answer."""
    return [int(node) for node in best.node_BD[0] if node >= 0] or [0]


def path_rows(task: Any, tree: Any, best: Any) -> list[dict[str, object]]:
    rows = []
    for node, action in zip(best.node_BD[0], best.action_BD[0], strict=True):
        if node >= 0:
            rows.append(_candidate(task, tree, node, action))
    return rows


def target_rows(task: Any, tree: Any, planned: Any, node: int) -> list[dict[str, object]]:
    """The candidates of a node with their policy targets, the largest first; what was not written has the rest."""
    policy_K1, written = planned.policy_BNK1[0, node], np.flatnonzero(tree.written_BNK[0, node])
    order = sorted(written, key=lambda k: -policy_K1[k])
    rows = [
        {
            **_candidate(task, tree, node, k),
            "legal": "yes" if tree.legal_BNK[0, node, k] else "no",
            "planned value": float(planned.q_BNK[0, node, k]),
            "policy target": float(policy_K1[k]),
        }
        for k in order
    ]
    return [*rows, {"step": "(all other steps)", "policy target": float(policy_K1[-1])}]


def _candidate(task: Any, tree: Any, node: int, k: Any) -> dict[str, object]:
    tokens, length = tree.tokens_BNKL[0, node, k], tree.length_BNK[0, node, k]
    logits = tree.prior_logits_BNK[0, node]
    prior = np.exp(logits - logits.max())
    return {
        "step": task.vocabulary.decode(tokens[:length]).rstrip("\n"),
        "visits": int(tree.child_visits_BNK[0, node, k]),
        "value": float(tree.completed_q_BNK[0, node, k]),
        "model's value": float(tree.child_value_BNK[0, node, k]),
        "prior": float(prior[k] / prior.sum()),
        "policy": float(np.exp(tree.log_prob_BNK[0, node, k])),
    }


def verdict(task: Any, problem: Any, answer: Any) -> str:
    """What the verifier says, in words; of a task that does not verify itself, that nobody knows."""
    if not task.self_verifying:
        return "The answer is not verified: this task has no rules that could tell."
    judged = jax.jit(functools.partial(strategies.judge, task))(problem, answer.tokens_BDL, answer.length_BD)
    reward, done, legal = (np.asarray(x)[0] for x in judged)
    if reward > 0:
        return "The verifier accepts it."
    why = "a step breaks the rules" if not legal else "the result is wrong" if done else "it is not complete"
    return f"The verifier rejects it: {why}."


if __name__ == "__main__":
    define_flags()
    run_main(main)
