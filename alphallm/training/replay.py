"""The replay: one lane of trees for each problem of an iteration's batch, in device memory.

Every lane is a ring buffer, written by its problem and sampled from alone. A tree's place then depends on its problem's
place in the global batch, not on how many devices share it, so the learner sees the same rows on any number of devices.
"""

import jax
import jax.numpy as jnp
from jax import lax

from alphallm.training.targets import Row
from alphallm.types import Problem, pytree


@pytree
class Replay:
    """The rows of B lanes, a row for each searched tree."""

    rows: Row  # leaves [B, capacity, ...]
    problem: Problem  # leaves [B, capacity, ...]: what was searched, for reanalysis.
    added: jax.Array  # int32 []: how often every lane was written to.


def empty(row: Row, problem: Problem, capacity: int) -> Replay:
    """A replay for rows [B, ...] of problems [B, ...], with room for `capacity` of them in a lane."""
    rows, problems = jax.tree.map(lambda x: jnp.zeros((x.shape[0], capacity, *x.shape[1:]), x.dtype), (row, problem))
    return Replay(rows, problems, jnp.int32(0))


def add(replay: Replay, row: Row, problem: Problem) -> Replay:
    """Writes the rows [B, ...] of one searched batch over the oldest ones."""
    slot = replay.added % replay.rows.valid.shape[1]
    rows, problems = jax.tree.map(
        lambda all_, new: lax.dynamic_update_slice_in_dim(all_, new[:, None], slot, 1),
        (replay.rows, replay.problem), (row, problem),
    )  # fmt: skip
    return Replay(rows, problems, replay.added + 1)


@jax.named_scope("replay")
def sample(replay: Replay, key_B: jax.Array, num: int, by_surprise: float = 0.0) -> tuple[Row, jax.Array]:
    """Draws `num` valid rows of each lane, with replacement: leaves [B * num, ...], and their ages [B * num].

    A share `by_surprise` of the draws is in proportion to the rows' surprise, the others are uniform (policy surprise
    weighting, Wu 2019 and KataGo's notes on it). An age is the number of batches written since. A lane without a valid
    row gives rows with `valid` False.
    """

    valid = replay.rows.valid
    weight = valid / jnp.maximum(jnp.sum(valid, -1, keepdims=True), 1)
    if by_surprise > 0:
        surprise = jnp.where(valid, replay.rows.surprise, 0.0)
        total = jnp.sum(surprise, -1, keepdims=True)
        weight += by_surprise * (jnp.where(total > 0, surprise / total, weight) - weight)
    index = jax.vmap(lambda key, w: jax.random.categorical(key, jnp.log(w), shape=(num,)))(key_B, weight)
    rows = jax.tree.map(lambda x: jax.vmap(lambda lane, i: lane[i])(x, index), replay.rows)
    age = (replay.added - 1 - index) % valid.shape[1]
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows), age.reshape(-1)


def draw_problems(replay: Replay, key_B: jax.Array) -> Problem:
    """One of each lane's stored problems [B, ...]; before the first `add`, an all-zero one."""
    slots = replay.problem.index.shape[1]
    stored = jnp.minimum(replay.added, slots)
    index = jax.vmap(lambda k: jax.random.randint(k, (), 0, jnp.maximum(stored, 1)))(key_B)
    return jax.tree.map(lambda x: jax.vmap(lambda lane, i: lane[i])(x, index), replay.problem)
