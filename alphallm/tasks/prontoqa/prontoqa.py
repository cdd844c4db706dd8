"""PrOntoQA: proofs by deduction in ontologies made up for each problem.

Saparov and He 2023, "Language models are greedy reasoners: a systematic formal analysis of chain-of-thought".

The prompt has rules and a fact, in any order, and asks whether a statement is true or false. A step is a sentence that
follows by one modus ponens from a rule and what is known, "stella is a tumpus .", and the last step is "true" or
"false". Both of these are legal at any time, and end the problem. The reward is for the right one, after the statement
or its negation was derived and every step was legal: for the answer and its proof, not for a guess.

Whether a step follows can be seen from the prompt, and so `legal` says it; what the right answer is decides the reward
alone. (Who checks a whole proof knows the answer, but nothing that is listed or marked as legal gives it away.)
"""

import dataclasses
import difflib
import hashlib
import math
import random
from collections import deque
from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from alphallm.errors import UserError, check_range
from alphallm.tasks.base import ProblemError, Task, TaskConfig, find_step, short
from alphallm.tasks.prontoqa import ontologies, wording
from alphallm.tasks.prontoqa.wording import FALSE, TRUE, Question
from alphallm.tasks.words import WordVocabulary
from alphallm.types import Problem, Steps, Transition, pytree

_MISSES = 5000  # draws without a new problem after which there are taken to be no more.
_NONE = -1

_Ontology = Literal["fictional", "true"]
_Distractors = Literal["none", "relevant", "branches"]


@dataclasses.dataclass(frozen=True)
class ProntoqaConfig(TaskConfig, names=("prontoqa",)):
    """Which problems, and how long a proof may be."""

    name: str = "prontoqa"
    ontology: _Ontology = "fictional"
    # Rules of a problem's shortest proof, as in the paper; the lengths take turns.
    hops: tuple[int, ...] = (1, 2, 3, 4, 5)  # of training and validation problems.
    test_hops: tuple[int, ...] = ()  # of test problems; () takes the same.
    # "relevant": a rule by which another concept has the opposite of what is asked, as in the paper. "branches": one or
    # two concepts of the proof have besides a second parent, which leads nowhere.
    distractors: _Distractors = "branches"
    max_steps: int = 8  # D: a proof, its answer, and what may be derived in vain.
    max_premises: int = 24  # of a prompt.
    num_train: int = 10_000  # at most, as the two below: the true ontology has fewer problems.
    num_validation: int = 500
    num_test: int = 500
    seed: int = 0  # of the draw. (Which split a problem may be in does not depend on it.)

    def __post_init__(self):
        super().__post_init__()
        for field, known in (("ontology", get_args(_Ontology)), ("distractors", get_args(_Distractors))):
            value = getattr(self, field)
            if value not in known:
                nearest = difflib.get_close_matches(str(value), known, n=1, cutoff=0.0)[0]
                raise UserError(f"Unknown {field} {value!r}: did you mean {nearest!r}? Known are {', '.join(known)}.")
        if self.distractors == "branches" and self.ontology == "true":
            raise UserError("The true ontology has no branches: give distractors=relevant or distractors=none.")
        check_range(self, 2, math.inf, "max_steps")
        check_range(self, 1, math.inf, "num_train", "num_validation", "num_test")
        most = min(self.max_steps - 1, ontologies.MOST_HOPS[self.ontology])
        if not self.hops or not all(1 <= hops <= most for hops in (*self.hops, *self.test_hops)):
            raise UserError(
                f"hops are {self.hops} and test_hops {self.test_hops}: give numbers from 1 to {most}, the most that "
                f"the {self.ontology} ontology has and that {self.max_steps} steps (max_steps) with the answer allow."
            )
        premises = ontologies.most_premises(self.ontology, max(*self.hops, *self.test_hops, 0), self.distractors)
        if self.max_premises < premises:
            raise UserError(f"max_premises is {self.max_premises}: so many hops need {premises} or more.")

    def make(self) -> "Prontoqa":
        return Prontoqa(self)

    def splits(self) -> dict[str, list[str]]:
        """Problems that differ in more than wording, the order of their premises, whom they are about, and "not"."""
        return {
            "train": self._draw("train", self.num_train, self.hops),
            "validation": self._draw("validation", self.num_validation, self.hops),
            "test": self._draw("test", self.num_test, self.test_hops or self.hops),
        }

    def _draw(self, split: str, number: int, lengths: Sequence[int]) -> list[str]:
        """Different problems of a split, the lengths taking turns as long as there are new ones of them."""
        generator, names = random.Random(f"{self.seed} {split}"), ontologies.NAMES[self.ontology]
        left, texts = deque(lengths), dict[str, str]()
        while left and len(texts) < number:
            for _ in range(_MISSES):
                question = ontologies.draw(generator, self.ontology, left[0], self.distractors)
                key = question.key()
                if key not in texts and split_of(key) == split:
                    texts[key] = question.write(names)
                    left.rotate(-1)
                    break
            else:
                left.popleft()
        if not texts:
            raise UserError(f"There are no {split} problems of {self}: allow other hops or another ontology.")
        return list(texts.values())


def split_of(key: str) -> str:
    """The split that a problem may be in, by a hash of its key: a tenth is for each of validation and test."""
    tenth = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 10
    return {0: "test", 1: "validation"}.get(tenth, "train")


@pytree
class ProntoqaState:
    """Where a proof stands. A literal is twice the number of a predicate, and one more where that does not hold.

    Predicates are numbered concepts first, then adjectives.
    """

    subject_r: jax.Array  # int32 [r]: the concept that a rule speaks of; -1 past the last rule.
    literal_r: jax.Array  # int32 [r]: what follows of it.
    known_q: jax.Array  # bool [q]: the literals that are given or derived.
    entity: jax.Array  # int32 []: the token of whom the problem is about.
    query: jax.Array  # int32 []: the literal that is asked.
    reference: jax.Array  # int32 []: the token of the right answer.
    steps_done: jax.Array  # int32 []: steps so far, illegal ones included.
    chain_legal: jax.Array  # bool []: no step so far was illegal.
    done: jax.Array  # bool []: an answer was given, or D steps.


class Prontoqa(Task):
    """The task. Attributes are static, methods say where they run."""

    max_step = 7  # L: "stella is not a wumpus ." and a newline.

    def __init__(self, config: ProntoqaConfig):
        super().__init__(config)
        self._names = names = ontologies.NAMES[config.ontology]
        self.vocabulary = WordVocabulary(names.words())
        self.max_steps = config.max_steps  # D
        self._rules = config.max_premises - 1  # r: one premise, at least, is a fact.
        # P: a premise has six words, and few have seven; the question ten, and there are the start and the newline.
        self.max_prompt = 6 * config.max_premises + 12
        self.max_legal_steps = self.max_later_steps = self._rules + 2  # A: of each rule one, "true" and "false".
        token = self.vocabulary.token_of
        self._predicates = [*names.concepts, *names.adjectives]
        self._number = {predicate: number for number, predicate in enumerate(self._predicates)}
        self._answers = [token[TRUE], token[FALSE]]
        # Tokens of predicates and of plurals, and of the article before a noun, which is pad before other words.
        self._predicate_tokens = np.array([token[word] for word in self._predicates], np.int32)
        self._plural_tokens = np.array([token[word] for word in names.concepts.values()], np.int32)
        self._entity_tokens = np.array([token[word] for word in names.entities], np.int32)
        self._articles = np.full(self.vocabulary.size, self.vocabulary.pad, np.int32)
        for noun in names.concepts:
            self._articles[token[noun]] = token[wording.article(noun)]
        self._families = np.repeat(np.arange(len(names.families)), [len(family) for family in names.families])
        self._written, self._lengths = self._write_literals()

    def _write_literals(self) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of a statement of each literal, int32 [q, L], about one entity, and how many, int32 [q]."""
        sentences = [
            wording.Sentence(self._names.entities[0], predicate, holds).write(self._names) + "\n"
            for predicate in self._predicates
            for holds in (True, False)
        ]
        tokens = [self.vocabulary.encode(sentence) for sentence in sentences]
        padded = [[*row, *[self.vocabulary.pad] * (self.max_step - len(row))] for row in tokens]
        return np.array(padded, np.int32), np.array([len(row) for row in tokens], np.int32)

    # Host side: text and numpy.

    def problem(self, text: str, index: int = 0) -> Problem:
        """The problem of a text as `wording.parse` takes it, as numpy arrays without a batch axis.

        Raises ProblemError where the text is malformed, or has no answer or no proof of one that D steps have room for.
        """
        question = wording.parse(text, self._names)
        if len(question.premises) > self._rules + 1:
            raise ProblemError(
                f"The problem {short(text)} has {len(question.premises)} premises: this task allows "
                f"{self._rules + 1} (max_premises)."
            )
        value, _ = self._solve(question, text)
        literals = [self._literal(rule) for rule in question.rules]
        missing = [_NONE] * (self._rules - len(literals))
        known = np.zeros(2 * len(self._predicates), bool)
        known[[self._literal(fact) for fact in question.facts]] = True
        # The fields are declared as device arrays; on the host they are NumPy's.
        fields: dict[str, Any] = {
            "subject_r": np.array([*(self._number[rule.subject] for rule in question.rules), *missing], np.int32),
            "literal_r": np.array([*literals, *missing], np.int32),
            "known_q": known,
            "entity": np.int32(self.vocabulary.token_of[question.query.subject]),
            "query": np.int32(self._literal(question.query)),
            "reference": np.int32(self._answers[not value]),
            "steps_done": np.int32(0),
            "chain_legal": np.bool_(True),
            "done": np.bool_(False),
        }
        prompt = [self.vocabulary.bos, *self.vocabulary.encode(question.write(self._names) + "\n")]
        return self.make_problem(prompt, ProntoqaState(**fields), index)

    def _solve(self, question: Question, text: str) -> tuple[bool, list[wording.Literal]]:
        try:
            value, proof = question.solve()
        except ProblemError as error:
            raise ProblemError(f"The problem {short(text)} {error}") from error
        if len(proof) >= self.max_steps:
            raise ProblemError(
                f"The shortest proof of {short(text)} has {len(proof)} steps: with the answer, this task allows "
                f"{self.max_steps} (max_steps)."
            )
        return value, proof

    def _literal(self, sentence: wording.Sentence) -> int:
        return 2 * self._number[sentence.predicate] + (not sentence.holds)

    def from_file(self, text: str) -> str:
        """The problem's text of PrOntoQA's JSON; ProblemError where it is malformed."""
        return wording.parse(wording.from_file(text), self._names).write(self._names)

    def solution_texts(self, row: str) -> list[str]:
        """A shortest proof, and the answer."""
        question = wording.parse(row, self._names)
        value, proof = self._solve(question, row)
        sentences = [wording.Sentence(question.query.subject, *literal).write(self._names) for literal in proof]
        return ["".join(f"{line}\n" for line in (*sentences, TRUE if value else FALSE))]

    # Device side: pure functions of one unbatched state, to be vmapped and jitted.

    def step(self, state: ProntoqaState, tokens_L: jax.Array, length: jax.Array) -> Transition:
        """Verifies one step: the first `length` of `tokens_L` (int32 [L]), its newline included.

        An illegal step derives nothing, counts as a step, and takes the reward from the whole proof. The problem is
        done with an answer, and after D steps; a step of a done state is illegal, earns nothing and changes nothing.
        """
        if tokens_L.shape != (self.max_step,):
            raise ValueError(f"tokens_L has shape {tokens_L.shape}, expected {(self.max_step,)}: vmap over a batch.")
        running = ~state.done
        chosen, legal = find_step(self.legal_steps(state), tokens_L, length)
        answered = legal & (chosen >= self._rules)
        literal = jnp.where(legal & ~answered, state.literal_r[jnp.minimum(chosen, self._rules - 1)], _NONE)
        steps_done = state.steps_done + running
        new_state = dataclasses.replace(
            state,
            known_q=state.known_q | (jnp.arange(state.known_q.shape[0]) == literal),
            steps_done=steps_done,
            chain_legal=state.chain_legal & (legal | ~running),
            done=state.done | answered | (steps_done >= self.max_steps),
        )
        proved = state.known_q[state.query] | state.known_q[state.query ^ 1]
        right = answered & new_state.chain_legal & proved & (tokens_L[0] == state.reference)
        return Transition(state=new_state, reward=right.astype(jnp.float32), done=new_state.done, legal=legal)

    def legal_steps(self, state: ProntoqaState) -> Steps:
        """What follows by each rule, in its place in the list, then both answers. A done state has none."""
        literal_r = jnp.maximum(state.literal_r, 0)
        follows_r = (state.subject_r != _NONE) & state.known_q[2 * jnp.maximum(state.subject_r, 0)]
        follows_r &= ~state.known_q[literal_r]
        rule_r = jnp.arange(self._rules)
        same_rr = (literal_r[:, None] == literal_r[None]) & follows_r[None] & (rule_r[None] < rule_r[:, None])
        valid_r = follows_r & ~jnp.any(same_rr, -1)  # the first of several rules by which the same follows.
        derived_rL = jnp.asarray(self._written)[literal_r].at[:, 0].set(state.entity)
        answers_2L = np.full((2, self.max_step), self.vocabulary.pad, np.int32)
        answers_2L[:, :2] = [[answer, self.vocabulary.newline] for answer in self._answers]
        valid_A = jnp.concatenate([valid_r, np.ones(2, bool)]) & ~state.done
        tokens_AL = jnp.concatenate([derived_rL, answers_2L])
        length_A = jnp.concatenate([jnp.asarray(self._lengths)[literal_r], np.full(2, 2, np.int32)])
        return Steps(
            tokens_AL=jnp.where(valid_A[:, None], tokens_AL, self.vocabulary.pad),
            length_A=jnp.where(valid_A, length_A, 0),
            valid_A=valid_A,
        )

    def augment(self, problem: Problem, key: jax.Array) -> Problem:
        """The same unbatched problem about another entity, its premises in another order and, if fictional, with the
        names of concepts permuted, and those of adjectives within their families.
        """
        concepts, adjectives, entity_key, order = jax.random.split(key, 4)
        state, fictional = problem.state, self.config.ontology == "fictional"
        size = len(self._plural_tokens)
        new_n = jnp.arange(len(self._predicates))  # of each predicate, what it is called from now on.
        if fictional:
            within = _permutation_within(self._families, adjectives)
            new_n = jnp.concatenate([jax.random.permutation(concepts, size), size + within])
        same_kind = self._entities_like(state.entity)
        entity = jax.random.choice(entity_key, jnp.asarray(self._entity_tokens), p=same_kind / jnp.sum(same_kind))

        token_V = jnp.arange(self.vocabulary.size)
        if fictional:
            token_V = token_V.at[self._predicate_tokens].set(jnp.asarray(self._predicate_tokens)[new_n])
            token_V = token_V.at[self._plural_tokens].set(jnp.asarray(self._plural_tokens)[new_n[:size]])
        tokens_P = self._reordered(token_V.at[state.entity].set(entity)[problem.tokens_P], problem.length, order)
        article_P = jnp.append(jnp.asarray(self._articles)[tokens_P[1:]], self.vocabulary.pad)
        tokens_P = jnp.where(article_P != self.vocabulary.pad, self._with_article(tokens_P, article_P), tokens_P)

        new_q = jnp.stack([2 * new_n, 2 * new_n + 1], -1).reshape(-1)
        new_state = dataclasses.replace(
            state,
            subject_r=jnp.where(state.subject_r == _NONE, _NONE, new_n[state.subject_r]),
            literal_r=jnp.where(state.literal_r == _NONE, _NONE, new_q[state.literal_r]),
            known_q=jnp.zeros_like(state.known_q).at[new_q].set(state.known_q),
            entity=entity,
            query=new_q[state.query],
        )
        return dataclasses.replace(problem, tokens_P=tokens_P, state=new_state)

    def renaming(self, key: jax.Array) -> jax.Array:
        """Entities permuted and, as in `augment`, names of concepts and adjectives; concepts among those with the same
        article, because that stands before them. No other names in the true ontology, where they mean something.
        """
        token_V = jnp.arange(self.vocabulary.size)
        if self.config.ontology != "fictional":
            return token_V
        entities, predicates = jax.random.split(key)
        size = len(self._plural_tokens)
        articles = self._articles[self._predicate_tokens[:size]]
        new_n = _permutation_within(np.append(articles, self._families + self.vocabulary.size), predicates)
        for old, new in (
            (self._entity_tokens, jax.random.permutation(entities, self._entity_tokens)),
            (self._predicate_tokens, jnp.asarray(self._predicate_tokens)[new_n]),
            (self._plural_tokens, jnp.asarray(self._plural_tokens)[new_n[:size]]),
        ):
            token_V = token_V.at[old].set(new)
        return token_V

    def _entities_like(self, entity: jax.Array) -> jax.Array:
        """float32: 1 for each entity that is a number as this one is, or a person as this one is."""
        number_e = np.array([name.isdigit() for name in self._names.entities])
        is_number = jnp.any(number_e & (jnp.asarray(self._entity_tokens) == entity))
        return (number_e == is_number).astype(jnp.float32)

    def _with_article(self, tokens_P: jax.Array, article_P: jax.Array) -> jax.Array:
        """Articles as the noun behind them wants them; other words before a noun stay."""
        a, an = (self.vocabulary.token_of[word] for word in ("a", "an"))
        return jnp.where((tokens_P == a) | (tokens_P == an), article_P, tokens_P)

    def _reordered(self, tokens_P: jax.Array, length: jax.Array, key: jax.Array) -> jax.Array:
        """The prompt with its premises, which end with a full stop each, in a random order."""
        position_P = jnp.arange(self.max_prompt)
        stop_P = tokens_P == self.vocabulary.token_of["."]
        sentence_P = jnp.cumsum(stop_P) - stop_P  # of a premise its number; the question is the last one.
        question_P = sentence_P >= jnp.sum(stop_P) - 1
        place_P = jax.random.permutation(key, self.max_prompt)[sentence_P]
        place_P = jnp.where(question_P | (position_P >= length), self.max_prompt, place_P)
        place_P = jnp.where(position_P == 0, _NONE, place_P)  # the start token.
        return tokens_P[jnp.argsort(place_P, stable=True)]


def _permutation_within(group_n: np.ndarray, key: jax.Array) -> jax.Array:
    """A random permutation that leaves every index in its group, uniform within the groups."""
    by_group = np.argsort(group_n, kind="stable")
    shuffled = jnp.argsort(group_n + jax.random.uniform(key, group_n.shape))
    return jnp.zeros(len(group_n), jnp.int32).at[by_group].set(shuffled)
