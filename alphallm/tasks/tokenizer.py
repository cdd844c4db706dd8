"""Hugging Face tokenizers as vocabularies: their tokens' bytes, and where steps end among them. Host side.

A folder with tokenizer.json, and tokenizer_config.json for its special tokens and chat template, as models on the hub
have them and as `save` writes them.
"""

import functools
import json
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jinja2
import jinja2.sandbox
import numpy as np
import tokenizers

from alphallm.errors import UserError

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
_TEMPLATE = "chat_template.jinja"
_SIZE = "alphallm_vocabulary_size"  # in tokenizer_config.json: the embeddings of the model, more than there are tokens.
_MOST_BYTES = 64  # W, at most: some vocabularies have a token of a thousand spaces.
_END = "<|endoftext|>"  # the one special token of a tokenizer that was trained here.


class Tokenizer:
    """A vocabulary of text. The arrays are what compiled code knows of it.

    Attributes:
      size: V; as many as the model of the same folder has embeddings, of which the last may stand for no token.
      pieces: the bytes of each token, none of a special one.
      bytes_VW: uint8 [V, W], the same, padded with zeros; of a longer token (a run of spaces, as a rule) the first 64.
      num_bytes_V: int32 [V], how many there are.
      ends_text_V: bool [V], the tokens after which nothing follows.
      step_end_SV: see `alphallm.types.Vocabulary`; whatever ends the text ends the step.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, settings: dict[str, Any], delimiter: str, size: int = 0):
        if not 0 < len(delimiter.encode()) < 128:
            raise UserError(f"The delimiter of steps has {len(delimiter.encode())} bytes: give text of 1 to 127.")
        self._tokenizer, self._settings = tokenizer, settings
        known = tokenizer.get_vocab(with_added_tokens=True)
        self.size = max(size, int(settings.get(_SIZE, 0)), 1 + max(known.values()))
        eos = self._special("eos_token")
        if eos is None:
            raise UserError(
                f"The tokenizer has no token that ends a text: add eos_token to {TOKENIZER_CONFIG}, beside {TOKENIZER}."
            )
        self.eos, pad = eos, self._special("pad_token")
        self.pad = self.eos if pad is None else pad
        self.delimiter = delimiter
        pieces = self.pieces = _bytes_of_tokens(tokenizer, self.size)
        self.num_bytes_V = np.array([min(len(piece), _MOST_BYTES) for piece in pieces], np.int32)
        self.bytes_VW = np.zeros((self.size, max(1, self.num_bytes_V.max())), np.uint8)
        for token, piece in enumerate(pieces):
            self.bytes_VW[token, : len(piece[:_MOST_BYTES])] = list(piece[:_MOST_BYTES])
        self.ends_text_V = np.zeros(self.size, bool)
        self.ends_text_V[[self.eos, *(known[name] for name in ("<|im_end|>", "<|eot_id|>", _END) if name in known)]] = (
            True
        )
        ending = delimiter.encode()
        self.step_end_SV = automaton(pieces, functools.partial(_matched, ending), len(ending), final=len(ending))
        self.step_end_SV[:, self.ends_text_V] = len(self.step_end_SV)

    def _special(self, name: str) -> int | None:
        value = self._settings.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        return None if value is None else self._tokenizer.token_to_id(value)

    def encode(self, text: str, special: bool = False) -> list[int]:
        """The tokens of a text; with `special`, those too that the model wants at its beginning."""
        return self._tokenizer.encode(text, add_special_tokens=special).ids

    def decode(self, tokens) -> str:
        """The text of tokens; special ones have none."""
        return self._tokenizer.decode([int(token) for token in tokens], skip_special_tokens=True)

    def steps(self, tokens: Sequence[int]) -> list[list[int]]:
        """The tokens cut where steps end; what is left over is a step without an end."""
        steps: list[list[int]] = [[]]
        state = 0
        for token in tokens:
            steps[-1].append(token)
            state = int(self.step_end_SV[state, token])
            if state == len(self.step_end_SV):
                steps.append([])
                state = 0
        return steps if steps[-1] else steps[:-1]

    def chat(self, messages: Sequence[dict[str, str]]) -> str:
        """The messages ({"role": …, "content": …}) as the model's chat template writes them, up to its answer."""
        template = self._settings.get("chat_template")
        if isinstance(template, list):  # several by name, in older files
            template = next((each["template"] for each in template if each.get("name") == "default"), None)
        if not template:
            raise UserError("The tokenizer has no chat template: use prompt=plain, or the tokenizer of a chat model.")
        try:
            return (
                _environment()
                .from_string(template)
                .render(messages=list(messages), add_generation_prompt=True, **self._special_texts())
            )
        except jinja2.TemplateError as error:
            raise UserError(f"The tokenizer's chat template can not write these messages ({error}).") from error

    def _special_texts(self) -> dict[str, str]:
        names = ("bos_token", "eos_token", "pad_token")
        values = {name: self._settings.get(name) for name in names}
        texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in values.items()}
        return {name: text or "" for name, text in texts.items()}

    def save(self, folder: str | os.PathLike) -> None:
        """Writes tokenizer.json and tokenizer_config.json, from which `load` makes this tokenizer again."""
        contents = {
            TOKENIZER: self._tokenizer.to_str(pretty=True),
            TOKENIZER_CONFIG: json.dumps(self._settings | {_SIZE: self.size}, indent=2),
        }
        try:
            os.makedirs(folder, exist_ok=True)
            for name, content in contents.items():
                partial = os.path.join(folder, f".{name}.partial")
                with open(partial, "w", encoding="utf-8") as file:
                    file.write(content + "\n")
                os.replace(partial, os.path.join(folder, name))
        except OSError as error:
            raise UserError(f"The tokenizer could not be written to {os.fspath(folder)!r}: {error}.") from error


@functools.lru_cache(maxsize=8)
def load(folder: str, delimiter: str) -> Tokenizer:
    """The tokenizer in a folder; UserError where there is none or it can not be read."""
    path = os.path.join(folder, TOKENIZER)
    if not os.path.isfile(path):
        raise UserError(
            f"There is no {TOKENIZER} in {folder!r}: give the folder of a converted model "
            "(python -m alphallm.convert), or leave task.tokenizer empty to train one on the task's text."
        )
    try:
        tokenizer = tokenizers.Tokenizer.from_file(path)
    except Exception as error:  # the library raises plain ones
        raise UserError(f"{path!r} can not be read as a tokenizer ({error}): get it again.") from error
    settings = _json(os.path.join(folder, TOKENIZER_CONFIG))
    if os.path.isfile(os.path.join(folder, _TEMPLATE)):
        with open(os.path.join(folder, _TEMPLATE), encoding="utf-8") as file:
            settings["chat_template"] = file.read()
    # A converted model's own config lies beside ours.
    model = _json(os.path.join(folder, "huggingface_config.json")) or _json(os.path.join(folder, "config.json"))
    return Tokenizer(tokenizer, settings, delimiter, int(model.get("vocab_size") or 0))


def train(texts: Iterable[str], size: int, delimiter: str) -> Tokenizer:
    """A byte-level BPE of at most `size` tokens, the same for the same texts. A digit is a token of its own."""
    if size < 257:
        raise UserError(f"A byte-level vocabulary has the 256 bytes and a token that ends texts: {size} are too few.")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[_END],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return Tokenizer(tokenizer, {"eos_token": _END, "pad_token": _END}, delimiter)


def _bytes_of_tokens(tokenizer: tokenizers.Tokenizer, size: int) -> list[bytes]:
    """The bytes of tokens 0 .. size - 1."""
    described = json.loads(tokenizer.to_str())
    byte_level = "ByteLevel" in json.dumps([described["decoder"], described["pre_tokenizer"]])
    added = {each["id"]: (each["content"], each["special"]) for each in described["added_tokens"]}
    alphabet = _byte_alphabet()
    pieces = []
    for token in range(size):
        text = tokenizer.id_to_token(token)
        if text is None:
            pieces.append(b"")
        elif token in added:
            content, special = added[token]
            pieces.append(b"" if special else content.encode())
        elif byte_level:
            pieces.append(bytes(alphabet[character] for character in text))
        elif len(text) == 6 and text.startswith("<0x") and text.endswith(">"):  # a byte of SentencePiece's.
            pieces.append(bytes([int(text[3:5], 16)]))
        else:
            pieces.append(text.replace("▁", " ").encode())
    return pieces


def _byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in a byte-level BPE (GPT-2's encoder.py, bytes_to_unicode)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def automaton(pieces: Sequence[bytes], after: Callable[[int, int], int], size: int, final: int = -1) -> np.ndarray:
    """int8 [size, V]: an automaton over bytes, `after(state, byte)`, as one over tokens; it stays in state `final`."""
    after = functools.cache(after)
    table = np.zeros((size, len(pieces)), np.int8)
    for state in range(size):
        for token, piece in enumerate(pieces):
            now = state
            for byte in piece:
                now = now if now == final else after(now, byte)
            table[state, token] = now
    return table


def _matched(delimiter: bytes, state: int, byte: int) -> int:
    """How much of the delimiter is matched when `state` of its bytes were, and `byte` follows."""
    text = delimiter[:state] + bytes([byte])
    return next(n for n in range(len(text), -1, -1) if text.endswith(delimiter[:n]))


@functools.cache
def _environment() -> jinja2.Environment:
    """As `transformers` renders chat templates (utils/chat_template_utils.py): sandboxed, since they come from a hub.

    But without `strftime_now`: templates then write a fixed date, and a run does not depend on its day.
    """
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )

    def raise_exception(message: str):
        raise jinja2.TemplateError(message)

    environment.globals["raise_exception"] = raise_exception
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    return environment


def _json(path: str) -> dict[str, Any]:
    if not os.path.isfile(path):
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            values = json.load(file)
    except ValueError as error:
        raise UserError(f"{path!r} is damaged ({error}): get it again.") from error
    return values if isinstance(values, dict) else {}
