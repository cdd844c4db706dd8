"""A problem in words and back, and PrOntoQA's own files.

every wumpus is a tumpus . tumpuses are not red . stella is a wumpus . true or false : stella is red .
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from alphallm.tasks.base import ProblemError, short

TRUE, FALSE = "true", "false"
OTHER_WORDS = "every each all is are a an not or . :".split()
EXAMPLE = "every wumpus is a tumpus . tumpuses are not red . stella is a wumpus . true or false : stella is red ."
_ASKED = " true or false : "
_HELP = f"give a problem like {EXAMPLE!r}"
_VERBS = {"every": "is", "each": "is", "": "is", "all": "are", "plural": "are"}
_SENTENCE = re.compile(r"(?:(every|each|all) )?(\S+) (is|are) (not )?(?:an? )?(\S+)")

Literal = tuple[str, bool]  # a concept or an adjective, and whether it holds.


@dataclasses.dataclass(frozen=True)
class Names:
    """What an ontology may speak of. A name has no white space: "painted lady" is written "painted-lady"."""

    ontology: str
    concepts: Mapping[str, str]  # to their plurals.
    families: Sequence[Sequence[str]]  # of adjectives: those of one exclude each other, as colours do.
    entities: Sequence[str]

    @property
    def adjectives(self) -> list[str]:
        return [adjective for family in self.families for adjective in family]

    def words(self) -> list[str]:
        """The vocabulary, each word once: some nouns are their own plurals, and some adjectives nouns."""
        nouns = [*self.concepts, *self.concepts.values()]
        return [*dict.fromkeys([TRUE, FALSE, *OTHER_WORDS, *self.entities, *nouns, *self.adjectives])]


@dataclasses.dataclass(frozen=True)
class Sentence:
    """A rule, of all things of a concept, or a statement about an entity."""

    subject: str  # a concept in the singular, or an entity.
    predicate: str  # a concept in the singular, or an adjective.
    holds: bool = True  # False says "not".
    form: str = ""  # of a rule: "every", "each", "all", or "plural", which has no word of its own.

    @property
    def literal(self) -> Literal:
        return self.predicate, self.holds

    def write(self, names: Names) -> str:
        plural = _VERBS[self.form] == "are"
        number = (lambda noun: names.concepts[noun]) if plural else (lambda noun: noun)
        predicate = self.predicate
        if predicate in names.concepts:
            predicate = number(predicate) if plural else f"{article(predicate)} {predicate}"
        words = ("" if self.form == "plural" else self.form, number(self.subject), _VERBS[self.form])
        return " ".join(word for word in (*words, "" if self.holds else "not", predicate, ".") if word)


def article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


@dataclasses.dataclass(frozen=True)
class Question:
    """A problem: premises in their order, and a statement that is true or false."""

    premises: Sequence[Sentence]
    query: Sentence

    @property
    def facts(self) -> list[Sentence]:
        return [premise for premise in self.premises if not premise.form]

    @property
    def rules(self) -> list[Sentence]:
        return [premise for premise in self.premises if premise.form]

    def write(self, names: Names) -> str:
        premises = " ".join(premise.write(names) for premise in self.premises)
        return f"{premises}{_ASKED}{self.query.write(names)}"

    def key(self) -> str:
        """What problems are told apart by: not by wording, order of premises, entity, or what the right answer is."""
        rules = sorted({(rule.subject, *rule.literal) for rule in self.rules})
        return repr((rules, sorted({fact.literal for fact in self.facts}), self.query.predicate))

    def shortest_proof(self, literal: Literal) -> list[Literal] | None:
        """What is derived, one after the other, up to `literal`, which may be given; None where it does not follow."""
        follows: dict[str, list[Literal]] = {}
        for rule in self.rules:
            follows.setdefault(rule.subject, []).append(rule.literal)
        proofs: dict[Literal, list[Literal]] = {fact.literal: [] for fact in self.facts}
        for known in (queue := [*proofs]):  # A list that grows while it is gone through: the nearest come first.
            for new in follows.get(known[0], []) if known[1] else []:
                if new not in proofs:
                    proofs[new] = [*proofs[known], new]
                    queue.append(new)
        return proofs.get(literal)

    def solve(self) -> tuple[bool, list[Literal]]:
        """Whether the query is true, and a shortest proof of it or of its negation.

        ProblemError, whose text goes on after "The problem ...", where neither follows, both do, or one is given.
        """
        predicate, holds = self.query.literal
        proofs = {value: self.shortest_proof((predicate, value == holds)) for value in (True, False)}
        found = {value: proof for value, proof in proofs.items() if proof is not None}
        if not found:
            raise ProblemError("has no answer: neither what it asks nor the opposite follows from its premises.")
        if len(found) == 2:
            raise ProblemError("has no answer: both what it asks and the opposite follow from its premises.")
        ((value, proof),) = found.items()
        if not proof:
            raise ProblemError("gives what it asks: ask what takes a rule to derive.")
        return value, proof


def parse(text: str, names: Names) -> Question:
    """The problem of a text; ProblemError where it is malformed. Whether it has an answer is not looked at.

    Capitals and the space before punctuation are free, and so are articles.
    """
    spaced = " ".join(re.sub(r"([.:?])", r" \1 ", text.lower()).split())
    for name in (name for pair in names.concepts.items() for name in pair if "-" in name):
        spaced = re.sub(rf"\b{name.replace('-', ' ')}\b", name, spaced)
    premises, there, query = f" {spaced}".partition(_ASKED)
    if not there or not premises.strip(" ."):
        raise ProblemError(f"The problem {short(text)} has no premises before 'true or false :': {_HELP}")
    question = Question(
        [_read(sentence, names) for sentence in premises.strip(" .").split(" . ")],
        _read(query.strip(" .?"), names),
    )
    entities = {sentence.subject for sentence in (*question.facts, question.query)}
    if question.query.form or not question.facts or len(entities) > 1:
        raise ProblemError(f"The problem {short(text)} is not about one that its premises speak of: {_HELP}")
    return question


def _read(text: str, names: Names) -> Sentence:
    match = _SENTENCE.fullmatch(text)
    if match is None:
        raise ProblemError(f"{short(text)} is no sentence of this task: {_HELP}")
    form, subject, verb, negated, predicate = match.groups()
    singular = {plural: noun for noun, plural in names.concepts.items()}
    if verb == "are":
        form, subject, predicate = form or "plural", singular.get(subject, "?"), singular.get(predicate, predicate)
    known_subject = names.concepts if form else names.entities
    if subject not in known_subject or _VERBS[form or ""] != verb:
        raise ProblemError(f"{short(text)} speaks of nothing that this task knows ({names.ontology} names): {_HELP}")
    if predicate not in names.concepts and predicate not in names.adjectives:
        raise ProblemError(f"{short(text)} says nothing that this task knows ({names.ontology} names): {_HELP}")
    return Sentence(subject, predicate, not negated, form or "")


def from_file(text: str) -> str:
    """The problem of PrOntoQA's JSON: of its first example, where there are several."""
    wanted = "give PrOntoQA's own JSON, whose examples have a 'question' and a 'query'"
    try:
        example: Any = json.loads(text)
    except ValueError as error:
        raise ProblemError(f"The file is no JSON ({error}): {wanted}.") from error
    for _ in range(3):  # {"example1": {"test_example": {"question": …, …}}}, or what is inside.
        if isinstance(example, dict) and "question" not in example and example:
            example = example.get("test_example", next(iter(example.values())))
    if not isinstance(example, dict) or not all(isinstance(example.get(x), str) for x in ("question", "query")):
        raise ProblemError(f"The file has no example that could be read: {wanted}.")
    return f"{example['question']} {example['query']}"
