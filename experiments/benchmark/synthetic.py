"""What the search is timed on: a task that never terminates, and models whose every step has exactly L tokens.

Reward, legality and the end of an answer cost nothing here, and no search can run out of candidates: what is measured
is the work of a search in which every simulation runs the model.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alphallm.models import LanguageModel, ModelConfig
from alphallm.models.transformer import Hidden
from alphallm.types import KeyValues, Problem, Transition

STEP_END = 1  # the token that ends a step.


@dataclasses.dataclass(frozen=True, eq=False)
class Words:
    size: int
    pad: int = 0

    @property
    def step_end_SV(self) -> np.ndarray:
        return (np.arange(self.size) == STEP_END)[None]


@dataclasses.dataclass(frozen=True, eq=False)
class Endless:
    """Every step is legal and none ends the answer; the longest prefix is P + (D - 1) * L tokens."""

    vocabulary: Words
    max_prompt: int  # P: every prompt is as long as this.
    max_step: int  # L
    max_steps: int  # D
    name: str = "endless"
    max_legal_steps: int = 1
    max_later_steps: int = 1
    self_verifying: bool = True
    tool: None = None

    def step(self, state: jax.Array, tokens_L: jax.Array, length: jax.Array) -> Transition:
        del tokens_L, length
        return Transition(state + 1, jnp.float32(0), jnp.bool_(False), jnp.bool_(True))

    def legal_steps(self, state):
        raise NotImplementedError("Endless lists no steps: propose them by the model.")

    def problems(self, number: int) -> Problem:
        tokens = np.random.default_rng(0).integers(2, self.vocabulary.size, (number, self.max_prompt))
        zeros = np.zeros(number, np.int32)
        fields: list[Any] = [tokens.astype(np.int32), np.full(number, self.max_prompt, np.int32), zeros, zeros]
        return Problem(*fields)


class FixedLengthModel(LanguageModel):
    """A language model that ends every step at its L-th token, and never before.

    Steps of L tokens follow a prompt of P, so a position tells a token's place in its step. The trunk hands that on as
    one more channel of the hidden state, and the policy head masks accordingly: a comparison beside a matrix product.
    """

    def __init__(self, config: ModelConfig, task: Endless):
        super().__init__(config, task.vocabulary.size)
        self.task = task

    def trunk(self, params, tokens_BX, positions_BX, mask_BXX, past=()) -> Hidden:
        return self._with_place(super().trunk(params, tokens_BX, positions_BX, mask_BXX, past), positions_BX)

    def _with_place(self, hidden: Hidden, positions_BX) -> Hidden:
        next_place_BX = (positions_BX + 1 - self.task.max_prompt) % self.task.max_step
        ends_BX = (next_place_BX == self.task.max_step - 1).astype(hidden.hidden_BXE.dtype)
        return Hidden(jnp.concatenate([hidden.hidden_BXE, ends_BX[..., None]], -1), hidden.keys_values)

    def logits(self, params, hidden_E):
        logits = super().logits(params, hidden_E[..., :-1])
        is_end_V = (jnp.arange(logits.shape[-1]) == STEP_END).reshape((1,) * (logits.ndim - 1) + (-1,))
        return jnp.where(is_end_V == (hidden_E[..., -1:] > 0), logits, -1e9)

    def value_logit(self, params, hidden_E):
        return super().value_logit(params, hidden_E[..., :-1])


class StandIn(FixedLengthModel):
    """The same without its layers and heads: what a search costs beside the model.

    Logits and values come from a token's embedding, so that nothing is known when the search is compiled.
    """

    def trunk(self, params, tokens_BX, positions_BX, mask_BXX, past=()) -> Hidden:
        config, (batch, size) = self.config, tokens_BX.shape
        shape = (config.num_layers, batch, config.num_kv_heads, size, config.head_dim)
        keys_values = KeyValues(*(jnp.zeros(shape, config.dtype) for _ in range(2)))
        return self._with_place(Hidden(params["embedding"][tokens_BX], keys_values), positions_BX)

    def logits(self, params, hidden_E):
        is_end_V = (jnp.arange(self.vocabulary_size) == STEP_END).reshape((1,) * (hidden_E.ndim - 1) + (-1,))
        return jnp.where(is_end_V == (hidden_E[..., -1:] > 0), hidden_E[..., :1], -1e9)

    def value_logit(self, params, hidden_E):
        return 0.1 * hidden_E[..., 1]


class TimedModel(FixedLengthModel):
    """Calls `tick` on the host whenever a step is appended: once a simulation."""

    def __init__(self, config: ModelConfig, task: Endless, tick):
        super().__init__(config, task)
        self._tick = tick

    def trunk(self, params, tokens_BX, positions_BX, mask_BXX, past=()) -> Hidden:
        if past and tokens_BX.shape[1] == self.task.max_step:
            # The token makes the call wait for the simulation before.
            jax.experimental.io_callback(self._tick, None, tokens_BX[0, 0], ordered=False)
        return super().trunk(params, tokens_BX, positions_BX, mask_BXX, past)
