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

R, M, P, L, K, V = 3, 5, 4, 3, 4, 9
# Trees of rows: two children of the root of which one has a child; a path; and a root with three children.
PARENT = np.array([[-1, 0, 0, 2, 2], [-1, 0, 1, 2, 3], [-1, 0, 0, 0, 2]])
ACTION = np.array([[-1, 2, 0, 1, 0], [-1, 1, 0, 2, 1], [-1, 0, 1, 2, 0]])
MODEL = LanguageModel(ModelConfig(num_layers=1, width=16, num_heads=2, num_kv_heads=1, head_dim=8, hidden_dim=16), V)
PARAMS = jax.tree.map(
    lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), MODEL.init(jax.random.key(0))
)


def make_rows(seed=0):
    """Trees whose nodes have different candidates of all lengths; the last candidate is not written."""
    rng = np.random.default_rng(seed)
    tokens_MKL = rng.integers(0, V, (R, M, K, L))
    tokens_MKL[..., 0] = np.arange(K)[None]  # all different.
    written = np.broadcast_to(np.arange(K) < K - 1, (R, M, K))
    policy = rng.dirichlet(np.ones(K), (R, M))  # the rest included, which takes the unwritten one's place.
    return Row(
        prompt_P=rng.integers(0, V, (R, P)), prompt_length=rng.integers(1, P + 1, R), parent_M=PARENT, action_M=ACTION,
        valid_M=np.ones((R, M), bool), tokens_MKL=tokens_MKL,
        length_MK=np.where(written, rng.integers(1, L + 1, (R, M, K)), 0), written_MK=written,
        policy_MK1=np.concatenate([policy[..., :-1], np.zeros((R, M, 1)), policy[..., -1:]], -1).astype(np.float32),
        log_prob_MK=np.where(written, np.log(rng.dirichlet(np.ones(K), (R, M))), -1e9).astype(np.float32),
        offset_MK=np.where(written, rng.normal(size=(R, M, K)), 0.0).astype(np.float32),
        policy_weight_M=np.ones((R, M), np.float32), value_M=rng.random((R, M)).astype(np.float32),
        value_weight_M=np.ones((R, M), np.float32), value_MK=rng.random((R, M, K)).astype(np.float32),
        value_weight_MK=written.astype(np.float32), surprise=np.zeros(R, np.float32), valid=np.ones(R, bool),
    )  # fmt: skip


@jax.jit
def _causal(params, tokens_T):
    size = len(tokens_T)
    hidden = MODEL.trunk(params, tokens_T[None], jnp.arange(size)[None], causal_mask(1, size)).hidden_BXE
    return jax.nn.log_softmax(MODEL.logits(params, hidden))[0], MODEL.value_logit(params, hidden)[0]


def plain(tokens):
    """Log-probabilities of all next tokens and value logits along one sequence, by one causal pass."""
    room = np.zeros(P + (M - 1) * L + L, np.int32)
    room[: len(tokens)] = tokens
    return jax.tree.map(lambda x: np.asarray(x)[: len(tokens)], _causal(PARAMS, room))


def step_of(rows, r, m, k):
    return [int(t) for t in rows.tokens_MKL[r, m, k, : rows.length_MK[r, m, k]]]


def prefix_of(rows, r, m):
    """The tokens that a node stands behind."""
    if m == 0:
        return [int(t) for t in rows.prompt_P[r, : rows.prompt_length[r]]]
    parent, action = rows.parent_M[r, m], rows.action_M[r, m]
    return prefix_of(rows, r, parent) + step_of(rows, r, parent, action)


_score = jax.jit(functools.partial(learner.score, MODEL))


def score(rows):
    return jax.device_get(_score(PARAMS, rows))


def test_score_is_the_full_pass_of_each_candidate():
    rows = make_rows()
    log_prob_RMK, value_RMK, value_RM = score(rows)
    for r, m in np.ndindex(R, M):
        prefix = prefix_of(rows, r, m)
        for k in range(K - 1):
            step = step_of(rows, r, m, k)
            log_probs, values = plain(prefix + step)
            expected = sum(log_probs[len(prefix) - 1 + i, token] for i, token in enumerate(step))
            np.testing.assert_allclose(log_prob_RMK[r, m, k], expected, atol=1e-4)
            np.testing.assert_allclose(value_RMK[r, m, k], values[-1], atol=1e-4)
            np.testing.assert_allclose(value_RM[r, m], values[len(prefix) - 1], atol=1e-4)


_PER_CANDIDATE = ("log_prob_MK", "offset_MK", "value_MK", "value_weight_MK")


def padded(rows):
    """The same rows with room to spare everywhere, and rubbish in it."""

    def pad(x, *after, fill=None):
        widths = [(0, 0), *((0, n) for n in after)]
        widths += [(0, 0)] * (x.ndim - len(widths))
        fill = (7 if jnp.issubdtype(x.dtype, jnp.integer) else 0) if fill is None else fill
        return jnp.pad(x, widths, constant_values=fill)

    k1 = rows.policy_MK1
    with_candidate = jnp.concatenate([k1[..., :-1], jnp.zeros((R, M, 1)), k1[..., -1:]], -1)
    return dataclasses.replace(
        rows, prompt_P=pad(rows.prompt_P, 3), parent_M=pad(rows.parent_M, 1, fill=1),
        action_M=pad(rows.action_M, 1, fill=0), valid_M=pad(rows.valid_M, 1), tokens_MKL=pad(rows.tokens_MKL, 1, 1, 2),
        length_MK=pad(rows.length_MK, 1, 1, fill=0), written_MK=pad(rows.written_MK, 1, 1),
        policy_MK1=pad(with_candidate, 1, fill=0.5), policy_weight_M=pad(rows.policy_weight_M, 1, fill=1.0),
        value_M=pad(rows.value_M, 1, fill=0.3), value_weight_M=pad(rows.value_weight_M, 1, fill=1.0),
        **{name: pad(getattr(rows, name), 1, 1) for name in _PER_CANDIDATE},
    )  # fmt: skip


def test_score_is_unchanged_by_padding():
    rows = make_rows()
    for one, other in zip(score(rows), score(padded(rows)), strict=True):
        real = (slice(None), slice(M), slice(K - 1))[: one.ndim]
        np.testing.assert_allclose(one[real], other[real], atol=1e-5)


def test_a_step_attends_to_the_prompt_the_way_to_it_and_itself():
    rows = make_rows()
    tokens, positions, branches = jax.device_get(learner.pack(rows))
    assert branches.mask_BXS.shape == (R, P + M * K * L, P + (M - 1) * L)
    slot = lambda m, k, i: P + (m * K + k) * L + i
    for r, m in np.ndindex(R, M):
        prefix = prefix_of(rows, r, m)
        for k in range(K - 1):
            step = step_of(rows, r, m, k)
            for i in range(len(step)):
                before = branches.shared_BS[r, branches.mask_BXS[r, slot(m, k, i)]]
                within = slot(m, k, 0) + np.flatnonzero(branches.own_JLL[m * K + k, i])
                seen = sorted(np.concatenate([before, within]))
                assert len(set(seen)) == len(seen)
                seen = sorted(seen, key=lambda at: positions[r, at])
                assert list(tokens[r, seen]) == prefix + step[: i + 1]
                assert list(positions[r, seen]) == list(range(len(prefix) + i + 1))


@functools.cache
def compiled_loss(policy):
    config = Config(targets=TargetConfig(policy=policy))
    loss = lambda params, rows: learner.row_loss(MODEL, params, rows, config)
    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def loss_and_gradient(rows, policy="rest"):
    (loss, metrics), gradient = compiled_loss(policy)(PARAMS, rows)
    return loss, metrics, gradient


@pytest.mark.parametrize("policy", ["rest", "candidates"])
def test_row_loss_is_unchanged_by_padding_rows_nodes_and_candidates(policy):
    rows = make_rows()
    loss, _, gradient = loss_and_gradient(rows, policy)
    with_invalid = jax.tree.map(lambda x: jnp.concatenate([x, x[:2]]), padded(rows))
    with_invalid = dataclasses.replace(with_invalid, valid=jnp.arange(R + 2) < R)
    other, _, other_gradient = loss_and_gradient(with_invalid, policy)
    np.testing.assert_allclose(other, loss, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient, other_gradient)


def on_policy(rows, policy):
    """The rows with the targets that equal Q gives under PARAMS, and nothing to learn of values."""
    log_prob, _, _ = score(rows)
    if policy == "rest":
        rest = jax.vmap(jax.vmap(log_rest))(log_prob, rows.written_MK)
        entries = jnp.concatenate([jnp.where(rows.written_MK, log_prob, -1e9), rest[..., None]], -1)
    else:
        entries = jnp.where(rows.written_MK, log_prob + rows.offset_MK, -1e9)
        entries = jnp.concatenate([entries, jnp.full((R, M, 1), -1e9)], -1)
    nothing = {"value_weight_M": 0 * rows.value_M, "value_weight_MK": 0 * rows.value_MK}
    return dataclasses.replace(rows, policy_MK1=jax.nn.softmax(entries), **nothing)


def largest(gradient):
    return max(float(np.abs(g).max()) for g in jax.tree.leaves(gradient))


def fewer(rows, num):
    """The rows with the first `num` candidates alone, the others' share of the target at the rest."""
    policy = rows.policy_MK1
    rest = policy[..., num:].sum(-1, keepdims=True)
    kept = {
        name: getattr(rows, name)[:, :, :num] for name in ("tokens_MKL", "length_MK", "written_MK", *_PER_CANDIDATE)
    }
    # All steps that lead to nodes are among the first of the second tree.
    rows = dataclasses.replace(rows, policy_MK1=jnp.concatenate([policy[..., :num], rest], -1), **kept)
    return dataclasses.replace(rows, valid_M=(rows.action_M < num) & rows.valid_M)


@pytest.mark.parametrize("policy", ["rest", "candidates"])
def test_equal_q_moves_nothing(policy):
    rows = on_policy(make_rows(), policy)
    assert largest(loss_and_gradient(rows, policy)[2]) < 1e-5
    # What a broken implementation gives: a plain cross-entropy over the candidates, or weights forgotten.
    broken = dataclasses.replace(rows, offset_MK=0 * rows.offset_MK)
    assert largest(loss_and_gradient(broken, "sampled" if policy == "rest" else policy)[2]) > 0.01


def test_equal_q_moves_nothing_where_only_some_candidates_are_looked_at():
    """The minimum stays where it was: a node's other candidates have joined the rest."""
    rows = on_policy(make_rows(), "rest")
    roots = dataclasses.replace(rows, valid_M=np.broadcast_to(np.arange(M) == 0, (R, M)))
    assert largest(loss_and_gradient(fewer(roots, 2))[2]) < 1e-5


@pytest.mark.parametrize(("policy", "share"), [("sampled", 1.0), ("verified_paths", 1 / (R * M))])
def test_few_verified_paths_weigh_little(policy, share):
    """One node with a policy target, alone or among others without: only imitation spreads it over all of them."""
    rows = make_rows()
    first = np.arange(R * M).reshape(R, M) == 0
    alone = dataclasses.replace(rows, valid_M=first)
    among = dataclasses.replace(rows, policy_weight_M=first.astype(np.float32))
    one, other = (loss_and_gradient(each, policy)[1]["loss/policy"] for each in (alone, among))
    np.testing.assert_allclose(other, share * one, rtol=1e-5)


def test_value_loss_reads_the_candidates_and_the_node():
    rows = make_rows()
    _, value_RMK, value_RM = score(rows)
    values = {"value_M": jax.nn.sigmoid(value_RM), "value_MK": jax.nn.sigmoid(value_RMK)}
    perfect = dataclasses.replace(rows, policy_weight_M=0 * rows.policy_weight_M, **values)
    loss, metrics, gradient = loss_and_gradient(perfect)
    assert largest(gradient) < 1e-5 and metrics["loss/policy"] == 0.0
    np.testing.assert_allclose(metrics["value/error"], 0.0, atol=1e-9)
    for field in ("value_M", "value_MK"):
        wrong = dataclasses.replace(perfect, **{field: 1 - getattr(perfect, field)})
        assert largest(loss_and_gradient(wrong)[2]) > 0.01


def make_chain(rows):
    length = jnp.asarray(np.array([[2, 3, 1], [1, 0, 0], [3, 2, 0]]))
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


def test_a_chain_is_worth_less_the_more_steps_it_takes():
    chain = make_chain(make_rows())
    chain = dataclasses.replace(chain, outcome=np.ones(R, np.float32))
    value = {}
    for discount in (1.0, 0.9):
        loss = jax.jit(lambda p, d=discount: learner.chain_loss(MODEL, p, chain, 1.0, d)[1]["loss/value"])
        value[discount] = float(loss(PARAMS))
    total, count = {1.0: 0.0, 0.9: 0.0}, 0
    for r in range(R):
        tokens, ends = list(map(int, chain.prompt_P[r, : chain.prompt_length[r]])), []
        steps = [list(map(int, t[:n])) for t, n in zip(chain.tokens_DL[r], chain.length_D[r], strict=True) if n]
        for left in range(len(steps), -1, -1):
            ends.append((len(tokens) - 1, left))
            tokens += steps[len(steps) - left] if left else []
        _, values = plain(tokens)
        for at, left in ends:
            p, count = float(jax.nn.sigmoid(values[at])), count + 1
            for discount in total:
                worth = discount ** max(left - 1, 0)
                total[discount] -= worth * np.log(p) + (1 - worth) * np.log(1 - p)
    for discount, expected in total.items():
        np.testing.assert_allclose(value[discount], expected / count, rtol=1e-4)


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
