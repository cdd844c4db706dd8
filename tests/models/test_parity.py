"""Our transformer gives what `transformers` gives on the same weights: pip install -e ".[test,parity]".

Every family with every option on and off, on small random models: logits, each layer, greedy decoding through our cache
of 200 tokens, and the way back into `transformers`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alphallm import decode
from alphallm.config import to_dict
from alphallm.models import LanguageModel, huggingface
from alphallm.models.export import export_weights
from alphallm.training.config import Config
from alphallm.types import Problem

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

V, PROMPT, GENERATED = 101, 24, 200
SMALL = {
    "vocab_size": V, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 512, "tie_word_embeddings": False,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
THETA = {"rope_type": "default", "rope_theta": 1e6}
CASES = {
    "llama": ("Llama", {}),
    "llama, tied": ("Llama", {"tie_word_embeddings": True}),
    "llama, biases": ("Llama", {"attention_bias": True}),
    "llama, a head each": ("Llama", {"num_key_value_heads": 4}),
    "llama, one shared head": ("Llama", {"num_key_value_heads": 1}),
    "llama, linear RoPE": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "llama, llama3 RoPE": ("Llama", {"rope_parameters": LLAMA3}),
    "llama, larger epsilon": ("Llama", {"rms_norm_eps": 1e-2}),
    "qwen2": ("Qwen2", {}),
    "qwen2, tied, theta": ("Qwen2", {"tie_word_embeddings": True, "rope_parameters": THETA}),
    "qwen3": ("Qwen3", {"head_dim": 8}),
    "qwen3, wide heads": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3, biases": ("Qwen3", {"head_dim": 8, "attention_bias": True}),
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def models(request, tmp_path_factory):
    """Their model (every parameter random, float32), its folder, and ours: (config, params)."""
    family, options = CASES[request.param]
    config = getattr(transformers, f"{family}Config")(**(SMALL | options))
    torch.manual_seed(0)
    theirs = getattr(transformers, f"{family}ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            # Sharp enough that greedy choices are no coin flips, and norms and biases that matter.
            parameter.copy_(torch.randn_like(parameter) * 0.3 + ("norm" in name))
    folder = str(tmp_path_factory.mktemp("model"))
    theirs.save_pretrained(folder)
    return theirs, folder, *huggingface.load(folder)


def tokens(batch, size):
    return np.random.default_rng(0).integers(0, V, (batch, size))


def ours(config, params, tokens_BX):
    model = LanguageModel(config, V)
    positions = jnp.broadcast_to(jnp.arange(tokens_BX.shape[1])[None], tokens_BX.shape)
    hidden = model.trunk(params, jnp.asarray(tokens_BX), positions, decode.causal_mask(*tokens_BX.shape)).hidden_BXE
    return hidden, model.logits(params, hidden)


def assert_close(found, expected):
    """Within 1e-4 of the largest number of each row."""
    found, expected = np.asarray(found), expected.detach().numpy()
    assert found.shape == expected.shape
    assert np.max(np.abs(found - expected) / np.max(np.abs(expected), -1, keepdims=True)) < 1e-4


def test_each_layer_and_the_logits_agree(models):
    theirs, _, config, params = models
    inputs = tokens(3, 150)  # past the 64 positions for which llama3's frequencies were meant.
    with torch.no_grad():
        expected = theirs(torch.asarray(inputs), output_hidden_states=True)
    for depth in range(1, config.num_layers + 1):
        shallow = dataclasses.replace(config, num_layers=depth)
        cut = params | {"layers": {name: x[:depth] for name, x in params["layers"].items()}}
        hidden, logits = ours(shallow, cut, inputs)
        last = depth == config.num_layers  # whose output transformers gives after the norm.
        state = expected.hidden_states[depth]
        assert_close(hidden, state if last else theirs.model.norm(state))
    assert_close(logits, expected.logits)


def test_greedy_decoding_agrees_for_200_tokens(models):
    theirs, _, config, params = models
    inputs = tokens(2, PROMPT)
    with torch.no_grad():
        expected = theirs.generate(
            torch.asarray(inputs), attention_mask=torch.ones(inputs.shape, dtype=torch.long), do_sample=False,
            max_new_tokens=GENERATED, pad_token_id=0,
        )[:, PROMPT:]  # fmt: skip
    model = LanguageModel(config, V)
    problem = Problem(jnp.asarray(inputs), jnp.full((2,), PROMPT), None, jnp.arange(2))

    @jax.jit
    def generate(params):
        return decode.iid(
            model, params, decode.prefill(model, params, problem), jax.random.split(jax.random.key(0), 2), num=1,
            max_length=GENERATED, step_end_SV=jnp.zeros((1, V), bool), pad=0, temperature=0.0,
        ).tokens_BKL[:, 0]  # fmt: skip

    np.testing.assert_array_equal(generate(params), expected.numpy())


def test_the_way_back_gives_transformers_the_same_model(models, tmp_path):
    theirs, _, config, params = models
    export_weights(tmp_path / "ours", params, to_dict(Config(model=config)), {})
    huggingface.save(str(tmp_path / "ours"), str(tmp_path / "back"), config)
    again, report = transformers.AutoModelForCausalLM.from_pretrained(
        str(tmp_path / "back"), output_loading_info=True, dtype=torch.float32
    )
    assert type(again) is type(theirs) and not any(report.values())
    inputs = torch.asarray(tokens(3, 150))
    with torch.no_grad():
        assert_close(again(inputs).logits.numpy(), theirs(inputs).logits)
