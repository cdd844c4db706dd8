"""The calculator against its twin in plain Python, and inside the decoder.

ALPHALLM_FULL=1 also checks 100,000 random expressions, in half a minute; otherwise 5,000 of them.
"""

import json
import os
import pathlib
import random
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alphallm import decode
from alphallm.errors import UserError
from alphallm.evaluation import chains
from alphallm.models import LanguageModel, ModelConfig
from alphallm.tasks import tokenizer as tokenizer_lib
from alphallm.tasks.calculator import Calculator, evaluate, result, write
from alphallm.types import Problem, Transition
from tests.tasks import test_tokenizer

GSM8K = pathlib.Path(__file__).parents[3] / "shared" / "data" / "gsm8k"
VOCABULARY = test_tokenizer.make("trained")
L = 32


@jax.jit
@jax.vmap
def compiled(bytes_E, length):
    return write(evaluate(bytes_E, length))


def compute(expressions: list[str]) -> list[str]:
    bytes_E = np.zeros((len(expressions), 64), np.uint8)
    for row, expression in zip(bytes_E, expressions, strict=True):
        row[: len(expression)] = list(expression.encode())
    out, length = jax.device_get(compiled(bytes_E, np.array([len(each) for each in expressions], np.int32)))
    return [bytes(row[:n]).decode() for row, n in zip(out, length, strict=True)]


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("48/2", "24"), ("2+3*4", "14"), ("(2+3)*4", "20"), ("2-3-4", "-5"), ("100/8/5", "2.5"), ("1/3*60", "20"),
        (".5+7.", "7.5"), ("-48/4", "-12"), ("-18/-2", "9"), ("71+-3", "68"), ("-(2+3)*2", "-10"), ("7//2", "3"),
        ("-7//2", "-4"), ("1.20*4", "4.8"), ("0.000001", "0.000001"), ("365*8000000", "2920000000"), ("0-0", "0"),
        ("((1+2)*(3+4))", "21"), ("2--3", "5"), ("+5", "5"),
        # No result: too large, no finite decimals, none at all, or no expression.
        ("4294967295+1", ""), ("1/3", ""), ("1/0", ""), ("0/0", ""), ("1/(2-2)", ""), ("", ""), ("2+", ""), ("*2", ""),
        ("(2", ""), ("2)", ""), ("2(3)", ""), ("1,000*2", ""), ("1.2.3", ""), (".", ""), ("x", ""), ("2 3", ""),
        ("2***3", ""), ("2*/3", ""), ("()", ""), ("((((1))))", ""), ("0.0000001", ""),
    ],
)  # fmt: skip
def test_known_results(expression, value):
    assert result(expression) == value
    assert compute([expression]) == [value]


def test_agrees_with_its_twin_on_random_expressions():
    generator = random.Random(0)

    def some(depth=0) -> str:
        kind = generator.random()
        if depth > 3 or kind < 0.4:
            number = str(generator.choice([generator.randint(0, 999), generator.randint(0, 2**33)]))
            return generator.choice([number, f"{generator.randint(0, 99)}.{generator.randint(0, 99)}", ".5", "0", "7."])
        if kind < 0.6:
            return f"-{some(depth + 1)}" if kind < 0.5 else f"({some(depth + 1)})"
        return some(depth + 1) + generator.choice(["+", "-", "*", "/", "//"]) + some(depth + 1)

    expressions = []
    for _ in range(100_000 if os.environ.get("ALPHALLM_FULL") else 5_000):
        text = some()
        if generator.random() < 0.3:  # and some that are no expressions
            place = generator.randrange(len(text) + 1)
            text = text[:place] + generator.choice("+-*/().0 5,x") + text[place:]
        expressions.append(text[:64])
    results = [result(each) for each in expressions]
    assert compute(expressions) == results
    assert 0.2 < np.mean([text != "" for text in results]) < 0.8


@pytest.mark.skipif(not GSM8K.is_dir(), reason=f"GSM8K is not at {GSM8K}")
def test_every_annotation_of_gsm8k():
    texts = [json.loads(line)["answer"] for file in GSM8K.glob("*.jsonl") for line in file.read_text().splitlines()]
    pairs = [found for text in texts for found in re.findall(r"<<([^<>=]*)=([^<>]*)>>", text)]
    assert len(pairs) == 27_998
    results = compute([expression for expression, _ in pairs])
    # Dollars and cents are written with two decimals, and one result as a fraction.
    assert all(float(text) == float(eval(written)) for text, (_, written) in zip(results, pairs, strict=True))
    assert sum(text == written for text, (_, written) in zip(results, pairs, strict=True)) == 27_998 - 823


class Script(LanguageModel):
    """A model that writes a text again and again, whatever it has read: token i at position i after the prompt."""

    def __init__(self, tokens, size, noise=0.0):
        super().__init__(
            ModelConfig(num_layers=1, width=8, num_heads=1, num_kv_heads=1, head_dim=8, hidden_dim=8), size
        )
        self.tokens, self.noise = jnp.asarray(tokens), noise

    def trunk(self, params, tokens_BX, positions_BX, mask_BXX, past=()):
        hidden = super().trunk(params, tokens_BX, positions_BX, mask_BXX, past)
        place = positions_BX.astype(jnp.float32)[..., None]
        return types.SimpleNamespace(hidden_BXE=place, keys_values=hidden.keys_values)

    def logits(self, params, hidden_E):
        # Position p predicts token p + 1; the prompt is one token long.
        token = self.tokens[jnp.minimum(hidden_E[..., 0].astype(jnp.int32), len(self.tokens) - 1)]
        noise = self.noise * jnp.sin(jnp.arange(self.vocabulary_size) * 7.0)
        return 9.0 * jax.nn.one_hot(token, self.vocabulary_size) + noise.reshape((1,) * token.ndim + (-1,))

    def value_logit(self, params, hidden_E):
        return jnp.zeros(hidden_E.shape[:-1])


def prefix_of(model, params):
    problem = Problem(np.zeros((2, 1), np.int32), np.ones(2, np.int32), np.zeros(2, np.int32), np.arange(2))
    return problem, decode.prefill(model, params, problem)


def script(text: str, noise: float = 0.0):
    model = Script(VOCABULARY.encode(text), VOCABULARY.size, noise)
    return model, model.init(jax.random.key(0))


@pytest.mark.parametrize(
    ("written", "step"),
    [
        # An X stands where the model would have written something else than the token that is forced.
        ("2*3=<<2*3=XX6 apples\n", "2*3=<<2*3=6>>6 apples\n"),
        ("1/0=<<1/0=Xc\n", "1/0=<<1/0=>>c\n"),
        ("<<1+1=XX<<10-22=XXXX end\n", "<<1+1=2>><<10-22=-12>> end\n"),
        ("no call = here >> at all\n", "no call = here >> at all\n"),
    ],
)
def test_the_result_is_forced(written, step):
    model, params = script(written)
    _, prefix = prefix_of(model, params)
    tool = Calculator(VOCABULARY)
    common = {
        "num": 1, "max_length": L, "step_end_SV": VOCABULARY.step_end_SV, "pad": VOCABULARY.pad, "tool": tool,
    }  # fmt: skip
    keys = jax.random.split(jax.random.key(1), 2)
    found = decode.iid(model, params, prefix, keys, temperature=0.0, **common)
    tokens = found.tokens_BKL[0, 0, : found.length_BK[0, 0]].tolist()
    assert VOCABULARY.decode(tokens) == step
    assert tokens == tool.encode(step)[: len(tokens)]
    # Only what the model wrote is in the probability.
    forced = tool.is_forced(tokens)
    padded = np.pad(tokens, (0, L - len(tokens)))
    assert np.asarray(tool.forced_tokens(jnp.asarray(padded)))[: len(tokens)].tolist() == forced
    log_probs = jax.nn.log_softmax(model.logits(params, jnp.arange(len(tokens), dtype=jnp.float32)[:, None]))
    each = np.asarray(log_probs)[np.arange(len(tokens)), tokens]
    assert found.log_prob_BK[0, 0] == pytest.approx(each[~np.array(forced)].sum(), abs=1e-4)


def test_candidates_drawn_without_replacement_carry_their_results():
    model, params = script("<<2*3=", noise=2.0)
    _, prefix = prefix_of(model, params)
    tool = Calculator(VOCABULARY)
    found = jax.jit(
        lambda keys: decode.gumbel_top_k(
            model, params, prefix, keys, num=12, max_length=L, step_end_SV=VOCABULARY.step_end_SV, pad=VOCABULARY.pad,
            tool=tool,
        )
    )(jax.random.split(jax.random.key(1), 2))  # fmt: skip
    steps = {tuple(row[:n]) for row, n in zip(found.tokens_BKL[0].tolist(), found.length_BK[0].tolist(), strict=True)}
    assert len(steps) == 12
    asked = 0
    for step in steps:
        text = VOCABULARY.decode(step)
        for expression, answer in re.findall(r"<<([^<>=\n]*)=([^<>\n]*)>>", text):
            asked += 1
            assert answer == result(expression), text
    assert asked >= 3
    # phi, root_gumbel + prior_logits, never grows along a step: a forced token leaves it as it is.
    phi = np.asarray(found.root_gumbel_BK + found.prior_logits_BK)
    assert np.isfinite(phi).all() and len(np.unique(phi[0])) == 12


def test_whole_chains_use_it():
    model, params = script("<<2*3=XXc\n")

    class Task:
        vocabulary, tool, max_steps, max_step = VOCABULARY, Calculator(VOCABULARY), 2, L

        def step(self, state, tokens_L, length):
            return Transition(state + 1, jnp.float32(0), state + 1 >= 2, jnp.bool_(True))

    problem, prefix = prefix_of(model, params)
    keys = jax.random.split(jax.random.key(1), 2)[:, None]
    drawn = chains.sample(model, Task(), params, problem, prefix, keys, temperature=0.0)
    first = drawn.tokens_BJDL[0, 0, 0, : drawn.length_BJD[0, 0, 0]]
    assert VOCABULARY.decode(first.tolist()) == "<<2*3=6>>c\n"
    alone = decode.iid(
        model, params, prefix, keys[:, 0], num=1, max_length=L, step_end_SV=VOCABULARY.step_end_SV,
        pad=VOCABULARY.pad, temperature=0.0, tool=Task.tool,
    )  # fmt: skip
    assert (alone.tokens_BKL[0, 0] == drawn.tokens_BJDL[0, 0, 0]).all()


def test_solutions_are_written_as_the_search_would_write_them():
    tool = Calculator(VOCABULARY)
    text = "She pays 8*18 = $<<8*18=144.00>>144.00, a third is <<144/7=20.57>>20.57.\n"
    tokens = tool.encode(text)
    assert VOCABULARY.decode(tokens) == "She pays 8*18 = $<<8*18=144>>144.00, a third is <<144/7=>>20.57.\n"
    words = "".join(VOCABULARY.decode([t]) if f else "·" for t, f in zip(tokens, tool.is_forced(tokens), strict=True))
    assert re.findall(r"[^·]+", words) == ["144>>", ">>"]


def test_a_tokenizer_that_joins_digits_is_refused():
    import tokenizers

    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<e>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(["10 11 12 13 14 15 16 17 18 19"] * 9, trainer)
    with pytest.raises(UserError, match="a token for each digit"):
        Calculator(tokenizer_lib.Tokenizer(made, {"eos_token": "<e>"}, "\n"))
