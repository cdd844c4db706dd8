"""Weights go to Hugging Face's format and back, and what does not fit is named. (test_parity.py runs their models.)"""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from alphallm.config import to_dict
from alphallm.errors import UserError
from alphallm.models import LanguageModel, ModelConfig, huggingface
from alphallm.models.export import export_weights, flatten, load_export
from alphallm.models.transformer import RopeScalingConfig
from alphallm.training.config import Config

V = 37
SMALL = {"num_layers": 3, "width": 16, "num_heads": 4, "num_kv_heads": 2, "head_dim": 4, "hidden_dim": 24}
LLAMA3 = RopeScalingConfig("llama3", 8.0, 1.0, 4.0, 32)
VARIANTS = {
    "Qwen3ForCausalLM": {"head_dim": 6},
    "Qwen2ForCausalLM": {"attention_bias": True, "qk_norm": False, "rope_theta": 1e6},
    "LlamaForCausalLM": {"qk_norm": False, "tied_embeddings": False, "rope_scaling": LLAMA3, "norm_epsilon": 1e-5},
}


def exported(folder, dtype="float32", **options):
    """A folder of ours with a model whose every parameter is random."""
    config = ModelConfig(**(SMALL | options))
    leaves, tree = jax.tree.flatten(LanguageModel(config, V).init(jax.random.key(0)))
    params = jax.tree.unflatten(tree, [jax.random.normal(jax.random.key(i), x.shape) for i, x in enumerate(leaves)])
    export_weights(folder, params, to_dict(Config(model=config)), {}, dtype)
    return config, params


def convert(*options):
    command = [sys.executable, "-m", "alphallm.convert", *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=pathlib.Path(__file__).parents[2])


@pytest.fixture
def model_folder(tmp_path):
    """A Hugging Face folder of the smallest Qwen3."""
    config, params = exported(tmp_path / "ours")
    huggingface.save(str(tmp_path / "ours"), str(tmp_path / "theirs"), config)
    return tmp_path / "theirs"


def edit(folder, **changes):
    """Changes config.json; None takes a field out."""
    path = folder / "config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))


def edit_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("architecture", VARIANTS)
def test_there_and_back_is_the_same_model(tmp_path, architecture):
    config, params = exported(tmp_path / "ours", **VARIANTS[architecture])
    assert huggingface.save(str(tmp_path / "ours"), str(tmp_path / "theirs"), config) == architecture
    found, back = huggingface.load(str(tmp_path / "theirs"))
    assert found == config
    jax.tree.map(np.testing.assert_array_equal, back, jax.device_get(params))


def test_biases_that_an_architecture_has_in_addition_are_zeros(tmp_path):
    config, params = exported(tmp_path / "ours", attention_bias=True)  # Qwen3 has all four biases, or none.
    huggingface.save(str(tmp_path / "ours"), str(tmp_path / "theirs"), config)
    found, back = huggingface.load(str(tmp_path / "theirs"))
    assert found.attention_bias and found.output_bias and not np.any(back["layers"].pop("o_bias"))
    jax.tree.map(np.testing.assert_array_equal, back, jax.device_get(params))


def test_several_files_are_one_model(model_folder):
    _, expected = huggingface.load(str(model_folder))
    tensors = load_file(model_folder / "model.safetensors")
    names, weight_map = sorted(tensors), {}
    for number in range(3):
        file = f"model-{number}.safetensors"
        save_file({name: tensors[name] for name in names[number::3]}, model_folder / file)
        weight_map |= dict.fromkeys(names[number::3], file)
    (model_folder / "model.safetensors").unlink()
    (model_folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    jax.tree.map(np.testing.assert_array_equal, huggingface.load(str(model_folder))[1], expected)
    (model_folder / "model-1.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no model-1.safetensors, which model.safetensors.index.json names"):
        huggingface.load(str(model_folder))


def test_bfloat16_stays_and_float16_becomes_float32(model_folder):
    _, exact = huggingface.load(str(model_folder))
    for dtype, name in ((jnp.bfloat16, "bfloat16"), (np.float16, "float32")):
        edit_tensors(
            model_folder, lambda tensors, d=dtype: tensors.update({n: t.astype(d) for n, t in tensors.items()})
        )
        config, params = huggingface.load(str(model_folder))
        assert config.dtype == name and {str(x.dtype) for x in flatten(params).values()} == {name}
        np.testing.assert_allclose(params["layers"]["q"].astype(np.float32), exact["layers"]["q"], rtol=2**-8)
    assert huggingface.load(str(model_folder), "bfloat16")[0].dtype == "bfloat16"
    with pytest.raises(UserError, match="choose one of float32, bfloat16"):
        huggingface.load(str(model_folder), "int8")


def test_a_model_without_a_value_head_gets_an_untrained_one(model_folder):
    (model_folder / "value_head.safetensors").unlink()
    config, params = huggingface.load(str(model_folder))
    fresh = LanguageModel(config, V).init(jax.random.key(0))
    assert params["value_hidden"].shape == fresh["value_hidden"].shape
    np.testing.assert_array_equal(params["value_out"], fresh["value_out"])


def test_what_repeats_or_follows_from_the_rest_is_dropped(model_folder):
    def repeat(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float32)

    _, expected = huggingface.load(str(model_folder))
    edit_tensors(model_folder, repeat)
    jax.tree.map(np.testing.assert_array_equal, huggingface.load(str(model_folder))[1], expected)
    edit_tensors(model_folder, lambda tensors: tensors["lm_head.weight"].__imul__(2))
    with pytest.raises(UserError, match=r"tie_word_embeddings, and 'lm_head.weight' differs"):
        huggingface.load(str(model_folder))


Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop(Q), f"lacks the tensor '{Q}': weights and config"),
        (lambda t: t.update(extra=t[Q]), "has the tensor 'extra', which its config has no place for"),
        (lambda t: t.update({Q: t[Q][:8].copy()}), rf"'{Q}' .* has the shape \[8, 16\], and its config .* \[16, 16\]"),
        (lambda t: t.update({Q: t[Q].astype(np.int8)}), f"'{Q}' .* is I8; supported are F32, F16, BF16"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(model_folder, change, message):
    edit_tensors(model_folder, change)
    with pytest.raises(UserError, match=message):
        huggingface.load(str(model_folder))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"architectures": ["GemmaForCausalLM"]}, "GemmaForCausalLM, is not supported: .* LlamaForCausalLM, Qwen2For"),
        ({"architectures": None}, "none, is not supported"),
        ({"hidden_size": None}, "has no hidden_size"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu', which is not supported"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "use_sliding_window=True"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "RoPE scaling 'yarn'; supported are default, linear"),
        ({"rope_scaling": {"rope_type": "linear"}}, "has no factor for the RoPE scaling 'linear'"),
        ({"num_hidden_layers": "3"}, "num_layers"),
    ],
)
def test_a_config_that_can_not_be_said_is_refused(model_folder, changes, message):
    edit(model_folder, **changes)
    with pytest.raises(UserError, match=message):
        huggingface.load(str(model_folder))


def test_a_tokenizer_of_another_model_is_refused(model_folder):
    def write(**numbers):
        vocabulary = {"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": n} for n in numbers.values()]}
        (model_folder / "tokenizer.json").write_text(json.dumps(vocabulary))

    write(last=V - 1)
    huggingface.load(str(model_folder))
    write(last=V)
    with pytest.raises(UserError, match=rf"token numbers up to {V}, and the embedding has only {V} rows"):
        huggingface.load(str(model_folder))


def test_the_command_converts_both_ways(tmp_path):
    _, params = exported(tmp_path / "ours", "bfloat16")
    (tmp_path / "ours" / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    there = convert(f"--from={tmp_path / 'ours'}", f"--to={tmp_path / 'theirs'}")
    assert there.returncode == 0 and "a Qwen3ForCausalLM; with a tokenizer" in there.stdout, there.stderr
    edit(tmp_path / "theirs", eos_token_id=7, max_position_embeddings=99)
    back = convert(f"--from={tmp_path / 'theirs'}", f"--to={tmp_path / 'back'}")
    assert back.returncode == 0 and "3 layers of width 16, 37 tokens, bfloat16" in back.stdout, back.stderr
    found, config, _ = load_export(tmp_path / "back")
    assert config["model"] == to_dict(ModelConfig(**SMALL, dtype="bfloat16"))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16)), found, jax.device_get(params))
    again = convert(f"--from={tmp_path / 'back'}", f"--to={tmp_path / 'again'}", "--dtype=float32")
    assert again.returncode == 0, again.stderr
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["eos_token_id"] == 7 and config["max_position_embeddings"] == 99
    assert os.path.exists(tmp_path / "again" / "tokenizer.json")
    with safe_open(tmp_path / "again" / "model.safetensors", "numpy") as file:
        assert file.get_slice("model.norm.weight").get_dtype() == "F32" and file.metadata() == {"format": "pt"}

    for options, message in [
        ([], "Give --from=FOLDER"),
        ([f"--from={tmp_path / 'ours'}", f"--to={tmp_path / 'back'}"], "exists and is not an empty folder"),
        ([f"--from={tmp_path / 'none'}", f"--to={tmp_path / 'new'}"], "There is no folder"),
    ]:
        refused = convert(*options)
        assert refused.returncode == 1 and message in refused.stderr and "Traceback" not in refused.stderr


# Loads a model and prints by how many bytes the process's memory grew at most.
MEASURE = """
import re, sys
from alphallm.models import huggingface

def memory(which):  # getrusage's peak would be that of the parent process, if it had more.
    return int(re.search(which + r":\\s+(\\d+) kB", open("/proc/self/status").read()).group(1)) * 1024

huggingface.load(sys.argv[2])  # a small one: the first trace takes memory too.
open("/proc/self/clear_refs", "w").write("5")  # the peak is counted from here.
before = memory("VmRSS")
huggingface.load(sys.argv[1])
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="asks Linux for the peak of memory")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_needs_little_more_memory_than_the_weights(tmp_path, model_folder, dtype):
    config = ModelConfig(8, 512, 8, 4, 64, 2048)  # 44 M parameters, 12 M of them in the embedding.
    shapes = huggingface._shapes(config, 24_000)
    zeros = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    source = tmp_path / "large_ours"
    export_weights(source, huggingface.unflatten(zeros), to_dict(Config(model=config)), {}, dtype)
    del zeros
    huggingface.save(str(source), str(tmp_path / "large"), config)
    weights = os.path.getsize(tmp_path / "large" / "model.safetensors")
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "large"), str(model_folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 0.9 * weights < int(done.stdout) < 1.3 * weights
