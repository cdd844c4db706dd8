"""Weights of Hugging Face models, in and out. The only place, with `huggingface_config`, that knows their names.

Supported are Llama 2 and 3, Qwen2 and Qwen2.5, and Qwen3. Their folders hold config.json, one model.safetensors or
several files with an index, and the tokenizer's files. Matrices are `[out, in]` there and `[in, out]` here, and each
layer has tensors of its own there, which are stacked along the axis `Y` here. The value head, which no such model has,
lies beside the others in value_head.safetensors, under our names.

Tensors are read and written one after the other, in pieces: `load` needs the memory of the parameters that it returns
and little more, `save` that of the largest tensor.
"""

import dataclasses
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import safetensors

from alphallm.errors import UserError
from alphallm.models.export import DTYPES, WEIGHTS, check_dtype, flatten, unflatten, write_arrays, write_file
from alphallm.models.huggingface_config import (
    CONFIG,
    TOKENIZER_FILES,
    architecture_of,
    check_tokenizer,
    config_file,
    read_config,
    read_json,
)
from alphallm.models.transformer import LanguageModel, ModelConfig

SINGLE_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
VALUE_HEAD = "value_head.safetensors"
# In a folder of ours: the config that the weights came with, for what `ModelConfig` does not hold.
ORIGINAL_CONFIG = "huggingface_config.json"

_OUTSIDE_LAYERS = {
    "embedding": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "unembedding": "lm_head.weight",
}
_IN_A_LAYER = {
    "attention_norm": "input_layernorm.weight",
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "o": "self_attn.o_proj.weight",
    "q_bias": "self_attn.q_proj.bias",
    "k_bias": "self_attn.k_proj.bias",
    "v_bias": "self_attn.v_proj.bias",
    "o_bias": "self_attn.o_proj.bias",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
}
_VALUE_HEAD = ("value_hidden", "value_hidden_bias", "value_out", "value_bias")
_REDUNDANT = re.compile(r".*\.rotary_emb\.inv_freq")  # Llama 2's files hold what follows from the config.
_FLOATS = {"F32": "float32", "F16": "float32", "BF16": "bfloat16"}  # As what each is kept if nothing else is asked for.
_PIECE = 1 << 22  # numbers that are read at once.


@dataclasses.dataclass(frozen=True)
class _Stored:
    """A tensor in a file."""

    path: str
    name: str
    shape: tuple[int, ...]
    dtype: str  # as safetensors calls it.


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a tensor of theirs is among our parameters."""

    name: str  # of ours, flattened.
    layer: int | None  # None outside of the layers.
    shape: tuple[int, ...]  # of theirs.


def download(name: str) -> str:
    """The folder with a copy of the model `name` ("owner/model") of the Hugging Face hub."""
    import huggingface_hub  # takes a while, and few need it

    patterns = ["*.json", "model*.safetensors", VALUE_HEAD, *TOKENIZER_FILES]
    try:
        return huggingface_hub.snapshot_download(name, allow_patterns=patterns)
    except Exception as error:  # The errors of its HTTP libraries have no class in common.
        raise UserError(
            f"There is no folder {name!r}, and the Hugging Face hub did not give it ({type(error).__name__}: {error}): "
            f"give a folder, or mend the name, the network or your access to the model."
        ) from error


def load(folder: str, dtype: str = "") -> tuple[ModelConfig, dict[str, Any]]:
    """Config and parameters (NumPy arrays, nested as `LanguageModel.init` has them) of a Hugging Face folder.

    The parameters are kept as `dtype`, "float32" or "bfloat16", which becomes the config's dtype too; "" keeps bfloat16
    and makes everything else float32. A folder without value_head.safetensors gets a value head like a new model's. The
    number of rows of the embedding is the vocabulary's size.

    Raises UserError for an architecture or an option that is not supported, for a tensor that is absent, left over or
    of another shape, and for a tokenizer with more tokens than the embedding has rows.
    """
    config, vocabulary_size = read_config(folder)
    check_tokenizer(folder, vocabulary_size)
    stored = _index(folder, _weight_files(folder))
    shapes = _shapes(config, vocabulary_size)
    places = _places(shapes)
    _drop_redundant(folder, stored, config)
    _check_tensors(folder, stored, {name: place.shape for name, place in places.items()})
    dtype = dtype or _FLOATS[stored[_OUTSIDE_LAYERS["embedding"]].dtype]
    check_dtype(dtype)
    arrays = {name: np.empty(shapes[name], DTYPES[dtype]) for name in {place.name for place in places.values()}}
    # The largest first: its source is in memory too while it is read, and the other arrays are not in use yet.
    for name, place in sorted(places.items(), key=lambda item: -math.prod(item[1].shape)):
        array = arrays[place.name]
        _read_into(array if place.layer is None else array[place.layer].T, stored[name])
    arrays |= _value_head(folder, config, shapes, dtype)
    return dataclasses.replace(config, dtype=dtype), unflatten(arrays)


def save(source: str, folder: str, config: ModelConfig, dtype: str = "") -> str:
    """Writes the exported weights in `source`, whose model is `config`, as a Hugging Face folder.

    Returns the architecture: Qwen3 for a model with query-key norm, else Qwen2 if queries, keys and values alone have
    biases, else Llama. Biases that the architecture has and the model has not are zeros. `dtype` as for `load`. Special
    tokens and the length of the context are those of the config that the weights came with; a model that was trained
    here from the start has none.
    """
    stored = _index(source, [os.path.join(source, WEIGHTS)])
    if "embedding" not in stored:
        raise UserError(f"{source!r} holds no weights of this transformer: there is no 'embedding' in {WEIGHTS}.")
    vocabulary_size = stored["embedding"].shape[0]
    _check_tensors(source, stored, _shapes(config, vocabulary_size))
    check_tokenizer(source, vocabulary_size)
    dtype = dtype or _FLOATS[stored["embedding"].dtype]
    check_dtype(dtype)
    architecture, config = architecture_of(config)
    places = _places(_shapes(config, vocabulary_size))

    def read(name: str) -> np.ndarray:
        place = places[name]
        if place.name not in stored:
            return np.zeros(place.shape, np.float32)
        return _read(stored[place.name], place.layer)

    original = read_json(source, ORIGINAL_CONFIG) if os.path.exists(os.path.join(source, ORIGINAL_CONFIG)) else {}
    content = config_file(architecture, config, vocabulary_size, dtype, original)
    value_head = {name: stored[name].shape for name in _VALUE_HEAD}
    try:
        os.makedirs(folder, exist_ok=True)
        shapes = {name: place.shape for name, place in places.items()}
        # transformers refuses a file whose metadata do not say "pt".
        write_arrays(os.path.join(folder, SINGLE_FILE), shapes, dtype, read, {"format": "pt"})
        write_arrays(os.path.join(folder, VALUE_HEAD), value_head, dtype, lambda name: _read(stored[name]), {})
        write_file(folder, CONFIG, (json.dumps(content, indent=2) + "\n").encode())
    except OSError as error:
        raise UserError(f"The model could not be written to {folder!r}: {error}.") from error
    return architecture


def copy_others(source: str, folder: str) -> list[str]:
    """Copies what goes beside the weights, either way: the tokenizer's files and the original config. Returns names."""
    names = [name for name in TOKENIZER_FILES if os.path.exists(os.path.join(source, name))]
    try:
        for name in names:
            shutil.copyfile(os.path.join(source, name), os.path.join(folder, name))
        if not os.path.exists(os.path.join(source, WEIGHTS)):
            shutil.copyfile(os.path.join(source, CONFIG), os.path.join(folder, ORIGINAL_CONFIG))
    except OSError as error:
        raise UserError(f"The tokenizer could not be copied to {folder!r}: {error}.") from error
    return names


def _shapes(config: ModelConfig, vocabulary_size: int) -> dict[str, tuple[int, ...]]:
    model = LanguageModel(config, vocabulary_size)
    return {name: x.shape for name, x in flatten(jax.eval_shape(lambda: model.init(jax.random.key(0)))).items()}


def _places(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, _Place]:
    """By their names, the tensors that our parameters of these shapes are, the value head left out."""
    places = {}
    for name, shape in shapes.items():
        if name in _OUTSIDE_LAYERS:
            places[_OUTSIDE_LAYERS[name]] = _Place(name, None, shape)
        elif name.startswith("layers/"):
            theirs = _IN_A_LAYER[name.removeprefix("layers/")]
            transposed = shape[:0:-1]  # without Y.
            places |= {f"model.layers.{y}.{theirs}": _Place(name, y, transposed) for y in range(shape[0])}
    return places


def _weight_files(folder: str) -> list[str]:
    if os.path.exists(os.path.join(folder, SINGLE_FILE)):
        return [os.path.join(folder, SINGLE_FILE)]
    if not os.path.exists(os.path.join(folder, INDEX)):
        raise UserError(f"{folder!r} has neither {SINGLE_FILE} nor {INDEX}: give a model in the safetensors format.")
    names = sorted(set(read_json(folder, INDEX).get("weight_map", {}).values()))
    absent = [name for name in names if not os.path.exists(os.path.join(folder, name))]
    if absent:
        raise UserError(f"{folder!r} has no {absent[0]}, which {INDEX} names: download the model again.")
    return [os.path.join(folder, name) for name in names]


def _index(folder: str, paths: Sequence[str]) -> dict[str, _Stored]:
    """All tensors of these files by name; only the files' headers are read."""
    found = {}
    for path in paths:
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                for name in file.keys():
                    view = file.get_slice(name)
                    found[name] = _Stored(path, name, tuple(view.get_shape()), view.get_dtype())
        except (safetensors.SafetensorError, OSError) as error:
            raise UserError(f"The weights in {path!r} are damaged ({error}): get {folder!r} again.") from error
    return found


def _drop_redundant(folder: str, stored: dict[str, _Stored], config: ModelConfig) -> None:
    """Takes out tensors that say nothing: buffers, and a tied output projection that is stored a second time."""
    for name in [name for name in stored if _REDUNDANT.fullmatch(name)]:
        del stored[name]
    embedding, unembedding = (stored.get(_OUTSIDE_LAYERS[name]) for name in ("embedding", "unembedding"))
    if not config.tied_embeddings or embedding is None or unembedding is None:
        return
    pieces = zip(_pieces(embedding), _pieces(unembedding), strict=False)
    if embedding.shape != unembedding.shape or not all(np.array_equal(one, other) for (_, one), (_, other) in pieces):
        raise UserError(
            f"{CONFIG} of {folder!r} says tie_word_embeddings, and {unembedding.name!r} differs from "
            f"{embedding.name!r}: set tie_word_embeddings to false there, or take the tensor out."
        )
    del stored[unembedding.name]


def _check_tensors(folder: str, stored: Mapping[str, _Stored], expected: Mapping[str, tuple[int, ...]]) -> None:
    absent, extra = sorted(expected.keys() - stored.keys()), sorted(stored.keys() - expected.keys())
    for names, what in ((absent, "lacks the tensor"), (extra, "has the tensor")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            why = "" if names is absent else ", which its config has no place for"
            raise UserError(f"{folder!r} {what} {names[0]!r}{more}{why}: weights and config must be of one model.")
    for name, shape in expected.items():
        if stored[name].shape != shape:
            raise UserError(
                f"The tensor {name!r} of {folder!r} has the shape {list(stored[name].shape)}, and its config asks for "
                f"{list(shape)}: weights and config must be of one model."
            )
        if stored[name].dtype not in _FLOATS:
            raise UserError(
                f"The tensor {name!r} of {folder!r} is {stored[name].dtype}; supported are {', '.join(_FLOATS)}."
            )


def _pieces(stored: _Stored) -> Iterator[tuple[int, np.ndarray]]:
    """A tensor's rows in pieces, each with the number of its first row."""
    # The file is opened for this tensor alone: the pages read of a mapped file count as memory until it is closed.
    with safetensors.safe_open(stored.path, framework="numpy") as file:
        view = file.get_slice(stored.name)
        rows = max(1, _PIECE // max(1, math.prod(stored.shape[1:])))
        for start in range(0, stored.shape[0], rows):
            yield start, view[start : min(start + rows, stored.shape[0])]


def _read_into(target: np.ndarray, stored: _Stored) -> None:
    """Fills an array, whose dtype may be another, with a tensor of the same shape."""
    for start, piece in _pieces(stored):
        target[start : start + len(piece)] = piece


def _read(stored: _Stored, layer: int | None = None) -> np.ndarray:
    """A tensor of ours, or one layer of it as `[out, in]`."""
    with safetensors.safe_open(stored.path, framework="numpy") as file:
        if layer is None:
            return file.get_tensor(stored.name)
        return file.get_slice(stored.name)[layer : layer + 1][0].T


def _value_head(
    folder: str, config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], dtype: str
) -> dict[str, np.ndarray]:
    path = os.path.join(folder, VALUE_HEAD)
    if os.path.exists(path):
        stored = _index(folder, [path])
        _check_tensors(folder, stored, {name: shapes[name] for name in _VALUE_HEAD})
        return {name: _read(stored[name]).astype(DTYPES[dtype]) for name in _VALUE_HEAD}
    # It depends on the width alone: the rest of this model is as small as it can be.
    small = dataclasses.replace(config, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=2, hidden_dim=1)
    fresh = LanguageModel(small, 1).init(jax.random.key(0))
    return {name: np.asarray(fresh[name], DTYPES[dtype]) for name in _VALUE_HEAD}
