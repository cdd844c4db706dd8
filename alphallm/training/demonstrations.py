"""Worked solutions as training chains: the warm start by imitation, AlphaGo's way."""

from typing import Any

import numpy as np

from alphallm.training.learner import Chain
from alphallm.types import Problem

_SOLUTIONS_PER_PROBLEM = 20


def demonstrations(task, problems: Problem) -> Chain:
    """Up to 20 solutions of each problem of a batch, from the task's exact solver, as host arrays [R, ...]."""
    chains = []
    for i in range(len(problems.index)):
        prompt, length = problems.tokens_P[i], problems.length[i]
        text = task.vocabulary.decode(prompt[:length].tolist())
        for solution in task.solutions(text, _SOLUTIONS_PER_PROBLEM):
            chains.append(_chain(task, prompt, length, solution))
    columns: list[Any] = [np.stack(column) for column in zip(*chains, strict=True)]
    return Chain(*columns)


def _chain(task, prompt_P, length, solution: str):
    tokens_DL = np.full((task.max_steps, task.max_step), task.vocabulary.pad, np.int32)
    length_D = np.zeros(task.max_steps, np.int32)
    for level, line in enumerate(solution.splitlines(keepends=True)):
        tokens = task.vocabulary.encode(line)
        tokens_DL[level, : len(tokens)], length_D[level] = tokens, len(tokens)
    return prompt_P, length, tokens_DL, length_D, np.float32(1.0)
