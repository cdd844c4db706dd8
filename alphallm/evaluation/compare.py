"""Runs strategies at budgets over problems and seeds, on the host side of the compiled functions in `strategies`."""

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alphallm.errors import UserError
from alphallm.evaluation import adaptive, intervals, plans, strategies
from alphallm.evaluation.plans import Strategy
from alphallm.evaluation.strategies import Result
from alphallm.models import LanguageModel
from alphallm.search import SearchConfig
from alphallm.types import Problem

BATCH_SIZE = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Contestant:
    """What is compared: parameters with a name, and the search that they are used in."""

    run: str
    model: LanguageModel
    task: Any
    params: Any
    search: SearchConfig

    @functools.cached_property
    def weights(self) -> str:
        """A fingerprint of the parameters: results of others are not these."""
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(self.params):
            digest.update(np.ascontiguousarray(leaf).tobytes())
        return digest.hexdigest()[:16]


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """One line of the comparison: outcomes [S, B] over seeds and problems, and the mean spend on a problem."""

    run: str
    weights: str
    strategy: str
    mode: str
    budget: int | None  # None for greedy, which has no knob.
    knob: str  # in words.
    search: dict[str, Any]  # the strategy's `SearchConfig`.
    solved_SB: np.ndarray  # float32: the verifier's reward.
    illegal: float  # share of answers that break a rule or are not complete.
    tokens: float
    expansions: float
    calls: float
    flops: float  # of forward passes.
    seconds: float  # compilation left out.

    @functools.cached_property
    def rate(self) -> intervals.Interval:
        return intervals.solve_rate(self.solved_SB)

    @property
    def identity(self) -> str:
        """Equal for rows that would come out equal."""
        return _identity(self.run, self.weights, self.strategy, self.mode, self.knob, self.search)


def identity(contestant: Contestant, strategy: Strategy) -> str:
    """That of the row which the strategy will give."""
    search = dataclasses.asdict(strategy.search)
    return _identity(contestant.run, contestant.weights, strategy.name, strategy.mode, strategy.knob_text, search)


def _identity(*of: Any) -> str:
    return json.dumps(of, sort_keys=True)


class _Program:
    """One strategy's compiled function for one batch size. Compiled apart from its first call, which is timed."""

    def __init__(self, model: LanguageModel, task, program: Strategy, keep_solutions: bool):
        def answer(*arguments) -> Result:
            result = strategies.answer(model, task, program, *arguments)
            # They are many, and most callers want the answers alone.
            return result if keep_solutions else dataclasses.replace(result, solutions=None, solution_reward_BJ=None)

        self._name = f"{program.name} ({program.knob_text})"
        self._function = jax.jit(answer)
        self._compiled: Callable[..., Result] | None = None

    def __call__(self, *arguments) -> tuple[Result, float]:
        """The result on the host, and the seconds it took."""
        try:
            if self._compiled is None:
                self._compiled = self._function.lower(*arguments).compile()
            began = time.perf_counter()
            result = jax.block_until_ready(self._compiled(*arguments))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{self._name} needs more memory than the device has ({reason}): give a smaller --batch_size or "
                "smaller budgets. The rows before it are kept."
            ) from error
        return jax.tree.map(np.asarray, result), time.perf_counter() - began


# A compiled program holds about a thousand memory mappings, and Linux gives a process 65,530; past them XLA crashes.
@functools.lru_cache(maxsize=24)
def _program(model: LanguageModel, task, program: Strategy, keep_solutions: bool, batch_size: int) -> _Program:
    del batch_size  # Part of the key: a compiled function has one batch size.
    return _Program(model, task, program, keep_solutions)


def solve_all(
    model: LanguageModel,
    task,
    strategy: Strategy,
    params,
    problems: Problem,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    keep_solutions: bool = False,
) -> tuple[Result, float]:
    """Answers problems in batches of one fixed size: the results, and the seconds they took without compilation.

    Everything is compiled once for each model, task, strategy and batch size, over all calls. The results do not depend
    on the batch size. The results have `solutions` only if they are to be kept.
    """
    number = len(problems.index)
    if number == 0:
        raise UserError("There are no problems to solve: give a split or a number of problems that is not empty.")
    if strategy.name == "adaptive":
        run = lambda rung, some: solve_all(model, task, rung, params, some, seed, batch_size)
        return adaptive.solve(run, task, strategy, problems)
    params = jax.device_put(params, jax.local_devices()[0])
    program = _program(model, task, strategies.program(strategy), keep_solutions, batch_size)
    results, seconds = [], 0.0
    for start in range(0, number, batch_size):
        # The last batch is filled up with its last problem.
        index = np.minimum(np.arange(start, start + batch_size), number - 1)
        batch = jax.tree.map(lambda x, index=index: np.asarray(x)[index], problems)
        result, took = program(params, batch, np.int32(seed), strategies.switches(strategy))
        results.append(jax.tree.map(lambda x, start=start: x[: number - start], result))
        seconds += took
    return jax.tree.map(lambda *parts: np.concatenate(parts), *results), seconds


def plan_all(
    contestant: Contestant, names: Sequence[str], modes: Sequence[str], budgets: Sequence[int]
) -> list[tuple[int | None, Strategy]]:
    """The strategies to run, each with the smallest budget that gives it.

    A budget that is too small for a strategy is left out, and said to be; UserError where all are.
    """
    planned: dict[Strategy, int | None] = {}
    for name in names:
        plans.check_names([name], plans.STRATEGIES, "strategy")
        smallest = plans.smallest_budget(contestant.task, contestant.search, name)
        enough = [budget for budget in sorted(budgets) if budget >= smallest]
        if len(enough) < len(budgets) and enough:
            few = ", ".join(str(budget) for budget in sorted(budgets) if budget < smallest)
            print(f"{contestant.run}: {name} needs {smallest} generated tokens a problem, so it is left out at {few}.")
        for mode in modes:
            for budget in enough or budgets:  # of which `plan` says that they are too small.
                strategy = plans.plan(contestant.task, contestant.search, name, mode, budget)
                if strategy is not None:
                    planned.setdefault(strategy, None if name == "greedy" else budget)
    return [(budget, strategy) for strategy, budget in planned.items()]


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What rows cost at most, and about how long they take."""

    tokens: float
    flops: float
    seconds: float  # without compilation.


def forecast(
    contestant: Contestant, problems: Problem, planned: Sequence[tuple[int | None, Strategy]], seeds: int
) -> Forecast:
    """The worst case of all rows together, at the rate that one forward pass of many rows is measured to have."""
    task, answers = contestant.task, len(problems.index) * seeds
    tokens = positions = 0.0
    for budget, strategy in planned:
        most = answers * (budget or task.max_steps * task.max_step)
        tokens += most
        if strategy.name != "search_uniform":
            steps = strategy.knob * task.max_step if strategy.name in plans.SEARCHES else 0
            positions += most + answers * (steps + task.max_prompt)
    flops = positions * contestant.model.flops_per_token()
    return Forecast(tokens, flops, flops / _flops_per_second(contestant))


def _flops_per_second(contestant: Contestant, rows: int = 1024, size: int = 4) -> float:
    model = contestant.model
    tokens = np.zeros((rows, size), np.int32)
    positions = np.broadcast_to(np.arange(size, dtype=np.int32), (rows, size))

    @jax.jit
    def run(params):
        mask = jnp.broadcast_to(jnp.tril(jnp.ones((1, size, size), bool)), (rows, size, size))
        return model.logits(params, model.trunk(params, tokens, positions, mask).hidden_BXE)

    params = jax.device_put(contestant.params, jax.local_devices()[0])
    jax.block_until_ready(run(params))
    began = time.perf_counter()
    jax.block_until_ready([run(params) for _ in range(3)])
    return 3 * rows * size * model.flops_per_token() / (time.perf_counter() - began)


def evaluate(
    contestant: Contestant,
    problems: Problem,
    planned: Sequence[tuple[int | None, Strategy]],
    seeds: int = 1,
    batch_size: int = BATCH_SIZE,
    known: Mapping[str, Row] | None = None,
) -> Iterator[Row]:
    """Yields one row for each planned strategy as soon as it is known; `known` ones, by identity, are not run again.

    Greedy needs one seed only.
    """
    batch_size = min(batch_size, len(problems.index))
    for budget, strategy in planned:
        row = (known or {}).get(identity(contestant, strategy))
        if row is not None:
            yield dataclasses.replace(row, budget=budget)
            continue
        runs = [
            solve_all(contestant.model, contestant.task, strategy, contestant.params, problems, seed, batch_size)
            for seed in range(1 if strategy.name == "greedy" else seeds)
        ]
        stacked: Any = jax.tree.map(lambda *parts: np.stack(parts), *[result for result, _ in runs])
        mean = lambda x: float(np.mean(x))
        spend = stacked.spend
        yield Row(
            contestant.run, contestant.weights, strategy.name, strategy.mode, budget, strategy.knob_text,
            dataclasses.asdict(strategy.search),
            solved_SB=stacked.reward_B,
            illegal=1.0 - mean(stacked.legal_B),
            tokens=mean(spend.tokens_B),
            expansions=mean(spend.expansions_B),
            calls=mean(spend.calls_B),
            flops=mean(spend.positions_B) * contestant.model.flops_per_token(),
            seconds=sum(seconds for _, seconds in runs) / stacked.reward_B.size,
        )  # fmt: skip
