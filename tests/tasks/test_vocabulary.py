"""Text to tokens and back."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alphallm.tasks import vocabulary as words

VOCABULARY = words.Vocabulary()
NUMBERS = st.builds(Fraction, st.integers(-40000, 40000), st.integers(1, 40000) | st.integers(1, 15)).map(str)


def test_every_common_number_is_one_token_of_its_own():
    integers = [str(i) for i in range(-50, 201)]
    fractions = {Fraction(s * p, q) for s in (1, -1) for p in [*range(1, 14), 24] for q in range(2, 14)}
    common = integers + [str(x) for x in fractions if x.denominator > 1 and abs(x.numerator) in [*range(1, 14), 24]]
    tokens = [VOCABULARY.encode(text) for text in common]
    assert all(len(token) == 1 for token in tokens)
    assert len({token[0] for token in tokens}) == len(common) == VOCABULARY.size - 21  # 21 words are not numbers.
    assert [VOCABULARY.decode(token) for token in tokens] == common


def test_the_issue_s_examples():
    assert VOCABULARY.encode("4 * 9 = 36\n") == VOCABULARY.encode("4") + [words.TIMES] + VOCABULARY.encode("9") + [
        words.EQUALS,
        *VOCABULARY.encode("36"),
        words.NEWLINE,
    ]
    assert len(VOCABULARY.encode("4 9 10 13 -> 24\n")) == 7
    assert len(VOCABULARY.encode("-5 + 2/3 = -13/3\n")) == 6
    assert VOCABULARY.encode("-260/17") == [
        words.NEGATIVE,
        *(words.DIGIT_ZERO + d for d in (2, 6, 0)),
        words.BAR,
        *(words.DIGIT_ZERO + d for d in (1, 7)),
    ]


@given(NUMBERS, st.sampled_from("+-*/"), NUMBERS, NUMBERS)
@settings(deadline=None)
def test_a_step_comes_back_from_its_tokens(a, op, b, c):
    text = f"{a} {op} {b} = {c}\n"
    assert VOCABULARY.decode(VOCABULARY.encode(text)) == text


@given(st.lists(st.integers(1, 200), min_size=1, max_size=6), st.integers(1, 32767))
@settings(deadline=None)
def test_a_prompt_comes_back_from_its_tokens(numbers, target):
    text = " ".join(map(str, numbers)) + f" -> {target}\n"
    assert VOCABULARY.decode([VOCABULARY.bos, *VOCABULARY.encode(text), VOCABULARY.pad]) == text


@given(st.lists(st.integers(2, words.SIZE - 1), max_size=8))
@settings(deadline=None, max_examples=500)
def test_a_text_has_one_tokenisation(tokens):
    """Whatever tokens give a text that can be encoded, encoding gives one fixed tokenisation of the same text."""
    text = VOCABULARY.decode(tokens)
    try:
        encoded = VOCABULARY.encode(text)
    except ValueError:
        return
    assert VOCABULARY.decode(encoded) == text


@pytest.mark.parametrize("text", ["4 -300 5", "-7 -7", "300 4", "1/2 2/3", "4 -300/17 5\n"])
def test_a_space_stands_between_numbers(text):
    assert VOCABULARY.decode(VOCABULARY.encode(text)) == text


def test_only_a_newline_ends_a_step():
    assert VOCABULARY.step_end_SV.shape == (1, VOCABULARY.size)
    assert VOCABULARY.step_end_SV[0].nonzero()[0].tolist() == VOCABULARY.encode("\n")


@pytest.mark.parametrize("text", ["4 9 ten", "4  9", " 4", "4*9", "3-4", "300 400", "1/2/3", "--1", "4 \n"])
def test_what_is_not_arithmetic_is_refused(text):
    with pytest.raises(ValueError, match="cannot be read|two spelled numbers"):
        VOCABULARY.encode(text)
