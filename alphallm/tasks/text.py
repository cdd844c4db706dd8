"""Questions in words with worked solutions: GSM8K, MATH, or any JSONL. A step is a line (or what `delimiter` ends).

The task does not verify itself: the reward compares with the reference answer, and at test time the value head judges.
Where both answers are integers, compiled code compares them (`answers`); others, for `equality="math"`, a grader on the
host, which is asked about finished answers alone.
"""

import dataclasses
import functools
import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from alphallm.errors import UserError, check_range
from alphallm.tasks import answers, examples, tokenizer
from alphallm.tasks.base import ProblemError, Task, TaskConfig, short
from alphallm.tasks.calculator import Calculator
from alphallm.tasks.examples import Example
from alphallm.tasks.grader import Grader, extract
from alphallm.types import Problem, Transition, pytree

_ANNOTATION = re.compile(r"<<[^<>]*>>")  # GSM8K's calculator calls.
_BYTES_A_TOKEN = 8  # on average, at most, of a step whose answer is to be found.


@dataclasses.dataclass(frozen=True)
class TextConfig(TaskConfig, names=("gsm8k", "math", "jsonl")):
    """Which questions, in which tokens, and how long their answers may be."""

    name: str = "gsm8k"
    # The folder with train.jsonl and test.jsonl (and validation.jsonl, or a part of train.jsonl is for validation);
    # "" downloads those of gsm8k and math.
    manual_dir: str = ""
    question_field: str = "question"  # of a row of "jsonl".
    solution_field: str = "answer"  # the same; it ends in "#### ANSWER" or \boxed{ANSWER}. "": there are no solutions.
    answer_field: str = ""  # the same; "" takes what the solution ends in.
    # A folder with tokenizer.json, such as a converted model's; "" trains a byte-level BPE on the training split.
    tokenizer: str = ""
    vocabulary_size: int = 2048  # of the tokenizer that is trained.
    prompt: Literal["plain", "chat"] = "plain"  # "chat" uses the tokenizer's chat template.
    num_shots: int = 0  # worked examples in the prompt, from the training split.
    delimiter: str = "\n"  # what ends a step; "\n\n" makes steps of paragraphs.
    max_prompt_tokens: int = 192  # P
    max_step_tokens: int = 48  # L
    max_steps: int = 9  # D
    # Only problems whose reference solution has at most so many steps, its answer included; 0 takes all. (Supervised
    # training is on all of the training split.)
    max_solution_steps: int = 0
    # "integers": compiled, and right only where the reference is an integer; "math": a grader on the host for others.
    equality: Literal["integers", "math"] = "integers"
    grader_seconds: float = 5.0  # of an answer.
    # `<<48/2=` in a step is evaluated and the result forced; else the annotations are taken out of the solutions.
    calculator: bool = False

    def __post_init__(self):
        super().__post_init__()
        check_range(self, 0, math.inf, "num_shots", "max_solution_steps")
        check_range(self, 1, math.inf, "max_prompt_tokens", "max_step_tokens", "max_steps")

    def make(self) -> "TextTask":
        return TextTask(self)

    def rows(self, split: str, data_dir: str = "") -> list[Example]:
        return load_split(self, split, data_dir)

    def portable(self) -> "TextConfig":
        return dataclasses.replace(self, manual_dir="", tokenizer="")  # The tokenizer lies beside the weights.


@pytree
class TextState:
    """Where a chain of steps stands."""

    reference: answers.Text  # the answer to the question; of length 0 where it is not known.
    steps_done: jax.Array  # int32 []
    done: jax.Array  # bool []: an answer was given, or the text was ended.


class TextTask(Task):
    """The task. Attributes are static; methods say where they run."""

    def __init__(self, config: TextConfig):
        super().__init__(config)
        self.vocabulary = tokenizer_of(config)
        self.max_prompt, self.max_step = config.max_prompt_tokens, config.max_step_tokens
        self.max_steps = config.max_steps
        self.tool = Calculator(self.vocabulary) if config.calculator else None
        self._shots = _shots(config)

    # Host side: text and numpy.

    def problem(self, text: str, index: int = 0) -> Problem:
        """The problem of a question whose answer is not known; ProblemError where it is empty or too long."""
        if not text.strip():
            raise ProblemError("The question is empty: give one in words.")
        return self.load(Example(text), index)

    def load(self, example: Example, index: int) -> Problem:
        """The problem of an example, as numpy arrays without a batch axis; ProblemError where it is too long."""
        prompt = self.prompt(example.question)
        if len(prompt) > self.max_prompt:
            raise ProblemError(
                f"The prompt has {len(prompt)} tokens, and task.max_prompt_tokens is {self.max_prompt}: "
                f"{short(str(example))}"
            )
        state: dict[str, Any] = {
            "reference": answers.text_of(example.answer, answers.MOST_BYTES),
            "steps_done": np.int32(0),
            "done": np.bool_(False),
        }
        return self.make_problem(prompt, TextState(**state), index)

    def prompt(self, question: str) -> list[int]:
        """The tokens before the first step."""
        if self.config.prompt == "plain":
            shots = "".join(f"{_plain(shot.question)}{self.solution_text(shot)}\n\n" for shot in self._shots)
            return self.vocabulary.encode(shots + _plain(question), special=True)
        messages = []
        for shot in self._shots:
            messages.append({"role": "user", "content": shot.question})
            messages.append({"role": "assistant", "content": self.solution_text(shot)})
        messages.append({"role": "user", "content": question})
        return self.vocabulary.encode(self.vocabulary.chat(messages))

    def solution_text(self, example: Example) -> str:
        return example.solution if self.config.calculator else _ANNOTATION.sub("", example.solution)

    def encode_solution(self, text: str) -> list[int]:
        """The tokens of a part of a solution, as a search would have written them."""
        return self.vocabulary.encode(text) if self.tool is None else self.tool.encode(text)

    def solutions(self, example: Example, limit: int | None = None) -> list[list[list[int]]]:
        """The example's worked solution as tokens of its steps, up to the one with the answer: a list of one, or none.

        It may have more or longer steps than a search may write.
        """
        del limit
        if not example.solution:
            return []
        steps = self.vocabulary.steps([*self.encode_solution(self.solution_text(example)), self.vocabulary.eos])
        answered = [extract(self.vocabulary.decode(step)) is not None for step in steps]
        return [steps[: answered.index(True) + 1] if any(answered) else steps]

    def fault(self, example: Example) -> str:
        """Why an example can not be posed, "" if it can."""
        if len(self.prompt(example.question)) > self.max_prompt:
            return f"a prompt of more than {self.max_prompt} tokens (task.max_prompt_tokens)"
        if len(example.answer.encode()) > answers.MOST_BYTES:
            return f"an answer of more than {answers.MOST_BYTES} bytes"
        if self.config.equality == "integers" and example.answer and not answers.is_integer(example.answer):
            return "an answer that is no integer (task.equality=math grades others)"
        return ""

    # Device side: pure functions of one unbatched state, to be vmapped and jitted.

    def step(self, state: TextState, tokens_L: jax.Array, length: jax.Array) -> Transition:
        """Takes one step: the first `length` of `tokens_L`. It may be anything but empty, and ends the chain with an
        answer, with a token that ends the text, or as the D-th."""
        table = self.vocabulary
        text = answers.text_of_tokens(
            tokens_L,
            length,
            jnp.asarray(table.bytes_VW),
            jnp.asarray(table.num_bytes_V),
            _BYTES_A_TOKEN * self.max_step,
        )
        answer, answered = answers.extract(text)
        ends = jnp.any(jnp.asarray(table.ends_text_V)[tokens_L] & (jnp.arange(tokens_L.shape[0]) < length))
        running = ~state.done
        steps_done = state.steps_done + running
        done = state.done | answered | ends | (steps_done >= self.max_steps)
        right = running & answered & self._equal(answer, state.reference, running & answered)
        new_state = dataclasses.replace(state, steps_done=steps_done, done=done)
        return Transition(state=new_state, reward=right.astype(jnp.float32), done=done, legal=running & (length > 0))

    def _equal(self, given: answers.Text, reference: answers.Text, asked) -> jax.Array:
        one, other = answers.integer(given), answers.integer(reference)
        same = answers.equal_integers(one, other)
        if self.config.equality == "integers":
            return same
        asked &= ~(one.valid & other.valid) & (reference.length > 0)
        grade = functools.partial(_grade, self.config.grader_seconds)
        graded = jax.pure_callback(
            grade, jax.ShapeDtypeStruct((), bool), asked, given, reference, vmap_method="broadcast_all"
        )
        return same | graded


def load_split(config: TextConfig, split: str, data_dir: str = "") -> list[Example]:
    """The usable examples of a split in their fixed order; says what was left out, and why."""
    rows, skipped = _read(config, split, data_dir)
    told = [f"{config.name}: left out {sentence}" for sentence in skipped]
    if config.max_solution_steps:
        steps = lambda row: len([step for step in row.solution.split(config.delimiter) if step.strip()])
        rows = [row for row in rows if row.solution and steps(row) <= config.max_solution_steps]
    task = TextTask(config)
    faults = [task.fault(row) for row in rows]
    told += [
        f"{config.name}: left out {number} of {len(rows)} {split} problems for {fault}."
        for fault, number in Counter(filter(None, faults)).items()
    ]
    kept = [row for row, fault in zip(rows, faults, strict=True) if not fault]
    for sentence in told:
        logging.warning("%s", sentence)
    if not kept:
        raise UserError(f"No {split} problem of {config.name} can be used. {' '.join(told)}")
    return kept


@functools.lru_cache(maxsize=8)
def tokenizer_of(config: TextConfig) -> tokenizer.Tokenizer:
    """The task's tokenizer: the given one, or one trained on the training split."""
    if config.tokenizer:
        return tokenizer.load(config.tokenizer, config.delimiter)
    rows, _ = _read(config, "train")
    # Annotations stay in: the digits and signs in them are worth tokens in any case.
    texts = [f"{_plain(row.question)}{row.solution}" for row in rows]
    return tokenizer.train(texts, config.vocabulary_size, config.delimiter)


def _plain(question: str) -> str:
    return f"Question: {question}\nAnswer:\n"


def _shots(config: TextConfig) -> Sequence[Example]:
    return _read(config, "train")[0][: config.num_shots] if config.num_shots else []


def _read(config: TextConfig, split: str, data_dir: str = "") -> tuple[list[Example], list[str]]:
    """All rows of a split, through tensorflow-datasets, and what was left out of the files."""
    from alphallm.tasks import data
    from alphallm.tasks.worked import worked_dataset_builder as worked

    root = data.root(data_dir)
    files = examples.locate(config.name, config.manual_dir, root)
    if config.name in examples.SOURCES:
        fields = examples.SOURCES[config.name].fields
    else:
        fields = examples.Fields(config.question_field, config.solution_field, config.answer_field)
    name = f"{config.name}_{examples.fingerprint(files, fields)}"
    made = worked.WorkedConfig(name=name, description=f"{config.name}, from JSONL.", files=files, fields=fields)
    return data.read_examples(worked.Builder(config=made, data_dir=root, file_format="array_record"), split)


_graders: dict[float, Grader] = {}


def _grade(seconds: float, asked, given: answers.Text, reference: answers.Text) -> np.ndarray:
    """On the host: whether each answer that is asked about equals its reference. Leading axes may be any."""
    asked = np.asarray(asked)
    right = np.zeros(asked.shape, bool)
    if asked.any():
        grader = _graders.setdefault(seconds, Grader(seconds, processes=os.cpu_count() or 1))
        places = list(zip(*np.nonzero(asked), strict=True))
        pairs = [(_decode(given, place), _decode(reference, place)) for place in places]
        for place, verdict in zip(places, grader.grade(pairs), strict=True):
            right[place] = verdict.right
    return right


def _decode(text: answers.Text, place) -> str:
    length = int(np.asarray(text.length)[place])
    return bytes(np.asarray(text.bytes_M)[place][:length]).decode(errors="replace")
