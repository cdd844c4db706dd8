"""Solve rates on validation problems while training, and a few answers in words."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alphallm import decode
from alphallm.evaluation import chains, compare, plans
from alphallm.evaluation.plans import Strategy
from alphallm.models import LanguageModel
from alphallm.search import SearchConfig
from alphallm.tasks import data
from alphallm.training import hosts
from alphallm.training.config import Config
from alphallm.training.learner import Chain, chain_log_prob

_SEARCHES = {"verified": "search", "value_only": "search, value only"}
_SAMPLES = 2  # of each kind: solved, and failed.


@dataclasses.dataclass(frozen=True)
class Sample:
    title: str
    text: str


class Validation:
    """Evaluates parameters on the same problems, with the same random numbers, each time it is called."""

    def __init__(self, model: LanguageModel, task, config: Config, rows: Sequence[Any]):
        self.model, self.task = model, task
        self.problems = data.load_problems(task, rows)
        # Every host answers its share, if there is one for each.
        count = jax.process_count()
        share = slice(jax.process_index(), None, count) if len(rows) >= count else slice(None)
        self.rows, self.shared = rows[share], jax.tree.map(lambda x: x[share], self.problems)
        search, simulations, modes = config.search, config.evaluation.num_simulations, plans.modes(task)
        self.strategies = {
            "greedy": Strategy("greedy", "both", 0, SearchConfig()),
            "value greedy": Strategy("value_greedy", modes[0], search.num_candidates, SearchConfig()),
        }
        for mode in modes:
            self.strategies[_SEARCHES[mode]] = plans.with_simulations(task, search, "search", mode, simulations)
        self._shown = _SEARCHES[modes[0]]  # the strategy whose answers are samples.

        self._kl = jax.jit(functools.partial(_kl, self.model, self.task))

    def kl(self, params, reference) -> float:
        """KL divergence of the policy from a reference policy over whole answers, in nats a problem.

        An estimate from one sampled chain a problem, the same random numbers each time.
        """
        return float(self._kl(params, reference, self.problems))

    def __call__(self, params) -> tuple[dict[str, float], list[Sample]]:
        """Solve rates by strategy, and samples of the search's answers."""
        results = {
            name: compare.solve_all(self.model, self.task, strategy, params, self.shared)[0]
            for name, strategy in self.strategies.items()
        }
        solved = {name: np.array([np.sum(result.reward_B), len(result.reward_B)]) for name, result in results.items()}
        rates = {name: float(np.divide(*hosts.total(each))) for name, each in solved.items()}
        return rates, self._samples(results[self._shown])

    def _samples(self, result) -> list[Sample]:
        solved = result.reward_B > 0
        chosen = [*np.flatnonzero(solved)[:_SAMPLES], *np.flatnonzero(~solved)[:_SAMPLES]]
        return [self._sample(result, int(i), bool(solved[i])) for i in chosen]

    def _sample(self, result, i: int, solved: bool) -> Sample:
        lines = [
            self.task.vocabulary.decode(tokens[:length].tolist()).rstrip("\n")
            for tokens, length in zip(result.tokens_BDL[i], result.length_BD[i], strict=True)
            if length
        ]
        verdict = "solved" if solved else "failed"
        return Sample(f"{self.rows[i]}: {verdict}", "; ".join(lines))


def _kl(model: LanguageModel, task, params, reference, problems) -> jax.Array:
    key_B1 = jax.vmap(lambda index: jax.random.fold_in(jax.random.key(0), index))(problems.index)[:, None]
    prefix = decode.prefill(model, params, problems)
    drawn = chains.sample(model, task, params, problems, prefix, key_B1, temperature=1.0)
    drawn = jax.tree.map(lambda x: x[:, 0], drawn)
    chain = Chain(problems.tokens_P, problems.length, drawn.tokens_BJDL, drawn.length_BJD, drawn.value_BJ)
    return jnp.mean(drawn.log_prob_BJ - chain_log_prob(model, reference, chain, task.tool))
