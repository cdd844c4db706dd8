"""The finished answers that a strategy holds, and which of them it gives.

Axis letter beside those of `alphallm.types`: `J` chains of a problem. A chain that is not finished keeps its place and
is never chosen while there is a finished one.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from alphallm.search import CERTAIN, Tree
from alphallm.types import pytree


@pytree
class Chains:
    """J chains of each problem."""

    tokens_BJDL: jax.Array  # int32, padded.
    length_BJD: jax.Array  # int32: tokens of each step, 0 past the last.
    finished_BJ: jax.Array  # bool: the answer is complete, right or wrong.
    log_prob_BJ: jax.Array  # float32: the policy's, a sum over tokens.
    value_BJ: jax.Array  # float32 in [0, 1]: the value head's reading at the last token, or in a tree the candidate's.


@pytree
class Solutions:
    """What a strategy chooses from, with what it may know of each chain."""

    chains: Chains
    allowed_BJ: jax.Array  # bool: finished, and in verified mode legal.
    value_BJ: jax.Array  # float32: the reward in verified mode, else the value head's reading.
    visits_BJD: jax.Array  # int32: how often a search went through the node after each step; 0 where there is none.


@pytree
class Spend:
    """What was spent on each problem."""

    tokens_B: jax.Array  # int32: tokens of all steps written, not only the answer's.
    expansions_B: jax.Array  # int32: partial answers that the model continued.
    positions_B: jax.Array  # int32: tokens run through the model: prompt, proposals, appended steps; padding left out.
    calls_B: jax.Array  # int32: model calls one after another; what runs side by side is one call.


# (solutions, scale) -> the place [B] of the chain that is the answer.
Rule = Callable[[Solutions, jax.Array], jax.Array]


def best(solutions: Solutions, scale) -> jax.Array:
    """The mode of the improved policy: the largest log pi(chain) + scale * value.

    In verified mode the scale is `CERTAIN`, and a solution found is the answer, the likeliest one of several.
    """
    return _argmax(solutions, solutions.chains.log_prob_BJ + scale * solutions.value_BJ)


def largest_value(solutions: Solutions, scale) -> jax.Array:
    """The largest value; the likelier of two that are equal."""
    del scale
    return _argmax(solutions, CERTAIN * solutions.value_BJ + 1e-3 * solutions.chains.log_prob_BJ)


def majority(solutions: Solutions, scale) -> jax.Array:
    """The commonest answer (self-consistency, Wang et al. 2022): chains agree whose last steps are equal.

    Of the chains that give it, and of answers with as many votes, the likeliest one.
    """
    del scale
    return _voted(solutions, jnp.ones_like(solutions.value_BJ))


def weighted_majority(solutions: Solutions, scale) -> jax.Array:
    """The same with the value of each chain, as the value head reads it, for its vote."""
    del scale
    return _voted(solutions, solutions.chains.value_BJ)


def most_visited(solutions: Solutions, scale) -> jax.Array:
    """The way to an answer that takes, from the root on, the step of most simulations; the last one as in `best`.

    Chains that were not searched for all count as unvisited.
    """
    allowed_BJ = solutions.allowed_BJ
    for visits_BJ in jnp.moveaxis(solutions.visits_BJD, -1, 0):
        seen_BJ = jnp.where(allowed_BJ, visits_BJ, -1)
        allowed_BJ &= seen_BJ == jnp.max(seen_BJ, -1, keepdims=True)
    score_BJ = solutions.chains.log_prob_BJ + scale * solutions.value_BJ
    return jnp.argmax(jnp.where(allowed_BJ, score_BJ, -jnp.inf), -1)


# By name, and in the order of `strategies.Switches.rule`.
RULES: dict[str, Rule] = {
    "best": best,
    "value": largest_value,
    "majority": majority,
    "weighted": weighted_majority,
    "visited": most_visited,
}


def _argmax(solutions: Solutions, score_BJ) -> jax.Array:
    return jnp.argmax(jnp.where(solutions.allowed_BJ, score_BJ, -jnp.inf), -1)


def _voted(solutions: Solutions, vote_BJ) -> jax.Array:
    chains = solutions.chains
    last_B = jnp.maximum(jnp.sum(chains.length_BJD > 0, -1) - 1, 0)
    last_BJL = jnp.take_along_axis(chains.tokens_BJDL, last_B[..., None, None], 2)[:, :, 0]

    def one(last_JL, allowed_J, vote_J):
        # Equal answers lie side by side once sorted; what is not allowed comes last.
        order_J = jnp.lexsort((*last_JL.T[::-1], ~allowed_J))
        key_JL = jnp.where(allowed_J[:, None], last_JL, -1)[order_J]
        starts_J = jnp.any(key_JL != jnp.roll(key_JL, 1, 0), -1).at[0].set(True)
        group_J = jnp.cumsum(starts_J) - 1
        votes_J = jax.ops.segment_sum(jnp.where(allowed_J, vote_J, 0.0)[order_J], group_J, len(order_J))
        return jnp.zeros_like(vote_J).at[order_J].set(votes_J[group_J])

    votes_BJ = jnp.where(solutions.allowed_BJ, jax.vmap(one)(last_BJL, solutions.allowed_BJ, vote_BJ), -1.0)
    most_BJ = votes_BJ == jnp.max(votes_BJ, -1, keepdims=True)
    return jnp.argmax(jnp.where(most_BJ & solutions.allowed_BJ, chains.log_prob_BJ, -jnp.inf), -1)


def of_tree(tree: Tree, max_steps: int, pad: int) -> tuple[Chains, jax.Array]:
    """Every way from the root to a candidate of the tree, `J = N * K`, and its visits [B, J, D].

    Those that end in a candidate that completes the answer are finished. The value is the candidate's own.
    """
    batch, num_nodes, num = tree.child_value_BNK.shape
    row = jnp.arange(batch)[:, None, None]
    level_D = jnp.arange(max_steps)[None, None]
    depth_BN = tree.depth_BN
    # The node after each step on the way to node n, and the node that the step was taken from.
    missing = ((0, 0), (0, 0), (0, max_steps - tree.path_BND.shape[-1]))
    after_BND = jnp.where(level_D < depth_BN[..., None], jnp.pad(tree.path_BND, missing), 0)
    from_BND = jnp.maximum(tree.parent_BN[row, after_BND], 0)
    action_BND = jnp.maximum(tree.action_BN[row, after_BND], 0)
    on_way_BNKD = jnp.broadcast_to((level_D < depth_BN[..., None])[:, :, None], (batch, num_nodes, num, max_steps))
    is_last_BNKD = jnp.broadcast_to((level_D == depth_BN[..., None])[:, :, None], on_way_BNKD.shape)

    def along(per_candidate, nothing):
        """`per_candidate` [B, N, K, ...] at each step of each way: [B, N, K, D, ...]."""
        rest = (1,) * (per_candidate.ndim - 3)
        before = per_candidate[row, from_BND, action_BND][:, :, None]
        on_way, is_last = (x.reshape(*x.shape, *rest) for x in (on_way_BNKD, is_last_BNKD))
        return jnp.where(is_last, per_candidate[:, :, :, None], jnp.where(on_way, before, nothing))

    visits_BNKD = jnp.where(on_way_BNKD, tree.visits_BN[row, after_BND][:, :, None], 0)
    chains = Chains(
        tokens_BJDL=along(tree.tokens_BNKL, pad),
        length_BJD=along(tree.length_BNK, 0),
        finished_BJ=tree.expanded_BN[..., None] & tree.valid_BNK & tree.done_BNK,
        log_prob_BJ=tree.path_log_prob_BN[..., None] + tree.log_prob_BNK,
        value_BJ=tree.child_value_BNK,
    )
    flat = lambda x: x.reshape(batch, num_nodes * num, *x.shape[3:])
    return jax.tree.map(flat, chains), flat(visits_BNKD)


def pass_at_k(right_BJ: jax.Array, k: int) -> jax.Array:
    """The chance [B] that one of `k` chains is right, estimated from J >= k of them without bias.

    1 - C(J - c, k) / C(J, k) with c right ones (Chen et al. 2021, equation 1), as a product of k ratios.
    """
    num = right_BJ.shape[-1]
    wrong_B = num - jnp.sum(right_BJ, -1)
    drawn = jnp.arange(k)[None]
    misses = (wrong_B[:, None] - drawn) / (num - drawn)
    return 1.0 - jnp.prod(jnp.maximum(misses, 0.0), -1)
