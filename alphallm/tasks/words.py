"""A vocabulary with one token a word, for tasks whose sentences are made of few words."""

from collections.abc import Iterable, Sequence

import numpy as np


class WordVocabulary:
    """Tokens are words, and a newline, which ends a step. Words stand one space apart.

    Punctuation is a word of its own: "block A on B .". Attributes are what `alphallm.types.Vocabulary` asks for.
    """

    pad, bos, newline = range(3)

    def __init__(self, words: Sequence[str]):
        """`words` are different, not empty, and without white space. Their order is that of their tokens, from 3 on."""
        if len(set(words)) < len(words) or any(word.split() != [word] for word in words):
            raise ValueError(f"Words must be different, and without white space: {words!r}.")
        self.words = ("", "", "\n", *words)
        self.size = len(self.words)
        self.token_of = {word: token for token, word in enumerate(self.words) if word}
        self.step_end_SV = (np.arange(self.size) == self.newline).astype(np.int8)[None]

    def encode(self, text: str) -> list[int]:
        """The tokens of `text`; ValueError where a word is not known. The start token is not added."""
        words = text.replace("\n", " \n ").split(" ")
        unknown = [word for word in words if word and word not in self.token_of]
        if unknown:
            known = " ".join(self.words[3:]) if self.size < 100 else f"{self.size - 3} words"
            raise ValueError(f"{text!r} has {unknown[0]!r}, which is none of the task's words ({known}).")
        return [self.token_of[word] for word in words if word]

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens; padding and the start token have none."""
        text = ""
        for word in (self.words[int(token)] for token in tokens):
            apart = word and text and "\n" not in (word, text[-1])
            text += f" {word}" if apart else word
        return text
