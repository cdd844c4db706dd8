"""A searched tree as one self-contained web page, with a slider that replays its simulations."""

import dataclasses
import importlib.resources
import json
import os
from typing import Any

import jax
import numpy as np

from alphallm.errors import UserError
from alphallm.search import Answer, Tree


@dataclasses.dataclass(frozen=True)
class History:
    """What one node knew as the search went on."""

    simulation: list[int]  # those that passed through the node, in order; the first one made it.
    value: list[float]  # the node's mean value after each of them.


def histories(tree: Tree, problem: int = 0) -> dict[int, History]:
    """For every expanded node its visits and values over time, by node number.

    Simulation i makes node i, and a node's value is the mean of what the nodes below it backed up when they were made.
    So the final means tell what each one backed up. A search that knows its whole tree before its simulations are over
    spends the remaining ones on candidates known exactly; they are the last entries here.
    """
    one = jax.tree.map(lambda x: np.asarray(x)[problem], tree)
    expanded = [int(n) for n in np.flatnonzero(one.expanded_BN)]
    backed_up = {
        n: float(one.visits_BN[n]) * float(one.value_BN[n])
        - float(np.sum(one.child_visits_BNK[n].astype(np.float64) * one.q_BNK[n]))
        for n in expanded
    }
    simulations: dict[int, list[int]] = {n: [] for n in expanded}
    totals: dict[int, list[float]] = {n: [] for n in expanded}
    for n in expanded:
        at = n
        while at >= 0:
            simulations[at].append(n)
            totals[at].append(backed_up[n] + (totals[at][-1] if totals[at] else 0.0))
            at = int(one.parent_BN[at])
    found = {}
    for n in expanded:
        values = [total / count for count, total in enumerate(totals[n], 1)]
        missing = int(one.visits_BN[n]) - len(values)
        found[n] = History(simulations[n] + missing * [expanded[-1] + 1], values + missing * [float(one.value_BN[n])])
    return found


def page(task: Any, text: str, tree: Tree, best: Answer, facts: str, answer: str) -> str:
    """The page of a batch's first tree.

    Args:
      text: the problem.
      best: the tree's answer, whose path is marked.
      facts, answer: lines above the tree: how it was searched; what was found and what the verifier says of it.
    """
    known = histories(tree)
    content = {
        "problem": text,
        "facts": facts,
        "answer": answer,
        "path": [[int(n), int(k)] for n, k in zip(best.node_BD[0], best.action_BD[0], strict=True) if n >= 0],
        "nodes": _nodes(task, tree, known),
        # The replay's last frame, which has all simulations that found everything known.
        "last": max(max(history.simulation) for history in known.values()),
        "simulations": int(tree.visits_BN[0, 0]) - 1,
    }
    # "</script>" in a problem's text must not end the script that holds it.
    plain = json.dumps(content, separators=(",", ":")).replace("</", "<\\/")
    template = importlib.resources.files("alphallm.evaluation").joinpath("tree_page.html").read_text("utf-8")
    return template.replace("__DATA__", plain)


def write(path: str | os.PathLike, *arguments: Any) -> None:
    """Writes `page(*arguments)`."""
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(page(*arguments))
    except OSError as error:
        raise UserError(f"{os.fspath(path)!r} can not be written ({error}): give another --tree.") from error


def _nodes(task: Any, tree: Tree, known: dict[int, History]) -> list[dict[str, Any] | None]:
    """The expanded nodes at their numbers, None between them."""
    found: list[dict[str, Any] | None] = [None] * (1 + max(known))
    for n, history in known.items():
        found[n] = {
            "parent": int(tree.parent_BN[0, n]),
            "at": history.simulation,
            "value": [_short(value) for value in history.value],
            "candidates": _candidates(task, tree, n),
        }
    return found


def _candidates(task: Any, tree: Tree, n: int) -> list[dict[str, Any]]:
    logits = np.asarray(tree.prior_logits_BNK[0, n], np.float64)
    prior = np.exp(logits - logits.max())
    prior /= prior.sum()
    found = []
    for k in np.flatnonzero(tree.written_BNK[0, n]):
        child = int(tree.children_BNK[0, n, k])
        tokens, length = tree.tokens_BNKL[0, n, k], int(tree.length_BNK[0, n, k])
        found.append({
            "k": int(k),
            "text": task.vocabulary.decode(tokens[:length]).rstrip("\n"),
            "prior": _short(prior[k]),
            "value": _short(tree.child_value_BNK[0, n, k]),
            "child": child if child >= 0 and tree.expanded_BN[0, child] else -1,
            **{
                name: bool(getattr(tree, f"{name}_BNK")[0, n, k]) for name in ("valid", "legal", "done")
            },
            "reward": _short(tree.reward_BNK[0, n, k]),
        })  # fmt: skip
    return found


def _short(x: Any) -> float:
    return round(float(x), 5)
