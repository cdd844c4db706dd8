"""What a search is asked for and what it returns."""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp

from alphallm.errors import check_range
from alphallm.types import pytree


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """How a tree is grown."""

    policy: Literal["gumbel", "puct", "uct", "depth_first"] = "gumbel"
    num_simulations: int = 32
    # How a node's K candidate steps are got: without replacement, as i.i.d. samples, or listed by the task.
    proposer: Literal["gumbel_top_k", "iid", "listed"] = "gumbel_top_k"
    num_candidates: int = 16  # K; a task that lists its steps has a K of its own.
    # Of the root, where more than K: the first step decides most, and is the only one that every answer depends on.
    root_candidates: int = 0
    # "listed": all legal steps at the root, and below it what `proposer` says; for a task that can list them.
    root_proposer: Literal["same", "listed"] = "same"
    temperature: float = 1.0  # of the i.i.d. proposer; 1 is the policy itself.
    # Where illegal steps are not masked, a candidate needs this share of the likeliest one's probability (min-p, Nguyen
    # et al. 2024): the value head has seldom met what the policy would hardly write. 0 lets all of them in.
    min_p: float = 0.001
    # "corrected" is the prior that counts the policy once; "policy" weights sampled candidates by the policy again.
    prior: Literal["corrected", "policy"] = "corrected"
    # What stands for the Q of an unvisited candidate: the value read at its own last token, or MuZero's mixed value.
    completion: Literal["child_value", "mixed_value"] = "child_value"
    # What a new node backs up: its own value, its candidates' mean value under the prior, or the mean of both.
    backup: Literal["value", "children", "both"] = "both"
    # What a solution is worth less by every step before its last: below 1, the shorter way is worth more. At 1 a step
    # that leads nowhere costs nothing, as long as steps are left to undo it.
    discount: float = 1.0
    value_scale: float = 0.1  # sigma(q) = (visit_offset + largest visit count) * value_scale * q.
    visit_offset: float = 50.0
    max_considered: int = 8  # root candidates that sequential halving starts from.
    # What a position is worth: the value head's reading, or the mean likelihood of the tokens of each step on the way,
    # averaged over steps (RAP, Hao et al. 2023, section 3.2).
    values: Literal["head", "likelihood"] = "head"
    # A simulation goes on from its new node to the end of an answer, by the candidates of the largest log pi +
    # sigma(value) (RAP: of the largest likelihood), and only what it finds there is backed up (MCTS-Rollout of TS-LLM,
    # RAP). Each node on the way counts as a simulation.
    rollout: bool = False
    exploration: float = 1.25  # PUCT's c_1; UCT's factor.
    prune: float = 0.0  # depth_first: a candidate of a smaller value is continued only when no other is left.
    # PUCT: after so many simulations the search takes the most visited step and goes on below it, with the subtree and
    # its pages (MCTS-alpha of TS-LLM, Feng et al. 2023); 0 never does.
    commit_every: int = 0
    early_stop: bool = False  # expand no more where nothing that is open could still become the answer.
    dirichlet_fraction: float = 0.0  # PUCT's root noise; 0.25 for self-play, 0 for evaluation.
    dirichlet_alpha: float = 0.3

    @property
    def root_width(self) -> int:
        """Candidates of the root, unless the task lists them."""
        return max(self.root_candidates, self.num_candidates)

    @property
    def answer_scale(self) -> float:
        """What an answer's value weighs against its log-probability: sigma before any visit."""
        return self.visit_offset * self.value_scale

    def __post_init__(self):
        check_range(self, 1, math.inf, "num_simulations", "num_candidates", "max_considered")
        check_range(self, 0, 1, "min_p", "dirichlet_fraction", "prune", "discount")
        check_range(self, 0, math.inf, "value_scale", "visit_offset", "exploration")
        check_range(self, 1e-3, math.inf, "temperature", "dirichlet_alpha")
        check_range(self, 0, math.inf, "commit_every", "root_candidates")
        if self.commit_every and self.policy != "puct":
            raise ValueError(f"commit_every={self.commit_every} needs policy='puct', not {self.policy!r}.")
        if self.rollout and self.policy not in ("puct", "uct"):
            raise ValueError(f"rollout needs policy='puct' or 'uct', not {self.policy!r}.")
        if self.rollout and self.commit_every:
            raise ValueError("rollout and commit_every do not go together: set one of them.")


@pytree
class Tree:
    """The searched trees of a batch of problems. A node exists where `expanded_BN`; node 0 is the root."""

    expanded_BN: jax.Array  # bool: the model ran on this node.
    parent_BN: jax.Array  # int32, -1 at the root.
    action_BN: jax.Array  # int32: the parent's candidate that led here, -1 at the root.
    legal_BN: jax.Array  # bool: every step from the root is legal; for training, read by no unverified search.
    depth_BN: jax.Array  # int32: steps from the root.
    path_log_prob_BN: jax.Array  # float32: the policy's log-probability of the steps from the root to the node.
    path_BND: jax.Array  # int32: the nodes on the way from the root, the node itself last; read the first `depth`.
    visits_BN: jax.Array  # int32.
    raw_value_BN: jax.Array  # float32: the value head's reading of the node.
    value_BN: jax.Array  # float32: the search's mean.
    children_BNK: jax.Array  # int32: node index, -1 where not visited.
    child_visits_BNK: jax.Array  # int32.
    q_BNK: jax.Array  # float32: mean outcome after the candidate; meaningful where visited.
    completed_q_BNK: jax.Array  # float32: Q, completed where not visited; not scaled.
    child_value_BNK: jax.Array  # float32: the candidate's own value: its reward if verified, else the value head's.
    prior_logits_BNK: jax.Array  # float32.
    gumbel_BNK: jax.Array  # float32: gumbel + prior_logits is the candidate's perturbed log-probability.
    log_prob_BNK: jax.Array  # float32: the policy's log-probability of the candidate.
    tokens_BNKL: jax.Array  # int32.
    length_BNK: jax.Array  # int32.
    valid_BNK: jax.Array  # bool: there is such a candidate, and a search may choose it.
    legal_BNK: jax.Array  # bool: as the verifier says; for training and scoring, read by no unverified search.
    done_BNK: jax.Array  # bool: the candidate completes the answer.
    reward_BNK: jax.Array  # float32: the verifier's, for training and scoring; read by no unverified search.
    written_BNK: jax.Array  # bool: the model wrote this candidate, whether or not a search may choose it.
    tokens_generated_B: jax.Array  # int32: tokens of all candidates proposed.
    root_action_B: jax.Array  # int32: the candidate that the search would commit to.


@pytree
class Answer:
    """One finished chain of steps for each problem."""

    found_B: jax.Array  # bool: there is a finished chain.
    value_B: jax.Array  # float32: its reward if verified, else the value head's reading.
    reward_B: jax.Array  # float32: the verifier's judgement, for scoring only.
    tokens_BDL: jax.Array  # int32: the steps, padded.
    length_BD: jax.Array  # int32: tokens of each step, 0 past the last.
    node_BD: jax.Array  # int32: the node each step starts from, -1 past the last.
    action_BD: jax.Array  # int32: and its candidate.


# Stands for an answer scale where an answer's value is its reward: no log-probability outweighs a solution.
CERTAIN = 1e4


def best_answer(tree: Tree, max_steps: int, pad: int, scale: float | jax.Array = CERTAIN) -> Answer:
    """The finished chain of the whole tree that maximises log pi(chain) + scale * value: the improved policy's mode.

    In a verified search the value of a finished candidate is its reward and the scale `CERTAIN`: a solution found is
    the answer, the likeliest one of several. Where the value head judges, the policy has a say: the largest of many
    readings is often one that is wrong, of a chain that the policy would hardly write.

    Args:
      scale: float32 [] or [B].
    """
    batch, num_nodes, num_candidates = tree.child_value_BNK.shape
    finished = tree.expanded_BN[..., None] & tree.valid_BNK & tree.done_BNK
    log_prob_BNK = tree.path_log_prob_BN[..., None] + tree.log_prob_BNK
    scale = jnp.broadcast_to(scale, (batch,))[:, None, None]
    score = jnp.where(finished, log_prob_BNK + scale * tree.child_value_BNK, -jnp.inf)
    best = jnp.argmax(score.reshape(batch, -1), -1)
    row = jnp.arange(batch)
    node, action = best // num_candidates, best % num_candidates
    depth = tree.depth_BN[row, node]
    found = jnp.any(finished, (1, 2))

    tokens = jnp.full((batch, max_steps, tree.tokens_BNKL.shape[-1]), pad, jnp.int32)
    length = jnp.zeros((batch, max_steps), jnp.int32)
    nodes = jnp.full((batch, max_steps), -1, jnp.int32)
    actions = jnp.full((batch, max_steps), -1, jnp.int32)
    at, step = node, action
    for level in reversed(range(max_steps)):
        here = found & (depth >= level)
        tokens = tokens.at[:, level].set(jnp.where(here[:, None], tree.tokens_BNKL[row, at, step], pad))
        length = length.at[:, level].set(jnp.where(here, tree.length_BNK[row, at, step], 0))
        nodes = nodes.at[:, level].set(jnp.where(here, at, -1))
        actions = actions.at[:, level].set(jnp.where(here, step, -1))
        step = jnp.where(here, tree.action_BN[row, at], step)
        at = jnp.where(here, jnp.maximum(tree.parent_BN[row, at], 0), at)
    return Answer(
        found_B=found,
        value_B=jnp.where(found, tree.child_value_BNK[row, node, action], 0.0),
        reward_B=jnp.where(found, tree.reward_BNK[row, node, action], 0.0),
        tokens_BDL=tokens,
        length_BD=length,
        node_BD=nodes,
        action_BD=actions,
    )
