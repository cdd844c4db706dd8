"""Properties of the compiled search that no reference is needed for."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import mctx
import numpy as np
import pytest
from mctx._src import seq_halving

from alphallm import decode
from alphallm.search import SearchConfig, best_answer, search, selection, tree_search

from . import tabular

SEEDS = list(range(8))
MODEL = tabular.TabularModel()
TASK = tabular.TabularTask(max_steps=4, done=0.15, illegal=0.1)
PARAMS = MODEL.init(0)
CONFIG = SearchConfig(num_simulations=24, num_candidates=5, max_considered=4)


def searched(seeds, verified, masked, **problem):
    return known(tabular.searched(MODEL, TASK, CONFIG, PARAMS, seeds, verified, masked, **problem))


def known(tree):
    """The tree without what lies in nodes that are none (where other problems of the batch ran the model)."""
    blank = lambda x: np.where(
        tree.expanded_BN.reshape(*tree.expanded_BN.shape, *[1] * (x.ndim - 2)), x, np.zeros_like(x)
    )
    names = ("gumbel", "log_prob", "length", "legal", "done", "reward")
    names = [f"{name}_BNK" for name in names] + ["tokens_BNKL"]
    return dataclasses.replace(tree, **{name: blank(getattr(tree, name)) for name in names})


def row(tree, b):
    return jax.tree.map(lambda x: x[b], tree)


def assert_equal(one, other, message=""):
    jax.tree.map(functools.partial(np.testing.assert_array_equal, err_msg=message), one, other)


def test_tree_does_not_depend_on_batch_position_or_padding():
    tree = searched(SEEDS, True, True)
    order = [5, 2, 7, 0, 1, 3, 6, 4]
    assert_equal(row(tree, np.array(order)), searched(order, True, True), "position")
    others = [5, 100, 101, 102, 103, 104, 105, 106]
    assert_equal(row(tree, 5), row(searched(others, True, True), 0), "other problems")
    assert_equal(row(tree, slice(3, 5)), searched(SEEDS[3:5], True, True, pad_to=9), "batch size and padding")


def test_tree_does_not_depend_on_number_of_devices():
    tree = searched(SEEDS, True, True)
    flags = [jnp.ones((2, 4), bool)] * 2
    arguments = jax.tree.map(lambda x: x.reshape(2, 4, *x.shape[1:]), (TASK.problems(SEEDS), tabular.keys(SEEDS)))
    mapped = jax.pmap(functools.partial(search, MODEL, TASK, CONFIG), in_axes=(None, 0, 0, 0, 0))
    two = jax.device_get(mapped(PARAMS, *arguments, *flags))
    assert_equal(tree, known(jax.tree.map(lambda x: x.reshape(8, *x.shape[2:]), two)))


@pytest.mark.parametrize("options", [{}, {"policy": "puct", "proposer": "iid"}], ids=["gumbel", "puct"])
def test_search_without_verifier_never_reads_rewards_or_legality(options):
    run = functools.partial(tabular.searched, MODEL, TASK, dataclasses.replace(CONFIG, **options), PARAMS, SEEDS)
    true, flipped = run(False, False), run(False, False, flip=True)
    for field in dataclasses.fields(true):
        if field.name not in ("reward_BNK", "legal_BNK", "legal_BN"):
            assert_equal(getattr(true, field.name), getattr(flipped, field.name), field.name)
    assert (true.legal_BNK != flipped.legal_BNK).any() and (true.reward_BNK != flipped.reward_BNK).any()
    one, other = best_answer(true, 4, 0), best_answer(flipped, 4, 0)
    assert_equal((one.tokens_BDL, one.value_B), (other.tokens_BDL, other.value_B))
    # A search that may look does.
    for verified, masked in [(True, False), (False, True)]:
        tree, other = run(verified, masked), run(verified, masked, flip=True)
        assert (tree.child_visits_BNK != other.child_visits_BNK).any()


@pytest.mark.parametrize("verified", [True, False])
@pytest.mark.parametrize("policy", ["gumbel", "puct"])
def test_stopping_early_does_not_change_the_answer(policy, verified):
    """Without the verifier the answer stays the same; with it, whether there is a solution."""
    task = tabular.TabularTask(max_steps=4, done=0.3, illegal=0.1, binary=True)
    config = dataclasses.replace(CONFIG, policy=policy, num_simulations=16, value_scale=0.05)
    run = lambda config: tabular.searched(MODEL, task, config, PARAMS, list(range(16)), verified, verified)
    full, early = run(config), run(dataclasses.replace(config, early_stop=True))
    scale = 1e4 if verified else config.answer_scale
    answers = [jax.device_get(best_answer(tree, 4, tabular.PAD, scale)) for tree in (full, early)]
    if verified:
        assert_equal(*[answer.value_B for answer in answers])
    else:
        assert_equal(*answers)
    saved = full.expanded_BN.sum(1) - early.expanded_BN.sum(1)
    assert (saved >= 0).all() and 0 < (saved > 0).sum() < 16


def test_a_search_that_commits_goes_on_below_its_step():
    config = dataclasses.replace(CONFIG, policy="puct", commit_every=8)
    committed = tabular.searched(MODEL, TASK, config, PARAMS, SEEDS, True, True)
    free = tabular.searched(MODEL, TASK, dataclasses.replace(config, commit_every=0), PARAMS, SEEDS, True, True)
    moved = 0
    for b in range(len(SEEDS)):
        nodes = np.flatnonzero(committed.expanded_BN[b])
        before, later = nodes[nodes <= 8], nodes[nodes > 8]
        np.testing.assert_array_equal(committed.tokens_BNKL[b, before], free.tokens_BNKL[b, before])
        below = {root_candidate(committed, b, n) for n in later}
        assert len(below) <= 1
        moved += len(below)
        for n in nodes[1:]:
            assert committed.children_BNK[b, committed.parent_BN[b, n], committed.action_BN[b, n]] == n
    assert moved > 4


@pytest.mark.parametrize("policy", ["gumbel", "puct"])
def test_no_simulation_is_spent_where_everything_is_known(policy):
    config = dataclasses.replace(CONFIG, policy=policy, num_simulations=16, num_candidates=8)
    tree = tabular.searched(MODEL, TASK, config, PARAMS, SEEDS, True, True)

    def has_open(b, n):
        candidates = zip(tree.valid_BNK[b, n] & ~tree.done_BNK[b, n], tree.children_BNK[b, n], strict=True)
        return any(choosable and (child < 0 or has_open(b, child)) for choosable, child in candidates)

    busy = 0
    for b in range(len(SEEDS)):
        for k, child in enumerate(tree.children_BNK[b, 0]):
            if child >= 0 and has_open(b, child):
                below = [n for n in range(17) if root_candidate(tree, b, n) == k]
                assert tree.expanded_BN[b, below].all()
                busy += len(below)
        if policy == "puct" and has_open(b, 0):
            assert tree.expanded_BN[b].all()
    assert busy > 30


def root_candidate(tree, b, n):
    """The root's candidate above node n, -1 for the root itself and for numbers that no node has."""
    action = -1
    while tree.parent_BN[b, n] >= 0:
        action, n = tree.action_BN[b, n], tree.parent_BN[b, n]
    return action


def test_terminal_batch_runs_no_model():
    def run(done):
        model = tabular.TabularModel(count=True)
        task = tabular.TabularTask(done=done, max_steps=2)
        config = dataclasses.replace(CONFIG, num_simulations=6)
        tree = tabular.searched(model, task, config, PARAMS, SEEDS[:2], True, True)
        jax.effects_barrier()
        return model.calls, int(np.sum(tree.expanded_BN[:, 1:].any(0)))

    at_root = 1 + 2  # the prompt's prefill, and the tokens of the steps proposed.
    assert run(done=1.0) == (at_root, 0)
    calls, expansions = run(done=0.0)
    assert 0 < expansions < 6  # so few that the last simulations have nothing to do either.
    assert calls == at_root + 3 * expansions


def optimum(task, state):
    """The best reward that any chain of listed, legal steps can reach, and that of each first step."""
    worth = []
    for tokens in task.listed_AL:
        length = 1 + int(np.sum(tokens > tabular.END))
        after, reward, done, legal = task.plain_step(state, tokens, length)
        worth.append(-1.0 if not legal else reward if done else optimum(task, after)[0])
    return max(0.0, *worth), worth


def test_chosen_path_converges_to_the_optimum():
    task = tabular.TabularTask(seed=1, max_steps=4, done=0.1)
    exact = [optimum(task, task.problem(seed).state) for seed in range(16)]
    best = np.array([b for b, _ in exact])
    shortfall, regret = {}, {}
    for simulations in (8, 512):
        config = SearchConfig(num_simulations=simulations, proposer="listed", value_scale=0.5, visit_offset=10.0)
        tree = tabular.searched(MODEL, task, config, PARAMS, list(range(16)), True, True)
        answer = best_answer(tree, task.max_steps, tabular.PAD)
        shortfall[simulations] = np.mean(best - answer.value_B)
        chosen = [worth[action] for (_, worth), action in zip(exact, tree.root_action_B, strict=True)]
        regret[simulations] = np.mean(best - np.array(chosen))
    np.testing.assert_allclose(shortfall[512], 0.0, atol=1e-6)
    assert shortfall[8] > 0.02
    assert regret[512] < 0.5 * regret[8]


def test_sequential_halving_takes_turns_as_mctx_does():
    for num_simulations in (1, 7, 16, 32, 100):
        theirs = seq_halving.get_table_of_considered_visits(16, num_simulations)
        assert [tuple(selection._halving_turns(num, num_simulations)) for num in range(17)] == [*theirs]


def test_interior_selection_is_that_of_mctx_where_all_is_open():
    rng = np.random.default_rng(0)
    config = SearchConfig(completion="mixed_value", value_scale=0.3, visit_offset=20.0)
    chosen = set()
    for _ in range(50):
        nodes, k = 3, 6
        visits = rng.integers(0, 4, (nodes, k)) * (rng.random((nodes, k)) < 0.6)
        array = lambda *shape: jnp.asarray(rng.random(shape), jnp.float32)
        node = types.SimpleNamespace(
            open_BK=jnp.ones((nodes, k), bool), valid_BK=jnp.ones((nodes, k), bool),
            done_BK=jnp.zeros((nodes, k), bool), child_value_BK=array(nodes, k), raw_value_B=array(nodes),
        )  # fmt: skip
        tree = mctx.Tree(
            node_visits=jnp.sum(jnp.asarray(visits), -1), raw_values=node.raw_value_B, node_values=array(nodes),
            parents=None, action_from_parent=None, children_index=None, children_prior_logits=3 * array(nodes, k),
            children_visits=jnp.asarray(visits, jnp.int32), children_rewards=jnp.zeros((nodes, k)),
            children_discounts=jnp.ones((nodes, k)), children_values=array(nodes, k), embeddings=node,
            root_invalid_actions=None, extra_data=None,
        )  # fmt: skip
        ours = selection.interior_action_selection(config)(None, tree, 1, 1)
        transform = functools.partial(
            mctx.qtransform_completed_by_mix_value, value_scale=0.3, maxvisit_init=20.0, rescale_values=False
        )
        theirs = mctx.gumbel_muzero_interior_action_selection(None, tree, jnp.int32(1), 1, qtransform=transform)
        np.testing.assert_allclose(selection.scaled_q(tree, 1, config), transform(tree, jnp.int32(1)), rtol=1e-5)
        assert ours == theirs
        chosen.add(int(ours))
    assert len(chosen) == k


@pytest.mark.parametrize("verified", [True, False])
def test_best_answer_is_the_best_finished_chain(verified):
    tree = searched(SEEDS, verified, True)
    answer = jax.device_get(best_answer(tree, TASK.max_steps, tabular.PAD))
    finished = tree.expanded_BN[..., None] & tree.valid_BNK & tree.done_BNK
    np.testing.assert_array_equal(answer.found_B, finished.any((1, 2)))
    assert answer.found_B.sum() >= 5
    for b in np.flatnonzero(answer.found_B):
        np.testing.assert_allclose(answer.value_B[b], tree.child_value_BNK[b][finished[b]].max(), atol=1e-5)
        state, node = TASK.problem(SEEDS[b]).state, 0
        depth = int(np.sum(answer.length_BD[b] > 0))
        for d in range(depth):
            assert answer.node_BD[b, d] == node
            action = answer.action_BD[b, d]
            np.testing.assert_array_equal(answer.tokens_BDL[b, d], tree.tokens_BNKL[b, node, action])
            state, reward, done, legal = TASK.plain_step(state, answer.tokens_BDL[b, d], answer.length_BD[b, d])
            assert legal and done == (d == depth - 1)
            node = tree.children_BNK[b, node, action]
        np.testing.assert_allclose(answer.reward_B[b], reward)
        if verified:
            assert answer.value_B[b] == answer.reward_B[b]
        assert (answer.node_BD[b, depth:] == -1).all() and (answer.tokens_BDL[b, depth:] == tabular.PAD).all()


def test_the_policy_has_a_say_in_the_best_answer():
    tree, scale = searched(SEEDS, False, False), 3.0
    plain = jax.device_get(best_answer(tree, TASK.max_steps, tabular.PAD))
    answer = jax.device_get(best_answer(tree, TASK.max_steps, tabular.PAD, np.full(len(SEEDS), scale, np.float32)))

    def log_prob(b, n, k):
        above = tree.parent_BN[b, n]
        return tree.log_prob_BNK[b, n, k] + (log_prob(b, above, tree.action_BN[b, n]) if above >= 0 else 0.0)

    differs = 0
    for b in range(len(SEEDS)):
        finished = np.argwhere(tree.expanded_BN[b][:, None] & tree.valid_BNK[b] & tree.done_BNK[b])
        n, k = max(finished, key=lambda at: log_prob(b, *at) + scale * tree.child_value_BNK[b, at[0], at[1]])
        last = int(np.sum(answer.length_BD[b] > 0)) - 1
        assert (answer.node_BD[b, last], answer.action_BD[b, last]) == (n, k)
        assert answer.value_B[b] == tree.child_value_BNK[b, n, k] <= plain.value_B[b]
        differs += answer.value_B[b] < plain.value_B[b]
    assert 2 < differs


def test_a_nodes_value_is_its_candidates_mean_however_small_their_prior():
    # All of the prior's mass but exp(-120) lies on a candidate that may not be chosen.
    logits = jnp.where(jnp.array([[True, False, False]]), decode.LOG_ZERO, jnp.array([[0.0, -120.0, -120.0]]))
    node = types.SimpleNamespace(
        candidates=types.SimpleNamespace(prior_logits_BK=logits), valid_BK=jnp.array([[False, True, True]]),
        child_value_BK=jnp.array([[0.0, 0.2, 0.6]]), done_BK=jnp.zeros((1, 3), bool), reward_BK=jnp.zeros((1, 3)),
        raw_value_B=jnp.array([0.9]),
    )  # fmt: skip
    expander = types.SimpleNamespace(config=SearchConfig(backup="children"), verified_B=jnp.array([True]))
    np.testing.assert_allclose(tree_search._Expander.backed_up_value(expander, node), [0.4], rtol=1e-6)
