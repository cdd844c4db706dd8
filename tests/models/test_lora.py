"""Low-rank adaptation: it starts as the model that it adapts, trains little, and can be merged."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alphallm import decode
from alphallm.models import LanguageModel, LoraConfig, ModelConfig, lora
from alphallm.models.export import flatten
from alphallm.training import learner
from alphallm.training.config import Config, OptimizerConfig
from alphallm.training.steps import learning_rate

V = 11
BASE = ModelConfig(num_layers=2, width=16, num_heads=2, num_kv_heads=1, head_dim=8, hidden_dim=24, attention_bias=True)
TOKENS = np.random.default_rng(0).integers(0, V, (4, 9))


def adapted(**changes) -> ModelConfig:
    return dataclasses.replace(BASE, lora=LoraConfig(rank=3), **changes)


def params_of(config: ModelConfig, noise: float = 0.0):
    """Parameters of the model without LoRA, the same for both, with those that LoRA adds."""
    plain = LanguageModel(lora.plain(dataclasses.replace(config, lora=LoraConfig())), V).init(jax.random.key(0))
    params = lora.join(LanguageModel(config, V).init(jax.random.key(1)), plain)
    shift = lambda path, x: x + noise * np.cos(np.arange(x.size)).reshape(x.shape) if "_lora_" in str(path) else x
    return plain, jax.tree_util.tree_map_with_path(shift, params)


def outputs(config: ModelConfig, params):
    model = LanguageModel(config, V)
    positions = jnp.broadcast_to(jnp.arange(TOKENS.shape[1])[None], TOKENS.shape)
    hidden = model.trunk(params, TOKENS, positions, decode.causal_mask(*TOKENS.shape)).hidden_BXE
    return model.logits(params, hidden), model.value_logit(params, hidden)


@pytest.mark.parametrize("tied", [True, False])
def test_it_starts_as_the_model_and_merges_into_one(tied):
    config = adapted(tied_embeddings=tied)
    plain, params = params_of(config)
    started = outputs(config, params)
    for one, other in zip(
        started, outputs(lora.plain(dataclasses.replace(config, lora=LoraConfig())), plain), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    _, params = params_of(config, noise=0.1)
    changed = outputs(config, params)
    assert np.abs(changed[0] - started[0]).max() > 0.01
    merged = lora.merge(params, config)
    assert not any("_lora_" in name for name in flatten(merged))
    for one, other in zip(changed, outputs(lora.plain(config), merged), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_frozen_is_left_alone_and_costs_no_state(dtype):
    config = Config(model=adapted(dtype=dtype), optimizer=OptimizerConfig(learning_rate=0.1, warmup_steps=0))
    model = LanguageModel(config.model, V)
    _, params = params_of(config.model)
    state = learner.init(config, params, learning_rate(config))
    trained, frozen = flatten(state.params), flatten(state.frozen)
    assert {name for name in frozen if name.startswith("layers/")} >= {
        f"layers/{p}" for p in ("q", "o", "down", "q_bias")
    }
    assert {"final_norm", "value_out", "head_lora_b", "layers/gate_lora_a"} <= trained.keys()
    assert not trained.keys() & frozen.keys() and trained.keys() | frozen.keys() == flatten(params).keys()
    assert {x.dtype for x in frozen.values()} == {jnp.dtype(dtype)}
    # Two moments of what is trained, and nothing of the rest.
    moments = sum(x.size for x in jax.tree.leaves(state.optimizer) if x.ndim)
    assert moments == 2 * sum(x.size for x in trained.values() if x.ndim)

    def loss(weights, tokens):
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
        hidden = model.trunk(weights, tokens, positions, decode.causal_mask(*tokens.shape)).hidden_BXE
        log_probs = jax.nn.log_softmax(model.logits(weights, hidden[:, :-1]))
        value = jnp.mean(jax.nn.softplus(model.value_logit(weights, hidden)))
        return value - jnp.mean(jnp.take_along_axis(log_probs, tokens[:, 1:, None], -1)), {}

    step = jax.jit(jax.vmap(
        lambda state, tokens: learner.update(state, config.optimizer, learning_rate(config), loss, tokens),
        axis_name=learner.AXIS, in_axes=(None, 0), axis_size=1,
    ))  # fmt: skip
    after, _ = step(state, TOKENS[None])
    after, _ = step(jax.tree.map(lambda x: x[0], after), TOKENS[None])
    for name, value in flatten(after.frozen).items():
        np.testing.assert_array_equal(value[0], frozen[name])
    unmoved = {name for name, value in flatten(after.params).items() if (value[0] == trained[name]).all()}
    assert unmoved == set()


def test_micro_batches_give_the_same_step():
    whole = Config(model=BASE, optimizer=OptimizerConfig(warmup_steps=0))
    model = LanguageModel(BASE, V)

    def loss(weights, tokens):
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
        hidden = model.trunk(weights, tokens, positions, decode.causal_mask(*tokens.shape)).hidden_BXE
        return jnp.mean(jnp.square(model.logits(weights, hidden))), {"size": jnp.float32(len(tokens))}

    results = []
    for parts in (1, 2, 4):
        config = dataclasses.replace(whole.optimizer, micro_batches=parts)
        state = learner.init(whole, model.init(jax.random.key(0)), learning_rate(whole))
        step = jax.vmap(
            lambda state, tokens, config=config: learner.update(state, config, learning_rate(whole), loss, tokens),
            axis_name=learner.AXIS, in_axes=(None, 0), axis_size=1,
        )  # fmt: skip
        after, metrics = jax.jit(step)(state, TOKENS[None])
        assert metrics["size"][0] == 4 / parts
        results.append((after.params, metrics["gradient_norm"]))
    for other in results[1:]:
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), results[0], other)


def test_wrong_projections_are_refused():
    with pytest.raises(ValueError, match="give some of q, k, v, o, gate, up, down, head"):
        LoraConfig(rank=4, projections=("q", "query"))
    with pytest.raises(ValueError, match="give some of"):
        LoraConfig(rank=4, projections=())
