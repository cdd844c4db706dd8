"""Fine-tuning on verified best-of-N samples: what the field does instead of a search, at equal generated tokens.

python -m experiments.ablations.best_of_n --config=FILE --workdir=FOLDER [--config.FIELD=VALUE ...]

Each iteration samples N whole chains of every problem, where N chains may be as long as all candidates of the config's
search. The policy imitates chains that the verifier accepts; the value head learns the outcome of chains drawn evenly
(Monte Carlo). Warm start, optimizer, replay, checkpoints and evaluation are those of `alphallm.train`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from jax import lax

from alphallm import decode
from alphallm import train as command
from alphallm.config import apply_overrides, load_config, run_main
from alphallm.errors import UserError
from alphallm.evaluation import chains, strategies
from alphallm.losses import sum_and_count
from alphallm.training import learner, parallel, replay
from alphallm.training.config import Config
from alphallm.training.learner import Chain
from alphallm.training.loop import State, Trainer
from alphallm.training.steps import Steps, lane_keys, learning_rate
from alphallm.types import Problem, pytree


@pytree
class Pair:
    """A problem's place in the replay: M chains to imitate (without steps where none was right), and M to judge."""

    imitated: Chain
    judged: Chain
    valid: jax.Array


def chains_per_problem(task, config: Config) -> int:
    """N: as many chains as have the tokens of a search's candidates, both at their longest."""
    candidates = config.search.root_width + config.search.num_simulations * config.search.num_candidates
    return candidates // task.max_steps


def sample_pairs(model, task, config: Config, params, problem: Problem, key_B):
    """M of each problem's N chains [B, M], twice, and the sums that metrics are the means of."""
    num, kept = chains_per_problem(task, config), config.targets.nodes_per_tree
    key_BJ = jax.vmap(lambda key: jax.vmap(lambda j: jax.random.fold_in(key, j))(jnp.arange(num)))(key_B)
    prefix = decode.prefill(model, params, problem)
    drawn = chains.sample(model, task, params, problem, prefix, key_BJ, temperature=1.0)
    judge = functools.partial(strategies.judge, task, problem)
    reward_BJ, _, legal_BJ = jax.vmap(judge, in_axes=1, out_axes=1)(drawn.tokens_BJDL, drawn.length_BJD)
    reward_BJ = jnp.where(drawn.finished_BJ, reward_BJ, 0.0)
    # Keys differ from chain to chain, so the order is random; the right ones come first in the other.
    noise_BJ = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 2**20), (num,)))(key_B)
    _, right_BM = lax.top_k(reward_BJ + 0.1 * noise_BJ, kept)
    _, any_BM = lax.top_k(noise_BJ, kept)

    def pick(index_BM) -> Chain:
        def rows(x):
            return jax.vmap(lambda one, index: one[index])(x, index_BM)

        def over_rows(x):
            return jnp.repeat(x[:, None], kept, 1)

        prompt, length = over_rows(problem.tokens_P), over_rows(problem.length)
        return Chain(prompt, length, rows(drawn.tokens_BJDL), rows(drawn.length_BJD), rows(reward_BJ))

    right = pick(right_BM)
    imitated = Chain(
        right.prompt_P, right.prompt_length, right.tokens_DL,
        jnp.where(right.outcome[..., None] > 0, right.length_D, 0), right.outcome,
    )  # fmt: skip
    measured = {
        "search/solved": jnp.max(reward_BJ, -1), "search/tokens": jnp.sum(drawn.length_BJD, (1, 2)),
        "samples/right": reward_BJ, "policy/legal": legal_BJ,
    }  # fmt: skip
    metrics = {name: sum_and_count(x) for name, x in measured.items()}
    return Pair(imitated, pick(any_BM), jnp.ones(right_BM.shape[0], bool)), metrics


def pair_loss(model, params, pairs: Pair, value_weight: float):
    pairs = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), dataclasses.replace(pairs, valid=pairs.valid[:, None]))
    policy = learner.chain_loss(model, params, pairs.imitated, 0.0)[1]["loss/policy"]
    # As in `learner.row_loss`: where few chains were right, their mean is not given the weight of a whole batch.
    policy *= jnp.mean(jnp.any(pairs.imitated.length_D > 0, -1).astype(jnp.float32))
    value = learner.chain_loss(model, params, pairs.judged, 0.0)[1]["loss/value"]
    return policy + value_weight * value, {"loss/policy": policy, "loss/value": value}


class BestOfNSteps(Steps):
    """Samples and imitates where `Steps` searches and learns from targets."""

    def _self_play(self, params, stored, problem: Problem, lane_B, key):
        keys = lane_keys(key, lane_B)
        problem = self._augment(problem, keys)
        pairs, metrics = sample_pairs(self.model, self.task, self.config, params, problem, keys)
        return pairs, problem, metrics

    def _learn(self, state, stored, pairs, problem: Problem, lane_B, key):
        config, stored = self.config, replay.add(stored, pairs, problem)

        def step(state, i):
            keys = lane_keys(jax.random.fold_in(key, i), lane_B)
            drawn_from, keys = self._turn((stored.rows, keys), i)
            batch: Any = replay.sample(dataclasses.replace(stored, rows=drawn_from), keys, self._draws)[0]
            loss = lambda p, part: pair_loss(self.model, p, part, config.training.value_weight)
            return learner.update(state, config.optimizer, learning_rate(config), loss, batch)

        state, metrics = lax.scan(step, state, jnp.arange(config.training.learner_steps))
        return state, stored, jax.tree.map(jnp.mean, metrics)


class BestOfNTrainer(Trainer):
    def __init__(self, config: Config):
        super().__init__(config)
        self.steps = BestOfNSteps(self.model, self.task, config)

    def initial_state(self) -> State:
        fresh, batch = super().initial_state().learner, self._batch(0)
        keys = jax.random.split(jax.random.key(0), len(batch.index))
        pairs, _ = jax.eval_shape(
            lambda p, q, k: sample_pairs(self.model, self.task, self.config, p, q, k), fresh.params, batch, keys
        )
        return State(fresh, replay.empty(pairs, batch, self.config.training.replay_capacity))


def main(arguments: list[str], overrides: dict[str, str]) -> None:
    options = flags.FLAGS
    if arguments or not options.config or not options.workdir:
        raise UserError("Give --config=FILE and --workdir=FOLDER, and --config.FIELD=VALUE for what differs.")
    from alphallm.training.loop import train

    config = apply_overrides(load_config(options.config), overrides)
    parallel.use_cores_as_devices(options.cpu_devices or command.best_device_count(config, parallel.num_cores()))
    train(config, options.workdir, make_trainer=BestOfNTrainer)


if __name__ == "__main__":
    command.define_flags()
    run_main(main, takes_overrides=True)
