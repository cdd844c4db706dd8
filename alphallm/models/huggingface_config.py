"""Configs of Hugging Face models: what of them `ModelConfig` can say, and what it says in their words."""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

from alphallm.config import from_dict
from alphallm.errors import UserError
from alphallm.models.transformer import ModelConfig

LLAMA, QWEN2, QWEN3 = "LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"
ARCHITECTURES = {LLAMA: "llama", QWEN2: "qwen2", QWEN3: "qwen3"}  # with their "model_type".
CONFIG = "config.json"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json",
    "special_tokens_map.json", "chat_template.jinja", "chat_template.json", "generation_config.json",
)  # fmt: skip


def read_config(folder: str) -> tuple[ModelConfig, int]:
    """The model's config (its dtype is not set) and the vocabulary's size that a Hugging Face folder's config says."""
    values = read_json(folder, CONFIG)
    architectures = values.get("architectures") or ["none"]
    if architectures[0] not in ARCHITECTURES:
        raise UserError(
            f"The architecture of {folder!r}, {architectures[0]}, is not supported: "
            f"give a model of one of {', '.join(ARCHITECTURES)}."
        )
    names = (
        "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"
    )  # fmt: skip
    absent = [name for name in names if values.get(name) is None]
    if absent:
        raise UserError(f"{CONFIG} of {folder!r} has no {absent[0]}: download the model again.")
    _check_options(folder, values)
    width, layers, heads, hidden_dim, vocabulary_size = (values[name] for name in names)
    architecture = architectures[0]
    biases = architecture != QWEN2 and values.get("attention_bias", False)
    theta, scaling = _rope(folder, values)
    fields = {
        "num_layers": layers,
        "width": width,
        "num_heads": heads,
        "num_kv_heads": values.get("num_key_value_heads") or heads,
        # Where it is not given: Qwen3's default is a number, the others' follows from the width.
        "head_dim": values.get("head_dim") or (128 if architecture == QWEN3 else width // heads),
        "hidden_dim": hidden_dim,
        "rope_theta": theta,
        "rope_scaling": scaling,
        "norm_epsilon": values.get("rms_norm_eps", 1e-6),
        "attention_bias": architecture == QWEN2 or biases,
        "output_bias": biases,
        "qk_norm": architecture == QWEN3,
        "tied_embeddings": values.get("tie_word_embeddings", False),
    }
    return from_dict(ModelConfig, fields, f"{CONFIG} of {folder!r}"), vocabulary_size


def _check_options(folder: str, values: Mapping[str, Any]) -> None:
    """Raises UserError for what would change the model's outputs and `ModelConfig` can not say."""
    sliding = values.get("use_sliding_window") and values.get("sliding_window", 4096) is not None
    if sliding:
        full = values.get("max_window_layers", 28)  # The layers before this one attend to everything.
        default = ["full_attention"] * min(full, values["num_hidden_layers"])
        default += ["sliding_attention"] * (values["num_hidden_layers"] - len(default))
        sliding = any(kind != "full_attention" for kind in values.get("layer_types") or default)
    unsupported = {
        "use_sliding_window": sliding,
        "mlp_bias": values.get("mlp_bias"),
        "hidden_act": values.get("hidden_act", "silu") != "silu",
        "partial_rotary_factor": values.get("partial_rotary_factor") not in (None, 1.0),
        "quantization_config": values.get("quantization_config"),
    }
    for name in unsupported:
        if unsupported[name]:
            raise UserError(f"{CONFIG} of {folder!r} has {name}={values[name]!r}, which is not supported.")


def _rope(folder: str, values: Mapping[str, Any]) -> tuple[float, dict[str, Any]]:
    """Theta, and the fields of `RopeScalingConfig`. Transformers 5 writes both into rope_parameters."""
    given = values.get("rope_scaling") or values.get("rope_parameters") or {}
    theta = given.get("rope_theta", values.get("rope_theta", 10_000.0))
    kind = given.get("rope_type", given.get("type", "default"))
    fields = {
        "linear": {"factor": "factor"},
        "llama3": {
            "factor": "factor",
            "low_frequency_factor": "low_freq_factor",
            "high_frequency_factor": "high_freq_factor",
            "original_positions": "original_max_position_embeddings",
        },
    }
    known = {"rope_theta", "rope_type", "type", *fields["llama3"].values()}
    unknown = [name for name in given if name not in known and given[name] is not None]
    if kind == "default" and not unknown:
        return theta, {}
    if kind not in fields or unknown:
        what = f"the RoPE scaling {kind!r}" if kind not in fields else f"the RoPE option {unknown[0]!r}"
        raise UserError(f"{CONFIG} of {folder!r} has {what}; supported are default, {', '.join(fields)}.")
    given = {"original_max_position_embeddings": values.get("max_position_embeddings"), **given}
    absent = [theirs for theirs in fields[kind].values() if given.get(theirs) is None]
    if absent:
        raise UserError(f"{CONFIG} of {folder!r} has no {absent[0]} for the RoPE scaling {kind!r}.")
    return theta, {"kind": kind, **{ours: given[theirs] for ours, theirs in fields[kind].items()}}


def architecture_of(config: ModelConfig) -> tuple[str, ModelConfig]:
    """The architecture that computes what this model does, and the model with the biases that it has there."""
    biases = config.attention_bias or config.output_bias
    if not config.qk_norm and config.attention_bias and not config.output_bias:
        return QWEN2, config
    if not config.qk_norm and config.width % config.num_heads:
        raise UserError(
            f"As {LLAMA} the model's width, {config.width}, must be a multiple of its {config.num_heads} heads."
        )
    return QWEN3 if config.qk_norm else LLAMA, dataclasses.replace(config, attention_bias=biases, output_bias=biases)


def config_file(
    architecture: str, config: ModelConfig, vocabulary_size: int, dtype: str, original: Mapping[str, Any]
) -> dict[str, Any]:
    """config.json. RoPE and dtype are spelled as before transformers 5, which reads both spellings."""
    scaling = config.rope_scaling
    rope: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        rope |= {
            "low_freq_factor": scaling.low_frequency_factor,
            "high_freq_factor": scaling.high_frequency_factor,
            "original_max_position_embeddings": scaling.original_positions,
        }
    content = {
        "architectures": [architecture],
        "model_type": ARCHITECTURES[architecture],
        "vocab_size": vocabulary_size,
        "hidden_size": config.width,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "rope_scaling": None if scaling.kind == "none" else rope,
        "tie_word_embeddings": config.tied_embeddings,
        "torch_dtype": dtype,
        # Written even if there is none: Llama's defaults are 1 and 2.
        **{name: original.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
    }
    if architecture != QWEN2:
        content["attention_bias"] = config.attention_bias
    if "max_position_embeddings" in original:
        content["max_position_embeddings"] = original["max_position_embeddings"]
    return content


def check_tokenizer(folder: str, vocabulary_size: int) -> None:
    """Raises UserError if the tokenizer has tokens without an embedding. (Rows without a token are padding.)"""
    size = tokenizer_size(folder)
    if size is not None and size > vocabulary_size:
        raise UserError(
            f"The tokenizer in {folder!r} has token numbers up to {size - 1}, and the embedding has only "
            f"{vocabulary_size} rows: they belong to different models."
        )


def tokenizer_size(folder: str) -> int | None:
    """The number after the tokenizer's largest token; None if there is no file that says it (tokenizer.model is not
    read)."""

    def read(name: str) -> dict[str, Any]:
        return read_json(folder, name) if os.path.exists(os.path.join(folder, name)) else {}

    tokenizer, numbers = read("tokenizer.json"), [-1]
    try:
        entries = tokenizer["model"]["vocab"] if tokenizer else read("vocab.json")
        numbers += entries.values() if isinstance(entries, dict) else range(len(entries))
        numbers += [token["id"] for token in tokenizer.get("added_tokens", [])]
        numbers += read("added_tokens.json").values()
        numbers += map(int, read("tokenizer_config.json").get("added_tokens_decoder", {}))
        return max(numbers) + 1 or None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"The tokenizer in {folder!r} can not be read ({error!r}): download it again.") from error


def read_json(folder: str, name: str) -> dict[str, Any]:
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
        raise UserError(f"{folder!r} has no {name}: give the folder of a model in the format of Hugging Face.")
    try:
        with open(path, encoding="utf-8") as file:
            values = json.load(file)
    except ValueError as error:
        raise UserError(f"{path!r} is damaged ({error}): get it again.") from error
    if not isinstance(values, dict):
        raise UserError(f"{path!r} is damaged (it holds no object): get it again.")
    return values
