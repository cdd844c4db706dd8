"""The actor: search a batch of problems and turn the trees into rows; and the random legal play of the warm start."""

import jax
import jax.numpy as jnp
from jax import lax

from alphallm.losses import sum_and_count
from alphallm.models import LanguageModel
from alphallm.search import search
from alphallm.training import targets
from alphallm.training.config import Config
from alphallm.training.learner import Chain
from alphallm.types import Problem


def self_play(model: LanguageModel, task, config: Config, params, problem: Problem, key_B: jax.Array):
    """Searches each problem once and returns its row [B] and the sums that its metrics are the means of.

    A share of the problems is searched without the legality mask, so that the value head meets what it must judge where
    no verifier is at hand.
    """
    verified_B = jnp.ones(key_B.shape, bool)
    masked_B = jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, 2**22)))(key_B)
    masked_B = masked_B >= config.training.unmasked_fraction
    tree = search(model, task, config.search, params, problem, key_B, verified_B, masked_B)
    planned = targets.plan(tree, config.search, config.targets, verified_B)
    rows = targets.rows(tree, planned, problem, config.targets)
    return rows, metrics(tree, planned, rows)


def metrics(tree, planned: targets.Planned, rows: targets.Row) -> dict[str, jax.Array]:
    """How the search went, and how far its improved policy is from the prior: sums and counts of what exists [2].

    Their quotients over all devices are the metrics (`parallel.means`). So self-play needs no message between devices.
    """
    root_written = tree.written_BNK[:, 0]
    log_prob = jnp.where(root_written, tree.log_prob_BNK[:, 0], -1e9)
    prior = jax.nn.softmax(jnp.where(tree.valid_BNK, tree.prior_logits_BNK, -1e9))
    improved = planned.improved_BNK
    log_ratio = jnp.log(improved + 1e-9) - jnp.log(prior + 1e-9)
    distance = jnp.sum(jnp.where(improved > 0, improved * log_ratio, 0.0), -1)
    has_choice = tree.expanded_BN & jnp.any(tree.valid_BNK, -1)
    finished = tree.written_BNK & tree.done_BNK & tree.valid_BNK
    return {
        "search/solved": sum_and_count(planned.solved_BN[:, 0] > 0),
        "search/root_value": sum_and_count(planned.value_BN[:, 0]),
        "search/raw_root_value": sum_and_count(tree.raw_value_BN[:, 0]),
        "search/expanded": sum_and_count(jnp.sum(tree.expanded_BN, -1)),
        "search/mean_depth": sum_and_count(tree.depth_BN, tree.expanded_BN),
        "search/tokens": sum_and_count(tree.tokens_generated_B),
        "search/finished": sum_and_count(jnp.sum(finished, (1, 2))),
        "policy/legal": sum_and_count(tree.legal_BNK, tree.written_BNK),
        "policy/unique": sum_and_count(jnp.sum(tree.written_BNK, -1), tree.expanded_BN),
        "policy/root_mass_written": sum_and_count(jnp.sum(jnp.exp(log_prob), -1)),
        "policy/improvement_kl": sum_and_count(distance, has_choice),
        "targets/nodes": sum_and_count(jnp.sum(rows.valid_M, -1)),
    }


def random_play(task, problem: Problem, key: jax.Array) -> Chain:
    """One chain of uniformly drawn legal steps for one problem: what the rules alone can show."""

    def play(state, level):
        steps = task.legal_steps(state)
        choice = jax.random.categorical(jax.random.fold_in(key, level), jnp.where(steps.valid_A, 0.0, -jnp.inf))
        tokens, length = steps.tokens_AL[choice], jnp.where(jnp.any(steps.valid_A), steps.length_A[choice], 0)
        transition = task.step(state, tokens, length)
        return transition.state, (tokens, length, transition.reward)

    _, (tokens_DL, length_D, reward_D) = lax.scan(play, problem.state, jnp.arange(task.max_steps))
    # A chain without a legal step ends there.
    length_D = jnp.where(jnp.cumprod(length_D > 0) > 0, length_D, 0)
    return Chain(problem.tokens_P, problem.length, tokens_DL, length_D, jnp.max(reward_D))
