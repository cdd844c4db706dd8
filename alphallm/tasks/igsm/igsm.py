"""iGSM: grade-school mathematics from random dependency graphs, in arithmetic modulo 23 (Ye, Xu, Li, Allen-Zhu 2024,
"Physics of language models: part 2.1, grade-school math and the hidden reasoning process").

A problem tells in shuffled sentences what parameters equal, and asks for one that may need only some of them:

    Film Tote equals 2 times Film Daypack . Dance Tote equals 9 . Film Daypack equals 5 . how many Film Backpack ?

A step defines one parameter, each operation followed by its result, and the chain ends with the one asked for:

    Film Daypack = 5
    Film Tote = 5 * 2 = 10
    Film Backpack = 5 + 10 = 15

Or it is BACK, which takes the last step back ("part 2.2, how to learn from mistakes on grade-school math problems", of
the same authors). A step is legal where it has this form and its parameter is one of the problem, is not defined yet,
and depends on none that is not; that its numbers and operations are right is not told. The reward is for chains that
answer and whose remaining steps are all right, operation by operation, in any order of what is added up. A right step
that the question does not need costs no reward, only one of the D steps; `Igsm.unneeded` counts them.

Simpler than the original: 16 items instead of several hundred, a sentence of at most two operations, abstract
parameters that are sums of what their owner has itself (not of what that has in turn), and values in place of letters
in solutions. Operations are counted as there: taking over a number is one. In retry data a step that is taken back is
one not needed or wrong; in the paper it is one that cannot be computed yet, which would be illegal here.
"""

import dataclasses
import math
import random
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alphallm.errors import UserError, check_range
from alphallm.tasks.base import ProblemError, Task, TaskConfig, short
from alphallm.tasks.igsm import drawing, wording
from alphallm.tasks.igsm.wording import CATEGORIES, MOST_LINES, MOST_THINGS, NAMES, NEXT, Name, Story
from alphallm.tasks.words import WordVocabulary
from alphallm.types import Problem, Transition, pytree

BACK = "BACK"

_MISSES = 3000  # attempts without a new problem after which there are taken to be no more of so many operations.
_ORDERS = 3  # of a problem's steps, that worked solutions show.


@dataclasses.dataclass(frozen=True)
class IgsmConfig(TaskConfig, names=("igsm",)):
    """Which problems, how long an answer may be, and what worked solutions show."""

    name: str = "igsm"
    # Operations of a problem's shortest solution, each as often as the others as far as there are problems: of one or
    # two operations there are few templates, and a template is in one split alone.
    min_ops: int = 2  # in training and validation.
    max_ops: int = 8
    test_ops: tuple[int, int] = (2, 12)  # the least and the most; the paper trains up to 15 or 21.
    max_sentences: int = 12  # of a problem. The more, the more that is not needed.
    modulus: int = 23
    extra_steps: int = 4  # that an answer may have beyond the most operations, for detours.
    back: bool = True  # is there the step BACK?
    # Of the steps of worked solutions, those that a mistake and BACK precede; a second time with this chance again.
    retry_rate: float = 0.0
    train_problems: int = 5000
    validation_problems: int = 300
    test_problems: int = 500
    seed: int = 0  # of the draw. (Which split a problem may be in does not depend on it.)

    def __post_init__(self):
        super().__post_init__()
        check_range(self, 1, math.inf, "min_ops", "train_problems", "validation_problems", "test_problems")
        check_range(self, 1, len(NEXT) * len(CATEGORIES[NAMES[0]]) * MOST_THINGS, "max_sentences")
        check_range(self, 2, 1000, "modulus")
        check_range(self, 0, math.inf, "extra_steps")
        check_range(self, 0, 0.9, "retry_rate")
        if self.retry_rate and not self.back:
            raise UserError(f"retry_rate is {self.retry_rate}, which needs the step BACK: set back=True.")
        for split in ("train", "test"):
            low, high = self.ops(split)
            if not 1 <= low <= high:
                raise UserError(f"{split} problems have {low} to {high} operations: give 1 or more, in this order.")

    def ops(self, split: str) -> tuple[int, int]:
        """The fewest and the most operations of a split's problems."""
        return self.test_ops if split == "test" else (self.min_ops, self.max_ops)

    @property
    def max_steps(self) -> int:
        return max(self.max_ops, self.test_ops[1]) + self.extra_steps

    def make(self) -> "Igsm":
        return Igsm(self)

    def splits(self) -> dict[str, list[str]]:
        """Problems of different splits never have the same template."""
        numbers = {"train": self.train_problems, "validation": self.validation_problems, "test": self.test_problems}
        return {split: self._draw(split, number) for split, number in numbers.items()}

    def _draw(self, split: str, number: int) -> list[str]:
        """Different problems of a split. The counts of operations take turns; one that has no more drops out."""
        generator, texts = random.Random(f"{self.seed} {split}"), dict[str, None]()
        low, high = self.ops(split)
        counts = [*range(low, high + 1)]
        while counts and len(texts) < number:
            for ops in tuple(counts):
                attempts = (self._attempt(generator, split, ops) for _ in range(_MISSES))
                text = next((text for text in attempts if text and text not in texts), None)
                if text:
                    texts[text] = None
                else:
                    counts.remove(ops)
        if len(texts) < number:
            raise UserError(
                f"After {len(texts)} of {number} {split} problems no new ones of {low} to {high} operations are found: "
                f"lower {split}_problems, or raise the operations or max_sentences."
            )
        return [*texts][:number]

    def _attempt(self, generator: random.Random, split: str, ops: int) -> str | None:
        story = drawing.draw(generator, ops, self.max_sentences, self.modulus)
        fits = story and split_of(story) == split and len(story.needed) <= self.max_steps
        return wording.write(story) if story and fits else None


def split_of(story: Story) -> str:
    """The split that a problem may be in, by its template: a tenth is for each of validation and test."""
    return {0: "test", 1: "validation"}.get(int(drawing.template(story), 16) % 10, "train")


@pytree
class IgsmState:
    """Where a chain of steps stands. Parameters are numbered, those with a sentence first, in its order."""

    name_n2: jax.Array  # int32 [n, 2]: the tokens of each parameter; the pad where there are fewer.
    needs_nn: jax.Array  # bool [n, n]: the first depends directly on the second.
    asked: jax.Array  # int32 []: the parameter that the question is about.
    reference: jax.Array  # int32 [n, r, L]: the right lines of each parameter, padded.
    parameter_D: jax.Array  # int32 [D]: what the steps that remain define, and then -1.
    line_DL: jax.Array  # int32 [D, L]: these steps, padded.
    steps_done: jax.Array  # int32 []: steps so far, illegal ones and BACK included.
    chain_legal: jax.Array  # bool []: no step so far was illegal.


class Igsm(Task):
    """The task. Attributes are static; methods say where they run."""

    max_step = 3 + 1 + 4 * (MOST_THINGS - 1) + 1  # L: "Film Tote = 5", two operations, "+ 3 = 8" each, and a newline.

    def __init__(self, config: IgsmConfig):
        super().__init__(config)
        numbers = [str(number) for number in range(config.modulus)]
        items = [item for names in CATEGORIES.values() for item in names]
        words = [*items, *NAMES[1:], *wording.OTHER_WORDS, "=", "+", "-", "*", BACK, *numbers]
        self.vocabulary = WordVocabulary(words)
        self.max_steps = config.max_steps  # D
        # Of a sentence 14 tokens at most, "A b equals 3 more than sum of C d and E f ."; the question, bos, newline.
        self.max_prompt = 14 * config.max_sentences + 7  # P
        self.num_parameters = 2 * config.max_sentences  # n: at most one abstract parameter for each sentence.
        operation = ["+ - *".split(), numbers, ["="], numbers]
        # What a line may have in each place, if it does not end before; its first two words are a parameter or not.
        form: list[list[str]] = [words, words, ["="], numbers, *operation * (MOST_THINGS - 1)]
        self._form_LV = np.zeros((self.max_step, self.vocabulary.size), bool)
        for place, allowed in enumerate(form):
            self._form_LV[place, [self.vocabulary.token_of[word] for word in allowed]] = True

    # Host side: text and numpy.

    def problem(self, text: str, index: int = 0) -> Problem:
        """The problem of a text as in the module's docstring, as numpy arrays without a batch axis; ProblemError where
        it is malformed, cannot be solved, or takes more than D steps."""
        story = self.parse(text)
        names = [*story.chains]
        number = {name: i for i, name in enumerate(names)}
        name_n2 = np.full((self.num_parameters, 2), self.vocabulary.pad, np.int32)
        needs_nn = np.zeros((self.num_parameters, self.num_parameters), bool)
        right_nrL = np.full((self.num_parameters, MOST_LINES, self.max_step), self.vocabulary.pad, np.int32)
        for name, lines in story.lines(self.config.modulus).items():
            i = number[name]
            for right_L, line in zip(right_nrL[i], lines, strict=False):
                tokens = self.vocabulary.encode(line)
                name_n2[i], right_L[: len(tokens)] = tokens[:2], tokens
            needs_nn[i, [number[other] for other in story.needs[name]]] = True
        # The fields are declared as device arrays; on the host they are NumPy's.
        state: dict[str, Any] = {
            "name_n2": name_n2,
            "needs_nn": needs_nn,
            "asked": np.int32(number[story.asked]),
            "reference": right_nrL,
            "parameter_D": np.full(self.max_steps, -1, np.int32),
            "line_DL": np.full((self.max_steps, self.max_step), self.vocabulary.pad, np.int32),
            "steps_done": np.int32(0),
            "chain_legal": np.bool_(True),
        }
        prompt = [self.vocabulary.bos, *self.vocabulary.encode(wording.write(story) + "\n")]
        return self.make_problem(prompt, IgsmState(**state), index)

    def parse(self, text: str) -> Story:
        """What a problem tells; ProblemError as in `problem`."""
        story = wording.parse(text, self.config.modulus)
        if len(story.sentences) > self.config.max_sentences:
            raise ProblemError(
                f"{short(text)} has {len(story.sentences)} sentences: this task allows {self.config.max_sentences} "
                "(max_sentences)."
            )
        if len(story.needed) > self.max_steps:
            raise ProblemError(
                f"{short(text)} takes {len(story.needed)} steps: this task allows {self.max_steps} (the most "
                "operations and extra_steps)."
            )
        return story

    def solution_texts(self, row: str) -> list[str]:
        """Shortest solutions in up to three orders, drawn at random but the same each time; with mistakes if so set."""
        story, generator = self.parse(row), random.Random(row)
        orders = dict.fromkeys(tuple(_random_order(story, generator)) for _ in range(_ORDERS))
        return ["".join(self._with_mistakes(story, order, generator)) for order in orders]

    def _with_mistakes(self, story: Story, order: tuple[Name, ...], generator: random.Random) -> list[str]:
        """The lines of a solution, some of them after a mistake and BACK, as far as D steps have room for these."""
        lines, steps, room = story.lines(self.config.modulus), list[str](), (self.max_steps - len(order)) // 2
        for i, name in enumerate(order):
            while room and generator.random() < self.config.retry_rate:
                mistakes = self._mistakes(story, lines, order[:i], generator)
                if not mistakes:
                    break
                steps += [generator.choice(mistakes), f"{BACK}\n"]
                room -= 1
            steps.append(lines[name][0])
        return steps

    def _mistakes(self, story: Story, lines: dict[Name, list[str]], done: tuple[Name, ...], generator) -> list[str]:
        """Legal steps that do not end the chain: not needed, or needed and wrong in their last number."""
        mistakes = []
        for name in _ready(story, done):
            line = lines[name][0]
            if name in story.needed:
                *words, right = line.split()
                wrong = (int(right) + generator.randrange(1, self.config.modulus)) % self.config.modulus
                line = f"{' '.join(words)} {wrong}\n"
            if name != story.asked:
                mistakes.append(line)
        return mistakes

    def unneeded(self, row: str, answer: str) -> int:
        """How many of the remaining steps of an answer in words define what the question does not depend on."""
        needed, kept = {" ".join(name) for name in self.parse(row).needed}, list[str]()
        for line in answer.splitlines():
            kept = kept[:-1] if line == BACK else [*kept, line]
        return sum(" ".join(line.split()[:2]) not in needed for line in kept)

    # Device side: pure functions of one unbatched state, to be vmapped and jitted.

    def step(self, state: IgsmState, tokens_L: jax.Array, length: jax.Array) -> Transition:
        """Verifies one step: the first `length` of `tokens_L` (int32 [L]), its newline included.

        A legal definition of the parameter asked for ends the chain, and so does step D. An illegal step counts as a
        step, leaves everything else as it was, and takes the reward from the whole chain. A step of a done state is
        illegal and changes nothing.
        """
        running = ~self._done(state)
        line_L = jnp.where(jnp.arange(self.max_step) < length, tokens_L, self.vocabulary.pad)
        defined_n = jnp.any(state.parameter_D[:, None] == jnp.arange(self.num_parameters)[None], 0)
        same_n = jnp.all(state.name_n2 == line_L[None, :2], -1)
        parameter = jnp.argmax(same_n)
        new = jnp.any(same_n) & ~defined_n[parameter] & jnp.all(defined_n | ~state.needs_nn[parameter])
        defines = running & self._is_definition(line_L, length) & new
        height = jnp.sum(state.parameter_D >= 0)
        back_L = np.full(self.max_step, self.vocabulary.pad, np.int32)
        back_L[:2] = self.vocabulary.token_of[BACK], self.vocabulary.newline
        takes_back = running & (height > 0) & (length == 2) & jnp.all(line_L == back_L) & self.config.back
        legal = defines | takes_back

        place_D = jnp.arange(self.max_steps)
        parameter_D = jnp.where(defines & (place_D == height), parameter, state.parameter_D)
        line_DL = jnp.where((defines & (place_D == height))[:, None], line_L[None], state.line_DL)
        gone_D = takes_back & (place_D == height - 1)
        after = dataclasses.replace(
            state,
            parameter_D=jnp.where(gone_D, -1, parameter_D),
            line_DL=jnp.where(gone_D[:, None], self.vocabulary.pad, line_DL),
            steps_done=state.steps_done + running,
            chain_legal=state.chain_legal & (legal | ~running),
        )
        same_Dr = jnp.all(after.line_DL[:, None] == state.reference[after.parameter_D], -1)
        right_D = (after.parameter_D < 0) | jnp.any(same_Dr, -1)
        right = defines & (parameter == state.asked) & after.chain_legal & jnp.all(right_D)
        return Transition(state=after, reward=right.astype(jnp.float32), done=self._done(after), legal=legal)

    def _done(self, state: IgsmState) -> jax.Array:
        return jnp.any(state.parameter_D == state.asked) | (state.steps_done >= self.max_steps)

    def _is_definition(self, line_L: jax.Array, length: jax.Array) -> jax.Array:
        """Has a line the form of a definition, with any parameter, operations and numbers?"""
        place_L = jnp.arange(self.max_step)
        ends_L = line_L == self.vocabulary.newline
        allowed_L = jnp.where(place_L == length - 1, ends_L, jnp.asarray(self._form_LV)[place_L, line_L])
        whole = (length >= 5) & (length <= self.max_step) & ((length - 5) % 4 == 0)
        return whole & jnp.all(allowed_L | (place_L >= length))

    def augment(self, problem: Problem, key: jax.Array) -> Problem:
        """The same unbatched problem with the items of each category renamed among themselves."""
        new_V, state = self.renaming(key), problem.state
        renamed = {name: new_V[getattr(state, name)] for name in ("name_n2", "reference", "line_DL")}
        return dataclasses.replace(
            problem, tokens_P=new_V[problem.tokens_P], state=dataclasses.replace(state, **renamed)
        )

    def renaming(self, key: jax.Array) -> jax.Array:
        """The items of each category renamed among themselves, as `augment` does it with the same key."""
        new_V = jnp.arange(self.vocabulary.size)
        for items, key_of_items in zip(CATEGORIES.values(), jax.random.split(key, len(CATEGORIES)), strict=True):
            tokens = np.array([self.vocabulary.token_of[item] for item in items])
            new_V = new_V.at[tokens].set(jax.random.permutation(key_of_items, tokens))
        return new_V


def _random_order(story: Story, generator: random.Random) -> list[Name]:
    """The needed parameters in a random order in which each can be computed; that asked for is last."""
    order: list[Name] = []
    while story.asked not in order:
        order.append(generator.choice([name for name in _ready(story, order) if name in story.needed]))
    return order


def _ready(story: Story, done) -> list[Name]:
    """What can be defined next."""
    return [name for name, needs in story.needs.items() if name not in done and needs.issubset(done)]
