"""The compiled functions of the loop: warm start, self-play and learning, each for one device under the axis "data".

All randomness is `fold_in(fold_in(root key, what), iteration)` and then the lane, a problem's place in the batch.
So a resumed run draws what an unbroken one would have drawn, on any number of devices.
"""

import dataclasses
import functools
import math
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from alphallm.models import LanguageModel
from alphallm.training import actor, learner, parallel, replay
from alphallm.training.config import Config
from alphallm.training.learner import AXIS, Learner, Packed
from alphallm.training.replay import Replay
from alphallm.training.targets import Row
from alphallm.types import Problem

# What a key is for. Never reuse a number: old runs must stay repeatable.
INIT, WARM_START, SELF_PLAY, LEARN, ORDER, EVALUATE, CURRICULUM = range(7)

WARM_STEPS_PER_CALL = 20  # optimizer steps of the warm start in one compiled call.


def key_for(config: Config, purpose: int, iteration: int) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), purpose), iteration)


def lane_keys(key: jax.Array, lane_B: jax.Array) -> jax.Array:
    return jax.vmap(lambda lane: jax.random.fold_in(key, lane))(lane_B)


def learning_rate(config: Config) -> optax.Schedule:
    """The learning rate along a whole run's optimizer steps."""
    warm = 0 if config.warm_start.data == "none" else config.warm_start.num_steps
    rest, optimizer = config.training.num_iterations * config.training.learner_steps, config.optimizer

    def rise_and_fall(peak: float, steps: int) -> optax.Schedule:
        steps = max(steps, optimizer.warmup_steps + 1)
        return optax.warmup_cosine_decay_schedule(
            0.0, peak, optimizer.warmup_steps, steps, peak * optimizer.final_fraction
        )

    if not optimizer.self_play_learning_rate:
        return rise_and_fall(optimizer.learning_rate, warm + rest)
    of_each = rise_and_fall(optimizer.learning_rate, warm), rise_and_fall(optimizer.self_play_learning_rate, rest)
    return optax.join_schedules(of_each, [warm])


def problem_order(config: Config, iteration: int, length_N: np.ndarray) -> np.ndarray:
    """Indices of an iteration's problems: epoch after epoch, each shuffled anew, without gaps between epochs.

    `length_N` is how many steps each problem needs. Of a curriculum's i-th iteration of C the problems are drawn from
    the shortest i / C of all, but from a batch at least.
    """
    batch, grows_over = config.training.problems_per_iteration, config.training.curriculum_iterations
    num_problems = len(length_N)
    if iteration < grows_over:
        posed = max(batch, math.ceil(num_problems * (iteration + 1) / grows_over))
        shortest = np.argsort(length_N, kind="stable")[:posed]
        shuffled = np.random.default_rng([config.seed, CURRICULUM, iteration]).permutation(shortest)
        return np.resize(shuffled, batch)
    places = np.arange(iteration * batch, (iteration + 1) * batch)
    order = np.empty(batch, np.int64)
    for epoch in np.unique(places // num_problems):
        here = places // num_problems == epoch
        shuffled = np.random.default_rng([config.seed, ORDER, int(epoch)]).permutation(num_problems)
        order[here] = shuffled[places[here] % num_problems]
    return order


_Drawn = TypeVar("_Drawn", Row, Packed)


class Steps:
    """The loop's three compiled functions; every argument and result has a leading device axis."""

    def __init__(self, model: LanguageModel, task, config: Config):
        self.model, self.task, self.config = model, task, config
        lanes, trees = config.training.problems_per_iteration, config.training.trees_per_step
        self._draws, self._turns = max(1, trees // lanes), max(1, lanes // trees)
        self.warm_start = parallel.pmap(self._warm_start, donate=(0,))
        self.self_play = parallel.pmap(self._self_play)
        self.learn = parallel.pmap(self._learn, donate=(0, 1))

    def _warm_start(self, state: Learner, source, lane_B, key):
        """`WARM_STEPS_PER_CALL` optimizer steps on demonstrations.

        `source` holds all training problems (random play) or all packed solutions, the same on each device.
        """
        config = self.config

        def step(state, i):
            keys = lane_keys(jax.random.fold_in(key, i), lane_B)
            size = jax.tree.leaves(source)[0].shape[0]
            index = jax.vmap(lambda k: jax.random.randint(k, (), 0, size))(keys)
            chosen = jax.tree.map(lambda x: x[index], source)
            weight, discount = config.training.value_weight, config.search.discount
            if isinstance(source, Packed):
                chosen = self._renamed(chosen, keys, "tokens_T")
                loss = lambda p, part: learner.packed_loss(self.model, p, part, weight, discount, AXIS)
            else:
                chosen = self._augment(chosen, keys)
                chosen = jax.vmap(functools.partial(actor.random_play, self.task))(chosen, keys)
                loss = lambda p, part: learner.chain_loss(self.model, p, part, weight, discount, AXIS)
            return learner.update(state, config.optimizer, learning_rate(config), loss, chosen)

        state, metrics = lax.scan(step, state, jnp.arange(WARM_STEPS_PER_CALL))
        return state, jax.tree.map(lambda x: x[-1], metrics)

    def _augment(self, problem: Problem, key_B) -> Problem:
        if not self.config.training.augment:
            return problem
        return jax.vmap(lambda p, k: self.task.augment(p, jax.random.fold_in(k, 2**24)))(problem, key_B)

    def _renamed(self, drawn: _Drawn, key_R, *fields: str) -> _Drawn:
        """What was drawn [R], each under other names, so that it does not read the same when it is drawn again."""
        if not self.config.training.augment:
            return drawn
        new_RV = jax.vmap(lambda key: self.task.renaming(jax.random.fold_in(key, 2**24)))(key_R)
        rename = jax.vmap(lambda new_V, tokens: new_V[tokens])
        return dataclasses.replace(drawn, **{name: rename(new_RV, getattr(drawn, name)) for name in fields})

    def _self_play(self, params, stored: Replay, problem: Problem, lane_B, key):
        """Searches one problem a lane; some are taken from the replay again, with today's parameters."""
        keys = lane_keys(key, lane_B)
        fraction = self.config.training.reanalyse_fraction
        if fraction > 0:
            again = jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, 2**23)))(keys) < fraction
            again &= stored.added > 0
            old = replay.draw_problems(stored, jax.vmap(lambda k: jax.random.fold_in(k, 2**23 + 1))(keys))
            problem = jax.tree.map(
                lambda new, o: jnp.where(again.reshape((-1,) + (1,) * (new.ndim - 1)), o, new), problem, old
            )
        problem = self._augment(problem, keys)
        rows, metrics = actor.self_play(self.model, self.task, self.config, params, problem, keys)
        return rows, problem, metrics

    def _turn(self, of_lanes, step):
        """Of arrays [B, ...] the lanes whose turn it is: the same ones on any number of devices that divides theirs."""
        pick = lambda x: x.reshape(-1, self._turns, *x.shape[1:])[:, step % self._turns]
        return jax.tree.map(pick, of_lanes)

    def _learn(self, state: Learner, stored: Replay, rows, problem: Problem, lane_B, key):
        """Stores the rows, then takes the iteration's optimizer steps."""
        config = self.config
        stored = replay.add(stored, rows, problem)

        def step(state, i):
            keys = lane_keys(jax.random.fold_in(key, i), lane_B)
            drawn_from, keys = self._turn((stored.rows, keys), i)
            batch, age = replay.sample(
                dataclasses.replace(stored, rows=drawn_from), keys, self._draws, config.training.surprise_fraction
            )
            apart = jax.vmap(lambda k: jax.random.split(k, self._draws))(keys).reshape(-1)
            batch = self._renamed(batch, apart, "prompt_P", "tokens_MKL")
            loss = lambda p, part: learner.row_loss(self.model, p, part, config, AXIS, self.task.tool)
            state, metrics = learner.update(state, config.optimizer, learning_rate(config), loss, batch)
            return state, {**metrics, "replay/age": lax.pmean(jnp.mean(age.astype(jnp.float32)), AXIS)}

        state, metrics = lax.scan(step, state, jnp.arange(config.training.learner_steps))
        return state, stored, jax.tree.map(jnp.mean, metrics)
