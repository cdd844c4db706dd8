"""Which candidate a simulation follows, and which one the search commits to.

Gumbel MuZero (Danihelka et al. 2022) or PUCT (Silver et al. 2017, Schrittwieser et al. 2020), both on Q-values
completed by the candidates' own values; UCT (Kocsis and Szepesvari 2006) as RAP has it (Hao et al. 2023); or
depth-first search by value (DFS-V of TS-LLM, Feng et al. 2023, after Tree of Thoughts, Yao et al. 2023). Functions take
mctx's tree without its batch axis, as mctx calls them.
"""

import math

import jax
import jax.numpy as jnp
import mctx

from alphallm.decode import LOG_ZERO
from alphallm.search.tree import SearchConfig
from alphallm.types import pytree


@pytree
class ExtraData:
    """What the selection at the root needs besides the tree."""

    root_gumbel: jax.Array  # float32 [K]
    key: jax.Array  # the problem's key.
    # int32 [D]: the candidates, from the root on, by which a rollout goes on; -1 where the policy chooses.
    rollout: jax.Array


def completed_q(tree, node_index, completion: str) -> jax.Array:
    """Q [K] of a node's candidates, with an estimate in [0, 1] where a candidate was not visited.

    "child_value": the value read at the candidate's own last token, or its reward where it was verified.
    "mixed_value": one value for all of them, as MuZero has it (Danihelka et al. 2022, equation 33), but for candidates
    that end the answer, whose Q needs no estimate.
    """
    visits = tree.children_visits[node_index]
    node = tree.embeddings
    child_value = node.child_value_BK[node_index]
    q = jnp.where(visits > 0, tree.qvalues(node_index), child_value)
    if completion == "child_value":
        return q
    valid = node.valid_BK[node_index]
    prior = jax.nn.softmax(tree.children_prior_logits[node_index])
    known = (visits > 0) & valid
    weight = jnp.where(known, jnp.maximum(prior, jnp.finfo(prior.dtype).tiny), 0.0)
    mean_q = jnp.sum(weight * q) / jnp.maximum(jnp.sum(weight), jnp.finfo(prior.dtype).tiny)
    total = jnp.sum(visits)
    mixed = (node.raw_value_B[node_index] + total * mean_q) / (total + 1)
    exact = known | ~valid | node.done_BK[node_index]
    return jnp.where(exact, q, mixed)


def scaled_q(tree, node_index, config: SearchConfig) -> jax.Array:
    """sigma(Q) [K] (Danihelka et al. 2022, equation 8), without rescaling: rewards are in [0, 1] by design."""
    scale = (config.visit_offset + jnp.max(tree.children_visits[node_index])) * config.value_scale
    return scale * completed_q(tree, node_index, config.completion)


def root_action_selection(config: SearchConfig):
    """The selection at the root, in mctx's form."""
    if config.policy != "gumbel":
        inside = interior_action_selection(config)
        return lambda key, tree, node_index: inside(key, tree, node_index, 0)

    def select(key, tree, node_index):
        """Sequential halving over what is open (Danihelka et al. 2022, Algorithm 2).

        mctx's own has no word for a candidate that is known exactly before its turns are over. Here such a one leaves
        the contest, and its turns go to the best open candidate.
        """
        del key
        most = min(config.max_considered, tree.num_actions)
        table = jnp.array([_halving_turns(num, config.num_simulations) for num in range(most + 1)])
        num_considered = jnp.minimum(most, jnp.sum(~tree.root_invalid_actions))
        visits = tree.children_visits[node_index]
        selectable = _selectable(tree, node_index)
        its_turn = selectable & (visits == table[num_considered, jnp.sum(visits)])
        score = perturbed_score(tree, node_index, config)
        return jnp.argmax(jnp.where(jnp.where(jnp.any(its_turn), its_turn, selectable), score, -jnp.inf)).astype(
            jnp.int32
        )

    return select


def perturbed_score(tree, node_index, config: SearchConfig) -> jax.Array:
    """g + logits + sigma(q) [K] of the root's candidates, finite also where a candidate is not valid."""
    logits = tree.children_prior_logits[node_index]
    return jnp.maximum(tree.extra_data.root_gumbel + logits + scaled_q(tree, node_index, config), LOG_ZERO)


def _halving_turns(num_considered: int, num_simulations: int) -> list[int]:
    """The visit count whose turn it is at each simulation: half of the candidates drop out after each phase."""
    turns: list[int] = []
    visits, phases = 0, math.ceil(math.log2(max(2, num_considered)))
    remaining = max(1, num_considered)
    while len(turns) < num_simulations:
        for _ in range(max(1, num_simulations // (phases * remaining))):
            turns += remaining * [visits]
            visits += 1
        remaining = max(min(2, remaining), remaining // 2)
    return turns[:num_simulations]


def interior_action_selection(config: SearchConfig):
    """The selection below the root, in mctx's form."""
    if config.policy == "depth_first":
        return lambda key, tree, node_index, depth: _depth_first(tree, node_index)
    if config.policy in ("puct", "uct"):
        choose = _puct if config.policy == "puct" else _uct

        def follow(key, tree, node_index, depth):
            del key
            chosen = choose(tree, node_index, config)
            if not config.rollout:
                return chosen
            level = jnp.minimum(jnp.int32(depth), tree.extra_data.rollout.shape[0] - 1)  # mctx's depth is a float.
            forced = tree.extra_data.rollout[level]
            return jnp.where(forced >= 0, forced, chosen)

        return follow

    def select(key, tree, node_index, depth):
        """Keeps visits in proportion to the improved policy over what is open (Danihelka et al. 2022, section 5)."""
        del key, depth
        open_ = _selectable(tree, node_index)
        logits = tree.children_prior_logits[node_index] + scaled_q(tree, node_index, config)
        improved = jax.nn.softmax(jnp.where(open_, logits, LOG_ZERO))
        visits = jnp.where(open_, tree.children_visits[node_index], 0)
        score = improved - visits / (1 + jnp.sum(visits))
        return jnp.argmax(jnp.where(open_, score, -jnp.inf)).astype(jnp.int32)

    return select


def _selectable(tree, node_index):
    """Open candidates; where all are closed (sequential halving comes back all the same), every valid one.

    Without the latter a node known exactly would be given the value of its first candidate, again and again.
    """
    open_ = tree.embeddings.open_BK[node_index]
    return jnp.where(jnp.any(open_), open_, tree.embeddings.valid_BK[node_index])


def _puct(tree, node_index, config: SearchConfig):
    """mctx's PUCT over open candidates, with ties broken by the problem's own key."""
    key = jax.random.fold_in(tree.extra_data.key, jnp.sum(tree.node_visits))
    key = jax.random.fold_in(key, node_index)
    # mctx masks at the root only, and reads the mask from the tree: show it this node's mask, as if at the root.
    masked = tree.replace(root_invalid_actions=~_selectable(tree, node_index))
    return mctx.muzero_action_selection(
        key,
        masked,
        node_index,
        0,
        pb_c_init=config.exploration,
        qtransform=lambda tree, node: completed_q(tree, node, config.completion),
    )


def _uct(tree, node_index, config: SearchConfig):
    """Q + c sqrt(ln N / max(1, n)) over open candidates, Q of an unvisited one being its own value, as RAP has it."""
    visits = tree.children_visits[node_index]
    bonus = jnp.sqrt(jnp.log(jnp.maximum(tree.node_visits[node_index], 1)) / jnp.maximum(visits, 1))
    score = completed_q(tree, node_index, config.completion) + config.exploration * bonus
    return jnp.argmax(jnp.where(_selectable(tree, node_index), score, -1.0)).astype(jnp.int32)


def _depth_first(tree, node_index):
    """The open candidate that was visited before, of which there is at most one; else the one of the largest value.

    A candidate is closed as soon as nothing below it is open: that is the backtracking.
    """
    node = tree.embeddings
    begun = tree.children_visits[node_index] > 0
    score = jnp.where(begun, 2.0, node.child_value_BK[node_index])  # Values lie in [0, 1].
    return jnp.argmax(jnp.where(_selectable(tree, node_index), score, -1.0)).astype(jnp.int32)


def add_dirichlet_noise(key_B, prior_logits_BK, valid_BK, config: SearchConfig):
    """Mixes Dirichlet noise over the valid candidates into the root's prior (Silver et al. 2017)."""
    num = prior_logits_BK.shape[-1]

    def noise(key):
        return jax.random.gamma(jax.random.fold_in(key, 2**20), config.dirichlet_alpha, (num,))

    gamma = jnp.where(valid_BK, jax.vmap(noise)(key_B), 0.0)
    dirichlet = gamma / jnp.maximum(jnp.sum(gamma, -1, keepdims=True), 1e-9)
    mixed = (1 - config.dirichlet_fraction) * jax.nn.softmax(prior_logits_BK) + config.dirichlet_fraction * dirichlet
    return jnp.where(valid_BK, jnp.log(jnp.maximum(mixed, 1e-30)), LOG_ZERO)


def final_action(tree, config: SearchConfig) -> jax.Array:
    """The root candidate [B] that the search commits to.

    Gumbel: among the most visited, and those that are known exactly, the largest g + logits + sigma(q)
    (Danihelka et al. 2022, Algorithm 2). PUCT and UCT: the most visited; Q decides ties. Depth-first: the largest Q.
    """
    node = tree.embeddings
    valid_BK = node.valid_BK[:, 0]
    visits_BK = tree.children_visits[:, 0]
    if config.policy != "gumbel":
        q_BK = jax.vmap(lambda t: completed_q(t, 0, config.completion))(tree)
        score_BK = 0.5 * q_BK + (0 if config.policy == "depth_first" else visits_BK)
    else:
        exact_BK = ~node.open_BK[:, 0]
        considered_BK = exact_BK | (visits_BK == jnp.max(visits_BK, -1, keepdims=True))
        score_BK = jax.vmap(lambda t: perturbed_score(t, 0, config))(tree)
        score_BK = jnp.where(considered_BK, score_BK, 2 * LOG_ZERO)
    return jnp.argmax(jnp.where(valid_BK, score_BK, -jnp.inf), -1).astype(jnp.int32)
