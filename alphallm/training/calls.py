"""Toolformer's filter (Schick et al. 2023, section 2): a call to the calculator stays where it helps the model.

A call helps by how much lower the loss of the tokens after it is with the call and its result than with the better of
no call and a call without its result; the first tokens weigh most.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alphallm import decode
from alphallm.models import LanguageModel
from alphallm.tasks import TextTask
from alphallm.tasks.calculator import ANNOTATION
from alphallm.tasks.examples import Example

_WEIGHTS = np.array([1.0, 0.8, 0.6, 0.4, 0.2]) / 3.0  # of the tokens after a call: their section 4.1.
_ROWS = 32  # sequences at once.


@dataclasses.dataclass(frozen=True)
class Call:
    """An annotation in a solution, and how much it helps."""

    start: int  # its place in the solution's text.
    end: int
    gain: float  # nats.


def calls_of(model: LanguageModel, params, task: TextTask, examples: Sequence[Example]) -> list[list[Call]]:
    """The calls of each example's solution, measured; one with nothing after it is not, and so stays.

    The calls before stay as they are, with the calculator's results.
    """
    places: list[tuple[int, int, int]] = []  # example, start, end
    sequences: list[tuple[list[int], int]] = []  # three for each place: tokens, and where what follows the call begins.
    for number, example in enumerate(examples):
        prompt = task.prompt(example.question)
        for found in ANNOTATION.finditer(example.solution):
            after = task.encode_solution(example.solution[found.end() :])[: len(_WEIGHTS)]
            if not after:
                continue
            places.append((number, found.start(), found.end()))
            before = prompt + task.encode_solution(example.solution[: found.start()])
            called = before + task.vocabulary.encode(f"<<{found[1]}=")
            close = task.vocabulary.encode(">>")
            answered = before + task.encode_solution(found[0])
            sequences += [(each + after, len(each)) for each in (before, called + close, answered)]
    losses = _losses(model, params, sequences).reshape(-1, 3)
    calls: list[list[Call]] = [[] for _ in examples]
    for (number, start, end), (without, empty, full) in zip(places, losses, strict=True):
        calls[number].append(Call(start, end, float(min(without, empty) - full)))
    return calls


def without_useless(example: Example, calls: Sequence[Call], threshold: float) -> Example:
    """The example with only those calls that gain at least `threshold` nats."""
    solution = example.solution
    for call in reversed(calls):
        if call.gain < threshold:
            solution = solution[: call.start] + solution[call.end :]
    return dataclasses.replace(example, solution=solution)


def _losses(model: LanguageModel, params, sequences: Sequence[tuple[list[int], int]]) -> np.ndarray:
    """The weighted loss of the tokens from the given place on, of each sequence."""
    size = -(-max((len(tokens) for tokens, _ in sequences), default=1) // 64) * 64
    run = jax.jit(functools.partial(_weighted_loss, model))
    found: list[Any] = []
    for first in range(0, len(sequences), _ROWS):
        some = sequences[first : first + _ROWS]
        tokens = np.zeros((_ROWS, size), np.int32)
        start, length = np.ones(_ROWS, np.int32), np.ones(_ROWS, np.int32)
        for row, (each, place) in enumerate(some):
            tokens[row, : len(each)], start[row], length[row] = each, place, len(each)
        found.append(np.asarray(run(params, tokens, start, length))[: len(some)])
    return np.concatenate(found) if found else np.zeros(0)


def _weighted_loss(model: LanguageModel, params, tokens_RT, start_R, length_R):
    rows, size = tokens_RT.shape
    positions = jnp.broadcast_to(jnp.arange(size)[None], tokens_RT.shape)
    hidden = model.trunk(params, tokens_RT, positions, decode.causal_mask(rows, size)).hidden_BXE
    place_RX = start_R[:, None] + jnp.arange(len(_WEIGHTS))[None]
    here_RX = jnp.minimum(place_RX, size - 1)
    log_probs = jax.nn.log_softmax(model.logits(params, jnp.take_along_axis(hidden, (here_RX - 1)[..., None], 1)))
    token_RX = jnp.take_along_axis(tokens_RT, here_RX, 1)
    each_RX = jnp.take_along_axis(log_probs, token_RX[..., None], -1)[..., 0]
    weight_RX = jnp.asarray(_WEIGHTS, jnp.float32)[None] * (place_RX < length_R[:, None])
    return -jnp.sum(weight_RX * each_RX, -1)
