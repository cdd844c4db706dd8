"""Tokens' bytes, and where steps end among them, against plain text."""

import itertools
import json

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from alphallm.errors import UserError
from alphallm.tasks import tokenizer as tokenizer_lib

TEXTS = [
    "Question: A shop has 12 apples, and sells 5.\nAnswer:\n12 - 5 = 7 apples are left.\n\nSo:\n\n#### 7\n",
    "She pays $<<2*3=6>>6.\n\nThat is £6 — “six”.\n\n\nThe end.\n  Indented\n\n",
] * 3
# The pre-tokenizer of Qwen2 and Llama 3, which lets punctuation and newlines become one token.
_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level() -> tokenizers.Tokenizer:
    """One like Qwen's, with special tokens."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(_QWEN), behavior="isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(TEXTS * 5, trainer)
    return made


def sentence_piece() -> tokenizers.Tokenizer:
    """One like Llama 2's: spaces are ▁, and a byte that no token has is a token <0x..>."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True, unk_token="<unk>"))
    made.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    made.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
        ]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=500, special_tokens=special[:3], show_progress=False)
    made.train_from_iterator([text.replace("\n", " ") for text in TEXTS], trainer)
    described = json.loads(made.to_str())
    size = len(described["model"]["vocab"])
    described["model"]["vocab"] |= {name: size + i for i, name in enumerate(special[3:])}
    return tokenizers.Tokenizer.from_str(json.dumps(described))


def make(kind: str, delimiter: str = "\n") -> tokenizer_lib.Tokenizer:
    if kind == "trained":
        return tokenizer_lib.train(TEXTS, 400, delimiter)
    made, end = (byte_level(), "<|endoftext|>") if kind == "byte_level" else (sentence_piece(), "</s>")
    return tokenizer_lib.Tokenizer(made, {"eos_token": end}, delimiter)


KINDS = ("trained", "byte_level", "sentence_piece")


def bytes_of(vocabulary, tokens) -> bytes:
    return b"".join(vocabulary.pieces[token] for token in tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_of_tokens_are_those_of_the_text(kind):
    vocabulary = make(kind)
    for text in [*TEXTS[:2], "naïve 東京 \t x", "  two spaces"]:
        tokens = vocabulary.encode(text)
        assert bytes_of(vocabulary, tokens).decode() == text == vocabulary.decode(tokens)
    rows = [row[:count].tobytes() for row, count in zip(vocabulary.bytes_VW, vocabulary.num_bytes_V, strict=True)]
    assert rows == [piece[:64] for piece in vocabulary.pieces]
    assert vocabulary.pieces[vocabulary.eos] == b""


@pytest.mark.parametrize("delimiter", ["\n", "\n\n", "aba"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_ends_with_the_token_that_completes_the_delimiter(kind, delimiter):
    vocabulary = make(kind, delimiter)
    usual = [vocabulary.encode(text)[0] for text in ("\n", "a", "b", ".", "7")]
    merged = [i for i, piece in enumerate(vocabulary.pieces) if b"\n" in piece or b"ab" in piece]

    @given(
        st.lists(st.sampled_from([*usual, *merged, vocabulary.eos]) | st.integers(0, vocabulary.size - 1), max_size=12)
    )
    def check(tokens):
        steps = vocabulary.steps(tokens)
        assert list(itertools.chain(*steps)) == tokens
        for i, step in enumerate(steps):
            before, all_ = bytes_of(vocabulary, step[:-1]), bytes_of(vocabulary, step)
            assert delimiter.encode() not in before and vocabulary.eos not in step[:-1]
            ends = delimiter.encode() in all_ or vocabulary.ends_text_V[step[-1]]
            assert ends or i == len(steps) - 1

    check()


def test_delimiters_within_a_token_and_over_several_are_there():
    """What the test above is about occurs in these tokenizers."""
    vocabulary = make("byte_level", "\n\n")
    assert any(piece not in (b"\n\n", b"\n") and b"\n\n" in piece for piece in vocabulary.pieces)
    newline = next(i for i, piece in enumerate(vocabulary.pieces) if piece == b"\n")
    assert vocabulary.steps([newline, newline, newline]) == [[newline, newline], [newline]]
    text = "First.\n\nSecond\n\nThird"
    assert [vocabulary.decode(step) for step in vocabulary.steps(vocabulary.encode(text))] == [
        "First.\n\n", "Second\n\n", "Third",
    ]  # fmt: skip


@pytest.mark.smallest
def test_training_is_repeatable_and_saved_ones_are_the_same(tmp_path):
    one, other = (tokenizer_lib.train(TEXTS, 300, "\n") for _ in range(2))
    one.save(tmp_path)
    loaded = tokenizer_lib.load(str(tmp_path), "\n")
    for each in (other, loaded):
        assert each.pieces == one.pieces and each.eos == one.eos and each.pad == one.pad
        assert (each.step_end_SV == one.step_end_SV).all()
        assert each.encode(TEXTS[0]) == one.encode(TEXTS[0])
    assert one.size == 300
    digits = [one.decode([token]) for token in one.encode("12.50")]
    assert digits == ["1", "2", ".", "5", "0"]


def test_a_model_may_have_more_embeddings_than_tokens(tmp_path):
    make("byte_level").save(tmp_path)
    (tmp_path / "huggingface_config.json").write_text('{"vocab_size": 450}')
    loaded = tokenizer_lib.load(str(tmp_path), "\n")
    assert loaded.size == 450 and loaded.step_end_SV.shape == (1, 450) and loaded.pieces[449] == b""
    # Also where it is saved beside a run, whose folder has no config of the original model.
    loaded.save(tmp_path / "run")
    assert tokenizer_lib.load(str(tmp_path / "run"), "\n").size == 450


def test_chat_templates():
    template = (
        "{%- for message in messages %}\n"
        "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
        "{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    vocabulary = tokenizer_lib.Tokenizer(byte_level(), {"eos_token": "<|im_end|>", "chat_template": template}, "\n")
    text = vocabulary.chat([{"role": "user", "content": "How many?"}])
    assert text == "<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n"
    special = vocabulary.encode("<|im_start|>")
    assert len(special) == 1 and vocabulary.encode(text)[0] == special[0]
    assert vocabulary.ends_text_V.sum() == 2  # <|im_end|> and <|endoftext|>
    refuses = tokenizer_lib.Tokenizer(
        byte_level(), {"eos_token": "<|im_end|>", "chat_template": "{{ raise_exception('no system') }}"}, "\n"
    )
    with pytest.raises(UserError, match="no system"):
        refuses.chat([])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "There is no tokenizer.json"),
        ("{", "can not be read as a tokenizer"),
    ],
)
def test_bad_folders_are_refused(tmp_path, content, said):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=said):
        tokenizer_lib.load(str(tmp_path), "\n")


def test_bad_arguments_are_refused():
    with pytest.raises(UserError, match="no token that ends a text"):
        tokenizer_lib.Tokenizer(byte_level(), {}, "\n")
    with pytest.raises(UserError, match="0 bytes"):
        make("trained", "")
    with pytest.raises(UserError, match="256 bytes"):
        tokenizer_lib.train(TEXTS, 100, "\n")
    with pytest.raises(UserError, match="no chat template"):
        make("trained").chat([])


def test_a_token_of_many_spaces_does_not_widen_the_table():
    made = byte_level()
    made.add_tokens([tokenizers.AddedToken(" " * 500, normalized=False)])
    vocabulary = tokenizer_lib.Tokenizer(made, {"eos_token": "<|endoftext|>"}, "\n")
    long = vocabulary.encode(" " * 500)
    assert len(long) == 1 and vocabulary.pieces[long[0]] == b" " * 500
    assert vocabulary.bytes_VW.shape[1] == vocabulary.num_bytes_V[long[0]] == 64
