"""A plain-Python twin of the serial task, written from its rules: it reads words, and multiplies matrices.

It shares nothing with the task but the words, and finds answers in other ways: permutations as matrices, powers by
`pow`, circuits by recursion from the last gate.
"""

import dataclasses
import itertools
import re

import numpy as np

from alphallm.tasks.serial.serial import SerialState


@dataclasses.dataclass(frozen=True)
class TwinState:
    chain: tuple[str, ...]  # the right lines; the last one has the answer.
    steps_done: int = 0
    chain_legal: bool = True
    chain_right: bool = True
    done: bool = False

    @property
    def reference(self) -> str:
        return self.chain[-1].split()[-1]


def twin_step(task, state: TwinState, tokens, length: int) -> tuple[TwinState, bool, float, bool]:
    """(new state, legal, reward, done) of the first `length` of `tokens`."""
    if state.done:
        return state, False, 0.0, True
    text = _text(task, tokens, length)
    answer = re.fullmatch(r"answer (\S+)\n", text)
    given = answer.group(1) if answer and is_value(task.config, answer.group(1)) else None
    legal = given is not None or (task.config.steps and is_result(task.config, text))
    steps_done = state.steps_done + 1
    most = max(task.config.max_length, task.config.max_test_length) if task.config.steps else 1
    done = given is not None or steps_done >= most
    wanted = state.chain[state.steps_done] if state.steps_done < len(state.chain) else None
    right = state.chain_right and (text == wanted or not task.config.check_steps)
    new = TwinState(state.chain, steps_done, state.chain_legal and legal, right, done)
    return new, legal, float(new.chain_legal and right and given == state.reference), done


def _text(task, tokens, length: int) -> str:
    """The step in words; "" where it has tokens that are none, or not so many."""
    if not 1 <= length <= len(tokens) or min(tokens[:length]) < task.vocabulary.newline:
        return ""
    return task.vocabulary.decode(tokens[:length])


def is_value(config, word: str) -> bool:
    if config.problem == "s5":
        return sorted(word) == list("12345")
    if config.problem == "circuit":
        return word in ("T", "F")
    modulus = 60 if config.problem == "z60" else config.modulus
    return re.fullmatch(r"0|[1-9]\d*", word) is not None and int(word) < modulus


def is_result(config, text: str) -> bool:
    """Is a line one for an intermediate result?"""
    label, _, value = text.removesuffix("\n").rpartition(" ")
    gates = [f"g{i + 1}" for i in range(max(config.max_length, config.max_test_length))]
    return text.endswith("\n") and is_value(config, value) and label in (gates if config.problem == "circuit" else [""])


def lines(config) -> set[str]:
    """All well-formed lines."""
    words = ["T", "F", *map(str, range(1000)), *map("".join, itertools.permutations("12345"))]
    values = {word for word in words if is_value(config, word)}
    labels = [f"g{i} " for i in range(1, 100)] if config.problem == "circuit" else [""]
    results = {f"{label}{value}\n" for label in labels for value in values}
    return {f"answer {value}\n" for value in values} | {x for x in results if config.steps and is_result(config, x)}


def answer_of(config, text: str) -> str:
    """The answer to a well-formed problem."""
    items = text.split(" , ")
    if config.problem == "s5":
        product = np.eye(5, dtype=int)
        for item in items:
            product = product @ np.eye(5, dtype=int)[[int(digit) - 1 for digit in item]]
        return "".join(str(digit + 1) for digit in product.argmax(1))
    if config.problem == "squaring":
        number, prime = items[0].split(" mod")
        return str(pow(int(number), 2 ** (len(items) - 1), int(prime)))
    if config.problem == "circuit":
        gates = {name: rest for name, *rest in map(str.split, items)}
        return "FT"[_output(gates, f"g{len(items)}")]
    return str(sum(map(int, items)) % (60 if config.problem == "z60" else config.modulus))


def _output(gates: dict[str, list[str]], name: str) -> bool:
    kind, *inputs = gates[name]
    given = [_output(gates, one) for one in inputs]
    return kind == "T" or (kind == "NOT" and not given[0]) or (kind == "AND" and min(given)) or (
        kind == "OR" and max(given)
    )  # fmt: skip


def length_of(config, text: str) -> int:
    return text.count(",") + (config.problem != "squaring")


def prefixes(config, text: str) -> list[str]:
    """The problems whose answers are the results of a problem, in their order."""
    items = text.split(" , ")
    return [" , ".join(items[:end]) for end in range(1 + (config.problem == "squaring"), len(items) + 1)]


def device_state(task, state: TwinState) -> SerialState:
    right_DL = np.full((task.max_steps, task.max_step), task.vocabulary.pad, np.int32)
    for row, line in zip(right_DL, map(task.vocabulary.encode, state.chain), strict=False):
        row[: len(line)] = line
    return SerialState(
        reference=np.int32(task.vocabulary.token_of[state.reference]),
        right_DL=right_DL,
        steps_done=np.int32(state.steps_done),
        chain_legal=np.bool_(state.chain_legal),
        chain_right=np.bool_(state.chain_right),
        done=np.bool_(state.done),
    )


def twin_state(task, state: SerialState) -> TwinState:
    """The state of one device state of numpy arrays."""
    chain = tuple(filter(None, map(task.vocabulary.decode, state.right_DL)))
    assert chain[-1].split()[-1] == task.vocabulary.words[int(state.reference)]
    return TwinState(chain, int(state.steps_done), bool(state.chain_legal), bool(state.chain_right), bool(state.done))
