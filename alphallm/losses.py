"""Losses and masked means: arrays in, arrays out."""

import jax
import jax.numpy as jnp
from jax import lax


def log1mexp(x):
    """log(1 - exp(x)) for x <= 0, accurate at both ends; -inf at 0."""
    x = jnp.minimum(x, 0.0)
    near = x > -0.6931472
    # The branch not taken gets a harmless argument, so that gradients stay finite.
    near_value = jnp.log(-jnp.expm1(jnp.where(near, x, -1.0)))
    far_value = jnp.log1p(-jnp.exp(jnp.where(near, -1.0, x)))
    return jnp.where(near, near_value, far_value)


def masked_mean(x, mask, axis: str | None = None) -> jax.Array:
    """Mean of x where mask (same shape; bool or weights >= 0); 0 where the mask is empty.

    With the name of a device axis, this device's share of the mean over all devices: the mean of the shares is that
    mean, also where the devices' masks differ in size.
    """
    mask = mask.astype(jnp.float32)
    total = jnp.sum(mask)
    if axis is not None:
        total = lax.pmean(total, axis)
    return jnp.sum(jnp.where(mask > 0, x, 0.0) * mask) / jnp.maximum(total, 1e-9)


def sum_and_count(x, mask=None) -> jax.Array:
    """What a mean of x, where mask if there is one, would divide [2]: for a mean over what other devices have too."""
    mask = jnp.ones(x.shape, jnp.float32) if mask is None else mask.astype(jnp.float32)
    return jnp.stack([jnp.sum(jnp.where(mask > 0, x.astype(jnp.float32), 0.0) * mask), jnp.sum(mask)])


def binary_cross_entropy(logit, target) -> jax.Array:
    """Cross-entropy of a Bernoulli with the given logit to a target in [0, 1], elementwise.

    Its minimum over logits is the target's own entropy, so a perfect value head on soft targets does not read 0.
    """
    # Not maximum and abs: their gradient at a logit of 0, where a new value head starts, is not that of the loss.
    return jax.nn.softplus(logit) - logit * target


def entropy(probs) -> jax.Array:
    """Entropy, in nats, of distributions over the last axis; 0 of an all-zero one."""
    return -jnp.sum(jnp.where(probs > 0, probs * jnp.log(jnp.where(probs > 0, probs, 1.0)), 0.0), -1)


def log_rest(log_prob_K, written_K) -> jax.Array:
    """log(1 - sum of the candidates' probabilities): the logit of everything that was not written."""
    total = jax.nn.logsumexp(jnp.where(written_K, log_prob_K, -1e9))
    # Rounding can bring the sum to 1: the largest float below 1 keeps the logarithm finite.
    return log1mexp(jnp.minimum(total, -1e-6))


def kl_with_rest(log_prob_K, other_log_prob_K, written_K) -> jax.Array:
    """KL divergence of one policy from another over written candidates and the rest, of one node: a lower bound of the
    whole one, since the rest is taken as one outcome."""
    join = lambda x_K: jnp.append(jnp.where(written_K, x_K, -1e9), log_rest(x_K, written_K))
    entries, other = join(log_prob_K), join(other_log_prob_K)
    return jnp.sum(jnp.exp(entries) * (entries - other))


def policy_loss_with_rest(log_prob_K, written_K, target_K1) -> jax.Array:
    """(K+1)-way cross-entropy over candidates and the rest of the policy's mass, of one node.

    Args:
      log_prob_K: the learner's log-probability of each candidate step.
      written_K: bool, True where there is a candidate.
      target_K1: the improved policy over the candidates, the rest last; sums to 1.
    """
    logits_K = jnp.where(written_K, log_prob_K, -1e9)
    entries = jnp.append(logits_K, log_rest(log_prob_K, written_K))
    return -jnp.sum(jnp.where(target_K1 > 0, target_K1 * entries, 0.0))


def policy_loss_among_candidates(log_prob_K, written_K, offset_K, target_K) -> jax.Array:
    """K-way cross-entropy over candidates whose sampling weights are `offset = log w - log pi`, of one node.

    With the actor's own parameters and equal Q, the target is the softmax of `log pi + offset`, and the gradient is 0.
    """
    logits_K = jnp.where(written_K, log_prob_K + offset_K, -1e9)
    return -jnp.sum(jnp.where(target_K > 0, target_K * jax.nn.log_softmax(logits_K), 0.0))
