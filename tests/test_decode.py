"""Proposing steps: against full forward passes, and against a space of steps small enough to write out."""

import functools
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alphallm import decode
from alphallm.models import LanguageModel, ModelConfig
from alphallm.types import Problem, Steps

PAD, END, V, P, L = 0, 1, 5, 4, 3
STEP_END = (jnp.arange(V) == END)[None]
MODEL = LanguageModel(
    ModelConfig(num_layers=1, width=16, num_heads=2, num_kv_heads=1, head_dim=8, hidden_dim=16, tied_embeddings=False),
    V,
)
PARAMS = jax.tree.map(
    lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), MODEL.init(jax.random.key(0))
)
PARAMS["unembedding"] = 2 * PARAMS["unembedding"]  # a policy that is far from uniform.


def problems(batch, length=None):
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, V, (batch, P))
    lengths = rng.integers(1, P + 1, batch) if length is None else np.full(batch, length)
    return Problem(tokens, lengths, None, np.arange(batch))


@functools.cache
def keys(num):
    return jax.random.split(jax.random.key(5), num)


@jax.jit
def score(params, tokens_BT, start_B, length_B):
    """Log-probability of tokens start .. start + length and the value at their end, by one causal pass."""
    where = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1])[None], tokens_BT.shape)
    hidden = MODEL.trunk(params, tokens_BT, where, decode.causal_mask(*tokens_BT.shape)).hidden_BXE
    log_probs = jax.nn.log_softmax(MODEL.logits(params, hidden))[:, :-1]
    each = jnp.take_along_axis(log_probs, tokens_BT[:, 1:, None], -1)[..., 0]
    position = jnp.arange(1, tokens_BT.shape[1])[None]
    inside = (position >= start_B[:, None]) & (position < (start_B + length_B)[:, None])
    values = jax.nn.sigmoid(MODEL.value_logit(params, hidden))
    return jnp.sum(jnp.where(inside, each, 0.0), -1), jnp.take_along_axis(values, (start_B + length_B - 1)[:, None], 1)[
        :, 0
    ]


def full_pass(problem, tokens_BKL, length_BK):
    """`score` of every candidate after its problem's prompt, [B, K] each."""
    batch, num, size = tokens_BKL.shape
    joined = np.zeros((batch, num, P + size), np.int32)
    for b, k in itertools.product(range(batch), range(num)):
        n = int(problem.length[b])
        joined[b, k, :n], joined[b, k, n : n + size] = problem.tokens_P[b, :n], tokens_BKL[b, k]
    start = jnp.repeat(problem.length, num)
    log_prob, value = score(PARAMS, joined.reshape(batch * num, -1), start, jnp.reshape(length_BK, -1))
    return np.reshape(log_prob, (batch, num)), np.reshape(value, (batch, num))


def propose(proposer, problem, key_B, **options):
    """The candidates, as numpy arrays: cutting them up costs no compilation."""
    return jax.device_get(_propose(proposer, problem, key_B, **options))


@functools.partial(jax.jit, static_argnums=0, static_argnames=("num", "max_length", "temperature"))
def _propose(proposer, problem, key_B, *, num, max_length=L, **options):
    prefix = decode.prefill(MODEL, PARAMS, problem)
    common = {"step_end_SV": STEP_END, "pad": PAD, "num": num, "max_length": max_length} | options
    return getattr(decode, proposer)(MODEL, PARAMS, prefix, key_B, **common)


prefill = jax.jit(functools.partial(decode.prefill, MODEL))


def every_step(size=L):
    """All strings that a step may be: up to the first step end, or `size` tokens without one."""
    for length in range(1, size + 1):
        for head in itertools.product([t for t in range(V) if t != END], repeat=length - 1):
            yield (*head, END)
    yield from itertools.product([t for t in range(V) if t != END], repeat=size)


SPACE = list(every_step())
NUMBER = {step + (PAD,) * (L - len(step)): i for i, step in enumerate(SPACE) if step[-1] == END}
NUMBER |= {step: i for i, step in enumerate(SPACE) if step[-1] != END}
PROMPT = problems(1, length=3)


@functools.cache
def policy():
    """Exact log-probability of every step after PROMPT."""
    tokens = np.array([step + (PAD,) * (L - len(step)) for step in SPACE])[None]
    log_prob, _ = full_pass(PROMPT, tokens, np.array([[len(step) for step in SPACE]]))
    assert abs(np.exp(log_prob).sum() - 1) < 1e-5
    return np.asarray(log_prob[0], np.float64)


def many(proposer, num_keys, num, **options):
    """Candidates of PROMPT under many keys, and which step of the space each is."""
    repeated = jax.tree.map(lambda x: jnp.repeat(x, num_keys, 0), PROMPT)
    out = jax.device_get(propose(proposer, repeated, keys(num_keys), num=num, **options))
    # A finished step and an unfinished one of pad tokens look alike but for their length.
    return out, np.array([[NUMBER[tuple(map(int, tokens))] for tokens in row] for row in out.tokens_BKL])


def assert_candidates_true(problem, out):
    log_prob, value = full_pass(problem, out.tokens_BKL, out.length_BK)
    there = np.asarray(out.length_BK) > 0
    np.testing.assert_allclose(out.log_prob_BK[there], log_prob[there], atol=1e-4)
    np.testing.assert_allclose(out.value_BK[there], value[there], atol=1e-5)
    last = np.take_along_axis(np.asarray(out.tokens_BKL), np.maximum(out.length_BK - 1, 0)[..., None], -1)[..., 0]
    # A step that fills L tokens without an end is no candidate.
    np.testing.assert_array_equal(out.valid_BK, (last == END) & there)
    return there


@pytest.mark.parametrize("proposer", ["gumbel_top_k", "iid"])
def test_candidates_have_the_full_pass_log_probability_and_value(proposer):
    problem = problems(6)
    out = propose(proposer, problem, keys(6), num=6)
    there = assert_candidates_true(problem, out)
    assert (~out.valid_BK & there).any() and out.valid_BK.any()
    for tokens, length, row in zip(np.asarray(out.tokens_BKL), np.asarray(out.length_BK), there, strict=True):
        steps = [(tuple(t), int(n)) for t, n, exists in zip(tokens, length, row, strict=True) if exists]
        assert len(set(steps)) == len(steps)
        assert all(t[n:] == (PAD,) * (L - n) for t, n in steps)


def test_gumbel_perturbed_log_probabilities_are_sorted():
    out = propose("gumbel_top_k", problems(6), keys(6), num=6)
    phi = out.root_gumbel_BK + out.prior_logits_BK
    assert (jnp.diff(phi, axis=-1) < 0).all()
    # Weights exceed probabilities: they stand for what was not drawn, too.
    assert (out.prior_logits_BK >= out.log_prob_BK - 1e-6).all()


@pytest.mark.parametrize(("min_p", "expected"), [(0.0, [1, 1, 1, 0]), (0.3, [1, 1, 0, 0]), (1.0, [1, 0, 0, 0])])
def test_likely_is_a_share_of_the_likeliest_that_ended(min_p, expected):
    valid = jnp.array([[True, True, True, False]])
    log_prob = jnp.log(jnp.array([[0.2, 0.1, 0.01, 0.5]]))
    found = decode.likely(types.SimpleNamespace(valid_BK=valid, log_prob_BK=log_prob), min_p)
    assert (found & valid)[0].tolist() == [bool(x) for x in expected]


def test_gumbel_draws_without_replacement_from_the_policy():
    num_keys, num = 6000, 4
    out, index = many("gumbel_top_k", num_keys, num)
    pi = np.exp(policy())
    first = np.bincount(index[:, 0], minlength=len(pi)) / num_keys
    assert (np.abs(first - pi) < 5 * np.sqrt(pi * (1 - pi) / num_keys) + 2 / num_keys).all()
    # Inclusion, against Gumbel top-k over the space written out.
    exact_draws = 40_000
    phi = policy() + np.random.default_rng(0).gumbel(size=(exact_draws, len(pi)))
    top = np.argsort(-phi, -1)[:, :num]
    exact = np.bincount(top.ravel(), minlength=len(pi)) / exact_draws
    got = np.bincount(index.ravel(), minlength=len(pi)) / num_keys
    deviation = np.sqrt(exact * (1 - exact) * (1 / num_keys + 1 / exact_draws))
    assert (np.abs(got - exact) < 5 * deviation + 2 / num_keys).all()
    # The root's perturbation is a Gumbel(0), not a constant: so is the largest phi.
    largest = out.root_gumbel_BK[:, 0] + out.prior_logits_BK[:, 0]
    np.testing.assert_allclose([largest.mean(), largest.var()], [0.5772, np.pi**2 / 6], atol=0.1)

    def distance(logits):
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mean = np.bincount(index.ravel(), weights=weights.ravel(), minlength=len(pi)) / num_keys
        return np.abs(mean - pi).sum() / 2

    corrected, plain = distance(out.prior_logits_BK), distance(out.log_prob_BK)
    assert corrected < 0.03 < 0.1 < plain, (corrected, plain)


def test_gumbel_with_more_candidates_than_there_are_steps():
    out = jax.device_get(propose("gumbel_top_k", PROMPT, keys(1), num=8, max_length=1))
    assert sorted(out.tokens_BKL[0, :V, 0]) == list(range(V))
    np.testing.assert_array_equal(out.length_BK[0], [1] * V + [0] * 3)
    assert out.valid_BK.sum() == 1
    # Nothing was ever discarded, so the weights are the policy.
    np.testing.assert_allclose(out.prior_logits_BK[0, :V], out.log_prob_BK[0, :V], atol=1e-6)
    np.testing.assert_allclose(np.exp(out.prior_logits_BK[0]).sum(), 1.0, rtol=1e-5)
    assert np.isfinite(out.root_gumbel_BK).all()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_iid_counts_and_prior(temperature):
    num_keys, num = 4000, 6
    out, index = many("iid", num_keys, num, temperature=temperature)
    there = out.length_BK > 0
    np.testing.assert_array_equal(np.sum(out.count_BK * there, -1), num)
    log_beta = tempered(temperature)
    expected = np.log(out.count_BK / num) + policy()[index] - log_beta[index]
    np.testing.assert_allclose(out.prior_logits_BK[there], expected[there], atol=1e-3)
    assert (out.prior_logits_BK[~there] == decode.LOG_ZERO).all()
    if temperature == 1.0:
        np.testing.assert_allclose(out.prior_logits_BK[there], np.log(out.count_BK / num)[there], atol=1e-5)
    beta = np.exp(log_beta)
    counts = np.bincount(index[there], weights=out.count_BK[there], minlength=len(beta)) / (num * num_keys)
    assert (np.abs(counts - beta) < 5 * np.sqrt(beta * (1 - beta) / (num * num_keys)) + 2 / (num * num_keys)).all()


def tempered(temperature):
    """Log-probability of every step where each token's distribution was tempered and normalised: not pi^(1/t)."""
    mass = {}
    for step, log_prob in zip(SPACE, policy(), strict=True):
        for n in range(len(step) + 1):
            mass[step[:n]] = mass.get(step[:n], 0.0) + np.exp(log_prob)
    out = []
    for step in SPACE:
        total = 0.0
        for n, token in enumerate(step):
            options = [mass[step[:n] + (v,)] ** (1 / temperature) for v in range(V)]
            total += np.log(options[token] / sum(options))
        out.append(total)
    return np.array(out)


def test_temperature_zero_is_greedy_decoding():
    problem = problems(6)
    out = propose("iid", problem, keys(6), num=3, temperature=0.0)
    np.testing.assert_array_equal(out.count_BK, [[3, 3, 3]] * 6)
    np.testing.assert_array_equal(out.length_BK[:, 1:], 0)
    for b in range(6):
        written = list(problem.tokens_P[b, : problem.length[b]])
        for token in out.tokens_BKL[b, 0, : out.length_BK[b, 0]]:
            options = [full_next(written, v) for v in range(V)]
            assert int(np.argmax(options)) == token
            written.append(int(token))
    assert_candidates_true(problem, out)


def full_next(written, token):
    tokens = np.zeros((1, P + L), np.int32)
    tokens[0, : len(written) + 1] = [*written, token]
    return float(score(PARAMS, tokens, np.array([len(written)]), np.array([1]))[0][0])


def test_listed_steps_are_scored_as_the_full_pass_scores_them():
    problem = problems(5)
    tokens = np.array([step + (PAD,) * (L - len(step)) for step in SPACE if step[-1] == END][:7])
    length = np.array([len(step) for step in SPACE if step[-1] == END][:7])
    valid = np.random.default_rng(1).random((5, 7)) < 0.7
    steps = Steps(jnp.repeat(tokens[None], 5, 0), jnp.where(valid, length[None], 0), jnp.asarray(valid))
    prefix = prefill(PARAMS, problem)
    run = functools.partial(decode.listed, MODEL, step_end_SV=STEP_END, pad=PAD)
    out = jax.device_get(jax.jit(run)(PARAMS, prefix, keys(5), steps=steps))
    there = assert_candidates_true(problem, out)
    np.testing.assert_array_equal(there, valid)
    np.testing.assert_array_equal(out.prior_logits_BK, jnp.where(valid, out.log_prob_BK, decode.LOG_ZERO))


def test_proposing_after_pages_is_proposing_after_a_longer_prompt():
    """From every prefix: prompt and step in the cache as pages, against one prefill of both."""
    problem = problems(12)
    rng = np.random.default_rng(2)
    step, step_length = jnp.asarray(rng.integers(0, V, (12, L))), jnp.asarray(np.resize([1, 2, 3], 12))
    prompt = prefill(PARAMS, problem)
    page, logits, value = jax.jit(functools.partial(decode.append, MODEL))(
        PARAMS, prompt.past, prompt.mask_BS, prompt.length_B, step, step_length
    )  # fmt: skip
    past = jax.tree.map(lambda a, b: jnp.concatenate([a, b], 3), prompt.past, page)
    mask = jnp.concatenate([prompt.mask_BS, jnp.arange(L)[None] < step_length[:, None]], 1)
    paged = decode.Prefix(past, mask, prompt.length_B + step_length, logits, value)

    joined = np.zeros((12, P + L), np.int32)
    for b in range(12):
        n = int(problem.length[b])
        joined[b, :n], joined[b, n : n + L] = problem.tokens_P[b, :n], step[b]
    whole = prefill(PARAMS, Problem(jnp.asarray(joined), paged.length_B, None, problem.index))
    np.testing.assert_allclose(paged.logits_BV, whole.logits_BV, atol=1e-5)
    np.testing.assert_allclose(paged.value_B, whole.value_B, atol=1e-6)
    run = jax.jit(lambda prefix: decode.gumbel_top_k(
        MODEL, PARAMS, prefix, keys(12), num=4, max_length=L, step_end_SV=STEP_END, pad=PAD
    ))  # fmt: skip
    one, other = run(paged), run(whole)
    np.testing.assert_array_equal(one.tokens_BKL, other.tokens_BKL)
    np.testing.assert_allclose(one.prior_logits_BK, other.prior_logits_BK, atol=1e-4)
    np.testing.assert_allclose(one.value_BK, other.value_BK, atol=1e-5)


def test_a_draw_depends_on_its_own_key_and_prompt_only():
    problem, key_B = problems(6), keys(6)
    out = propose("gumbel_top_k", problem, key_B, num=6)
    order = jnp.array([3, 1, 5])
    part = propose("gumbel_top_k", jax.tree.map(lambda x: x[order], problem), key_B[order], num=6)
    np.testing.assert_array_equal(part.tokens_BKL, out.tokens_BKL[order])
    np.testing.assert_allclose(part.root_gumbel_BK, out.root_gumbel_BK[order], atol=1e-3)


def test_gumbel_weights_of_long_unlikely_steps_are_numbers():
    # In the limit of tiny probabilities all inclusion probabilities are pi / exp(kappa): every weight is exp(kappa).
    x = np.concatenate([np.linspace(-300, 3, 400), [-1e9]])
    exact = np.where(x < -30, x, np.log(-np.expm1(-np.exp(np.maximum(x, -30)))))
    np.testing.assert_allclose(decode._log_inclusion(jnp.asarray(x, jnp.float32)), exact, rtol=1e-5, atol=1e-6)
