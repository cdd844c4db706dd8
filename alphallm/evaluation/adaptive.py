"""A total of tokens spent over a set of problems where it helps most: quick answers for the easy, search for the hard.

Every problem is answered greedily. Then, rung by rung, those that are not sure yet are searched, the least sure first,
each rung with four times the tokens of the one before, as long as the total lasts. In verified mode sure is what the
verifier accepts; else the value head says how sure an answer is.
"""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from alphallm.evaluation import plans
from alphallm.evaluation.plans import Strategy
from alphallm.evaluation.strategies import Result
from alphallm.types import Problem

SURE = 0.95  # A value from which on an answer is left as it is.
_GROWTH = 4  # of the budget, from rung to rung.

# Answers problems by a strategy: the result on the host, and the seconds that it took.
Run = Callable[[Strategy, Problem], tuple[Result, float]]


def rungs(task, strategy: Strategy) -> list[tuple[int, Strategy]]:
    """The searches in their order with their budgets, from a quarter of the mean budget on."""
    least = plans.smallest_budget(task, strategy.search, "search")
    found: list[tuple[int, Strategy]] = []
    budget = max(least, strategy.knob // _GROWTH)
    while budget <= 64 * strategy.knob:
        search = plans.plan(task, strategy.search, "search", strategy.mode, budget)
        assert search is not None
        found.append((budget, search))
        budget *= _GROWTH
    return found


def solve(run: Run, task, strategy: Strategy, problems: Problem) -> tuple[Result, float]:
    """Answers problems with `strategy.knob` generated tokens each on average, at most."""
    number = len(problems.index)
    greedy = plans.plan(task, strategy.search, "greedy", strategy.mode, strategy.knob)
    assert greedy is not None
    result, seconds = run(greedy, problems)
    result = jax.tree.map(np.array, result)  # to be written to
    for budget, search in rungs(task, strategy):
        sure_B = _sureness(result, strategy.mode)
        left = strategy.knob * number - int(np.sum(result.spend.tokens_B))
        unsure = np.lexsort((problems.index, sure_B))  # Not by place: the answers do not depend on the order.
        chosen = unsure[sure_B[unsure] < SURE][: max(0, left // budget)]
        if not len(chosen):
            break
        more, took = run(search, jax.tree.map(lambda x, chosen=chosen: np.asarray(x)[chosen], problems))
        seconds += took
        _merge(result, more, chosen, strategy.mode)
    return result, seconds


def _sureness(result: Result, mode: str) -> np.ndarray:
    seen = result.reward_B * result.legal_B if mode == "verified" else result.value_B
    return np.where(result.found_B, seen, 0.0)


def _merge(result: Result, more: Result, chosen: np.ndarray, mode: str) -> None:
    """Adds what was spent, and takes the new answers where they are at least as sure."""
    better = _sureness(more, mode) >= _sureness(result, mode)[chosen]
    for field in dataclasses.fields(Result):
        old, new = getattr(result, field.name), getattr(more, field.name)
        if field.name == "spend":
            for spent, added in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True):
                spent[chosen] += added
        elif old is not None:
            old[chosen[better]] = new[better]
