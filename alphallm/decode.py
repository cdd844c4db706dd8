"""Decoding: prefill a prompt, append a step, and propose K candidate steps side by side from a shared prefix.

The K candidates of a node attend to one copy of the prefix with K queries. What they wrote themselves lies in L slots
for each of them, which move with a beam's history: the model's cost of a token does not grow with K.

Three ways to choose the candidates share that loop and differ in one function each:

*   `gumbel_top_k`: K different steps, sampled without replacement (stochastic beam search, Kool et al. 2019);
*   `iid`: K independent samples, equal ones merged, with the prior of Sampled MuZero (Hubert et al. 2021);
*   `listed`: the steps that a task lists, scored by the policy (classic AlphaZero).
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from alphallm import noise
from alphallm.losses import log1mexp
from alphallm.models import LanguageModel
from alphallm.types import KeyValues, Past, Problem, Steps, Tool, pytree

# The time of the first token, a Python integer: `t is _FIRST` is known while tracing.
_FIRST = 0

# Stands for log 0 where a finite number is needed (softmax over masked entries must not give NaN).
LOG_ZERO = -1e9


@pytree
class Prefix:
    """Everything the model knows at one position of each problem: what the next step attends to and starts from."""

    past: KeyValues  # [Y, B, G, S, C]
    mask_BS: jax.Array  # bool: True where the cached position is part of the prefix.
    length_B: jax.Array  # int32: real tokens so far, which is the next token's position.
    logits_BV: jax.Array  # float32: of the next token.
    value_B: jax.Array  # float32 in [0, 1]: the value head's reading at the last token.


@pytree
class Candidates:
    """K candidate steps of each problem's node."""

    tokens_BKL: jax.Array  # int32, padded after the step-end token.
    length_BK: jax.Array  # int32: tokens written, the step-end token included.
    valid_BK: jax.Array  # bool: True where there is a candidate that ends in a step-end token.
    log_prob_BK: jax.Array  # float32: the policy's log-probability of the step, a sum over its tokens.
    prior_logits_BK: jax.Array  # float32: what a search may use as prior without counting the policy twice.
    root_gumbel_BK: jax.Array  # float32: Gumbel noise for the root, consistent with how the candidates were drawn.
    value_BK: jax.Array  # float32 in [0, 1]: the value head's reading at the step's last token.
    count_BK: jax.Array  # int32: how many i.i.d. samples the candidate stands for (1 if drawn without replacement).


def likely(candidates: Candidates, min_p: float) -> jax.Array:
    """Bool [B, K]: the candidate has at least `min_p` times the probability of the likeliest one."""
    log_prob_BK = jnp.where(candidates.valid_BK, candidates.log_prob_BK, LOG_ZERO)
    least_B1 = jnp.max(log_prob_BK, -1, keepdims=True) + (math.log(min_p) if min_p > 0 else LOG_ZERO)
    return log_prob_BK >= least_B1


def with_empty(candidates: Candidates, num: int, pad: int) -> Candidates:
    """The same candidates and `num` empty ones, which are not valid and cost nothing."""
    fill = {"tokens_BKL": pad, "log_prob_BK": LOG_ZERO, "prior_logits_BK": LOG_ZERO}

    def widen(name):
        x = getattr(candidates, name)
        return jnp.pad(x, ((0, 0), (0, num), *[(0, 0)] * (x.ndim - 2)), constant_values=fill.get(name, 0))

    return Candidates(**{field.name: widen(field.name) for field in dataclasses.fields(candidates)})


def causal_mask(batch: int, size: int) -> jax.Array:
    """Bool [batch, size, size]: position x may attend to positions up to itself."""
    return jnp.broadcast_to(jnp.tril(jnp.ones((1, size, size), bool)), (batch, size, size))


def read(model: LanguageModel, params, hidden_BXE: jax.Array, index_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Next-token logits [B, V] and value [B] at one position of each row."""
    hidden_BE = jnp.take_along_axis(hidden_BXE, index_B[:, None, None], 1)[:, 0]
    return model.logits(params, hidden_BE), jax.nn.sigmoid(model.value_logit(params, hidden_BE))


@jax.named_scope("prefill")
def prefill(model: LanguageModel, params, problem: Problem) -> Prefix:
    """Runs the prompts [B, P] and returns the prefix that a first step continues."""
    batch, size = problem.tokens_P.shape
    positions = jnp.broadcast_to(jnp.arange(size)[None], (batch, size))
    hidden = model.trunk(params, problem.tokens_P, positions, causal_mask(batch, size))
    logits_BV, value_B = read(model, params, hidden.hidden_BXE, problem.length - 1)
    return Prefix(hidden.keys_values, positions < problem.length[:, None], problem.length, logits_BV, value_B)


@jax.named_scope("append")
def append(
    model: LanguageModel, params, past: KeyValues, mask_BS, length_B, tokens_BL, step_length_B
) -> tuple[KeyValues, jax.Array, jax.Array]:
    """Runs one step of up to L tokens after a cached prefix, in one parallel pass.

    Returns the step's page `[Y, B, G, L, C]`, and logits [B, V] and value [B] at its last token.
    """
    batch, size = tokens_BL.shape
    positions = length_B[:, None] + jnp.arange(size)[None]
    hidden = model.trunk(params, tokens_BL, positions, causal_mask(batch, size), [Past(past, mask_BS[:, None])])
    logits_BV, value_B = read(model, params, hidden.hidden_BXE, jnp.maximum(step_length_B - 1, 0))
    return hidden.keys_values, logits_BV, value_B


@pytree
class ToolState:
    """Where a tool stands in steps that are being written; axes in front as the caller has them."""

    state: jax.Array  # int32: of the tool's automaton.
    queue_F: jax.Array  # int32 [..., F]: the tokens that must follow, then -1.

    @property
    def next(self) -> jax.Array:
        """int32: the token that must follow, or -1."""
        return self.queue_F[..., 0]


def start_tool(tool: Tool | None, shape: tuple[int, ...]) -> ToolState:
    """The state at the beginning of steps."""
    size = 1 if tool is None else tool.size
    return ToolState(jnp.zeros(shape, jnp.int32), jnp.full((*shape, size), -1, jnp.int32))


def forced_or(now: ToolState, token: jax.Array) -> jax.Array:
    """The token that must follow, where there is one."""
    return jnp.where(now.next >= 0, now.next, token)


def use_tool(tool: Tool | None, now: ToolState, token, tokens_L, length, goes_on) -> ToolState:
    """The state after one more token of every step: [R], or with `tokens_L` [R, L] and so on, what R stands for.

    Where a token asks the tool, it is called, and its answer must follow. `goes_on` is False where nothing follows.
    """
    if tool is None:
        return now
    state = jnp.asarray(tool.table_SV, jnp.int32)[now.state, token]
    asks = goes_on & (state >= tool.forced) & (now.state < tool.forced)
    waiting_F = jnp.concatenate([now.queue_F[..., 1:], jnp.full_like(now.queue_F[..., :1], -1)], -1)

    def call():
        answer = tool.answer
        for _ in range(asks.ndim):
            answer = jax.vmap(answer)
        return jnp.where(asks[..., None], answer(tokens_L, length), waiting_F)

    queue_F = lax.cond(jnp.any(asks), call, lambda: waiting_F)
    return ToolState(jnp.where(goes_on, state, 0), jnp.where(goes_on[..., None], queue_F, -1))


@pytree
class _Beams:
    """The state of the decoding loop."""

    tokens_BKL: jax.Array
    length_BK: jax.Array  # tokens written.
    ended_BK: jax.Array  # bool: the last token written ends a step (or the beam is empty).
    matched_BK: jax.Array  # int32: how much of the delimiter the tokens so far end in.
    tool: "ToolState"
    log_prob_BK: jax.Array  # log-probability under the policy.
    score_BK: jax.Array  # gumbel_top_k: perturbed log-probability; iid: log-probability under the sampler.
    value_BK: jax.Array
    kappa_B: jax.Array  # the largest perturbed log-probability ever discarded.


# (t, log-probabilities [B, J, V], beams) -> (parent [B, K], token [B, K], score [B, K], kappa [B]), where the caller's
# J is 1 at t = 0 (one empty history, whose K continuations become the beams) and K later. A parent of None says that
# every beam goes on.
_Select = Callable[[jax.Array | int, jax.Array, _Beams], tuple[jax.Array | None, jax.Array, jax.Array, jax.Array]]


def _decode(model, params, prefix: Prefix, beams: _Beams, select: _Select, step_end_SV, tool: Tool | None) -> _Beams:
    """Decodes until every beam has ended its step or written L tokens."""
    batch, num_beams, max_length = beams.tokens_BKL.shape
    layers, _, groups, _, channels = prefix.past.keys.shape
    empty = jnp.zeros((layers, batch, groups, num_beams, max_length, channels), prefix.past.keys.dtype)
    shared = Past(prefix.past, prefix.mask_BS[:, None])
    step_end_SV = jnp.asarray(step_end_SV, jnp.int32)

    @jax.named_scope("choose")
    def extend(t, logits_BJV, beams: _Beams, suffix: KeyValues) -> tuple[_Beams, KeyValues]:
        """Chooses token t of every beam that has not ended, and moves the beams to their parents' histories."""
        log_probs_BJV = jax.nn.log_softmax(logits_BJV)
        parent_BK, token_BK, score_BK, kappa_B = select(t, log_probs_BJV, beams)
        chosen_BK = jnp.arange(num_beams)[None] if parent_BK is None else parent_BK
        log_prob_BK = log_probs_BJV[jnp.arange(batch)[:, None], chosen_BK, token_BK]
        if t is not _FIRST and parent_BK is not None:  # The histories before the first token are all alike.
            beams = jax.tree.map(
                lambda x: jax.vmap(lambda row, p: row[p])(x, parent_BK), dataclasses.replace(beams, kappa_B=parent_BK)
            )
            move = jax.vmap(lambda x, p: x[:, :, p], in_axes=(1, 0), out_axes=1)
            suffix = jax.tree.map(lambda x: move(x, parent_BK), suffix)
        now = (jnp.arange(max_length) == t)[None, None]
        written_BK = beams.tool.next < 0  # by the model, not by a tool.
        ended_BK, matched_BK = beams.ended_BK, step_end_SV[beams.matched_BK, token_BK]
        ends_BK = matched_BK == step_end_SV.shape[0]
        tokens_BKL = jnp.where(now & ~ended_BK[..., None], token_BK[..., None], beams.tokens_BKL)
        length_BK = beams.length_BK + ~ended_BK
        beams = _Beams(
            tokens_BKL=tokens_BKL,
            length_BK=length_BK,
            ended_BK=ended_BK | ends_BK,
            matched_BK=jnp.where(ends_BK, 0, matched_BK),
            tool=use_tool(tool, beams.tool, token_BK, tokens_BKL, length_BK, ~ended_BK & ~ends_BK),
            log_prob_BK=beams.log_prob_BK + jnp.where(ended_BK | ~written_BK, 0.0, log_prob_BK),
            score_BK=score_BK,
            value_BK=beams.value_BK,
            kappa_B=kappa_B,
        )
        return beams, suffix

    def cond(carry):
        t, beams, _ = carry
        return (t < max_length) & jnp.any(beams.length_BK > t)

    def body(carry):
        t, beams, suffix = carry
        token_BK = lax.dynamic_index_in_dim(beams.tokens_BKL, t, 2, keepdims=False)
        written = jnp.broadcast_to(jnp.arange(max_length) < t, (batch, 1, max_length))
        positions = jnp.broadcast_to((prefix.length_B + t)[:, None], token_BK.shape)
        hidden = model.trunk(params, token_BK, positions, None, [shared, Past(suffix, written)])
        suffix = jax.tree.map(
            lambda all_, new: lax.dynamic_update_slice_in_dim(all_, new[..., None, :], t, axis=4),
            suffix, hidden.keys_values,
        )  # fmt: skip
        value_BK = jax.nn.sigmoid(model.value_logit(params, hidden.hidden_BXE))
        last_BK = beams.length_BK == t + 1
        beams = dataclasses.replace(beams, value_BK=jnp.where(last_BK, value_BK, beams.value_BK))
        # A beam that is full without a step-end token is left as it is: `valid_BK` will be False.
        full = t + 1 >= max_length
        extended, suffix = extend(t + 1, model.logits(params, hidden.hidden_BXE), beams, suffix)
        beams = jax.tree.map(lambda a, b: jnp.where(full, a, b), beams, extended)
        return t + 1, beams, suffix

    beams, suffix = extend(_FIRST, prefix.logits_BV[:, None], beams, KeyValues(empty, empty))
    _, beams, _ = lax.while_loop(cond, body, (jnp.int32(0), beams, suffix))
    return beams


def _start(batch: int, num_beams: int, max_length: int, pad: int, tool: Tool | None = None) -> _Beams:
    zeros = jnp.zeros((batch, num_beams))
    return _Beams(
        tokens_BKL=jnp.full((batch, num_beams, max_length), pad, jnp.int32),
        length_BK=zeros.astype(jnp.int32),
        ended_BK=zeros.astype(bool),
        matched_BK=zeros.astype(jnp.int32),
        tool=start_tool(tool, (batch, num_beams)),
        log_prob_BK=zeros,
        score_BK=zeros,
        value_BK=zeros,
        kappa_B=jnp.full((batch,), -jnp.inf),
    )


def gumbel_top_k(
    model: LanguageModel,
    params,
    prefix: Prefix,
    key_B,
    *,
    num: int,
    max_length: int,
    step_end_SV,
    pad: int,
    tool: Tool | None = None,
) -> Candidates:
    """Draws `num` different steps without replacement by Gumbel top-k over sequences.

    Stochastic beam search (Kool et al. 2019, Algorithm 1) with the root's perturbation drawn from Gumbel(0). With phi
    the perturbed log-probabilities and kappa the largest one ever discarded, the log importance weights are
    `log w = log pi - log(1 - exp(-exp(log pi - kappa)))` (their section 4.1): a softmax over them, not over log pi,
    estimates the policy. `root_gumbel = phi - log w`, so that root_gumbel + prior_logits is phi again.

    Args:
      key_B: a typed random key for each problem; the draw depends on nothing else of the batch.
      num: candidates per problem, K.
      max_length: tokens of a step at most, L.
      step_end_SV: int [S, V], where steps end: see `alphallm.types.Vocabulary`.
      tool: what writes a part of a step by itself; its tokens are in no probability, score or perturbation.
    """
    batch, vocabulary = prefix.logits_BV.shape
    root_B = jax.vmap(lambda k: jax.random.gumbel(jax.random.fold_in(k, max_length)))(key_B)
    beams = _start(batch, num, max_length, pad, tool)
    keep = min(num + 1, vocabulary)

    def select(t, log_probs_BJV, beams):
        width = log_probs_BJV.shape[1]
        gumbel_BJV = jax.vmap(lambda k: noise.gumbel(jax.random.fold_in(k, t), (width, vocabulary)))(key_B)
        parent_phi = root_B[:, None] if t is _FIRST else beams.score_BK
        total, ended, forced = (x[:, :width] for x in (beams.log_prob_BK, beams.ended_BK, beams.tool.next))
        # The largest `keep` children of a beam hold all that can be among the largest of all beams: the map below is
        # increasing within a beam.
        largest, token = _top_k(total[..., None] + log_probs_BJV + gumbel_BJV, keep)
        phi = _condition_on_maximum(largest, parent_phi[..., None])
        only_itself = jnp.where((jnp.arange(keep) == 0)[None, None], parent_phi[..., None], -jnp.inf)
        phi = jnp.where((ended | (forced >= 0))[..., None], only_itself, phi)
        token = jnp.where(ended[..., None], pad, jnp.where((forced >= 0)[..., None], forced[..., None], token))
        missing = ((0, 0), (0, max(0, num + 1 - width * keep)))  # of a vocabulary smaller than K + 1.
        phi = jnp.pad(phi.reshape(batch, -1), missing, constant_values=-jnp.inf)
        token = jnp.pad(token.reshape(batch, -1), missing)
        best, index = _top_k(phi, num + 1)
        chosen = index[:, :num]
        return (
            jnp.minimum(chosen // keep, width - 1),
            jnp.take_along_axis(token, chosen, 1),
            best[:, :num],
            jnp.maximum(beams.kappa_B, best[:, num]),
        )

    beams = _decode(model, params, prefix, beams, select, step_end_SV, tool)
    exists = beams.score_BK > -jnp.inf
    log_prob = jnp.where(exists, beams.log_prob_BK, LOG_ZERO)
    # log(1 - exp(-exp(x))) for x = log pi - kappa; if nothing was ever discarded the inclusion probability is 1.
    log_inclusion = jnp.where(
        jnp.isneginf(beams.kappa_B)[:, None], 0.0, _log_inclusion(beams.log_prob_BK - beams.kappa_B[:, None])
    )
    prior_logits = jnp.where(exists, log_prob - log_inclusion, LOG_ZERO)
    gumbel = jnp.where(exists, beams.score_BK - prior_logits, 0.0)
    return _candidates(beams, exists, log_prob, prior_logits, gumbel, jnp.ones_like(beams.length_BK))


def _log_inclusion(x):
    """log(1 - exp(-exp(x))), which is x to float32's precision where exp(x) is small.

    Sixteen unsure tokens of a vocabulary of 512 have a log-probability of -100: exp(x) is 0 there in float32.
    """
    return jnp.where(x < -16, x, log1mexp(-jnp.exp(jnp.maximum(x, -16))))


def _top_k(x, k: int):
    # The barriers keep XLA's CPU compiler from turning a top-k whose result is sliced into a full sort: 8 times slower.
    # (One barrier around both crashes its top-k pass under pmap, jaxlib 0.10.2.)
    values, index = lax.top_k(x, k)
    return lax.optimization_barrier(values), lax.optimization_barrier(index)


def _condition_on_maximum(children, maximum):
    """Gumbels shifted so that the largest along the last axis equals `maximum` (Kool et al. 2019, appendix B.3).

    `children` is sorted, largest first.
    """
    v = maximum - children + log1mexp(children - children[..., :1])
    return maximum - jnp.maximum(v, 0.0) - jnp.log1p(jnp.exp(-jnp.abs(v)))


def iid(
    model: LanguageModel, params, prefix: Prefix, key_B, *, num: int, max_length: int, step_end_SV, pad: int,
    temperature: float = 1.0, tool: Tool | None = None,
) -> Candidates:  # fmt: skip
    """Draws `num` independent steps; equal ones are merged into one candidate whose count says how many.

    The prior is Sampled MuZero's, `(count / num) * pi / beta` (Hubert et al. 2021, equation 6), where beta is the
    probability under the tempered token distributions actually sampled from. Temperature 0 is greedy decoding.
    """
    batch, _ = prefix.logits_BV.shape
    beams = _start(batch, num, max_length, pad, tool)

    def select(t, log_probs_BJV, beams):
        parent = jnp.zeros((batch, num), jnp.int32) if t is _FIRST else None
        log_probs_BKV = jnp.broadcast_to(log_probs_BJV, (batch, num, log_probs_BJV.shape[-1]))
        if temperature == 0.0:
            token = forced_or(beams.tool, jnp.argmax(log_probs_BKV, -1))
            return parent, token, beams.score_BK, beams.kappa_B
        tempered = jax.nn.log_softmax(log_probs_BKV / temperature)
        # One uniform a beam and the inverse of the cumulative distribution: random bits are the cost on a CPU.
        uniform = jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, t), (num,)))(key_B)
        cumulative = jnp.cumsum(jnp.exp(tempered), -1)
        threshold = uniform[..., None] * cumulative[..., -1:]
        drawn = jnp.minimum(jnp.sum(cumulative <= threshold, -1), cumulative.shape[-1] - 1)
        token = forced_or(beams.tool, drawn)
        chosen = jnp.take_along_axis(tempered, token[..., None], -1)[..., 0]
        counts = ~beams.ended_BK & (beams.tool.next < 0)
        return parent, token, beams.score_BK + jnp.where(counts, chosen, 0.0), beams.kappa_B

    beams = _decode(model, params, prefix, beams, select, step_end_SV, tool)
    equal_BKK = jnp.all(beams.tokens_BKL[:, :, None] == beams.tokens_BKL[:, None], -1)
    earlier = jnp.tril(jnp.ones((1, num, num), bool), -1)
    exists = ~jnp.any(equal_BKK & earlier, -1)
    count = jnp.sum(equal_BKK, -1)
    prior_logits = jnp.log(count / num) + beams.log_prob_BK - (beams.score_BK if temperature else 0.0)
    gumbel = jax.vmap(lambda k: jax.random.gumbel(jax.random.fold_in(k, max_length), (num,)))(key_B)
    return _candidates(beams, exists, beams.log_prob_BK, jnp.where(exists, prior_logits, LOG_ZERO), gumbel, count)


def listed(model: LanguageModel, params, prefix: Prefix, key_B, *, steps: Steps, step_end_SV, pad: int) -> Candidates:
    """Scores the steps [B, A, L] that a task lists by the policy; K is A."""
    batch, num, max_length = steps.tokens_AL.shape
    beams = _start(batch, num, max_length, pad)
    beams = dataclasses.replace(beams, ended_BK=~steps.valid_A)

    def select(t, log_probs_BJV, beams):
        parent = jnp.zeros((batch, num), jnp.int32) if t is _FIRST else None
        token = lax.dynamic_index_in_dim(steps.tokens_AL, t, 2, keepdims=False)
        return parent, token, beams.score_BK, beams.kappa_B

    beams = _decode(model, params, prefix, beams, select, step_end_SV, None)
    gumbel = jax.vmap(lambda k: jax.random.gumbel(jax.random.fold_in(k, max_length), (num,)))(key_B)
    log_prob = jnp.where(steps.valid_A, beams.log_prob_BK, LOG_ZERO)
    return _candidates(beams, steps.valid_A, log_prob, log_prob, gumbel, jnp.ones_like(beams.length_BK))


def _candidates(beams: _Beams, exists_BK, log_prob_BK, prior_logits_BK, gumbel_BK, count_BK) -> Candidates:
    valid_BK = exists_BK & beams.ended_BK
    return Candidates(
        tokens_BKL=beams.tokens_BKL,
        length_BK=jnp.where(exists_BK, beams.length_BK, 0),
        valid_BK=valid_BK,
        log_prob_BK=log_prob_BK,
        prior_logits_BK=prior_logits_BK,
        root_gumbel_BK=gumbel_BK,
        value_BK=beams.value_BK,
        count_BK=count_BK,
    )
