"""Runs strategies at budgets over problems and seeds, on the host side of the compiled functions in `strategies`."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from alphallm.errors import UserError
from alphallm.evaluation import intervals, plans, strategies
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


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """One line of the comparison: outcomes [S, B] over seeds and problems, and the mean spend on a problem."""

    run: str
    strategy: Strategy
    budget: int | None  # None for greedy, which has no knob.
    solved_SB: np.ndarray  # float32: the verifier's reward.
    illegal_SB: np.ndarray  # float32: 1 where the answer breaks a rule or is not complete.
    tokens_SB: np.ndarray
    expansions_SB: np.ndarray
    flops_SB: np.ndarray
    seconds: float  # per problem, compilation left out.

    @functools.cached_property
    def rate(self) -> intervals.Interval:
        return intervals.solve_rate(self.solved_SB)


class _Program:
    """One strategy's compiled function for one batch size. Compiled apart from its first call, which is timed."""

    def __init__(self, model: LanguageModel, task, program: Strategy):
        self._function = jax.jit(functools.partial(strategies.answer, model, task, program))
        self._compiled: Callable[..., Result] | None = None

    def __call__(self, *arguments) -> tuple[Result, float]:
        """The result on the host, and the seconds it took."""
        if self._compiled is None:
            self._compiled = self._function.lower(*arguments).compile()
        began = time.perf_counter()
        result = jax.block_until_ready(self._compiled(*arguments))
        return jax.tree.map(np.asarray, result), time.perf_counter() - began


@functools.lru_cache(maxsize=64)
def _program(model: LanguageModel, task, program: Strategy, batch_size: int) -> _Program:
    del batch_size  # Part of the key: a compiled function has one batch size.
    return _Program(model, task, program)


def solve_all(
    model: LanguageModel,
    task,
    strategy: Strategy,
    params,
    problems: Problem,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
) -> tuple[Result, float]:
    """Answers problems in batches of one fixed size: the results, and the seconds they took without compilation.

    Everything is compiled once for each model, task, strategy and batch size, over all calls. The results do not depend
    on the batch size.
    """
    number = len(problems.index)
    if number == 0:
        raise UserError("There are no problems to solve: give a split or a number of problems that is not empty.")
    params = jax.device_put(params, jax.local_devices()[0])
    program = _program(model, task, strategies.program(strategy), batch_size)
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


def evaluate(
    contestant: Contestant,
    problems: Problem,
    planned: Sequence[tuple[int | None, Strategy]],
    seeds: int = 1,
    batch_size: int = BATCH_SIZE,
) -> Iterator[Row]:
    """Yields one row for each planned strategy as soon as it is known. Greedy needs one seed only."""
    batch_size = min(batch_size, len(problems.index))
    for budget, strategy in planned:
        runs = [
            solve_all(contestant.model, contestant.task, strategy, contestant.params, problems, seed, batch_size)
            for seed in range(1 if strategy.name == "greedy" else seeds)
        ]
        yield _row(contestant, budget, strategy, [result for result, _ in runs], [seconds for _, seconds in runs])


def _row(
    contestant: Contestant, budget, strategy: Strategy, results: Sequence[Result], seconds: Sequence[float]
) -> Row:
    stacked: Any = jax.tree.map(lambda *parts: np.stack(parts), *results)
    return Row(
        run=contestant.run,
        strategy=strategy,
        budget=budget,
        solved_SB=stacked.reward_B,
        illegal_SB=1.0 - stacked.legal_B.astype(np.float32),
        tokens_SB=stacked.tokens_generated_B,
        expansions_SB=stacked.expansions_B,
        flops_SB=stacked.positions_B.astype(np.float64) * contestant.model.flops_per_token(),
        seconds=float(np.sum(seconds)) / stacked.reward_B.size,
    )
