"""A problem's parameters and its text: what is written, read back, and refused. Plain Python, host side.

A parameter is how many of a thing an owner has: "Film Daypack", the daypacks of each film studio. Owners and things are
items of neighbouring categories. An instance parameter has a sentence of its own. An abstract one, "Film Backpack", has
none: it is the sum of all things of its category that the problem gives its owner.

Whatever a parameter equals is a chain of terms, numbers or parameters, to be worked through from left to right:
"3 times sum of A and B" is A, + B, * 3.
"""

import dataclasses
import functools
import graphlib
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence

from alphallm.tasks.base import ProblemError, short

CATEGORIES = {
    "School": ("Riverview", "Central", "Lakeside", "Hilltop"),
    "Classroom": ("Film", "Dance", "Chemistry", "Painting"),
    "Backpack": ("Daypack", "Satchel", "Tote", "Rucksack"),
    "Stationery": ("Pencil", "Eraser", "Ruler", "Crayon"),
}
NAMES = tuple(CATEGORIES)
CATEGORY_OF = {item: category for category, items in CATEGORIES.items() for item in items}
NEXT = dict(itertools.pairwise(NAMES))  # the category of what the items of one category have.
MOST_THINGS = 3  # of an owner that a problem speaks of: a sum has at most two operations, as a sentence has.
MOST_LINES = math.factorial(MOST_THINGS)  # that are right for one parameter.

EQUALS, END, ASKED = "equals", ".", "?"
OUTER = {"+": "more than", "*": "times"}
INNER = {"+": "sum", "-": "difference"}
OTHER_WORDS = "equals . how many ? more than times sum difference of and".split()

Name = tuple[str, str]  # owner and thing, or owner and category.
Term = tuple[str, Name | int]  # the operation, "" of the first one, and what it is done with.

_EXAMPLE = "Film Daypack equals 5 . Film Tote equals 2 times Film Daypack . how many Film Tote ?"
_PARAMETER = r"([^\W\d_]+) ([^\W\d_]+)"
_CHAIN = re.compile(rf"(?:(\d+) (more than|times) )?(?:{_PARAMETER}|(sum|difference) of {_PARAMETER} and {_PARAMETER})")


@dataclasses.dataclass(frozen=True)
class Story:
    """A problem that can be solved: no parameter depends on itself, and none on what the problem does not speak of."""

    sentences: Mapping[Name, Sequence[Term]]  # of the instance parameters, in the order of their sentences.
    asked: Name

    @functools.cached_property
    def chains(self) -> dict[Name, Sequence[Term]]:
        """Of all parameters, instance ones first."""
        return {**self.sentences, **abstract(self.sentences)}

    @functools.cached_property
    def needs(self) -> dict[Name, set[Name]]:
        """What each parameter depends on directly."""
        return {name: operands(chain) for name, chain in self.chains.items()}

    @functools.cached_property
    def needed(self) -> set[Name]:
        """What the question depends on, itself included."""
        found, open_names = set(), [self.asked]
        while open_names:
            name = open_names.pop()
            if name not in found:
                found.add(name)
                open_names += self.needs[name]
        return found

    @property
    def ops(self) -> int:
        """Operations of the shortest solution, counted as in the paper."""
        return sum(operations(self.chains[name]) for name in self.needed)

    def ordered(self) -> list[Name]:
        """All parameters, each behind what it depends on; graphlib.CycleError where there is no such order."""
        return [*graphlib.TopologicalSorter({name: sorted(needs) for name, needs in self.needs.items()}).static_order()]

    def lines(self, modulus: int) -> dict[Name, list[str]]:
        """All right lines of each parameter, up to `MOST_LINES`: what is added up may come in any order.

        The first one keeps that of the sentence, or of the sentences.
        """
        values: dict[Name, int] = {}
        lines: dict[Name, list[str]] = {}
        for name in self.ordered():
            chain = self.chains[name]
            worked = [worked_out(name, one, values, modulus) for one in _orders(chain)]
            lines[name], values[name] = [*dict.fromkeys(line for line, _ in worked)], worked[0][1]
        return lines


def abstract(sentences: Mapping[Name, Sequence[Term]]) -> dict[Name, Sequence[Term]]:
    """The chains of the abstract parameters, the things of an owner in the order of their sentences."""
    chains: dict[Name, list[Term]] = {}
    for owner, thing in sentences:
        chain = chains.setdefault((owner, CATEGORY_OF[thing]), [])
        chain.append(("+" if chain else "", (owner, thing)))
    return {**chains}


def operands(chain: Sequence[Term]) -> set[Name]:
    return {term for _, term in chain if not isinstance(term, int)}


def operations(chain: Sequence[Term]) -> int:
    """Of one parameter: taking over a single number counts as one."""
    return max(1, len(chain) - 1)


def added_up(chain: Sequence[Term]) -> int:
    """How many terms at the beginning of a chain are added up, and may change places."""
    return len([*itertools.takewhile(lambda term: term[0] in ("", "+"), chain)])


def _orders(chain: Sequence[Term]) -> Iterator[Sequence[Term]]:
    summed = [term for _, term in chain[: added_up(chain)]]
    for order in itertools.permutations(summed):
        yield [*(("+" if i else "", term) for i, term in enumerate(order)), *chain[len(summed) :]]


def worked_out(name: Name, chain: Sequence[Term], values: Mapping[Name, int], modulus: int) -> tuple[str, int]:
    """A parameter's line, each operation followed by its result, "Film Tote = 5 * 2 = 10\\n"; and its value."""
    line, value = f"{' '.join(name)} =", 0
    for sign, term in chain:
        number = term if isinstance(term, int) else values[term]
        value = {"": number, "+": value + number, "-": value - number, "*": value * number}[sign] % modulus
        line += f" {sign} {number} = {value}" if sign else f" {number}"
    return line + "\n", value


def write(story: Story) -> str:
    """A problem's text, which `parse` reads back."""
    sentences = [f"{' '.join(name)} {EQUALS} {_write_chain(chain)} {END}" for name, chain in story.sentences.items()]
    return " ".join([*sentences, f"how many {' '.join(story.asked)} {ASKED}"])


def _write_chain(chain: Sequence[Term]) -> str:
    *inner, (sign, last) = chain
    if isinstance(last, int):
        return f"{last} {OUTER[sign]} {_write_chain(inner)}" if inner else str(last)
    (_, first), *more = chain
    assert not isinstance(first, int)
    return f"{INNER[sign]} of {' '.join(first)} and {' '.join(last)}" if more else " ".join(first)


def parse(text: str, modulus: int) -> Story:
    """The problem of a text, the spaces around its full stops being free; ProblemError where it is none."""
    *told, question = (part.strip() for part in " ".join(re.sub(r"([.?])", r" \1 ", text).split()).split(END))
    asked = re.fullmatch(rf"how many {_PARAMETER} \{ASKED}", question)
    if asked is None:
        raise ProblemError(f"{short(text)} does not end with a question: give a problem like {_EXAMPLE!r}")
    sentences: dict[Name, Sequence[Term]] = {}
    for sentence in told:
        name, chain = _read_sentence(sentence, modulus)
        if name in sentences:
            raise ProblemError(f"{' '.join(name)!r} has two sentences: give each parameter one.")
        sentences[name] = chain
    story = Story(sentences, (asked[1], asked[2]))
    _check(story)
    return story


def _read_sentence(sentence: str, modulus: int) -> tuple[Name, Sequence[Term]]:
    wrong = ProblemError(f"{short(sentence)} says of no parameter what it equals: give a problem like {_EXAMPLE!r}")
    left, there, right = sentence.partition(f" {EQUALS} ")
    name = re.fullmatch(_PARAMETER, left)
    if not there or name is None:
        raise wrong
    owner, thing = name.groups()
    if NEXT.get(CATEGORY_OF.get(owner, "")) != CATEGORY_OF.get(thing, "?"):
        had = "; ".join(f"a {owner} has a {thing}" for owner, thing in NEXT.items())
        raise ProblemError(f"{short(left)} is no parameter that a sentence can be about: {had}.")
    if re.fullmatch(r"\d+", right):
        return (owner, thing), [("", _number(right, modulus))]
    match = _CHAIN.fullmatch(right)
    if match is None:
        raise wrong
    number, outer, *single, inner, first_owner, first, second_owner, second = match.groups()
    chain: list[Term] = [("", (single[0], single[1]))]
    if inner:
        sign = next(sign for sign, word in INNER.items() if word == inner)
        chain = [("", (first_owner, first)), (sign, (second_owner, second))]
    if number:
        chain.append((next(sign for sign, word in OUTER.items() if word == outer), _number(number, modulus)))
    return (owner, thing), chain


def _number(digits: str, modulus: int) -> int:
    if digits not in map(str, range(modulus)):
        raise ProblemError(f"{short(digits)} is no number of a problem: give one from 0 to {modulus - 1}.")
    return int(digits)


def _check(story: Story) -> None:
    """ProblemError for a story that cannot be solved."""
    for owner in {owner for owner, _ in story.sentences}:
        if sum(owner == name[0] for name in story.sentences) > MOST_THINGS:
            raise ProblemError(f"{owner} has more than {MOST_THINGS} things: leave some of their sentences out.")
    known = story.chains
    for name in (story.asked, *(used for chain in story.sentences.values() for used in sorted(operands(chain)))):
        if name not in known:
            raise ProblemError(f"Nothing says how many {' '.join(name)!r} is: give a sentence for it.")
    try:
        story.ordered()
    except graphlib.CycleError as error:
        circle = " , ".join(" ".join(name) for name in error.args[1])
        raise ProblemError(f"The problem goes round in a circle, {circle}: let each depend on others alone.") from error
