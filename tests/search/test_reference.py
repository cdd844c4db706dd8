"""The compiled search against the plain-Python one, on tables."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from alphallm.search import SearchConfig

from . import tabular
from .reference import Reference

SEEDS = range(8)
MODEL = tabular.TabularModel()
TASK = tabular.TabularTask(max_steps=4, done=0.15, illegal=0.1)
PARAMS = MODEL.init(0)


def assert_same(tree, b, reference):
    """Visit counts, values, completed Q, candidates, topology, and the final choice."""
    for n, node in enumerate(reference.nodes):
        if node is None or node.known is not None:
            assert not tree.expanded_BN[b, n]
            continue
        candidates = node.candidates
        assert tree.expanded_BN[b, n]
        assert tree.depth_BN[b, n] == node.depth
        equal, num = np.testing.assert_array_equal, len(candidates)
        equal(tree.tokens_BNKL[b, n, :num], [c.tokens for c in candidates])
        equal(tree.valid_BNK[b, n, :num], [c.valid for c in candidates])
        equal(tree.child_visits_BNK[b, n, :num], [c.visits for c in candidates], f"node {n}")
        equal(tree.children_BNK[b, n, :num], [c.child.index if c.child else -1 for c in candidates])
        # Where the root has more candidates than another node, the rest are none.
        assert not (tree.valid_BNK | tree.written_BNK | (tree.child_visits_BNK > 0))[b, n, num:].any()
        assert tree.visits_BN[b, n] == node.visits
        close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
        close(tree.value_BN[b, n], node.value)
        close(tree.raw_value_BN[b, n], node.raw_value)
        close(tree.completed_q_BNK[b, n, :num], reference.completed(node))
    assert tree.root_action_B[b] == reference.final_action()


BASE = SearchConfig(num_simulations=24, num_candidates=5, max_considered=4, value_scale=0.1)
# Each value of each option, each proposer with both policies.
VARIANTS = {
    "default": {},
    "value backup": {"backup": "value", "completion": "mixed_value", "value_scale": 0.5},
    "unlikely steps left out": {"min_p": 0.3},
    "a wide root": {"root_candidates": 9},
    "iid": {"proposer": "iid", "temperature": 1.5, "backup": "children"},
    "listed": {"proposer": "listed", "completion": "mixed_value"},
    "discount": {"discount": 0.8, "value_scale": 0.3},
    "a listed root": {"root_proposer": "listed", "num_candidates": 3},
    "a listed root, narrower": {"root_proposer": "listed", "num_candidates": 6},
}
CASES = [(policy, name, options) for policy in ("gumbel", "puct") for name, options in VARIANTS.items()]
CASES += [("depth_first", name, VARIANTS[name] | {"prune": prune}) for name, prune in (("default", 0.0), ("iid", 0.4))]
CASES += [("puct", f"commit {name}", VARIANTS[name] | {"commit_every": 7}) for name in ("a wide root", "value backup")]
CASES.append(("puct", "rollout", {"rollout": True}))
CASES += [
    ("puct", f"discount, {name}", VARIANTS["discount"] | {name: value})
    for name, value in (("rollout", True), ("commit_every", 7))
]
CASES += [("uct", name, {"values": "likelihood", "rollout": name == "rap"}) for name in ("plain", "rap")]
CASES.append(("gumbel", "wide, iid", VARIANTS["iid"] | {"root_candidates": 12}))
CASES.append(("gumbel", "policy as prior", {"prior": "policy", "backup": "children", "completion": "mixed_value"}))


@pytest.mark.parametrize(("policy", "name", "options"), CASES, ids=[f"{c[0]} {c[1]}" for c in CASES])
def test_equals_reference(policy, name, options):
    config = dataclasses.replace(BASE, policy=policy, **options)
    moves = set()
    for verified, masked in [(True, True), (False, False)]:
        tree = tabular.searched(MODEL, TASK, config, PARAMS, SEEDS, verified, masked)
        for b, seed in enumerate(SEEDS):
            problem, key = TASK.problem(seed), jax.random.key(seed)
            reference = Reference(MODEL, TASK, config, PARAMS, problem, key, verified, masked)
            assert_same(tree, b, reference)
            moves.add(reference.moves)
    assert max(moves) > 1 if config.commit_every else moves == {0}
