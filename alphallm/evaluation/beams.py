"""Search by steps and values without a tree: W partial answers, each continued by one of its K candidate steps.

    one beam            value-greedy: the best of K candidates by value, at each step.
    several, together   step beam search: of all beams' candidates the W best by value (BFS-V of TS-LLM, Feng et al.
                        2023, after Tree of Thoughts, Yao et al. 2023).
    several, apart      diverse verifier tree search: W subtrees, which start from the W best first steps; each goes on
                        with its own best candidate (DVTS, Beeching et al. 2024).

Axis letters beside those of `alphallm.types`: `W` beams of a problem, `R = B * W` rows. The first step is proposed
once, for a single beam.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from alphallm import decode
from alphallm.evaluation.chains import where_rows
from alphallm.evaluation.solutions import Chains, Spend
from alphallm.models import LanguageModel
from alphallm.types import Problem, TaskState, pytree


@pytree
class _Beams:
    """The state between two steps, one row a beam."""

    prefix: decode.Prefix  # its cache has room for the steps to come.
    state: TaskState
    running_R: jax.Array  # bool: is continued.
    chains: Chains  # [B, W], with the value of the step taken last; `finished_BJ` as far as there is a chain.
    spend: Spend


def search(
    model: LanguageModel, task, params, problem: Problem, key_B, *, width: int, num: int, apart: bool, min_p: float,
    verified: jax.Array,
) -> tuple[Chains, Spend]:  # fmt: skip
    """Continues up to `width` beams by one of `num` candidates each until all are finished.

    Where `verified` (bool []), illegal candidates are left out and a finished one is worth its reward. A finished beam
    keeps its place as long as its value does. A beam without a candidate that may be taken ends unfinished.
    """

    def step(level, beams: _Beams) -> _Beams:
        return _step(
            model, task, params, beams, key_B, level, problem.tokens_P.shape[1], width=width, num=num, apart=apart,
            min_p=min_p, verified=verified,
        )  # fmt: skip

    beams = lax.fori_loop(1, task.max_steps, step, step(0, _start(model, task, params, problem)))
    return beams.chains, beams.spend


def _start(model, task, params, problem: Problem) -> _Beams:
    prefix = decode.prefill(model, params, problem)
    room = max(1, task.max_steps - 1) * task.max_step  # The last step is never continued; the first may be the last.
    past = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, room), (0, 0))), prefix.past)
    prefix = dataclasses.replace(prefix, past=past, mask_BS=jnp.pad(prefix.mask_BS, ((0, 0), (0, room))))
    batch = problem.length.shape[0]
    chains = Chains(
        tokens_BJDL=jnp.full((batch, 1, task.max_steps, task.max_step), task.vocabulary.pad, jnp.int32),
        length_BJD=jnp.zeros((batch, 1, task.max_steps), jnp.int32),
        finished_BJ=jnp.zeros((batch, 1), bool),
        log_prob_BJ=jnp.zeros((batch, 1)),
        value_BJ=jnp.zeros((batch, 1)),
    )
    none = jnp.zeros(batch, jnp.int32)
    spend = Spend(none, none, problem.length, none + 1)
    return _Beams(prefix, problem.state, jnp.ones(batch, bool), chains, spend)


def _step(
    model, task, params, beams: _Beams, key_B, level, size: int, *, width: int, num: int, apart: bool, min_p: float,
    verified,
) -> _Beams:  # fmt: skip
    """The beams, `width` of them, one step further; `size` is the prompt's padded length."""
    batch, before = beams.chains.finished_BJ.shape
    vocabulary = task.vocabulary
    split = lambda x: x.reshape(batch, before, *x.shape[1:])
    key_BW = jax.vmap(
        lambda key: jax.vmap(lambda w: jax.random.fold_in(jax.random.fold_in(key, level), w))(jnp.arange(before))
    )(key_B)
    candidates = decode.gumbel_top_k(
        model, params, beams.prefix, key_BW.reshape(-1), num=num, max_length=task.max_step,
        step_end_SV=jnp.asarray(vocabulary.step_end_SV), pad=vocabulary.pad, tool=task.tool,
    )  # fmt: skip
    over_candidates = jax.vmap(jax.vmap(task.step, in_axes=(None, 0, 0)))
    verdict = over_candidates(beams.state, candidates.tokens_BKL, candidates.length_BK)
    allowed_RK = candidates.valid_BK & jnp.where(verified, verdict.legal, decode.likely(candidates, min_p))
    allowed_RK &= beams.running_R[:, None]
    value_RK = jnp.where(verdict.done & verified, verdict.reward, candidates.value_BK)

    # A finished beam has one entry, itself, in its first candidate's place.
    itself_RK = (beams.chains.finished_BJ.reshape(-1)[:, None]) & (jnp.arange(num) == 0)[None]
    score_RK = jnp.where(allowed_RK, value_RK, -1.0)
    score_RK = jnp.where(itself_RK, beams.chains.value_BJ.reshape(-1)[:, None], score_RK)
    parent_BW, action_BW, score_BW = _choose(split(score_RK), width, apart=apart and before == width)

    row_R = (jnp.arange(batch)[:, None] * before + parent_BW).reshape(-1)
    action_R, real_R = action_BW.reshape(-1), score_BW.reshape(-1) >= 0
    pick = lambda x: x[row_R, action_R]
    takes_R = real_R & pick(allowed_RK)
    done_R = takes_R & pick(verdict.done)
    running_R = takes_R & ~done_R & (level + 1 < task.max_steps)
    tokens_RL = jnp.where(takes_R[:, None], pick(candidates.tokens_BKL), vocabulary.pad)
    length_R = jnp.where(takes_R, pick(candidates.length_BK), 0)

    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[row_R], beams.chains)
    chains = Chains(
        tokens_BJDL=jnp.where(takes_R[:, None, None], flat.tokens_BJDL.at[:, level].set(tokens_RL), flat.tokens_BJDL),
        length_BJD=jnp.where(takes_R[:, None], flat.length_BJD.at[:, level].set(length_R), flat.length_BJD),
        finished_BJ=done_R | (real_R & flat.finished_BJ),
        log_prob_BJ=flat.log_prob_BJ + jnp.where(takes_R, pick(candidates.log_prob_BK), 0.0),
        value_BJ=jnp.where(takes_R, pick(value_RK), flat.value_BJ),
    )
    prefix = decode.Prefix(
        past=jax.tree.map(lambda x: x[:, row_R], beams.prefix.past),
        mask_BS=beams.prefix.mask_BS[row_R],
        length_B=beams.prefix.length_B[row_R],
        logits_BV=beams.prefix.logits_BV[row_R],
        value_B=beams.prefix.value_B[row_R],
    )
    prefix = lax.cond(
        jnp.any(running_R),
        lambda prefix: _append(model, params, prefix, size + level * task.max_step, tokens_RL, length_R),
        lambda prefix: prefix,
        prefix,
    )
    state = jax.tree.map(lambda new, old: where_rows(takes_R, pick(new), old[row_R]), verdict.state, beams.state)

    running_RK = beams.running_R[:, None]
    written_B = jnp.sum(split(jnp.where(running_RK, candidates.length_BK, 0)), (1, 2))
    longest_B = jnp.max(split(jnp.where(running_RK, candidates.length_BK, 0)), (1, 2))
    appended_B = jnp.sum(jnp.where(running_R, length_R, 0).reshape(batch, width), -1)
    spend = Spend(
        beams.spend.tokens_B + written_B,
        beams.spend.expansions_B + jnp.sum(split(beams.running_R), -1),
        beams.spend.positions_B + written_B + appended_B,
        beams.spend.calls_B + longest_B + (appended_B > 0),
    )
    chains = jax.tree.map(lambda x: x.reshape(batch, width, *x.shape[1:]), chains)
    return _Beams(prefix, state, running_R, chains, spend)


def _choose(score_BWK, width: int, *, apart: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Which beam [B, width] is continued by which of its candidates, and its score; negative where there is none."""
    batch, before, num = score_BWK.shape
    if apart:
        action_BW = jnp.argmax(score_BWK, -1)
        own_BW = jnp.broadcast_to(jnp.arange(before)[None], (batch, before))
        return own_BW, action_BW, jnp.max(score_BWK, -1)
    short = max(0, width - before * num)
    padded = jnp.pad(score_BWK.reshape(batch, -1), ((0, 0), (0, short)), constant_values=-1.0)
    score_BW, index_BW = lax.top_k(padded, width)
    index_BW = jnp.minimum(index_BW, before * num - 1)
    return index_BW // num, index_BW % num, score_BW


def _append(model, params, prefix: decode.Prefix, slot, tokens_RL, length_R) -> decode.Prefix:
    """The prefix with one more step, whose keys and values are written into the cache from `slot` on."""
    page, logits_RV, value_R = decode.append(
        model, params, prefix.past, prefix.mask_BS, prefix.length_B, tokens_RL, length_R
    )
    real_RL = jnp.arange(tokens_RL.shape[1])[None] < length_R[:, None]
    return decode.Prefix(
        past=jax.tree.map(lambda all_, new: lax.dynamic_update_slice_in_dim(all_, new, slot, 3), prefix.past, page),
        mask_BS=lax.dynamic_update_slice_in_dim(prefix.mask_BS, real_RL, slot, 1),
        length_B=prefix.length_B + length_R,
        logits_BV=logits_RV,
        value_B=value_R,
    )
