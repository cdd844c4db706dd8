"""The learner's packed scoring against full passes, and what its losses leave alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alphallm.decode import causal_mask
from alphallm.losses import log_rest
from alphallm.models import LanguageModel, ModelConfig
from alphallm.training import learner, steps
from alphallm.training.config import Config, OptimizerConfig, TrainingConfig, WarmStartConfig
from alphallm.training.targets import Row, TargetConfig

R, P, D, L, K, V = 6, 4, 2, 3, 4, 9
MODEL = LanguageModel(ModelConfig(num_layers=1, width=16, num_heads=2, num_kv_heads=1, head_dim=8, hidden_dim=16), V)
PARAMS = jax.tree.map(
    lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), MODEL.init(jax.random.key(0))
)


def make_rows(seed=0):
    """Rows at depths 0, 1 and 2 with different candidates of all lengths; the last candidate is not written."""
    rng = np.random.default_rng(seed)
    length_K = rng.integers(1, L + 1, (R, K))
    tokens_KL = rng.integers(0, V, (R, K, L))
    tokens_KL[:, :, 0] = np.arange(K)[None]  # all different.
    path_length = np.where(np.arange(D)[None] < np.arange(R)[:, None] % (D + 1), rng.integers(1, L + 1, (R, D)), 0)
    written = np.broadcast_to(np.arange(K)[None] < K - 1, (R, K))
    policy = rng.dirichlet(np.ones(K), R)  # the rest included, which takes the unwritten one's place.
    rows = Row(
        prompt_P=rng.integers(0, V, (R, P)), prompt_length=rng.integers(1, P + 1, R),
        path_DL=rng.integers(0, V, (R, D, L)), path_length_D=path_length, tokens_KL=tokens_KL,
        length_K=np.where(written, length_K, 0), written_K=written,
        policy_K1=np.concatenate([policy[:, :-1], np.zeros((R, 1)), policy[:, -1:]], 1).astype(np.float32),
        log_prob_K=np.where(written, np.log(rng.dirichlet(np.ones(K), R)), -1e9).astype(np.float32),
        offset_K=np.where(written, rng.normal(size=(R, K)), 0.0).astype(np.float32),
        policy_weight=np.ones(R, np.float32), surprise=np.zeros(R, np.float32),
        value=rng.random(R).astype(np.float32), value_weight=np.ones(R, np.float32),
        value_K=rng.random((R, K)).astype(np.float32), value_weight_K=written.astype(np.float32),
        valid=np.ones(R, bool),
    )  # fmt: skip
    return rows


@jax.jit
def _causal(params, tokens_T):
    size = len(tokens_T)
    hidden = MODEL.trunk(params, tokens_T[None], jnp.arange(size)[None], causal_mask(1, size)).hidden_BXE
    return jax.nn.log_softmax(MODEL.logits(params, hidden))[0], MODEL.value_logit(params, hidden)[0]


def plain(tokens):
    """Log-probabilities of all next tokens and value logits along one sequence, by one causal pass."""
    room = np.zeros(P + 3 * L + L, np.int32)
    room[: len(tokens)] = tokens
    return jax.tree.map(lambda x: np.asarray(x)[: len(tokens)], _causal(PARAMS, room))


def prefix_of(rows, r):
    tokens = list(rows.prompt_P[r, : rows.prompt_length[r]])
    for d in range(D):
        tokens += list(rows.path_DL[r, d, : rows.path_length_D[r, d]])
    return [int(t) for t in tokens]


_score = jax.jit(functools.partial(learner.score, MODEL))


def score(rows):
    return jax.device_get(_score(PARAMS, rows))


def test_score_is_the_full_pass_of_each_candidate():
    rows = make_rows()
    log_prob_RK, value_RK, value_R = score(rows)
    for r in range(R):
        prefix = prefix_of(rows, r)
        for k in range(K - 1):
            step = [int(t) for t in rows.tokens_KL[r, k, : rows.length_K[r, k]]]
            log_probs, values = plain(prefix + step)
            expected = sum(log_probs[len(prefix) - 1 + i, token] for i, token in enumerate(step))
            np.testing.assert_allclose(log_prob_RK[r, k], expected, atol=1e-4)
            np.testing.assert_allclose(value_RK[r, k], values[-1], atol=1e-4)
            np.testing.assert_allclose(value_R[r], values[len(prefix) - 1], atol=1e-4)


def padded(rows):
    """The same rows with room to spare everywhere, and rubbish in it."""

    def pad(x, **axes):
        widths = [(0, axes.get(f"a{i}", 0)) for i in range(x.ndim)]
        return jnp.pad(x, widths, constant_values=7) if jnp.issubdtype(x.dtype, jnp.integer) else jnp.pad(x, widths)

    k1 = rows.policy_K1
    return dataclasses.replace(
        rows, prompt_P=pad(rows.prompt_P, a1=3), path_DL=pad(rows.path_DL, a1=1, a2=2),
        path_length_D=jnp.pad(rows.path_length_D, ((0, 0), (0, 1))), tokens_KL=pad(rows.tokens_KL, a1=1, a2=2),
        length_K=jnp.pad(rows.length_K, ((0, 0), (0, 1))), written_K=pad(rows.written_K, a1=1),
        policy_K1=jnp.concatenate([k1[:, :-1], jnp.zeros((R, 1)), k1[:, -1:]], 1),
        **{name: pad(getattr(rows, name), a1=1) for name in ("log_prob_K", "offset_K", "value_K", "value_weight_K")},
    )  # fmt: skip


def test_score_is_unchanged_by_padding():
    rows = make_rows()
    for one, other in zip(score(rows), score(padded(rows)), strict=True):
        real = (slice(None), slice(K - 1))[: one.ndim]
        np.testing.assert_allclose(one[real], other[real], atol=1e-5)


@functools.cache
def compiled_loss(policy, candidates_per_row):
    targets, training = TargetConfig(policy=policy), TrainingConfig(candidates_per_row=candidates_per_row)
    loss = lambda params, rows: learner.row_loss(MODEL, params, rows, Config(targets=targets, training=training))
    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def loss_and_gradient(rows, policy="rest", candidates_per_row=K):
    (loss, metrics), gradient = compiled_loss(policy, candidates_per_row)(PARAMS, rows)
    return loss, metrics, gradient


@pytest.mark.parametrize("policy", ["rest", "candidates"])
def test_row_loss_is_unchanged_by_padding_rows_and_candidates(policy):
    rows = make_rows()
    loss, _, gradient = loss_and_gradient(rows, policy)
    with_invalid = jax.tree.map(lambda x: jnp.concatenate([x, x[:2]]), padded(rows))
    with_invalid = dataclasses.replace(with_invalid, valid=jnp.arange(R + 2) < R)
    other, _, other_gradient = loss_and_gradient(with_invalid, policy, K + 1)
    np.testing.assert_allclose(other, loss, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient, other_gradient)


def on_policy(rows, policy):
    """The rows with the targets that equal Q gives under PARAMS, and nothing to learn of values."""
    log_prob, _, _ = score(rows)
    if policy == "rest":
        rest = jax.vmap(log_rest)(log_prob, rows.written_K)
        entries = jnp.concatenate([jnp.where(rows.written_K, log_prob, -1e9), rest[:, None]], 1)
    else:
        entries = jnp.where(rows.written_K, log_prob + rows.offset_K, -1e9)
        entries = jnp.concatenate([entries, jnp.full((R, 1), -1e9)], 1)
    target = jax.nn.softmax(entries)
    return dataclasses.replace(rows, policy_K1=target, value_weight=0 * rows.value, value_weight_K=0 * rows.value_K)


def largest(gradient):
    return max(float(np.abs(g).max()) for g in jax.tree.leaves(gradient))


@pytest.mark.parametrize("kept", [K, 2])
@pytest.mark.parametrize("policy", ["rest", "candidates"])
def test_equal_q_moves_nothing(policy, kept):
    """Also where only some of a row's candidates are looked at: the minimum stays where it was."""
    rows = on_policy(make_rows(), policy)
    assert largest(loss_and_gradient(rows, policy, kept)[2]) < 1e-5
    # What a broken implementation gives: a plain cross-entropy over the candidates, or weights forgotten.
    broken = dataclasses.replace(rows, offset_K=0 * rows.offset_K)
    assert largest(loss_and_gradient(broken, "sampled" if policy == "rest" else policy, kept)[2]) > 0.01


@pytest.mark.parametrize(("policy", "share"), [("sampled", 1.0), ("verified_paths", 1 / R)])
def test_few_verified_paths_weigh_little(policy, share):
    """One row with a policy target, alone or among others without: only imitation spreads it over all of them."""
    rows = make_rows()
    alone = dataclasses.replace(rows, valid=jnp.arange(R) == 0, policy_weight=jnp.ones(R))
    among = dataclasses.replace(rows, valid=jnp.ones(R, bool), policy_weight=(jnp.arange(R) == 0).astype(jnp.float32))
    one, other = (loss_and_gradient(each, policy)[1]["loss/policy"] for each in (alone, among))
    np.testing.assert_allclose(other, share * one, rtol=1e-5)


def test_fewer_candidates_keeps_the_likeliest_then_the_illegal():
    rows = make_rows()
    target = jnp.broadcast_to(jnp.array([[0.0, 0.5, 0.0, 0.0, 0.3]]), (R, K + 1)).at[:, 0].set(0.2)
    weight = jnp.broadcast_to(jnp.array([[0.0, 0.0, 1.0, 0.0]]), (R, K))
    rows = dataclasses.replace(rows, policy_K1=target, value_weight_K=weight)
    few = learner._fewer_candidates(rows, 3)
    np.testing.assert_array_equal(few.tokens_KL[:, :, 0], [[1, 0, 2]] * R)
    np.testing.assert_allclose(few.policy_K1, [[0.5, 0.2, 0.0, 0.3]] * R, atol=1e-6)
    np.testing.assert_allclose(learner._fewer_candidates(rows, 1).policy_K1, [[0.5, 0.5]] * R, atol=1e-6)
    np.testing.assert_array_equal(few.value_weight_K, [[0, 0, 1]] * R)
    assert learner._fewer_candidates(rows, K) is rows


def test_value_loss_reads_the_candidates_and_the_node():
    rows = make_rows()
    _, value_RK, value_R = score(rows)
    perfect = dataclasses.replace(
        rows, value=jax.nn.sigmoid(value_R), value_K=jax.nn.sigmoid(value_RK), policy_weight=0 * rows.policy_weight
    )
    loss, metrics, gradient = loss_and_gradient(perfect)
    assert largest(gradient) < 1e-5 and metrics["loss/policy"] == 0.0
    np.testing.assert_allclose(metrics["value/error"], 0.0, atol=1e-9)
    for field in ("value", "value_K"):
        wrong = dataclasses.replace(perfect, **{field: 1 - getattr(perfect, field)})
        assert largest(loss_and_gradient(wrong)[2]) > 0.01


def make_chain(rows):
    length = jnp.asarray(np.array([[2, 3, 1], [1, 0, 0], [3, 2, 0]] * 2))
    tokens = jax.random.randint(jax.random.key(3), (R, 3, L), 0, V)
    outcome = jnp.linspace(0, 1, R)
    return jax.device_get(learner.Chain(rows.prompt_P, rows.prompt_length, tokens, length, outcome))


def test_chain_loss_is_that_of_the_plain_sequences():
    chain = make_chain(make_rows())
    policy, value = [], []
    for r in range(R):
        tokens = list(map(int, chain.prompt_P[r, : chain.prompt_length[r]]))
        ends = [len(tokens) - 1]
        start = len(tokens)
        for d in range(3):
            tokens += list(map(int, chain.tokens_DL[r, d, : chain.length_D[r, d]]))
            ends += [len(tokens) - 1] if chain.length_D[r, d] else []
        log_probs, values = plain(tokens)
        policy += [-log_probs[i - 1, tokens[i]] for i in range(start, len(tokens))]
        p = jax.nn.sigmoid(values[jnp.array(ends)])
        value += list(-chain.outcome[r] * jnp.log(p) - (1 - chain.outcome[r]) * jnp.log(1 - p))
    per_chain = np.split(-np.array(policy), np.cumsum(np.sum(chain.length_D, 1))[:-1])
    log_prob_R = learner.chain_log_prob(MODEL, PARAMS, chain)
    np.testing.assert_allclose(log_prob_R, [part.sum() for part in per_chain], rtol=1e-4)
    loss, metrics = jax.jit(lambda p: learner.chain_loss(MODEL, p, chain, 0.5))(PARAMS)
    np.testing.assert_allclose(metrics["loss/policy"], np.mean(policy), rtol=1e-4)
    np.testing.assert_allclose(metrics["loss/value"], np.mean(value), rtol=1e-4)
    np.testing.assert_allclose(loss, np.mean(policy) + 0.5 * np.mean(value), rtol=1e-4)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_learning_fits_the_rows(name):
    rows = make_rows()
    config = Config(optimizer=OptimizerConfig(name=name, learning_rate=0.01, warmup_steps=5))

    def step(state, _):
        loss = lambda p, part: learner.row_loss(MODEL, p, part, config)
        return learner.update(state, config.optimizer, steps.learning_rate(config), loss, rows)

    def run(params):
        return jax.lax.scan(step, learner.init(config, params, steps.learning_rate(config)), None, length=60)

    state, metrics = jax.vmap(run, axis_name=learner.AXIS, axis_size=1, in_axes=None)(PARAMS)
    assert state.step == 60
    target_entropy = metrics["targets/policy_entropy"][0, 0]
    excess = metrics["loss/policy"][0] - target_entropy
    assert excess[-1] < 0.3 * excess[0]
    # The average follows the parameters at some distance.
    distance = lambda a, b: max(float(jnp.abs(x - y).max()) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))
    last = jax.tree.map(lambda x: x[0], (state.average, state.params))
    assert 0 < distance(*last) < distance(last[1], PARAMS)


def test_the_learning_rate_of_self_play_has_a_schedule_of_its_own():
    optimizer = OptimizerConfig(learning_rate=1e-2, warmup_steps=10, final_fraction=0.1)
    config = Config(
        warm_start=WarmStartConfig(num_steps=100),
        training=TrainingConfig(num_iterations=20, learner_steps=10),
        optimizer=optimizer,
    )
    rates = [float(steps.learning_rate(config)(step)) for step in range(301)]
    assert rates[0] == 0 and max(rates) == rates[10] == pytest.approx(1e-2) and rates[300] == pytest.approx(1e-3)
    assert (np.diff(rates[10:]) <= 0).all()  # one fall, over both.

    two = dataclasses.replace(config, optimizer=dataclasses.replace(optimizer, self_play_learning_rate=1e-4))
    rates = [float(steps.learning_rate(two)(step)) for step in range(301)]
    assert rates[10] == pytest.approx(1e-2) and rates[99] == pytest.approx(1e-3, rel=0.01)
    assert rates[100] == 0 and max(rates[100:]) == rates[110] == pytest.approx(1e-4)
    assert rates[300] == pytest.approx(1e-5)
