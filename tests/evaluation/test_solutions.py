"""What a tree holds and which of it is the answer, against plain Python."""

import itertools
import math

import jax
import numpy as np
import pytest

from alphallm.evaluation import solutions
from alphallm.search import CERTAIN, SearchConfig, best_answer
from tests.search import tabular

SEEDS = list(range(12))
MODEL = tabular.TabularModel()
TASK = tabular.TabularTask(max_steps=4, done=0.3, illegal=0.2)
PARAMS = MODEL.init(0)
SEARCH = SearchConfig(num_simulations=12, num_candidates=4, max_considered=3)


@pytest.fixture(scope="module", params=[True, False], ids=["verified", "value_only"])
def tree(request):
    return jax.device_get(tabular.searched(MODEL, TASK, SEARCH, PARAMS, SEEDS, request.param, request.param))


@pytest.fixture(scope="module")
def held(tree):
    chains, visits = jax.device_get(solutions.of_tree(tree, TASK.max_steps, tabular.PAD))
    return solutions.Solutions(chains, chains.finished_BJ, chains.value_BJ, visits)


def ways(tree, b):
    """Of each finished candidate: its steps, log-probability, and the visits of the nodes on its way."""
    found = {}
    for n, k in itertools.product(range(tree.value_BN.shape[1]), range(tree.q_BNK.shape[2])):
        if tree.expanded_BN[b, n] and tree.valid_BNK[b, n, k] and tree.done_BNK[b, n, k]:
            steps, log_prob, visits, at, action = [], 0.0, [], n, k
            while True:
                steps.insert(0, tuple(tree.tokens_BNKL[b, at, action, : tree.length_BNK[b, at, action]].tolist()))
                log_prob += float(tree.log_prob_BNK[b, at, action])
                if at == 0:
                    break
                visits.insert(0, int(tree.visits_BN[b, at]))
                at, action = int(tree.parent_BN[b, at]), int(tree.action_BN[b, at])
            found[n * tree.q_BNK.shape[2] + k] = (steps, log_prob, visits, float(tree.child_value_BNK[b, n, k]))
    return found


def test_a_tree_s_solutions_are_its_finished_candidates(tree, held):
    depths = set()
    for b in range(len(SEEDS)):
        expected = ways(tree, b)
        assert np.flatnonzero(held.allowed_BJ[b]).tolist() == list(expected)
        for j, (steps, log_prob, visits, value) in expected.items():
            lengths = held.chains.length_BJD[b, j]
            tokens = [tuple(t[:n].tolist()) for t, n in zip(held.chains.tokens_BJDL[b, j], lengths, strict=True) if n]
            assert tokens == steps
            assert held.chains.log_prob_BJ[b, j] == pytest.approx(log_prob, abs=1e-5)
            assert held.visits_BJD[b, j].tolist() == visits + [0] * (TASK.max_steps - len(visits))
            assert held.value_BJ[b, j] == value
            depths.add(len(steps))
    assert len(depths) == TASK.max_steps


@pytest.mark.parametrize("scale", [5.0, CERTAIN])
def test_best_is_the_search_s_own_answer(tree, held, scale):
    chosen = np.asarray(solutions.best(held, scale))
    answer = jax.device_get(best_answer(tree, TASK.max_steps, tabular.PAD, scale))
    for b in np.flatnonzero(answer.found_B):
        np.testing.assert_array_equal(held.chains.tokens_BJDL[b, chosen[b]], answer.tokens_BDL[b])


@pytest.mark.parametrize("name", ["value", "majority", "weighted", "visited"])
def test_the_other_rules(tree, held, name):
    chosen = np.asarray(jax.jit(solutions.RULES[name])(held, 5.0))
    votes_differ, is_not_best = 0, 0
    for b in range(len(SEEDS)):
        found = ways(tree, b)
        if not found:
            assert not held.allowed_BJ[b].any()
            continue
        votes: dict = {}
        for steps, _, _, value in found.values():
            votes[steps[-1]] = votes.get(steps[-1], 0) + (value if name == "weighted" else 1)
        rank = {}
        for j, (steps, log_prob, visits, value) in found.items():
            rank[j] = {
                "value": (value, log_prob),
                "majority": (votes[steps[-1]], log_prob),
                "weighted": (round(votes[steps[-1]], 5), log_prob),
                "visited": (visits + [0] * (TASK.max_steps - len(visits)), log_prob + 5.0 * value),
            }[name]
        assert chosen[b] == max(rank, key=rank.__getitem__)
        votes_differ += len(set(votes.values())) > 1
        is_not_best += chosen[b] != np.asarray(solutions.best(held, 5.0))[b]
    assert votes_differ and is_not_best


@pytest.mark.parametrize(("num", "k"), [(8, 1), (8, 4), (7, 7), (40, 20)])
def test_pass_at_k_counts_the_draws_without_a_right_one(num, k):
    right = np.arange(num)[None] < np.arange(num + 1)[:, None]  # 0 to num right ones
    expected = [1 - math.comb(num - c, k) / math.comb(num, k) for c in range(num + 1)]
    np.testing.assert_allclose(solutions.pass_at_k(right, k), expected, atol=1e-6)
