"""Solutions as packed sequences: the warm start by imitation of worked ones, AlphaGo's way, or of random plays that
are taken for solutions of what they reach.
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from alphallm.errors import UserError
from alphallm.tasks.base import Task
from alphallm.training.learner import Packed
from alphallm.types import Tool

_SOLUTIONS_PER_PROBLEM = 20
_OPEN = 64  # sequences that still have room and are tried for the next solution.


def demonstrations(task: Any, rows: Sequence[Any], size: int, seed: int, forms: int = 1) -> Packed:
    """Up to 20 solutions of each of a split's rows, packed into sequences [R, T] as host arrays; UserError if there are
    none.

    Args:
      size: T, the tokens of a sequence; a longer solution is left out, and said to be. 0 takes those of the longest.
      seed: of the order in which they are packed, and of the symmetries.
      forms: in how many equivalent forms each problem is shown: as it is, and as `task.augment` makes it.
    """
    texts: list[_Text] = []
    for prompt, row in itertools.chain(_prompts(task, rows), _other_forms(task, rows, forms - 1, seed)):
        for steps in task.solutions(row, max(1, _SOLUTIONS_PER_PROBLEM // forms)):
            texts.append(_Text(prompt, steps, task.tool))
    return _packed(task, texts, size, seed)


def hindsight(task: Any, rows: Sequence[Any], size: int, seed: int, number: int) -> Packed:
    """Up to `number` random legal plays from each row's start, each as a solution of the problem that it turned out to
    solve (hindsight, Andrychowicz et al. 2017), packed like worked solutions: only the rules were asked.

    A play's detours are read, and the value head learns how far they led away; the policy imitates all but them. Most
    plays show something short: no number of steps is shown oftener than all of them would be if they were even.
    """
    of_steps: dict[int, list[_Text]] = {}  # by how many.
    for row in rows:
        for play in task.hindsight(row, number, seed):
            text = _Text(play.prompt, play.steps, task.tool, play.taken, play.steps_left)
            of_steps.setdefault(play.steps_left[0], []).append(text)
    most = sum(map(len, of_steps.values())) // max(1, len(of_steps))
    chooser = random.Random(seed)
    shown = [text for texts in of_steps.values() for text in chooser.sample(texts, min(most, len(texts)))]
    return _packed(task, shown, size, seed)


def _packed(task: Any, texts: Sequence["_Text"], size: int, seed: int) -> Packed:
    """The texts that fit, in a random order and packed; UserError if there are none."""
    size = size or max((len(text.tokens) for text in texts), default=0)
    fitting = [text for text in texts if len(text.tokens) <= size]
    if len(fitting) < len(texts):
        left_out = f"{len(texts) - len(fitting)} of {len(texts)} solutions of more than {size} tokens with their prompt"
        logging.warning("%s: left out %s (warm_start.sequence_tokens).", task.name, left_out)
    if texts and not fitting:
        shortest = min(len(text.tokens) for text in texts)
        raise UserError(f"No solution fits: raise warm_start.sequence_tokens={size} to {shortest} at least, or give 0.")
    if not texts:
        raise UserError(f"The task {task.name} has no solutions to start from: use another warm_start.data.")
    order = np.random.default_rng(seed).permutation(len(fitting))
    return pack([fitting[i] for i in order], size, task.vocabulary.pad)


def _prompts(task: Any, rows: Sequence[Any]) -> Iterator[tuple[list[int], Any]]:
    """The prompt of each row, and the row itself."""
    for index, row in enumerate(rows):
        problem = task.load(row, index)
        yield problem.tokens_P[: problem.length].tolist(), row


def _other_forms(task: Any, rows: Sequence[Any], number: int, seed: int) -> Iterator[tuple[list[int], str]]:
    """The same of each row's problem in `number` random equivalent forms, in words; nothing without symmetries."""
    if number < 1 or type(task).augment is Task.augment:
        return
    problems = [task.load(row, index) for index, row in enumerate(rows)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *problems)
    augment = jax.jit(jax.vmap(task.augment))
    for key in jax.random.split(jax.random.key(seed), number):
        augmented = jax.device_get(augment(stacked, jax.random.split(key, len(rows))))
        for tokens_P, length in zip(augmented.tokens_P, augmented.length, strict=True):
            prompt = tokens_P[:length].tolist()
            yield prompt, task.vocabulary.decode(prompt).rstrip("\n")


class _Text:
    """A prompt and the steps after it: by default all of one solution."""

    def __init__(
        self,
        prompt: list[int],
        steps: list[list[int]],
        tool: Tool | None,
        imitated: Sequence[bool] | None = None,
        steps_left: Sequence[int] | None = None,
    ):
        imitated = imitated or [True] * len(steps)
        self.tokens = [*prompt, *itertools.chain(*steps)]
        written = [[True] * len(step) if tool is None else [not x for x in tool.is_forced(step)] for step in steps]
        learnt = [[x and of_solution for x in step] for step, of_solution in zip(written, imitated, strict=True)]
        self.is_step = [*[False] * len(prompt), *itertools.chain(*learnt)]
        self.steps_left = [0] * len(self.tokens)
        end = len(prompt) - 1
        for step, left in zip(steps, steps_left or range(len(steps), 0, -1), strict=True):
            self.steps_left[end] = left
            end += len(step)


def pack(texts: Sequence[_Text], size: int, pad: int) -> Packed:
    """Texts laid one behind the other, each into the first sequence of `size` tokens that has room."""
    sequences: list[list[_Text]] = []
    room: list[int] = []
    for text in texts:
        tried = range(max(0, len(room) - _OPEN), len(room))
        place = next((i for i in tried if room[i] >= len(text.tokens)), len(room))
        if place == len(room):
            sequences.append([])
            room.append(size)
        sequences[place].append(text)
        room[place] -= len(text.tokens)

    shape = (len(sequences), size)
    tokens, position, number = np.full(shape, pad, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    is_step, steps_left = np.zeros(shape, bool), np.zeros(shape, np.int32)
    for row, members in enumerate(sequences):
        end = 0
        for i, text in enumerate(members, 1):
            start, end = end, end + len(text.tokens)
            tokens[row, start:end], is_step[row, start:end] = text.tokens, text.is_step
            steps_left[row, start:end] = text.steps_left
            position[row, start:end], number[row, start:end] = np.arange(end - start), i
    fields: list[Any] = [tokens, position, number, is_step, steps_left]
    return Packed(*fields)
