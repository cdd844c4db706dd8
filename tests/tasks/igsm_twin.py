"""A plain-Python twin of the iGSM task, written from its rules: it reads a problem's words, and computes by recursion.

It shares nothing with the task but the words of items and categories.
"""

import dataclasses
import itertools
import re

import jax
import numpy as np

from alphallm.tasks.igsm.igsm import IgsmState
from alphallm.tasks.igsm.wording import CATEGORIES


class Reading:
    """A problem's text as a reader has it: what is said of each parameter, in words."""

    def __init__(self, text: str, modulus: int):
        self.text, self.modulus = text, modulus
        *sentences, question = text.split(" . ")
        self.said = dict(sentence.split(" equals ") for sentence in sentences)
        self.asked = question.removeprefix("how many ").removesuffix(" ?")
        self.parts: dict[str, list[str]] = {}
        for name in self.said:
            owner, thing = name.split()
            category = next(category for category, items in CATEGORIES.items() if thing in items)
            self.parts.setdefault(f"{owner} {category}", []).append(name)
        self.names = [*self.said, *self.parts]

    def mentioned(self, name: str) -> list[str]:
        """The parameters that a parameter depends on directly, as they are read."""
        if name in self.parts:
            return self.parts[name]
        return [f"{a} {b}" for a, b in re.findall(r"([A-Z]\w+) ([A-Z]\w+)", self.said[name])]

    def value(self, name: str, read: set[str]) -> int:
        """A parameter's value; `read` gets all whose value is asked for on the way."""
        read.add(name)
        if name in self.parts:
            return sum(self.value(part, read) for part in self.parts[name]) % self.modulus
        return self._worth(self.said[name], read) % self.modulus

    def _worth(self, words: str, read: set[str]) -> int:
        if words.isdecimal():
            return int(words)
        if match := re.fullmatch(r"(\d+) more than (.*)", words):
            return int(match[1]) + self._worth(match[2], read)
        if match := re.fullmatch(r"(\d+) times (.*)", words):
            return int(match[1]) * self._worth(match[2], read)
        if match := re.fullmatch(r"sum of (.*) and (.*)", words):
            return self.value(match[1], read) + self.value(match[2], read)
        if match := re.fullmatch(r"difference of (.*) and (.*)", words):
            return self.value(match[1], read) - self.value(match[2], read)
        return self.value(words, read)

    def needed(self) -> set[str]:
        read: set[str] = set()
        self.value(self.asked, read)
        return read

    def ops(self) -> int:
        """Operations to be done for the question, one at least for each parameter."""
        words = ("more", "times", "sum", "difference")
        return sum(
            max(1, len(self.parts[name]) - 1 if name in self.parts else sum(map(self.said[name].count, words)))
            for name in self.needed()
        )

    def right(self, name: str) -> str:
        """A parameter's line in the order of its sentence."""
        return self._line(name, *self._computed(name))

    def right_lines(self, name: str) -> set[str]:
        """All that are right: a sum in any order of its terms."""
        numbers, signs = self._computed(name)
        if {*signs} <= {"+"}:
            orders = [*itertools.permutations(numbers)]
        else:
            orders = [numbers, [numbers[1], numbers[0], *numbers[2:]] if signs[0] == "+" else numbers]
        return {self._line(name, order, signs) for order in orders}

    def _computed(self, name: str) -> tuple[list[int], list[str]]:
        """The numbers of a parameter's line, and the operations between them."""
        numbers = [self.value(other, set()) for other in self.mentioned(name)]
        signs = ["+"] * (len(numbers) - 1)
        if name in self.said:
            signs = ["-"] * self.said[name].count("difference") or signs
            for number in re.findall(r"\d+", self.said[name]):
                signs += ["*" if "times" in self.said[name] else "+"] * bool(numbers)
                numbers.append(int(number))
        return numbers, signs

    def _line(self, name: str, numbers, signs) -> str:
        total, line = numbers[0], f"{name} = {numbers[0]}"
        for sign, number in zip(signs, numbers[1:], strict=True):
            total = eval(f"({total} {sign} {number}) % {self.modulus}")
            line += f" {sign} {number} = {total}"
        return line + "\n"

    def ready(self, lines) -> list[str]:
        """What can be defined after some lines."""
        defined = [name_of(line) for line in lines]
        return [name for name in self.names if name not in defined and all(x in defined for x in self.mentioned(name))]


@dataclasses.dataclass(frozen=True)
class TwinState:
    lines: tuple[str, ...] = ()  # of the steps that remain.
    steps_done: int = 0
    chain_legal: bool = True


def name_of(line: str) -> str:
    return " ".join(line.split()[:2])


def is_done(config, reading: Reading, state: TwinState) -> bool:
    most = max(config.max_ops, config.test_ops[1]) + config.extra_steps
    return state.steps_done >= most or reading.asked in map(name_of, state.lines)


def is_legal(config, reading: Reading, state: TwinState, text: str) -> bool:
    if is_done(config, reading, state):
        return False
    if text == "BACK\n":
        return config.back and bool(state.lines)
    form = re.fullmatch(r"(\S+ \S+) = \d+( [-+*] \d+ = \d+){0,2}\n", text)
    return form is not None and form[1] in reading.ready(state.lines)


def twin_step(config, reading: Reading, state: TwinState, text: str) -> tuple[TwinState, bool, float, bool]:
    """(new state, legal, reward, done) of a step in words."""
    if is_done(config, reading, state):
        return state, False, 0.0, True
    legal, lines = is_legal(config, reading, state, text), state.lines
    if legal:
        lines = lines[:-1] if text == "BACK\n" else (*lines, text)
    new = TwinState(lines, state.steps_done + 1, state.chain_legal and legal)
    answered = legal and name_of(text) == reading.asked
    right = answered and new.chain_legal and all(line in reading.right_lines(name_of(line)) for line in lines)
    return new, legal, float(right), is_done(config, reading, new)


def text_of(task, tokens, length: int) -> str:
    """A step in words; "" where it has tokens that are none, or not so many."""
    if not 1 <= length <= len(tokens) or min(tokens[:length]) < task.vocabulary.newline:
        return ""
    return task.vocabulary.decode(tokens[:length])


def device_state(task, first: IgsmState, state: TwinState) -> IgsmState:
    """The state after some steps of a problem whose first state is `first`, numpy arrays."""
    parameter_D, line_DL = first.parameter_D.copy(), first.line_DL.copy()
    for place, line in enumerate(state.lines):
        tokens = task.vocabulary.encode(line)
        parameter_D[place] = next(i for i, name in enumerate(first.name_n2.tolist()) if name == tokens[:2])
        line_DL[place, : len(tokens)] = tokens
    return dataclasses.replace(
        first,
        parameter_D=parameter_D,
        line_DL=line_DL,
        steps_done=np.int32(state.steps_done),
        chain_legal=np.bool_(state.chain_legal),
    )


def same(one: IgsmState, other: IgsmState) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, one, other))
