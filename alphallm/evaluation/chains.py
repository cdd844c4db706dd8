"""Whole answers sampled token by token: what greedy decoding, best-of-N and majority voting are made of.

All chains of a problem start from one prefilled prompt, and no token is run twice: a chain's token goes through the
model once, which gives the next token's logits and, at the answer's end, the value head's reading of it. Axis letters
beside those of `alphallm.types`: `J` chains of a problem, `R = B * J` rows, `Q = D * L` tokens of a chain, at most.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from alphallm import decode
from alphallm.decode import Prefix
from alphallm.evaluation.solutions import Chains
from alphallm.models import LanguageModel
from alphallm.types import KeyValues, Past, Problem, TaskState, pytree


@pytree
class _Rows:
    """The state of the sampling loop, one row a chain."""

    tokens_RDL: jax.Array
    length_RD: jax.Array
    level_R: jax.Array  # int32: the step being written.
    token_R: jax.Array  # int32: the token written last.
    matched_R: jax.Array  # int32: how much of the delimiter the tokens so far end in.
    tool: decode.ToolState
    wrote_R: jax.Array  # bool: a token was written in this turn, and has yet to be run.
    ended_R: jax.Array  # bool: no token follows.
    finished_R: jax.Array
    log_prob_R: jax.Array
    value_R: jax.Array
    state: TaskState


def sample(
    model: LanguageModel, task, params, problem: Problem, prefix: Prefix, key_BJ, *, temperature: float
) -> Chains:
    """Samples one chain for every key, at the given temperature (0: greedy decoding).

    A chain ends where the task says that the answer is complete, after D steps, or unfinished at a step of L tokens
    without a step-end token. Nothing else of the verifier's is read.
    """
    batch, num = key_BJ.shape
    size = task.max_steps * task.max_step
    over_rows = lambda x, axis=0: jnp.repeat(x, num, axis, total_repeat_length=batch * num)
    shared = Past(jax.tree.map(lambda x: over_rows(x, 1), prefix.past), over_rows(prefix.mask_BS)[:, None])
    shape = (*shared.keys_values.keys.shape[:3], size, shared.keys_values.keys.shape[4])
    cache = KeyValues(*(jnp.zeros(shape, shared.keys_values.keys.dtype) for _ in range(2)))
    start_R, key_R = over_rows(prefix.length_B), key_BJ.reshape(-1)

    def run(t, cache, rows: _Rows):
        """Runs the tokens written at time t: the cache with them, the next logits, and the values."""
        own = jnp.ones((batch * num, 1, 1), bool)
        written = jnp.broadcast_to((jnp.arange(size) < t)[None, None], (batch * num, 1, size))
        positions = (start_R + t)[:, None]
        hidden = model.trunk(params, rows.token_R[:, None], positions, own, [shared, Past(cache, written)])
        cache = jax.tree.map(
            lambda all_, new: lax.dynamic_update_slice_in_dim(all_, new, t, axis=3), cache, hidden.keys_values
        )
        hidden_RE = hidden.hidden_BXE[:, 0]
        return cache, model.logits(params, hidden_RE), jax.nn.sigmoid(model.value_logit(params, hidden_RE))

    def body(carry):
        t, cache, rows = carry
        cache, logits_RV, value_R = run(t, cache, rows)
        rows = dataclasses.replace(rows, value_R=jnp.where(rows.wrote_R, value_R, rows.value_R))
        return t + 1, cache, _write(task, rows, _choose(key_R, t + 1, logits_RV, temperature), logits_RV)

    rows = _empty(task, jax.tree.map(over_rows, problem.state), batch * num)
    logits_RV = over_rows(prefix.logits_BV)
    rows = _write(task, rows, _choose(key_R, 0, logits_RV, temperature), logits_RV)
    _, _, rows = lax.while_loop(lambda carry: jnp.any(carry[2].wrote_R), body, (jnp.int32(0), cache, rows))
    chains = Chains(rows.tokens_RDL, rows.length_RD, rows.finished_R, rows.log_prob_R, rows.value_R)
    return jax.tree.map(lambda x: x.reshape(batch, num, *x.shape[1:]), chains)


def _empty(task, state: TaskState, num: int) -> _Rows:
    integers, numbers, no = jnp.zeros(num, jnp.int32), jnp.zeros(num), jnp.zeros(num, bool)
    tokens = jnp.full((num, task.max_steps, task.max_step), task.vocabulary.pad, jnp.int32)
    lengths = jnp.zeros((num, task.max_steps), jnp.int32)
    tool = decode.start_tool(task.tool, (num,))
    return _Rows(tokens, lengths, integers, integers, integers, tool, no, no, no, numbers, numbers, state)


def _choose(key_R, t, logits_RV, temperature: float) -> jax.Array:
    """The token [R] at time t."""
    if temperature == 0.0:
        return jnp.argmax(logits_RV, -1)
    # One uniform a row and the inverse of the cumulative distribution: random bits are the cost on a CPU.
    uniform_R = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, t)))(key_R)
    cumulative_RV = jnp.cumsum(jax.nn.softmax(logits_RV / temperature), -1)
    below_RV = cumulative_RV <= uniform_R[:, None] * cumulative_RV[:, -1:]
    return jnp.minimum(jnp.sum(below_RV, -1), logits_RV.shape[-1] - 1)


def _write(task, rows: _Rows, token_R, logits_RV) -> _Rows:
    """Writes a token to every chain that goes on, and ends the step or the chain where it is due."""
    row, writes_R = jnp.arange(token_R.shape[0]), ~rows.ended_R
    token_R, by_model_R = decode.forced_or(rows.tool, token_R), rows.tool.next < 0
    level_R = jnp.minimum(rows.level_R, task.max_steps - 1)
    place_R = jnp.minimum(rows.length_RD[row, level_R], task.max_step - 1)
    written = jnp.where(writes_R, token_R, rows.tokens_RDL[row, level_R, place_R])
    tokens_RDL = rows.tokens_RDL.at[row, level_R, place_R].set(written)
    length_RD = rows.length_RD.at[row, level_R].add(writes_R)
    log_prob_R = jnp.take_along_axis(jax.nn.log_softmax(logits_RV), token_R[:, None], 1)[:, 0]

    step_end_SV = jnp.asarray(task.vocabulary.step_end_SV, jnp.int32)
    matched_R = step_end_SV[rows.matched_R, token_R]
    step_ends_R = writes_R & (matched_R == step_end_SV.shape[0])
    full_R = writes_R & ~step_ends_R & (place_R == task.max_step - 1)

    def take_step(state):
        # Only what the structure of answers says is read here, never reward or legality.
        after = jax.vmap(task.step)(state, tokens_RDL[row, level_R], length_RD[row, level_R])
        return jax.tree.map(lambda new, old: where_rows(step_ends_R, new, old), after.state, state), after.done

    state, done_R = lax.cond(
        jnp.any(step_ends_R), take_step, lambda state: (state, jnp.zeros_like(step_ends_R)), rows.state
    )
    finished_R = rows.finished_R | (step_ends_R & done_R)
    new_level_R = rows.level_R + step_ends_R
    return _Rows(
        tokens_RDL=tokens_RDL,
        length_RD=length_RD,
        level_R=new_level_R,
        token_R=token_R,
        wrote_R=writes_R,
        matched_R=jnp.where(step_ends_R, 0, matched_R),
        tool=decode.use_tool(
            task.tool, rows.tool, token_R, tokens_RDL[row, level_R], length_RD[row, level_R], writes_R & ~step_ends_R
        ),
        ended_R=rows.ended_R | finished_R | full_R | (new_level_R >= task.max_steps),
        finished_R=finished_R,
        log_prob_R=rows.log_prob_R + jnp.where(writes_R & by_model_R, log_prob_R, 0.0),
        value_R=rows.value_R,
        state=state,
    )


def where_rows(mask_R, new, old):
    """`new` [R, ...] in the rows where the mask is True, else `old`."""
    return jnp.where(mask_R.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
