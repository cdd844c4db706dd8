"""The losses against what they are equal to where everything can be written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alphallm import decode, losses


def test_log1mexp_is_accurate_at_both_ends():
    x = -np.concatenate([np.logspace(-30, 1, 200), [20.0, 50.0, 87.0]])
    exact = np.where(x > -0.5, np.log(-np.expm1(x)), np.log1p(-np.exp(np.minimum(x, -0.1))))
    np.testing.assert_allclose(losses.log1mexp(jnp.asarray(x, jnp.float32)), exact, rtol=3e-6)
    assert losses.log1mexp(jnp.float32(0.0)) == -jnp.inf
    # What a naive formula gives.
    assert jnp.isneginf(jnp.log(1 - jnp.exp(jnp.float32(-1e-9))))


@pytest.mark.parametrize("x", [-1e-6, -0.5, -0.6931472, -0.7, -5.0, -100.0, -1e9])
def test_log1mexp_has_a_finite_gradient(x):
    np.testing.assert_allclose(jax.grad(losses.log1mexp)(x), -1 / np.expm1(-x) if x > -80 else 0.0, rtol=1e-4)


def test_masked_mean():
    x, mask = jnp.array([1.0, 2.0, jnp.nan, 4.0]), jnp.array([1.0, 0.0, 0.0, 3.0])
    assert losses.masked_mean(x, mask) == 13 / 4
    assert losses.masked_mean(x, mask > 0) == 2.5
    assert losses.masked_mean(x, 0 * mask) == 0.0
    np.testing.assert_array_equal(losses.sum_and_count(x, mask), [13, 4])
    np.testing.assert_array_equal(losses.sum_and_count(x > 1), [jnp.sum(x > 1), x.size])
    gradient = jax.grad(lambda x: losses.masked_mean(x, mask))(x)
    np.testing.assert_allclose(gradient, [0.25, 0, 0, 0.75])


def test_binary_cross_entropy():
    logit, target = jnp.linspace(-4, 4, 9), jnp.linspace(0, 1, 9)
    p = jax.nn.sigmoid(logit)
    np.testing.assert_allclose(
        losses.binary_cross_entropy(logit, target), -target * jnp.log(p) - (1 - target) * jnp.log(1 - p), rtol=1e-5
    )
    assert losses.binary_cross_entropy(jnp.float32(1000.0), 0.0) == 1000.0
    gradient = jax.vmap(jax.grad(losses.binary_cross_entropy))(logit, target)
    np.testing.assert_allclose(gradient, p - target, atol=1e-6)


def test_log_rest():
    log_prob, written = jnp.log(jnp.array([0.5, 0.2, 0.25])), jnp.array([True, True, False])
    np.testing.assert_allclose(losses.log_rest(log_prob, written), np.log(0.3), rtol=1e-5)
    everything = jnp.log(jnp.array([0.5, 0.2, 0.3]))
    value, gradient = jax.value_and_grad(losses.log_rest)(everything, jnp.ones(3, bool))
    assert jnp.isfinite(value) and jnp.isfinite(gradient).all()


def test_entropy():
    probs = jnp.array([[0.25, 0.25, 0.5], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(losses.entropy(probs), [1.5 * np.log(2), 0, 0], rtol=1e-6)


def test_kl_with_rest():
    p, q, written = np.array([0.5, 0.2, 0.1]), np.array([0.1, 0.3, 0.2]), jnp.array([True, True, False])
    # By hand: what was not written has 0.3 and 0.6.
    wanted = 0.5 * np.log(5) + 0.2 * np.log(2 / 3) + 0.3 * np.log(1 / 2)
    np.testing.assert_allclose(losses.kl_with_rest(jnp.log(p), jnp.log(q), written), wanted, rtol=1e-5)
    assert abs(losses.kl_with_rest(jnp.log(p), jnp.log(p), written)) < 1e-6
    everything = jnp.array([0.0, decode.LOG_ZERO, decode.LOG_ZERO])
    assert jnp.isfinite(losses.kl_with_rest(everything, jnp.log(q), jnp.ones(3, bool)))


# An enumerable space of steps: the policy's logits are the parameters, the first K steps are the candidates.
SPACE, K = 12, 5
WRITTEN = jnp.ones(K, bool)


def space(seed):
    logits, q = np.random.default_rng(seed).normal(size=(2, SPACE))
    return jnp.asarray(logits, jnp.float32), jnp.asarray(1 / (1 + np.exp(-q)), jnp.float32)


def rest_gradient(logits, target_K1):
    loss = lambda logits: losses.policy_loss_with_rest(jax.nn.log_softmax(logits)[:K], WRITTEN, target_K1)
    return jax.grad(loss)(logits)


def test_equal_q_gives_no_gradient():
    for seed in range(5):
        logits, _ = space(seed)
        log_prob = jax.nn.log_softmax(logits)[:K]
        # Whatever Q is, if it is the same everywhere the improved policy is the policy.
        target = jax.nn.softmax(jnp.append(log_prob, losses.log_rest(log_prob, WRITTEN)) + 7.0 * 0.6)
        assert jnp.abs(rest_gradient(logits, target)).max() < 1e-6
        # Weighted K-way: any sampling weights, so long as the learner's logits have them too.
        offset = jax.random.normal(jax.random.key(seed), (K,))
        target = jax.nn.softmax(log_prob + offset)
        k_way = lambda logits, offset, target=target: losses.policy_loss_among_candidates(
            jax.nn.log_softmax(logits)[:K], WRITTEN, offset, target
        )
        assert jnp.abs(jax.grad(k_way)(logits, offset)).max() < 1e-6
        # What a broken loss gives: the weights in the target only, or a plain cross-entropy without the rest.
        assert jnp.abs(jax.grad(k_way)(logits, 0 * offset)).max() > 0.01
        plain = lambda logits, log_prob=log_prob: -jnp.sum(jax.nn.softmax(log_prob) * jax.nn.log_softmax(logits)[:K])
        assert jnp.abs(jax.grad(plain)(logits)).max() > 0.01


def test_rest_gradient_is_that_of_the_full_space():
    """DESIGN section 6: completed Q of everything that was not written is one mixed value, so the sums agree."""
    for seed in range(5):
        logits, q = space(seed)
        mixed = 0.4
        completed = jnp.where(jnp.arange(SPACE) < K, q, mixed)
        improved = jax.nn.softmax(logits + 5.0 * completed)
        full = jax.grad(lambda l, improved=improved: -jnp.sum(improved * jax.nn.log_softmax(l)))(logits)
        target = jnp.append(improved[:K], jnp.sum(improved[K:]))
        np.testing.assert_allclose(rest_gradient(logits, target), full, atol=1e-6)
        plain = jax.nn.softmax((logits + 5.0 * completed)[:K])
        wrong = jax.grad(lambda l, plain=plain: -jnp.sum(plain * jax.nn.log_softmax(l)[:K]))(logits)
        assert jnp.abs(wrong - full).max() > 0.05


def test_padding_candidates_change_nothing():
    logits, _ = space(0)
    log_prob = jax.nn.log_softmax(logits)[:K]
    target = jax.nn.softmax(jnp.arange(K + 1.0))
    padded = jnp.append(log_prob, jnp.log(0.9))
    written = jnp.append(WRITTEN, False)
    longer = jnp.concatenate([target[:K], jnp.zeros(1), target[K:]])
    one = losses.policy_loss_with_rest(log_prob, WRITTEN, target)
    np.testing.assert_allclose(losses.policy_loss_with_rest(padded, written, longer), one, rtol=1e-6)
    one = losses.policy_loss_among_candidates(log_prob, WRITTEN, 0 * log_prob, target[:K])
    other = losses.policy_loss_among_candidates(padded, written, 0 * padded, jnp.append(target[:K], 0.0))
    np.testing.assert_allclose(other, one, rtol=1e-6)
