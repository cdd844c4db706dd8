"""What there is without a search: sequences decoded side by side, each with a key-value cache of its own."""

import jax
import jax.numpy as jnp
from jax import lax

from alphallm.models import LanguageModel
from alphallm.types import KeyValues, Past


def decode(model: LanguageModel, params, seed, *, rows: int, context: int, tokens: int):
    """Samples `tokens` tokens for each of `rows` sequences after a cached context of that many tokens.

    The cached keys are made up (zeros): their values do not change the time.
    """
    config = model.config
    shape = (config.num_layers, rows, config.num_kv_heads, context + tokens, config.head_dim)
    key = jax.random.key(seed)
    cache = KeyValues(*(jnp.zeros(shape, config.dtype) for _ in range(2)))
    own = jnp.ones((rows, 1, 1), bool)

    def step(carry, t):
        cache, token_R = carry
        seen = jnp.broadcast_to((jnp.arange(context + tokens) < context + t)[None, None], (rows, 1, context + tokens))
        positions = jnp.full((rows, 1), context + t)
        hidden = model.trunk(params, token_R[:, None], positions, own, [Past(cache, seen)])
        cache = jax.tree.map(
            lambda all_, new: lax.dynamic_update_slice_in_dim(all_, new, context + t, axis=3), cache, hidden.keys_values
        )
        logits_RV, value_R = model.logits(params, hidden.hidden_BXE[:, 0]), model.value_logit(params, hidden.hidden_BXE)
        # One uniform a row and the inverse of the cumulative distribution: the cheapest way to sample on a CPU.
        uniform_R = jax.random.uniform(jax.random.fold_in(key, t), (rows, 1))
        token_R = jnp.sum(jnp.cumsum(jax.nn.softmax(logits_RV), -1) < uniform_R, -1)
        return (cache, jnp.minimum(token_R, logits_RV.shape[-1] - 1)), jnp.sum(value_R)

    (_, token_R), values = lax.scan(step, (cache, jnp.ones(rows, jnp.int32)), jnp.arange(tokens))
    return jnp.sum(token_R), jnp.sum(values)
