"""What a searched tree teaches: rows of policy and value targets from every node that was searched well enough.

The tree is planned once more from the leaves up: a node's value is its improved policy's expectation of the values
below it, and at least the best verified reward below it. mctx's running means are left alone; they weight early, badly
informed visits as much as late ones.
"""

import dataclasses
import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from alphallm.decode import LOG_ZERO
from alphallm.errors import check_range
from alphallm.losses import entropy, log_rest, policy_loss_with_rest
from alphallm.search import SearchConfig, Tree
from alphallm.types import Problem, pytree


@dataclasses.dataclass(frozen=True)
class TargetConfig:
    """Which nodes become rows, and what their policy target is."""

    nodes: Literal["all", "root"] = "all"
    min_visits: int = 3  # of a node whose candidates are not all known exactly; its own expansion counts as one.
    rows_per_tree: int = 16  # M
    # "rest": candidates and everything not written; "candidates": K-way with sampling weights; "sampled": one-hot;
    # "verified_paths": what most systems do instead, imitation of steps that led to a verified solution (expert
    # iteration), with the search's plain mean as value.
    policy: Literal["rest", "candidates", "sampled", "verified_paths"] = "rest"
    # This share of a policy target is spread evenly over the legal candidates. Without it a sharp policy holds a legal
    # step that it does not favour no likelier than nonsense, and a search is offered nonsense to choose from. Above 0,
    # equal Q no longer leaves the policy as it is.
    legal_share: float = 0.0

    def __post_init__(self):
        check_range(self, 1, math.inf, "min_visits", "rows_per_tree")
        check_range(self, 0, 1, "legal_share")


@pytree
class Planned:
    """Targets of every node of a batch of trees."""

    value_BN: jax.Array  # float32 in [0, 1].
    solved_BN: jax.Array  # float32: the best verified reward at or below the node.
    improved_BNK: jax.Array  # float32: the improved policy over valid candidates (rows without any are all 0).
    q_BNK: jax.Array  # float32: what it was improved by.
    policy_BNK1: jax.Array  # float32: the policy target, the rest last.


@pytree
class Row:
    """One node as training data; K + 1 value targets and one policy target. Stacked rows share their axes' order."""

    prompt_P: jax.Array  # int32
    prompt_length: jax.Array  # int32
    path_DL: jax.Array  # int32: the D - 1 steps that may precede a step.
    path_length_D: jax.Array  # int32: 0 past the node's depth.
    tokens_KL: jax.Array  # int32
    length_K: jax.Array  # int32
    written_K: jax.Array  # bool
    policy_K1: jax.Array  # float32
    log_prob_K: jax.Array  # float32: log pi of the actor.
    offset_K: jax.Array  # float32: log w - log pi of the actor.
    policy_weight: jax.Array  # float32: 0 for nodes without a policy target.
    surprise: jax.Array  # float32: KL divergence of the policy target from the actor's policy, in nats.
    value: jax.Array  # float32: the node's own value target.
    value_weight: jax.Array  # float32
    value_K: jax.Array  # float32: the candidates' value targets.
    value_weight_K: jax.Array  # float32: 0 where nothing is known.
    valid: jax.Array  # bool: False for padding rows.


@jax.named_scope("targets")
def plan(tree: Tree, search: SearchConfig, targets: TargetConfig, verified_B: jax.Array) -> Planned:
    """Improved policies and values of every node, from the last node to the root (children come after parents).

    Where the task verifies, what follows an illegal step is worth 0, also in a tree that was searched without the mask.
    """
    batch, num_nodes, num_candidates = tree.q_BNK.shape
    row = jnp.arange(batch)
    zeros = jnp.zeros((batch, num_nodes))
    plan_nodes = jax.vmap(functools.partial(_plan_node, search, targets))

    def body(i, planned: Planned) -> Planned:
        n = num_nodes - 1 - i
        child_BK = jnp.maximum(tree.children_BNK[:, n], 0)
        has_child = (tree.children_BNK[:, n] >= 0) & tree.expanded_BN[row[:, None], child_BK]
        known = verified_B[:, None] & tree.done_BNK[:, n] & tree.valid_BNK[:, n]
        reward = jnp.where(known, tree.reward_BNK[:, n], 0.0)
        q_BK = jnp.where(has_child, planned.value_BN[row[:, None], child_BK], tree.child_value_BNK[:, n])
        q_BK = jnp.where(tree.legal_BNK[:, n] | ~verified_B[:, None], q_BK, 0.0)
        below = jnp.where(has_child, planned.solved_BN[row[:, None], child_BK], reward)
        solved = jnp.max(jnp.where(tree.valid_BNK[:, n], below, 0.0), -1)
        value, improved, policy = plan_nodes(
            q_BK, below, tree.valid_BNK[:, n], tree.written_BNK[:, n], tree.prior_logits_BNK[:, n],
            tree.log_prob_BNK[:, n], tree.gumbel_BNK[:, n], tree.child_visits_BNK[:, n], tree.raw_value_BN[:, n],
        )  # fmt: skip
        value = tree.value_BN[:, n] if targets.policy == "verified_paths" else jnp.maximum(value, solved)
        legal = tree.legal_BNK[:, n] & tree.written_BNK[:, n] & verified_B[:, None]
        share = targets.legal_share * (jnp.any(legal, -1) & jnp.any(policy > 0, -1))[:, None]
        spread = legal / jnp.maximum(jnp.sum(legal, -1, keepdims=True), 1)
        policy = (1 - share) * policy + share * jnp.pad(spread, ((0, 0), (0, 1)))
        worth = tree.legal_BN[:, n] | ~verified_B
        value, policy = jnp.where(worth, value, 0.0), jnp.where(worth[:, None], policy, 0.0)
        return Planned(
            value_BN=planned.value_BN.at[:, n].set(value),
            solved_BN=planned.solved_BN.at[:, n].set(solved),
            improved_BNK=planned.improved_BNK.at[:, n].set(improved),
            q_BNK=planned.q_BNK.at[:, n].set(q_BK),
            policy_BNK1=planned.policy_BNK1.at[:, n].set(policy),
        )

    shape = (batch, num_nodes, num_candidates)
    empty = Planned(zeros, zeros, jnp.zeros(shape), jnp.zeros(shape), jnp.zeros((*shape[:2], num_candidates + 1)))
    return lax.fori_loop(0, num_nodes, body, empty)


def _plan_node(
    search, targets, q_K, below_K, valid_K, written_K, prior_logits_K, log_prob_K, gumbel_K, visits_K, raw_value
):  # fmt: skip
    """Value, improved policy [K] and policy target [K + 1] of one node."""
    scale = (search.visit_offset + jnp.max(visits_K)) * search.value_scale
    any_valid = jnp.any(valid_K)
    improved_K = jax.nn.softmax(jnp.where(valid_K, prior_logits_K + scale * q_K, LOG_ZERO)) * any_valid
    value = jnp.sum(improved_K * q_K)
    if targets.policy == "verified_paths":
        led_K = (valid_K & (below_K > 0)).astype(jnp.float32)
        return value, improved_K, jnp.append(led_K / jnp.maximum(jnp.sum(led_K), 1.0), 0.0)
    if targets.policy == "candidates":
        return value, improved_K, jnp.append(improved_K, 0.0)
    if targets.policy == "sampled":
        # The largest perturbed logit is a sample of the improved policy (the Gumbel-max trick).
        score_K = jnp.where(valid_K, gumbel_K + prior_logits_K + scale * q_K, -jnp.inf)
        chosen_K = jnp.arange(q_K.shape[0]) == jnp.argmax(score_K)
        return value, improved_K, jnp.append(chosen_K & any_valid, False).astype(jnp.float32)
    # What was not written keeps its share of the policy at the node's mixed value (Danihelka et al. 2022, eq. 33).
    prior_K = jnp.where(valid_K, jax.nn.softmax(prior_logits_K), 0.0)
    mean_q = jnp.sum(prior_K * q_K) / jnp.maximum(jnp.sum(prior_K), 1e-9)
    total = jnp.sum(visits_K)
    rest_q = (raw_value + total * mean_q) / (total + 1)
    logits_K = jnp.where(valid_K, log_prob_K + scale * q_K, LOG_ZERO)
    logits_K1 = jnp.append(logits_K, log_rest(log_prob_K, written_K) + scale * rest_q)
    return value, improved_K, jax.nn.softmax(logits_K1) * any_valid


def rows(tree: Tree, planned: Planned, problem: Problem, config: TargetConfig, key_B: jax.Array) -> Row:
    """At most M rows [B, M] of each tree: the root, and others drawn without replacement in proportion to their visits.

    Most nodes of a tree are leaves; visits favour the few that the search thought about longest.
    """
    everything_known = jnp.all(tree.done_BNK | ~tree.valid_BNK, -1)
    eligible_BN = tree.expanded_BN & (everything_known | (tree.visits_BN >= config.min_visits))
    root_N = jnp.arange(tree.expanded_BN.shape[1]) == 0
    if config.nodes == "root":
        eligible_BN &= root_N[None]
    num_nodes = tree.expanded_BN.shape[1]
    gumbel_BN = jax.vmap(lambda k: jax.random.gumbel(jax.random.fold_in(k, 2**21), (num_nodes,)))(key_B)
    drawn_BN = jnp.log(jnp.maximum(tree.visits_BN, 1).astype(jnp.float32)) + gumbel_BN
    score_BN = jnp.where(eligible_BN, jnp.where(root_N[None], jnp.inf, drawn_BN), -jnp.inf)
    score_BM, node_BM = lax.top_k(score_BN, min(config.rows_per_tree, num_nodes))
    make = jax.vmap(jax.vmap(_row, in_axes=(None, None, None, 0, 0)))
    return make(tree, planned, problem, node_BM, score_BM > -jnp.inf)


def _row(tree: Tree, planned: Planned, problem: Problem, n, valid) -> Row:
    """Row of node n of one tree (the axis B of the arguments is vmapped away)."""
    path, path_length = _path(tree, n)
    valid_K, legal_K = tree.valid_BNK[n], tree.legal_BNK[n]
    child_K = jnp.maximum(tree.children_BNK[n], 0)
    searched_K = (tree.children_BNK[n] >= 0) & tree.expanded_BN[child_K] & valid_K
    # An illegal step is worth 0, whatever an unmasked search found below it.
    known_value_K = jnp.where(tree.done_BNK[n], tree.reward_BNK[n], planned.q_BNK[n])
    value_K = jnp.where(legal_K & (searched_K | tree.done_BNK[n]), known_value_K, 0.0)
    known_K = tree.written_BNK[n] & (searched_K | tree.done_BNK[n] | ~legal_K)
    any_valid = jnp.any(valid_K).astype(jnp.float32)
    target_K1, log_prob_K, written_K = planned.policy_BNK1[n], tree.log_prob_BNK[n], tree.written_BNK[n]
    return Row(
        prompt_P=problem.tokens_P,
        prompt_length=problem.length,
        path_DL=path,
        path_length_D=path_length,
        tokens_KL=tree.tokens_BNKL[n],
        length_K=tree.length_BNK[n],
        written_K=written_K,
        policy_K1=target_K1,
        log_prob_K=log_prob_K,
        offset_K=jnp.where(written_K & valid_K, tree.prior_logits_BNK[n] - log_prob_K, 0.0),
        policy_weight=jnp.any(target_K1 > 0).astype(jnp.float32),
        surprise=jnp.maximum(policy_loss_with_rest(log_prob_K, written_K, target_K1) - entropy(target_K1), 0.0),
        value=planned.value_BN[n],
        # A dead end says that no candidate was legal, not that no step is.
        value_weight=any_valid,
        value_K=value_K,
        value_weight_K=known_K.astype(jnp.float32),
        valid=valid,
    )


def _path(tree: Tree, n):
    """Tokens [D - 1, L] and lengths [D - 1] of the steps from the root to node n."""
    real_D = jnp.arange(tree.path_BND.shape[-1]) < tree.depth_BN[n]
    node_D = jnp.where(real_D, tree.path_BND[n], 0)
    parent_D, action_D = jnp.maximum(tree.parent_BN[node_D], 0), jnp.maximum(tree.action_BN[node_D], 0)
    tokens_DL = jnp.where(real_D[:, None], tree.tokens_BNKL[parent_D, action_D], 0)
    return tokens_DL, jnp.where(real_D, tree.length_BNK[parent_D, action_D], 0)
