"""Spending where it helps, with made-up results of the rungs."""

import types

import numpy as np
import pytest

from alphallm.evaluation import adaptive, plans
from alphallm.evaluation.plans import Strategy
from alphallm.evaluation.solutions import Spend
from alphallm.evaluation.strategies import Result
from alphallm.search import SearchConfig
from alphallm.types import Problem

TASK = types.SimpleNamespace(
    max_steps=3, max_step=8, max_legal_steps=10**6, self_verifying=True
)  # not listed at the root.
NUMBER = 8
PROBLEMS = Problem(np.zeros((NUMBER, 4), np.int32), np.full(NUMBER, 4), None, np.arange(NUMBER))
# From which search on, in tokens, a problem's answer is right; and how sure the value head is of the answers before.
NEEDS = np.array([0, 0, 0, 100, 100, 400, 1600, 10**9])
DOUBT = np.array([0.9, 0.5, 0.1, 0.8, 0.3, 0.2, 0.6, 0.4])


class Rungs:
    """Stands for running a strategy: each spends its whole budget, which is its candidates' number times 8."""

    def __init__(self):
        self.asked = []

    def __call__(self, strategy, problems):
        index, budget = problems.index, 0
        if strategy.name == "search":
            search = strategy.search
            budget = (search.root_candidates + search.num_simulations * search.num_candidates) * 8
        self.asked.append((strategy.name, budget, index.tolist()))
        right = NEEDS[index] <= budget
        spent = np.full(len(index), max(24, budget), np.int32)
        yes = np.ones(len(index), bool)
        return Result(
            found_B=yes, reward_B=right.astype(np.float32), legal_B=yes,
            value_B=np.where(right, 1.0, DOUBT[index]), tokens_BDL=np.full((len(index), 3, 8), budget),
            length_BD=np.full((len(index), 3), 8), spend=Spend(spent, spent, spent, spent), solutions=None,
            solution_reward_BJ=None,
        ), 1.0  # fmt: skip


@pytest.mark.parametrize("mode", plans.MODES)
@pytest.mark.parametrize("mean", [48, 100, 400, 2000])
def test_the_total_is_kept_and_the_unsure_are_searched(mode, mean):
    run, strategy = Rungs(), Strategy("adaptive", mode, mean, SearchConfig(num_candidates=4))
    result, seconds = adaptive.solve(run, TASK, strategy, PROBLEMS)
    assert seconds == len(run.asked)
    assert result.spend.tokens_B.sum() <= mean * NUMBER
    assert run.asked[0] == ("greedy", 0, list(range(NUMBER)))
    searched = np.zeros(NUMBER)
    for (name, budget, index), (_, least, _) in zip(run.asked[1:], run.asked, strict=False):
        assert name == "search" and budget > least
        assert not (NEEDS[index] <= least).any()  # whoever is sure is left alone
        if mode == "value_only":
            assert DOUBT[index].tolist() == sorted(DOUBT[index])
        searched[index] = budget
    np.testing.assert_array_equal(result.reward_B, NEEDS <= searched)
    np.testing.assert_array_equal(result.tokens_BDL[:, 0, 0], searched)
    assert result.reward_B.sum() >= {48: 3, 100: 4, 400: 5, 2000: 7}[mean]


def test_a_worse_answer_is_not_taken():
    class Forgetful(Rungs):
        def __call__(self, strategy, problems):
            result, seconds = super().__call__(strategy, problems)
            result.value_B[:] = 0.9 if strategy.name == "greedy" else 0.5
            return result, seconds

    strategy = Strategy("adaptive", "value_only", 400, SearchConfig(num_candidates=4))
    result, _ = adaptive.solve(Forgetful(), TASK, strategy, PROBLEMS)
    assert (result.value_B == 0.9).all() and (result.tokens_BDL == 0).all()
    assert (result.spend.tokens_B > 24).any()
