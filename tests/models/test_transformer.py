"""The transformer: caches change nothing, nothing sees the future, padding is not there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alphallm.decode import causal_mask
from alphallm.models import LanguageModel, ModelConfig
from alphallm.types import Branches, KeyValues, Past

V, P, L = 11, 6, 4
SMALL = {"num_layers": 2, "width": 16, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "hidden_dim": 24}
VARIANTS = {
    "qwen3": {},
    "qwen2.5": {"attention_bias": True, "qk_norm": False},
    "llama, untied": {"qk_norm": False, "tied_embeddings": False},
    "one kv head": {"num_kv_heads": 1},
    "a kv head each": {"num_kv_heads": 4},
    "bfloat16": {"dtype": "bfloat16", "attention_bias": True},
}


def make(**options):
    """A model whose every parameter, zeros and ones of the initialisation included, matters."""
    model = LanguageModel(ModelConfig(**(SMALL | options)), V)
    leaves, tree = jax.tree.flatten(model.init(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return model, jax.tree.unflatten(tree, noisy)


def positions_of(tokens, start=0):
    return jnp.broadcast_to(start + jnp.arange(tokens.shape[1])[None], tokens.shape)


def heads(model, params, hidden):
    return model.logits(params, hidden), model.value_logit(params, hidden)


def full(model, params, tokens):
    hidden = model.trunk(params, tokens, positions_of(tokens), causal_mask(*tokens.shape)).hidden_BXE
    return heads(model, params, hidden)


@pytest.mark.parametrize("variant", VARIANTS)
def test_pages_give_the_full_pass_from_every_prefix(variant):
    model, params = make(**VARIANTS[variant])
    rng = np.random.default_rng(0)
    # Every prompt length with every page length; the second page has another length than the first.
    prompt, first = (x.reshape(-1) for x in np.meshgrid(np.arange(1, P + 1), np.arange(1, L + 1)))
    second = first[::-1]
    rows, total = len(prompt), prompt + first + second
    tokens = rng.integers(0, V, (rows, P + 2 * L))

    def block(start, length, size):
        """Padded cuts of the sequences, with rubbish for padding."""
        out = rng.integers(0, V, (rows, size))
        for r in range(rows):
            out[r, : length[r]] = tokens[r, start[r] : start[r] + length[r]]
        return jnp.asarray(out), jnp.arange(size)[None] < length[:, None]

    blocks = [block(0 * prompt, prompt, P), block(prompt, first, L), block(prompt + first, second, L)]
    starts = [0 * prompt, prompt, prompt + first]

    @jax.jit
    def paged(params):
        past, out = [], []
        for (new, real), start in zip(blocks, starts, strict=True):
            where = jnp.asarray(start)[:, None] + jnp.arange(new.shape[1])[None]
            hidden = model.trunk(params, new, where, causal_mask(*new.shape), past)
            past.append(Past(hidden.keys_values, real[:, None]))
            out.append(heads(model, params, hidden.hidden_BXE))
        return out

    expected = jax.jit(lambda p: full(model, p, jnp.asarray(tokens)))(params)
    # A bfloat16 has 8 bits: rounding differs by the order of sums, not by more.
    tolerance = {"atol": 0.15, "rtol": 0.05} if variant == "bfloat16" else {"atol": 2e-5, "rtol": 1e-4}
    seen = 0
    expected = jax.device_get(expected)
    for got, start, (_, real) in zip(jax.device_get(paged(params)), starts, jax.device_get(blocks), strict=True):
        for r in range(rows):
            length = int(real[r].sum())
            for x, y in zip(got, expected, strict=True):
                assert x.dtype == jnp.float32
                np.testing.assert_allclose(x[r, :length], y[r, start[r] : start[r] + length], **tolerance)
            seen += length
    assert seen == total.sum()


def test_nothing_sees_the_future():
    model, params = make(tied_embeddings=False)
    tokens = jnp.arange(8)[None]  # all different: a row of the table is the embedding of one position.
    weights = jax.random.normal(jax.random.key(2), (V,))

    def outputs(table):
        logits, value = full(model, params | {"embedding": table}, tokens)
        return logits[0] @ weights + value[0]

    influence = np.abs(jax.jit(jax.jacrev(outputs))(params["embedding"])).sum(-1)[:, :8]
    assert (influence[np.triu_indices(8, 1)] == 0).all()
    assert (influence[np.tril_indices(8)] > 0).all()


def test_padding_changes_nothing():
    model, params = make()
    tokens = jax.random.randint(jax.random.key(3), (1, 9), 0, V)
    short, _ = full(model, params, tokens[:, :5])
    long, _ = full(model, params, tokens)
    other, _ = full(model, params, tokens.at[:, 5:].set(0))
    np.testing.assert_allclose(short, long[:, :5], atol=1e-5)
    np.testing.assert_array_equal(other[:, :5], long[:, :5])


def test_only_relative_positions_matter():
    model, params = make()
    tokens = jax.random.randint(jax.random.key(3), (1, 6), 0, V)
    one, moved, stretched = (
        model.trunk(params, tokens, positions, causal_mask(1, 6)).hidden_BXE
        for positions in (positions_of(tokens), positions_of(tokens, 17), 2 * positions_of(tokens))
    )
    np.testing.assert_allclose(one, moved, atol=1e-4)
    assert jnp.abs(one - stretched).max() > 0.01


def test_heads_are_float32_in_bfloat16():
    model, params = make(dtype="bfloat16")
    hidden = jax.random.normal(jax.random.key(4), (3, SMALL["width"])).astype(jnp.bfloat16)
    table = params["embedding"].astype(jnp.bfloat16).astype(jnp.float32)
    expected = np.asarray(hidden, np.float64) @ np.asarray(table, np.float64).T
    # A product rounded to bfloat16 is off by up to 0.4 %, which changes log-probabilities by more than search resolves.
    np.testing.assert_allclose(model.logits(params, hidden), expected, rtol=1e-5, atol=1e-5)


def test_counts_of_parameters_and_flops():
    for options in VARIANTS.values():
        model, params = make(**options)
        assert model.num_params() == sum(x.size for x in jax.tree.leaves(params))
    model, params = make(tied_embeddings=False, qk_norm=False)
    matrices = sum(x.size for name, x in params["layers"].items() if not name.endswith("norm"))
    matrices += params["unembedding"].size + params["value_hidden"].size
    assert matrices <= model.flops_per_token() / 2 <= 1.03 * matrices


@pytest.mark.parametrize("variant", ["qwen3", "bfloat16"])
def test_slots_of_a_positions_own_are_shared_ones_that_a_mask_keeps_apart(variant):
    model, params = make(**VARIANTS[variant])
    config, batch, new = model.config, 3, 5
    shape = (config.num_layers, batch, config.num_kv_heads, new, L, config.head_dim)
    own = KeyValues(*(jax.random.normal(jax.random.key(i), shape).astype(config.dtype) for i in range(2)))
    shared = jax.tree.map(lambda x: x.reshape(*shape[:3], new * L, config.head_dim), own)
    tokens = jnp.asarray(np.random.default_rng(2).integers(0, V, (batch, new)))
    there = jnp.asarray(np.random.default_rng(3).random((batch, new, L)) < 0.7)
    itself = jnp.broadcast_to(jnp.eye(new, dtype=bool), (batch, new, new))
    apart = (itself[..., None] & there[:, :, None]).reshape(batch, new, new * L)

    one = model.trunk(params, tokens, positions_of(tokens), None, [Past(own, there)])
    other = model.trunk(params, tokens, positions_of(tokens), itself, [Past(shared, apart)])
    tolerance = 0.05 if config.dtype == "bfloat16" else 1e-5
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("variant", ["qwen3", "one kv head", "bfloat16"])
def test_branches_are_a_mask_over_all_pairs(variant):
    model, params = make(**VARIANTS[variant])
    rng = np.random.default_rng(5)
    batch, before, num, size, others = 3, 5, 4, 3, 6
    new = before + num * size
    tokens = jnp.asarray(rng.integers(0, V, (batch, new)))
    shared = np.stack([rng.permutation(new)[:others] for _ in range(batch)])
    seen = rng.random((batch, new, others)) < 0.5
    branch = np.where(np.arange(new) < before, -1, (np.arange(new) - before) // size)
    seen &= (branch[shared][:, None] != branch[None, :, None]) | (branch < 0)[None, :, None]  # its own are apart.
    own = rng.random((num, size, size)) < 0.5
    own[:, range(size), range(size)] = True
    seen[:, :before] |= np.arange(others) == 0  # whoever attends to nothing attends to rubbish.
    pairs = np.zeros((batch, new, new), bool)
    for b, x, s in np.argwhere(seen):
        pairs[b, x, shared[b, s]] = True
    for j, x, y in np.argwhere(own):
        pairs[:, before + j * size + x, before + j * size + y] = True

    one = model.trunk(params, tokens, positions_of(tokens), Branches(shared, jnp.asarray(seen), jnp.asarray(own)))
    other = model.trunk(params, tokens, positions_of(tokens), jnp.asarray(pairs))
    tolerance = 0.05 if variant == "bfloat16" else 1e-5
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), atol=tolerance, rtol=tolerance)
