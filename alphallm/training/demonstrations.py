"""Worked solutions as packed sequences: the warm start by imitation, AlphaGo's way."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from alphallm.errors import UserError
from alphallm.training.learner import Packed

_SOLUTIONS_PER_PROBLEM = 20
_OPEN = 64  # sequences that still have room and are tried for the next solution.


def demonstrations(task: Any, rows: Sequence[Any], size: int, seed: int) -> Packed:
    """Up to 20 solutions of each of a split's rows, packed into sequences [R, T] as host arrays; UserError if there are
    none.

    Args:
      size: T, the tokens of a sequence; a longer solution is left out, and said to be. 0 takes those of the longest.
      seed: of the order in which they are packed.
    """
    texts: list[tuple[list[int], list[int]]] = []
    for index, row in enumerate(rows):
        solutions = task.solutions(row, _SOLUTIONS_PER_PROBLEM)
        if solutions:
            problem = task.load(row, index)
            prompt = problem.tokens_P[: problem.length].tolist()
            texts += [(prompt, list(itertools.chain(*steps))) for steps in solutions]
    size = size or max((len(prompt) + len(steps) for prompt, steps in texts), default=0)
    fitting = [(prompt, steps) for prompt, steps in texts if len(prompt) + len(steps) <= size]
    if len(fitting) < len(texts):
        left_out = f"{len(texts) - len(fitting)} of {len(texts)} solutions of more than {size} tokens with their prompt"
        logging.warning("%s: left out %s (warm_start.sequence_tokens).", task.name, left_out)
    if not fitting:
        raise UserError(f"The task {task.name} has no worked solutions to start from: use another warm_start.data.")
    order = np.random.default_rng(seed).permutation(len(fitting))
    return pack([fitting[i] for i in order], size, task.vocabulary.pad)


def pack(texts: Sequence[tuple[list[int], list[int]]], size: int, pad: int) -> Packed:
    """Prompts and steps laid one behind the other, each into the first sequence of `size` tokens that has room."""
    sequences: list[list[tuple[list[int], list[int]]]] = []
    room: list[int] = []
    first_open = 0
    for prompt, steps in texts:
        needed = len(prompt) + len(steps)
        places = [i for i in range(first_open, len(room)) if room[i] >= needed]
        if not places:
            sequences.append([])
            room.append(size)
            places = [len(room) - 1]
        sequences[places[0]].append((prompt, steps))
        room[places[0]] -= needed
        first_open = max(first_open, len(room) - _OPEN)

    shape = (len(sequences), size)
    tokens, position, text = np.full(shape, pad, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    is_step = np.zeros(shape, bool)
    for row, members in enumerate(sequences):
        start = 0
        for number, (prompt, steps) in enumerate(members, 1):
            end = start + len(prompt) + len(steps)
            tokens[row, start:end] = prompt + steps
            position[row, start:end] = np.arange(end - start)
            text[row, start:end] = number
            is_step[row, start + len(prompt) : end] = True
            start = end
    fields: list[Any] = [tokens, position, text, is_step]
    return Packed(*fields)
