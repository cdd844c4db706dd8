"""Cheap Gumbel noise for the decoding loop.

Stochastic beam search needs one Gumbel variable for each beam and vocabulary entry at every token. JAX's threefry costs
about 100 integer operations for each, a third of a small model's whole decoding time on a CPU. Two rounds of a 32-bit
finaliser over a counter, keyed by the 64 bits of a threefry key, cost 15. The noise only perturbs scores: it needs to
look independent, not to resist an attacker.
"""

import math

import jax
import jax.numpy as jnp


def _mix(h: jax.Array) -> jax.Array:
    """A bijection of uint32 in which every output bit depends on every input bit (C. Wellons' "lowbias32")."""
    h = (h ^ (h >> 16)) * jnp.uint32(0x21F0AAAD)
    h = (h ^ (h >> 15)) * jnp.uint32(0xD35A2D97)
    return h ^ (h >> 15)


def gumbel(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard Gumbel noise, float32, a pure function of a typed key and the shape; at most 2**32 entries."""
    first, second = jax.random.key_data(key).astype(jnp.uint32)[:2]
    counter = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    bits = _mix(_mix(counter ^ first) + second)
    # 23 bits and a half: strictly between 0 and 1, so that both logarithms are finite.
    uniform = (bits >> 9).astype(jnp.float32) * 2.0**-23 + 2.0**-24
    return -jnp.log(-jnp.log(uniform))
