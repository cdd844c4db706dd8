"""Self-play and learning on any number of devices, and the random play of the warm start."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alphallm.models import LanguageModel, ModelConfig
from alphallm.search import SearchConfig
from alphallm.tasks import ArithmeticConfig, make_task
from alphallm.training import actor, learner, parallel, replay
from alphallm.training.config import Config, TrainingConfig
from alphallm.training.replay import Replay
from alphallm.training.steps import Steps, lane_keys, learning_rate, problem_order
from alphallm.training.targets import TargetConfig
from tests.search import tabular

LANES = 4
MODEL_CONFIG = ModelConfig(num_layers=1, width=16, num_heads=2, num_kv_heads=1, head_dim=8, hidden_dim=16)
CONFIG = Config(
    model=MODEL_CONFIG,
    search=SearchConfig(num_simulations=6, num_candidates=4, root_candidates=6, max_considered=4),
    targets=TargetConfig(nodes_per_tree=4, min_visits=1),
    training=TrainingConfig(
        learner_steps=2,
        trees_per_step=2,
        reanalyse_fraction=0.5,
        unmasked_fraction=0.5,
        problems_per_iteration=LANES,
        replay_capacity=4,
    ),
)
TASK = tabular.TabularTask()
MODEL = LanguageModel(MODEL_CONFIG, TASK.vocabulary_size)
PARAMS = MODEL.init(jax.random.key(0))
STEPS = Steps(MODEL, TASK, CONFIG)
LANE = jnp.arange(LANES)
STORED = Replay(rows=0, problem=0, added=None)  # which axes of a replay are lanes.


@functools.cache
def on(num_devices):
    """`self_play` and `learn` for `num_devices`, on whole arrays."""
    devices = jax.devices()[:num_devices]

    def split(tree, axes):
        shape = lambda x: x.reshape(num_devices, LANES // num_devices, *x.shape[1:])
        return jax.tree.map(lambda axis, x: x if axis is None else jax.tree.map(shape, x), axes, tree,
                            is_leaf=lambda x: x is None or isinstance(x, int))  # fmt: skip

    def run(function, *axes):
        mapped = jax.pmap(function, axis_name=learner.AXIS, in_axes=axes, devices=devices)
        return lambda *arguments: mapped(*(split(x, a) for x, a in zip(arguments, axes, strict=True)))

    whole = lambda tree: jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)
    first = lambda tree: jax.tree.map(lambda x: x[0], tree)
    play = run(STEPS._self_play, None, STORED, 0, 0, None)
    learn = run(STEPS._learn, None, STORED, 0, 0, 0, None)

    def self_play(*arguments):
        rows, problem, sums = play(*arguments)
        return *jax.device_get((whole(rows), whole(problem))), parallel.means(sums)

    def learn_once(*arguments):
        state, stored, metrics = learn(*arguments)
        return jax.device_get(
            (first(state), Replay(whole(stored.rows), whole(stored.problem), stored.added[0]), first(metrics))
        )

    return self_play, learn_once


def assert_close(one, other, atol=1e-5):
    def check(a, b):
        if np.issubdtype(np.asarray(a).dtype, np.floating):
            np.testing.assert_allclose(a, b, atol=atol, rtol=1e-4)
        else:
            np.testing.assert_array_equal(a, b)

    jax.tree.map(check, one, other)


class Iteration(NamedTuple):
    rows: Any
    problem: Any
    metrics: Any
    state: Any
    stored: Any
    losses: Any
    again: Any


@functools.cache
def iteration_on(num_devices):
    """Self-play, learning on it, and self-play with reanalysis: what each gives."""
    self_play, learn = on(num_devices)
    problems = TASK.problems(range(LANES))
    shapes = jax.eval_shape(
        lambda: actor.self_play(MODEL, TASK, CONFIG, PARAMS, problems, lane_keys(jax.random.key(0), LANE))
    )
    stored = replay.empty(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes[0]), problems, 4)
    rows, problem, metrics = self_play(PARAMS, stored, problems, LANE, jax.random.key(1))
    state = learner.init(CONFIG, PARAMS, learning_rate(CONFIG))
    state, stored, losses = learn(state, stored, rows, problem, LANE, jax.random.key(2))
    others = TASK.problems(range(10, 10 + LANES))
    again = self_play(PARAMS, stored, others, LANE, jax.random.key(3))
    return Iteration(rows, problem, metrics, state, stored, losses, again)


def test_rows_do_not_depend_on_the_number_of_devices():
    one, two = (iteration_on(n) for n in (1, 2))
    for rows, others in [(one.rows, two.rows), (one.stored.rows, two.stored.rows), (one.again[0], two.again[0])]:
        assert_close(without_padding(rows), without_padding(others))
    assert_close((one.problem, one.stored.problem, one.again[1]), (two.problem, two.stored.problem, two.again[1]))


def test_learning_does_not_depend_on_the_number_of_devices():
    one, two = (iteration_on(n) for n in (1, 2))
    assert_close((one.losses, one.metrics, one.state), (two.losses, two.metrics, two.state))


def without_padding(rows):
    """Rows with zeros where there is no node: what lies there weighs nothing."""
    valid_M = rows.valid_M

    def blank(x):
        if x.shape[: valid_M.ndim] != valid_M.shape:
            return x
        return np.where(valid_M.reshape(*valid_M.shape, *[1] * (x.ndim - valid_M.ndim)), x, np.zeros_like(x))

    return jax.tree.map(blank, rows)


def test_an_iteration_gives_rows_and_changes_the_parameters():
    rows, problem, metrics, state, stored, losses, again = iteration_on(1)
    np.testing.assert_array_equal(problem.index, range(LANES))  # nothing was stored to be searched again.
    assert rows.valid_M[:, 0].all() and stored.added == 1 and state.step == 2
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((metrics, losses)))
    assert 0 < metrics["search/expanded"] <= CONFIG.search.num_simulations + 1
    assert 0 < metrics["policy/root_mass_written"] <= 1
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), state.params, jax.device_get(PARAMS))
    assert max(jax.tree.leaves(moved)) > 0
    # Reanalysis: some lanes search what they had stored, the others what is new.
    indices = again[1].index
    for lane in range(LANES):
        assert indices[lane] in (lane, 10 + lane)
    assert {i < 10 for i in indices} == {True, False}


def test_a_drawn_tree_is_learnt_from_under_other_names():
    """As if its tokens had been the others all along; and as it is where nothing is augmented."""
    names_V = np.random.default_rng(0).permutation(TASK.vocabulary_size)

    class Renaming(tabular.TabularTask):
        def renaming(self, key):
            return jnp.asarray(names_V)

    def learn(task, config, rename):
        one = iteration_on(1)
        rows = dataclasses.replace(
            one.rows, prompt_P=rename(one.rows.prompt_P), tokens_MKL=rename(one.rows.tokens_MKL)
        )  # fmt: skip
        stored = replay.empty(rows, one.problem, 4)
        state = learner.init(config, PARAMS, learning_rate(config))
        step = jax.vmap(Steps(MODEL, task, config)._learn, (None, None, None, None, None, 0), axis_name=learner.AXIS)
        return jax.device_get(step(state, stored, rows, one.problem, LANE, jax.random.key(2)[None])[2])

    as_it_is, renamed = (lambda tokens: tokens), (lambda tokens: names_V[tokens])
    fixed = dataclasses.replace(CONFIG, training=dataclasses.replace(CONFIG.training, augment=False))
    plain, under_names = learn(TASK, CONFIG, as_it_is), learn(Renaming(), CONFIG, as_it_is)
    assert_close(under_names, learn(TASK, CONFIG, renamed))
    assert_close(learn(Renaming(), fixed, as_it_is), plain)
    assert abs(under_names["loss/policy"] - plain["loss/policy"]) > 1e-3


def test_unmasked_problems_teach_illegal_candidates():
    rows = iteration_on(1).rows
    assert ((rows.value_weight_MK > 0) & (rows.value_MK == 0)).any()


@pytest.mark.parametrize("name", ["game24", "countdown"])
def test_random_play_is_legal_and_its_outcome_true(name):
    task = make_task(ArithmeticConfig(name=name, num_numbers=4, max_target=24))
    problem = task.problem("2 3 4 6" if name == "game24" else "2 3 4 6 -> 24")
    chains = jax.device_get(jax.jit(jax.vmap(lambda k: actor.random_play(task, problem, k)))(tabular.keys(range(300))))
    step = jax.jit(task.step)
    rewards = []
    for tokens_DL, length_D, outcome in zip(chains.tokens_DL[:60], chains.length_D, chains.outcome, strict=False):
        state, reward = problem.state, 0.0
        for tokens, length in zip(tokens_DL, length_D, strict=True):
            assert length > 0
            verdict = step(state, tokens, length)
            assert verdict.legal
            state, reward = verdict.state, float(verdict.reward)
        assert verdict.done and reward == outcome
        rewards.append(reward)
    assert 0 < np.mean(chains.outcome) < 1
    firsts = {tuple(t) for t in chains.tokens_DL[:, 0]}
    assert len(firsts) >= 25  # of about 33 legal first steps.


def test_every_epoch_has_every_problem_once():
    order = np.concatenate([problem_order(CONFIG, i, np.zeros(10)) for i in range(5)])
    assert len(order) == 20
    for epoch in (order[:10], order[10:]):
        np.testing.assert_array_equal(np.sort(epoch), range(10))
    assert (order[:10] != order[10:]).any()


def test_a_curriculum_grows_from_the_shortest_problems_to_all():
    config = dataclasses.replace(CONFIG, training=dataclasses.replace(CONFIG.training, curriculum_iterations=4))
    lengths = np.array([6, 2, 4, 6, 2, 6, 4, 2, 4, 6, 6, 6])
    for iteration, posed in enumerate([LANES, 6, 9]):
        order = problem_order(config, iteration, lengths)
        assert len(set(order)) == len(order) == LANES  # none twice while there are enough.
        assert max(lengths[order]) <= sorted(lengths)[posed - 1]
    drawn = {i: sum(i in problem_order(replaced(config, seed), 2, lengths) for seed in range(100)) for i in range(12)}
    assert min(drawn[i] for i in np.argsort(lengths, kind="stable")[:9]) > 20
    after = [problem_order(config, i, lengths) for i in range(4, 8)]
    np.testing.assert_array_equal(after, [problem_order(CONFIG, i, lengths) for i in range(4, 8)])
    few = problem_order(config, 0, lengths[: LANES - 1])
    assert set(few) == set(range(LANES - 1)) and len(few) == LANES


def replaced(config: Config, seed: int) -> Config:
    return dataclasses.replace(config, seed=seed)
