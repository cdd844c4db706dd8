"""What happens to mctx's tree between two simulations, beside what mctx itself does to it.

    close_exhausted   nothing below a candidate is open any more: the search does not return to it
    settled           nothing that is open could still become the answer: the search may stop
    roll_on           a rollout goes on from the new node, and nothing is backed up before its end
    reroot, unroot    the search goes on below one of the root's children, and back again

The trees' embeddings are the nodes of `alphallm.search.tree_search`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from alphallm.search.tree import SearchConfig
from alphallm.types import pytree


def close_exhausted(tree, node_index, max_steps: int):
    """Closes a candidate whose node has no open candidate, and so on up to the root.

    What lies below a closed candidate is known exactly (every end of it was verified or read), so the selection inside
    the tree does not return to it.
    """
    row = jnp.arange(tree.node_values.shape[0])
    open_BNK = tree.embeddings.open_BK
    node_B = jnp.full_like(row, node_index)
    for _ in range(max_steps):
        parent_B, action_B = tree.parents[row, node_B], tree.action_from_parent[row, node_B]
        closes = ~jnp.any(open_BNK[row, node_B], -1) & (parent_B >= 0)
        parent_B = jnp.maximum(parent_B, 0)
        open_BNK = open_BNK.at[row, parent_B, action_B].set(open_BNK[row, parent_B, action_B] & ~closes)
        node_B = parent_B
    return tree.replace(embeddings=dataclasses.replace(tree.embeddings, open_BK=open_BNK))


def settled(tree, verified_B, scale: float) -> jax.Array:
    """Bool [B]: no more expansions could change the answer (`best_answer`), however well they went.

    Where rewards are seen, a solution was found. Elsewhere the answer maximises log pi + scale * value, and of an open
    candidate nothing can come that is likelier than itself or worth more than 1.
    """
    node = tree.embeddings
    log_prob_BNK = node.log_prob_B[..., None] + node.candidates.log_prob_BK
    finished_BNK = node.expanded_B[..., None] & node.valid_BK & node.done_BK
    solved_B = jnp.any(finished_BNK & (node.child_value_BK >= 1.0), (1, 2))
    score_BNK = jnp.where(finished_BNK, log_prob_BNK + scale * node.child_value_BK, -jnp.inf)
    ahead_BNK = node.expanded_B[..., None] & node.open_BK & (tree.children_index < 0)
    bound_BNK = jnp.where(ahead_BNK, log_prob_BNK + scale, -jnp.inf)
    no_better_B = jnp.max(score_BNK, (1, 2)) >= jnp.max(bound_BNK, (1, 2))
    return jnp.where(verified_B, solved_B, no_better_B)


def roll_on(before, after, node_index, max_steps: int, config: SearchConfig):
    """The tree after a simulation of a rollout. Where the rollout goes on, nothing is backed up yet, and the way to the
    best candidate of the new node is what the next simulation follows; else the next one is free again.

    The best is what the improved policy makes likeliest, log pi + sigma(value): a value head alone that can not tell
    steps apart would lead every rollout astray. Where likelihoods stand for values (RAP), the largest of them.
    """
    row = jnp.arange(after.node_values.shape[0])
    node = after.embeddings
    score_BK = node.child_value_BK[:, node_index]
    if config.values == "head":
        scale = config.visit_offset * config.value_scale
        score_BK = node.candidates.log_prob_BK[:, node_index] + scale * score_BK
    best_B = jnp.argmax(jnp.where(node.valid_BK[:, node_index], score_BK, -jnp.inf), -1)
    goes_on_B = node.expanded_B[:, node_index] & node.open_BK[row, node_index, best_B]

    depth_B = node.depth_B[:, node_index]
    way_BD = jnp.where(jnp.arange(max_steps)[None] == depth_B[:, None], best_B[:, None], -1)
    node_B = jnp.full_like(row, node_index)
    for _ in range(max_steps):
        parent_B, action_B = after.parents[row, node_B], after.action_from_parent[row, node_B]
        above_B = jnp.maximum(parent_B, 0)
        here_BD = jnp.arange(max_steps)[None] == node.depth_B[row, above_B][:, None]
        way_BD = jnp.where(here_BD & (parent_B >= 0)[:, None], action_B[:, None], way_BD)
        node_B = above_B
    rollout = jnp.where(goes_on_B[:, None], way_BD, -1).astype(jnp.int32)

    new_BN = jnp.arange(after.node_values.shape[1])[None] == node_index
    waits_BN = goes_on_B[:, None] & ~new_BN
    waits_BNK = waits_BN[..., None]
    return after.replace(
        # A node whose rollout goes on has no visit yet, so that its first one will be its mean.
        node_visits=jnp.where(waits_BN, before.node_visits, jnp.where(goes_on_B[:, None], 0, after.node_visits)),
        node_values=jnp.where(waits_BN, before.node_values, after.node_values),
        children_visits=jnp.where(waits_BNK, before.children_visits, after.children_visits),
        children_values=jnp.where(waits_BNK, before.children_values, after.children_values),
        extra_data=dataclasses.replace(after.extra_data, rollout=rollout),
    )


@pytree
class Move:
    """A step that a search has committed to."""

    node_B: jax.Array  # int32: the number of the node that became the root; 0 where the root stayed.
    action_B: jax.Array  # int32: the old root's candidate that leads there.


def reroot(tree, action_B) -> tuple[Any, Move]:
    """Makes the root's child below candidate `action_B` the root of mctx's `tree`, with its subtree, and says which.

    mctx's root is node 0, so the child and the root change places; all other nodes keep theirs, and pages are not moved
    at all. The root stays where the candidate has no node that the model ran on.
    """
    row = jnp.arange(action_B.shape[0])
    node_B = tree.children_index[row, 0, action_B]
    moves_B = (node_B >= 0) & tree.embeddings.expanded_B[row, jnp.maximum(node_B, 0)]
    node_B = jnp.where(moves_B, node_B, 0)
    tree = _change_places(tree, node_B)
    detached = lambda x: x.at[:, 0].set(-1)
    tree = tree.replace(parents=detached(tree.parents), action_from_parent=detached(tree.action_from_parent))
    return tree, Move(node_B, action_B)


def unroot(tree, move: Move):
    """Undoes `reroot`: the tree has its old root again, whose Q of that step is what was found since."""
    row, moved_B = jnp.arange(move.node_B.shape[0]), move.node_B > 0
    old_value_B = tree.children_values[row, move.node_B, move.action_B]
    value_B = jnp.where(moved_B, tree.node_values[:, 0], old_value_B)
    attached = lambda x, value_B: x.at[:, 0].set(jnp.where(moved_B, value_B, -1))
    tree = tree.replace(
        parents=attached(tree.parents, move.node_B),
        action_from_parent=attached(tree.action_from_parent, move.action_B),
        children_values=tree.children_values.at[row, move.node_B, move.action_B].set(value_B),
    )
    return _change_places(tree, move.node_B)


def _change_places(tree, node_B):
    """mctx's tree with the numbers 0 and `node_B` exchanged. What the nodes' embeddings say of pages stays true."""
    row = jnp.arange(node_B.shape[0])

    def rows(x):
        return x.at[:, 0].set(x[row, node_B]).at[row, node_B].set(x[:, 0])

    def numbers(x):
        node = node_B.reshape(-1, *(1,) * (x.ndim - 1))
        return jnp.where(x == 0, node, jnp.where(x == node, 0, x))

    apart = {"root_invalid_actions": tree.root_invalid_actions, "extra_data": tree.extra_data}
    nothing = dict.fromkeys(apart)
    tree = jax.tree.map(rows, tree.replace(**nothing))
    return tree.replace(parents=numbers(tree.parents), children_index=numbers(tree.children_index), **apart)
