"""What a searched tree teaches: policy and value targets of the nodes that were searched well enough.

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
from alphallm.losses import entropy, log_rest, masked_mean, policy_loss_with_rest
from alphallm.search import SearchConfig, Tree
from alphallm.types import Problem, pytree


@dataclasses.dataclass(frozen=True)
class TargetConfig:
    """Which of a tree's nodes are learnt from, and what their policy target is."""

    nodes: Literal["all", "root"] = "all"
    min_visits: int = 3  # of a node whose candidates are not all known exactly; its own expansion counts as one.
    nodes_per_tree: int = 16  # M
    candidates_per_node: int = 8  # of a node's K candidates, those that the learner looks at.
    # "rest": candidates and everything not written; "candidates": K-way with sampling weights; "sampled": one-hot;
    # "verified_paths": what most systems do instead, imitation of steps that led to a verified solution (expert
    # iteration), with the search's plain mean as value.
    policy: Literal["rest", "candidates", "sampled", "verified_paths"] = "rest"
    # This share of a policy target is spread evenly over the legal candidates. Without it a sharp policy holds a legal
    # step that it does not favour no likelier than nonsense, and a search is offered nonsense to choose from. Above 0,
    # equal Q no longer leaves the policy as it is.
    legal_share: float = 0.0
    # Does the policy learn at nodes below which nothing was solved too? Their candidates are worth nothing, whichever
    # is taken, so that a target there says little but that what was not written could be better. Only a policy that
    # knows the rules can do without: what is legal is learnt there too.
    unsolved: bool = True

    def __post_init__(self):
        check_range(self, 1, math.inf, "min_visits", "nodes_per_tree", "candidates_per_node")
        check_range(self, 0, 1, "legal_share")


@pytree
class Planned:
    """Targets of every node of a batch of trees."""

    value_BN: jax.Array  # float32 in [0, 1].
    solved_BN: jax.Array  # float32: the best verified reward at or below the node, discounted.
    improved_BNK: jax.Array  # float32: the improved policy over valid candidates (rows without any are all 0).
    q_BNK: jax.Array  # float32: what it was improved by.
    policy_BNK1: jax.Array  # float32: the policy target, the rest last.


@pytree
class Row:
    """One tree as training data: M of its nodes, the root first, each with a policy target and K + 1 value targets.

    The step that leads to a node is a candidate of its parent, and the parent is in the row: so a tree's prompt is read
    once for all of its nodes, and each step once. Stacked rows share their axes' order.
    """

    prompt_P: jax.Array  # int32
    prompt_length: jax.Array  # int32
    parent_M: jax.Array  # int32: the parent's place in the row, which comes before the node's own; -1 of the root.
    action_M: jax.Array  # int32: the parent's candidate that leads to the node; -1 of the root.
    valid_M: jax.Array  # bool: False for padding.
    tokens_MKL: jax.Array  # int32
    length_MK: jax.Array  # int32
    written_MK: jax.Array  # bool
    policy_MK1: jax.Array  # float32
    log_prob_MK: jax.Array  # float32: log pi of the actor.
    offset_MK: jax.Array  # float32: log w - log pi of the actor.
    policy_weight_M: jax.Array  # float32: 0 for nodes without a policy target.
    value_M: jax.Array  # float32: the node's own value target.
    value_weight_M: jax.Array  # float32
    value_MK: jax.Array  # float32: the candidates' value targets.
    value_weight_MK: jax.Array  # float32: 0 where nothing is known.
    surprise: jax.Array  # float32: mean KL divergence of the policy targets from the actor's policy, in nats.
    valid: jax.Array  # bool: False for a row without nodes.


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
        q_BK = search.discount * planned.value_BN[row[:, None], child_BK]
        q_BK = jnp.where(has_child, q_BK, tree.completed_q_BNK[:, n])
        q_BK = jnp.where(tree.legal_BNK[:, n] | ~verified_B[:, None], q_BK, 0.0)
        below = jnp.where(has_child, search.discount * planned.solved_BN[row[:, None], child_BK], reward)
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
    # Where all legal steps are listed, nothing of worth is left.
    rest_q = 0.0 if search.proposer == "listed" else (raw_value + total * mean_q) / (total + 1)
    logits_K = jnp.where(valid_K, log_prob_K + scale * q_K, LOG_ZERO)
    logits_K1 = jnp.append(logits_K, log_rest(log_prob_K, written_K) + scale * rest_q)
    return value, improved_K, jax.nn.softmax(logits_K1) * any_valid


def rows(tree: Tree, planned: Planned, problem: Problem, config: TargetConfig) -> Row:
    """One row [B] of each tree: the M most visited of the nodes that were searched well enough, and fewer candidates.

    Most nodes of a tree are leaves; those with the most visits are the few that the search thought about longest. With
    `verified_paths` the nodes that led to a solution come first, whatever their visits. A node is there only with all
    nodes on the way to it, and their candidates that it follows.
    """
    return jax.vmap(functools.partial(_row, config))(tree, planned, problem)


def _row(config: TargetConfig, tree: Tree, planned: Planned, problem: Problem) -> Row:
    """The row of one tree (the axis B of the arguments is vmapped away)."""
    index_NJ, candidates, policy_NK1 = _fewer_candidates(config.candidates_per_node, *_targets(tree, planned))
    place_NK = _places(index_NJ, tree.legal_BNK.shape[1])
    node_M, valid_M = _taught(config, tree, place_NK, jnp.any(policy_NK1 > 0, -1))
    parent_M, action_M = tree.parent_BN[node_M], tree.action_BN[node_M]
    is_root_M = parent_M < 0
    place_M = jnp.argmax(node_M[None] == parent_M[:, None], -1)  # The parent's.
    written_MK, policy_MK1 = candidates["written"][node_M], policy_NK1[node_M]
    any_valid_M = jnp.any(tree.valid_BNK[node_M], -1).astype(jnp.float32)
    has_target_M = jnp.any(policy_MK1 > 0, -1)
    if not config.unsolved:
        has_target_M &= planned.solved_BN[node_M] > 0
    policy_weight_M = has_target_M.astype(jnp.float32)
    surprise_M = jax.vmap(policy_loss_with_rest)(candidates["log_prob"][node_M], written_MK, policy_MK1)
    surprise_M = jnp.maximum(surprise_M - entropy(policy_MK1), 0.0)
    return Row(
        prompt_P=problem.tokens_P,
        prompt_length=problem.length,
        parent_M=jnp.where(is_root_M, -1, place_M),
        action_M=jnp.where(is_root_M, -1, place_NK[parent_M, action_M]),
        valid_M=valid_M,
        tokens_MKL=candidates["tokens"][node_M],
        length_MK=candidates["length"][node_M],
        written_MK=written_MK,
        policy_MK1=policy_MK1,
        log_prob_MK=candidates["log_prob"][node_M],
        offset_MK=candidates["offset"][node_M],
        policy_weight_M=policy_weight_M * valid_M,
        value_M=planned.value_BN[node_M],
        # A dead end says that no candidate was legal, not that no step is.
        value_weight_M=any_valid_M * valid_M,
        value_MK=candidates["value"][node_M],
        value_weight_MK=candidates["value_weight"][node_M] * valid_M[:, None],
        surprise=masked_mean(surprise_M, policy_weight_M * valid_M),
        valid=jnp.any(valid_M),
    )


def _targets(tree: Tree, planned: Planned):
    """What a learner has to know of the candidates of one tree's nodes, [N, K, ...] by name, and the policy targets."""
    valid_NK, legal_NK, written_NK = tree.valid_BNK, tree.legal_BNK, tree.written_BNK
    child_NK = jnp.maximum(tree.children_BNK, 0)
    searched_NK = (tree.children_BNK >= 0) & tree.expanded_BN[child_NK] & valid_NK
    # An illegal step is worth 0, whatever an unmasked search found below it.
    value_NK = jnp.where(tree.done_BNK, tree.reward_BNK, planned.value_BN[child_NK])
    value_NK = jnp.where(legal_NK & (searched_NK | tree.done_BNK), value_NK, 0.0)
    known_NK = written_NK & (searched_NK | tree.done_BNK | ~legal_NK)
    candidates = {
        "tokens": tree.tokens_BNKL,
        "length": tree.length_BNK,
        "written": written_NK,
        "log_prob": tree.log_prob_BNK,
        "offset": jnp.where(written_NK & valid_NK, tree.prior_logits_BNK - tree.log_prob_BNK, 0.0),
        "value": value_NK,
        "value_weight": known_NK.astype(jnp.float32),
    }
    return candidates, planned.policy_BNK1


def _fewer_candidates(num: int, candidates: dict[str, jax.Array], policy_NK1: jax.Array):
    """Which `num` candidates of each node matter most [N, num], and they; the others' target has joined the rest.

    A cross-entropy over any of the candidates and everything else has the same minimum, so this costs information, not
    truth. Kept are those that the target likes, then those whose value is known (illegal ones, which the policy should
    unlearn, among them), then others.
    """
    total = policy_NK1.shape[1] - 1
    if num >= total:
        return jnp.broadcast_to(jnp.arange(total)[None], candidates["written"].shape), candidates, policy_NK1
    score_NK = policy_NK1[:, :-1] + 0.01 * candidates["value_weight"] + 0.001 * candidates["written"]
    _, index_NJ = lax.top_k(score_NK, num)
    take = lambda x: jax.vmap(lambda node, i: node[i])(x, index_NJ)
    target = take(policy_NK1[:, :-1])
    rest = jnp.sum(policy_NK1, -1, keepdims=True) - jnp.sum(target, -1, keepdims=True)
    policy_NJ1 = jnp.concatenate([target, jnp.maximum(rest, 0.0)], -1)
    return index_NJ, {name: take(x) for name, x in candidates.items()}, policy_NJ1


def _places(index_NJ: jax.Array, num: int) -> jax.Array:
    """int32 [N, num]: where among those kept each candidate is; -1 where it was not kept."""
    same_NKJ = index_NJ[:, None] == jnp.arange(num)[None, :, None]
    return jnp.where(jnp.any(same_NKJ, -1), jnp.argmax(same_NKJ, -1), -1)


def _taught(
    config: TargetConfig, tree: Tree, place_NK: jax.Array, has_target_N: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The nodes [M] of a row, parents before their children, and which of them there are."""
    num_nodes = tree.expanded_BN.shape[0]
    is_root_N = jnp.arange(num_nodes) == 0
    everything_known_N = jnp.all(tree.done_BNK | ~tree.valid_BNK, -1)
    eligible_N = tree.expanded_BN & (is_root_N | everything_known_N | (tree.visits_BN >= config.min_visits))
    visits_N = tree.visits_BN
    if config.policy == "verified_paths":
        # A verified path is imitated whole, however seldom the search went that way, and before anything else.
        eligible_N |= has_target_N
        visits_N = visits_N + num_nodes * has_target_N
    if config.nodes == "root":
        eligible_N &= is_root_N
    eligible_N &= is_root_N | (place_NK[tree.parent_BN, tree.action_BN] >= 0)
    visits_N = jnp.where(eligible_N, jnp.where(is_root_N, jnp.iinfo(jnp.int32).max, visits_N), 0)
    # No more than those of any node on the way: so a node is chosen after its parent, which has the smaller number.
    on_way_ND = jnp.arange(tree.path_BND.shape[-1])[None] < tree.depth_BN[:, None]
    least_N = jnp.min(jnp.where(on_way_ND, visits_N[tree.path_BND], jnp.iinfo(jnp.int32).max), -1)
    visits_M, node_M = lax.top_k(jnp.minimum(visits_N, least_N), min(config.nodes_per_tree, num_nodes))
    return node_M, visits_M > 0
