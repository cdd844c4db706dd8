"""The vocabulary of words, and the verifier by list."""

import numpy as np
import pytest

from alphallm.tasks.base import find_step
from alphallm.tasks.words import WordVocabulary
from alphallm.types import Steps


def test_text_and_tokens_are_each_other_s_inverse():
    vocabulary = WordVocabulary(["block", "A", "on", "B", "."])
    text = "block A on B .\nblock B\n"
    tokens = vocabulary.encode(text)
    assert vocabulary.decode([vocabulary.bos, *tokens, vocabulary.pad]) == text
    assert [token for token in tokens if vocabulary.step_end_SV[0, token]] == [vocabulary.newline] * 2
    assert vocabulary.size == 8 and sorted({*tokens}) == [2, 3, 4, 5, 6, 7]
    with pytest.raises(ValueError, match="has 'C', which is none of the task's words"):
        vocabulary.encode("block C")
    with pytest.raises(ValueError, match="different"):
        WordVocabulary(["a", "a"])


def test_a_step_is_found_in_a_list_whatever_follows_it():
    steps = Steps(
        tokens_AL=np.array([[5, 2, 0], [5, 6, 2], [5, 2, 0]], np.int32),
        length_A=np.array([2, 3, 2], np.int32),
        valid_A=np.array([False, True, True]),
    )
    cases = [
        ([5, 2, 9], 2, (2, True)),
        ([5, 6, 2], 3, (1, True)),
        ([5, 6, 2], 2, (0, False)),
        ([7, 2, 0], 2, (0, False)),
    ]
    for tokens, length, (index, found) in cases:
        got = find_step(steps, np.array(tokens, np.int32), length)
        assert (int(got[0]), bool(got[1])) == (index, found)
