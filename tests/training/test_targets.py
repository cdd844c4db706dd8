"""Targets against a plain-Python recursion over searched trees."""

import dataclasses
import functools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alphallm.search import SearchConfig
from alphallm.training import targets
from alphallm.training.targets import TargetConfig
from tests.search import tabular

SEEDS = list(range(8))
MODEL, TASK = tabular.TabularModel(), tabular.TabularTask(max_steps=4, binary=True, illegal=0.4)
SEARCH = SearchConfig(num_simulations=24, num_candidates=5, max_considered=4, value_scale=0.2, visit_offset=10.0)
MODES = {"masked": (True, True), "unmasked": (True, False), "value only": (False, False)}


@functools.cache
def tree_of(mode, search=SEARCH):
    return tabular.searched(MODEL, TASK, search, MODEL.init(0), SEEDS, *MODES[mode])


def planned_of(mode, config, search=SEARCH):
    verified = jnp.full(len(SEEDS), MODES[mode][0])
    return jax.device_get(jax.jit(lambda t: targets.plan(t, search, config, verified))(tree_of(mode, search)))


def softmax(x):
    e = np.exp(np.asarray(x, np.float64) - max(x))
    return e / e.sum()


def chain_is_legal(tree, b, n):
    parent, action = tree.parent_BN[b, n], tree.action_BN[b, n]
    return parent < 0 or (tree.legal_BNK[b, parent, action] and chain_is_legal(tree, b, parent))


class Plain:
    """Node n of tree b, planned by recursion."""

    def __init__(self, tree, b, n, verified, search=SEARCH):
        self.valid = [k for k in range(tree.valid_BNK.shape[2]) if tree.valid_BNK[b, n, k]]
        self.q, below = [], []
        for k in range(tree.valid_BNK.shape[2]):
            child = tree.children_BNK[b, n, k]
            if child >= 0 and tree.expanded_BN[b, child]:
                plain = Plain(tree, b, child, verified, search)
                self.q.append(search.discount * plain.value)
                below.append(search.discount * plain.solved)
            else:
                self.q.append(float(tree.completed_q_BNK[b, n, k]))
                below.append(float(tree.reward_BNK[b, n, k]) if verified and tree.done_BNK[b, n, k] else 0.0)
            if verified and not tree.legal_BNK[b, n, k]:
                self.q[-1] = 0.0
        self.below, self.listed = below, search.proposer == "listed"
        self.solved = max([below[k] for k in self.valid], default=0.0)
        self.scale = SEARCH.value_scale * (SEARCH.visit_offset + max(tree.child_visits_BNK[b, n]))
        self.improved, self.value = np.zeros(len(self.q)), self.solved
        if self.valid:
            prior = [tree.prior_logits_BNK[b, n, k] for k in self.valid]
            self.improved[self.valid] = softmax(
                [p + self.scale * self.q[k] for p, k in zip(prior, self.valid, strict=True)]
            )
            self.value = max(self.solved, float(self.improved @ self.q))
        self.worth = chain_is_legal(tree, b, n) or not verified
        if not self.worth:
            self.value = 0.0

    def policy(self, tree, b, n, kind):
        """The policy target, the rest last."""
        out = np.zeros(len(self.q) + 1)
        if not self.valid or not self.worth:
            return out
        if kind == "verified_paths":
            led = [k for k in self.valid if self.below[k] > 0]
            out[led] = 1 / max(len(led), 1)
            return out
        if kind == "candidates":
            out[:-1] = self.improved
            return out
        logits = tree.prior_logits_BNK[b, n][self.valid]
        sigma = self.scale * np.array(self.q)[self.valid]
        if kind == "sampled":
            out[self.valid[np.argmax(tree.gumbel_BNK[b, n][self.valid] + logits + sigma)]] = 1.0
            return out
        visits = tree.child_visits_BNK[b, n].sum()
        mean = softmax(logits) @ np.array(self.q)[self.valid]
        mixed = 0.0 if self.listed else (tree.raw_value_BN[b, n] + visits * mean) / (1 + visits)
        log_prob = tree.log_prob_BNK[b, n]
        unwritten = 1 - np.exp(log_prob[tree.written_BNK[b, n]].astype(np.float64)).sum()
        entries = [*(log_prob[self.valid] + sigma), math.log(max(unwritten, 1e-6)) + self.scale * mixed]
        out[[*self.valid, -1]] = softmax(entries)
        return out


PLANS = [(mode, kind, SEARCH) for kind in ("rest", "candidates", "sampled", "verified_paths") for mode in MODES]
PLANS += [("unmasked", kind, dataclasses.replace(SEARCH, discount=0.7)) for kind in ("rest", "candidates")]
PLANS.append(("masked", "rest", dataclasses.replace(SEARCH, proposer="listed")))
PLANS.append(("unmasked", "rest", dataclasses.replace(SEARCH, completion="mixed_value")))


@pytest.mark.parametrize(("mode", "kind", "search"), PLANS)
def test_plan_is_the_plain_recursion(mode, kind, search):
    tree, planned = tree_of(mode, search), planned_of(mode, TargetConfig(policy=kind), search)
    for b, n in zip(*np.nonzero(tree.expanded_BN), strict=True):
        plain = Plain(tree, b, n, MODES[mode][0], search)
        close = functools.partial(np.testing.assert_allclose, atol=2e-5, rtol=1e-3)
        # Imitation of verified paths keeps the search's own mean as the node's value.
        own_mean = kind == "verified_paths"
        close(planned.value_BN[b, n], tree.value_BN[b, n] * plain.worth if own_mean else plain.value)
        close(planned.solved_BN[b, n], plain.solved)
        if own_mean:
            close(planned.policy_BNK1[b, n], plain.policy(tree, b, n, kind))
            continue
        close(planned.improved_BNK[b, n], plain.improved)
        close(planned.policy_BNK1[b, n], plain.policy(tree, b, n, kind))
    solved = set(planned.solved_BN[tree.expanded_BN])
    if search.discount == 1:
        assert solved == ({0.0} if mode == "value only" else {0.0, 1.0})
    else:  # One, two or three steps before the end.
        np.testing.assert_allclose(sorted({round(float(x), 4) for x in solved})[-3:], [0.49, 0.7, 1.0])


@pytest.mark.parametrize("mode", MODES)
def test_legal_share_lifts_legal_candidates_alone(mode):
    """Also those that the search may choose although they are illegal get nothing."""
    tree, verified = tree_of(mode), MODES[mode][0]
    sharp, mixed = planned_of(mode, TargetConfig()), planned_of(mode, TargetConfig(legal_share=0.2))
    lifted = 0
    for b, n in zip(*np.nonzero(tree.expanded_BN), strict=True):
        legal = [k for k in range(tree.q_BNK.shape[2]) if tree.written_BNK[b, n, k] and tree.legal_BNK[b, n, k]]
        expected = sharp.policy_BNK1[b, n].copy()
        if verified and legal and expected.any():
            expected *= 0.8
            expected[legal] += 0.2 / len(legal)
            lifted += 1
        np.testing.assert_allclose(mixed.policy_BNK1[b, n], expected, atol=1e-6)
        np.testing.assert_allclose(mixed.value_BN[b, n], sharp.value_BN[b, n], atol=1e-6)
    assert (lifted > 0) == verified


def paths(tree, b):
    """(prefix of steps as tuples of tokens) -> node, for every expanded node."""
    found = {}
    for n in np.flatnonzero(tree.expanded_BN[b]):
        steps, at = [], n
        while tree.parent_BN[b, at] >= 0:
            parent, action = tree.parent_BN[b, at], tree.action_BN[b, at]
            steps.append(tuple(map(int, tree.tokens_BNKL[b, parent, action][: tree.length_BNK[b, parent, action]])))
            at = parent
        found[tuple(reversed(steps))] = n
    assert len(found) == tree.expanded_BN[b].sum()
    return found


def rows_of(mode, config):
    tree, planned = tree_of(mode), planned_of(mode, config)
    return jax.device_get(jax.jit(targets.rows, static_argnums=3)(tree, planned, TASK.problems(SEEDS), config))


def each_node(mode, config):
    """(tree, planned, b, node, the row's fields of that node, by name without the M) of every row's valid nodes."""
    tree, planned, rows = tree_of(mode), planned_of(mode, config), rows_of(mode, config)
    for b in range(len(SEEDS)):
        row = jax.tree.map(lambda x, b=b: x[b], rows)
        problem, nodes = TASK.problem(SEEDS[b]), paths(tree, b)
        np.testing.assert_array_equal(row.prompt_P, problem.tokens_P)
        assert row.prompt_length == problem.length and row.valid and row.valid_M[0]
        assert (np.diff(row.valid_M.astype(int)) <= 0).all()
        steps = []
        for m in np.flatnonzero(row.valid_M):
            parent, action = row.parent_M[m], row.action_M[m]
            assert (parent, action) == (-1, -1) if m == 0 else 0 <= parent < m
            length = row.length_MK[parent, action]
            last = [tuple(map(int, row.tokens_MKL[parent, action][:length]))] if m else []
            steps.append((steps[parent] if m else []) + last)
            fields = {name.replace("_M", "_"): x[m] for name, x in vars(row).items() if "_M" in name}
            yield tree, planned, b, nodes[tuple(steps[m])], types.SimpleNamespace(**fields)


@pytest.mark.parametrize("mode", MODES)
def test_rows_hold_their_nodes(mode):
    config = TargetConfig(nodes_per_tree=12)
    seen, first = set(), {}
    for tree, planned, b, n, row in each_node(mode, config):
        assert (b, n) not in seen
        seen.add((b, n))
        first.setdefault(b, n)
        known = (tree.done_BNK[b, n] | ~tree.valid_BNK[b, n]).all()
        assert n == 0 or known or tree.visits_BN[b, n] >= config.min_visits
        for ours, theirs in [
            (row.tokens_KL, tree.tokens_BNKL), (row.length_K, tree.length_BNK), (row.written_K, tree.written_BNK),
            (row.policy_K1, planned.policy_BNK1), (row.log_prob_K, tree.log_prob_BNK), (row.value_, planned.value_BN),
        ]:  # fmt: skip
            np.testing.assert_array_equal(ours, theirs[b, n])
        # A dead end says that no candidate was legal, not that the position is lost.
        has_choice = tree.valid_BNK[b, n].any()
        assert row.value_weight_ == has_choice
        # What follows an illegal step is worth nothing and teaches no policy.
        lost = MODES[mode][0] and not chain_is_legal(tree, b, n)
        assert row.policy_weight_ == (has_choice and not lost) and (row.value_ == 0 or not lost)
        offset = np.where(tree.valid_BNK[b, n], tree.prior_logits_BNK[b, n] - tree.log_prob_BNK[b, n], 0.0)
        np.testing.assert_allclose(row.offset_K, offset, atol=1e-6)
    assert set(first.values()) == {0} and len(first) == len(SEEDS)  # the root always, and first.
    assert len(seen) > 5 * len(SEEDS) / 2


@pytest.mark.parametrize("mode", MODES)
def test_candidates_are_labelled_with_what_is_known(mode):
    kinds = dict.fromkeys(("searched", "reward", "illegal", "nothing"), 0)
    for tree, planned, b, n, row in each_node(mode, TargetConfig(nodes_per_tree=24)):
        for k in range(SEARCH.num_candidates):
            child = tree.children_BNK[b, n, k]
            if not tree.written_BNK[b, n, k]:
                kind, weight, value = "nothing", 0, None
            elif not tree.legal_BNK[b, n, k]:
                kind, weight, value = "illegal", 1, 0.0
            elif tree.done_BNK[b, n, k]:
                kind, weight, value = "reward", 1, tree.reward_BNK[b, n, k]
            elif child >= 0 and tree.expanded_BN[b, child]:
                kind, weight, value = "searched", 1, planned.value_BN[b, child]
            else:
                kind, weight, value = "nothing", 0, None
            kinds[kind] += 1
            assert row.value_weight_K[k] == weight, kind
            if weight:
                np.testing.assert_allclose(row.value_K[k], value, err_msg=kind)
    assert min(kinds.values()) > 5


def test_the_most_visited_nodes_are_taken():
    assert [n for *_, n, _ in each_node("masked", TargetConfig(nodes="root"))] == [0] * len(SEEDS)
    tree = tree_of("masked")
    taken = lambda num: {(b, n) for _, _, b, n, _ in each_node("masked", TargetConfig(nodes_per_tree=num))}
    everything, few = taken(24), taken(4)
    assert few < everything
    for b in range(len(SEEDS)):
        visits = lambda nodes, b=b: [tree.visits_BN[b, n] for at, n in nodes if at == b]
        assert len(visits(few)) == min(4, len(visits(everything)))
        assert min(visits(few)) >= max(visits(everything - few), default=0)


def test_a_verified_path_is_taken_whole():
    """However few visits its nodes have, and before all others."""
    seldom = 0
    for num in (3, 6, 24):
        config = TargetConfig(policy="verified_paths", nodes_per_tree=num)
        tree, planned = tree_of("masked"), planned_of("masked", config)
        taken = {(b, n) for *_, b, n, _ in each_node("masked", config)}
        led = {*zip(*np.nonzero(planned.policy_BNK1.any(-1) & tree.expanded_BN), strict=True)}
        for b in range(len(SEEDS)):
            of = lambda nodes, b=b: [n for at, n in nodes if at == b]
            assert len(of(led & taken)) == min(num, len(of(led)))
            seldom += sum(tree.visits_BN[b, n] < config.min_visits for n in of(led & taken))
    assert seldom > 0


def test_the_policy_may_be_left_alone_where_nothing_was_solved():
    weights = {True: 0, False: 0}
    for config in (TargetConfig(), TargetConfig(unsolved=False)):
        for _, planned, b, n, row in each_node("unmasked", config):
            solved = bool(planned.solved_BN[b, n] > 0)
            assert row.policy_weight_ == (row.policy_K1.any() and (config.unsolved or solved))
            weights[solved] += row.policy_weight_
    assert min(weights.values()) > len(SEEDS)


def test_fewer_candidates_keep_the_best_and_the_known_and_the_ways_through_them():
    config = TargetConfig(nodes_per_tree=24, candidates_per_node=2)
    lost = 0
    for tree, planned, b, n, row in each_node("masked", config):
        target = planned.policy_BNK1[b, n]
        assert len(row.length_K) == 2 and len(row.policy_K1) == 3
        np.testing.assert_allclose(row.policy_K1.sum(), target.sum(), atol=1e-5)
        order = np.argsort(-target[:-1], kind="stable")
        kept = {tuple(tokens[:length]) for tokens, length in zip(row.tokens_KL, row.length_K, strict=True) if length}
        if target[order[1]] > 0.02:  # more than the tie-breaks weigh.
            np.testing.assert_allclose(row.policy_K1[:2], target[order[:2]], atol=1e-6)
            assert tuple(tree.tokens_BNKL[b, n, order[0]][: tree.length_BNK[b, n, order[0]]]) in kept
        lost += sum(tree.written_BNK[b, n]) > 2
    assert lost > len(SEEDS)
    assert len(list(each_node("masked", config))) < len(list(each_node("masked", TargetConfig(nodes_per_tree=24))))


def test_a_tree_surprises_as_much_as_its_targets_differ_from_the_policy():
    config = TargetConfig(nodes_per_tree=6)
    rows, found = rows_of("masked", config), [[] for _ in SEEDS]
    for _, _, b, _, row in each_node("masked", config):
        if row.policy_weight_:
            actor = np.append(np.exp(row.log_prob_K), 1 - np.exp(row.log_prob_K)[row.written_K].sum())
            target = np.asarray(row.policy_K1, np.float64)
            found[b].append(sum(t * math.log(t / a) for t, a in zip(target, actor, strict=True) if t > 0))
    np.testing.assert_allclose(rows.surprise, [np.mean(each or [0]) for each in found], rtol=1e-3, atol=1e-4)
    assert sum(rows.surprise > 0) > len(SEEDS) / 2
